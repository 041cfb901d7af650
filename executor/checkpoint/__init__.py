"""Making checkpoints to run: random ones, and mixtures of experts out of dense models. Needs torch."""

from executor.checkpoint.making import dense, synth, synth_like, upcycle

__all__ = ["dense", "synth", "synth_like", "upcycle"]
