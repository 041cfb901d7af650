"""`hrm demo`: profile, solve, run and compare on this machine, in a folder that holds every file made."""

from __future__ import annotations

import json
import random
import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]

DIMENSIONS = "--layers 8 --hidden-size 768 --intermediate-size 1536 --query-heads 12 --kv-heads 4 --experts 8 --top-k 2"
NUM_PROMPTS = 96
PROMPT_LENS = (16, 24, 32, 48, 64, 96)
MEMORY_SHARE = 0.6
"""Share of the demo model's weights that the emulated device can hold: a model that does not fit is the point."""

Folder = Annotated[Path | None, typer.Option("--folder", help="Where to keep the files; default a new folder.")]
GenLen = Annotated[int, typer.Option("--gen-len", min=2, help="Tokens to generate per sequence.")]


def demo(context: typer.Context, folder: Folder = None, gen_len: GenLen = 24) -> None:
    """Profile an emulated device, solve for a model that does not fit it, run the plan and compare: a few minutes."""
    where = (folder or Path(tempfile.mkdtemp(prefix="hrm-demo-"))).resolve()
    where.mkdir(parents=True, exist_ok=True)
    steps = _steps(where, gen_len)
    for number, (title, command) in enumerate(steps, start=1):
        typer.echo(f"\n{number}/{len(steps)} {title}\n$ {command}")
        arguments = shlex.split(command)[1:]
        if code := context.find_root().command.main(arguments, prog_name="hrm", standalone_mode=False):
            raise typer.Exit(code)
        if number == 1:
            _write_prompts(where / "prompts.jsonl")
            _write_device(where / "device.yaml", where / "model")
    typer.echo(f"\nEvery file is in {where}. The device was emulated: its pace was imposed. To repeat a step:")
    for _, command in steps:
        typer.echo(f"  {command}")


def _steps(where: Path, gen_len: int) -> list[tuple[str, str]]:
    """Return each step's title and the command that does it, as typed in a shell."""
    model, machine, plan, prompts, report = (
        shlex.quote(str(where / name)) for name in ("model", "machine.yaml", "plan.yaml", "prompts.jsonl", "run.json")
    )
    device, picture, output = (
        shlex.quote(str(where / name)) for name in ("device.yaml", "roofline.png", "completions.jsonl")
    )
    planned = f"--model {model} --hardware {machine}"
    job = f"--prompts {prompts} --tokenizer {model} --gen-len {gen_len}"
    return [
        ("make a checkpoint of random weights", f"hrm checkpoint synth {model} {DIMENSIONS}"),
        (
            "profile this machine and the emulated device",
            f"hrm profile --device emulated:{device} --quick -o {machine}",
        ),
        ("draw the roofline", f"hrm roofline {planned} --batch-size 96 --micro-batch-size 24 -o {picture}"),
        ("solve for the best policy", f"hrm solve {planned} {job} -o {plan}"),
        (
            "run the plan; predicted beside measured",
            f"hrm run {plan} --checkpoint {model} --prompts {prompts} -o {output} --report {report}",
        ),
    ]


def _write_prompts(path: Path) -> None:
    from hrm.files import atomic_writer

    draw = random.Random(0)
    with atomic_writer(path) as stream:
        for number in range(NUM_PROMPTS):
            length = PROMPT_LENS[number % len(PROMPT_LENS)]
            tokens = [draw.randrange(4096) for _ in range(length)]
            stream.write(json.dumps({"id": f"demo-{number}", "tokens": tokens}) + "\n")


def _write_device(path: Path, checkpoint: Path) -> None:
    """Pose a device too small for the model, on a link that keeps two lanes busy."""
    from hrm.files import write_yaml
    from hrm.hardware import EmulatedSpec
    from hrm.model_config import load_model

    model = load_model(checkpoint)
    weights_bytes = int(model.total_parameters * model.dtype.bytes_per_element)
    spec = EmulatedSpec(
        name="demo-device",
        description=f"A device with memory for {MEMORY_SHARE:.0%} of the demo model's weights",
        memory_capacity_bytes=int(MEMORY_SHARE * weights_bytes),
        h2d_bytes_per_s=4e8,
        d2h_bytes_per_s=4e8,
        host_slowdown=4.0,
    )
    write_yaml(path, spec)
