"""What CGOPipe is measured against (paper §4.1, Fig. 6): each leaves out something that CGOPipe has.

In all of them a layer's streamed weights cross in one piece, while the layer before computes: one page, or where some
lie on disk all of a layer's pages one behind the other.
"""

from __future__ import annotations

from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.schedule.pipeline import pipeline
from hrm.schedule.task import IN_FLIGHT, Schedule

__all__ = ["kv_transfer", "layerwise", "serial", "unpaged"]


def unpaged(policy: Policy, model: ModelSpec) -> Schedule:
    """Order the tasks as CGOPipe does (S2); hidden states wait until a whole layer's weights have crossed."""
    return pipeline(policy, model, look_ahead=IN_FLIGHT)


def serial(policy: Policy, model: ModelSpec) -> Schedule:
    """Let the GPU wait for each micro-batch's CPU attention (S3, FlexGen with CPU compute)."""
    return pipeline(policy, model, look_ahead=0)


def kv_transfer(policy: Policy, model: ModelSpec) -> Schedule:
    """Attend on the GPU; the next micro-batch's KV cache comes up while one computes (S4, FlexGen).

    With the whole cache on the GPU nothing comes up.
    """
    return pipeline(policy, model, look_ahead=0)


def layerwise(policy: Policy, model: ModelSpec) -> Schedule:
    """Do everything on the GPU, the KV cache there too; only weights are streamed (ZeRO-Inference)."""
    return pipeline(policy, model, look_ahead=0)
