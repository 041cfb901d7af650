"""Draws the pictures beside it: two layers of a decode pass in steady state, under each schedule.

    python docs/schedules/draw.py

Mixtral 8x7B on one machine and one job for all, so that the pictures can be laid side by side.
"""

from __future__ import annotations

from pathlib import Path

import hrm
from hrm.pass_costs import pass_costs
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.schedule.catalog import build_schedule
from hrm.schedule.simulator import PassLoad
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.schedule.timeline import Timeline, simulate_timeline
from hrm.views.gantt import draw_gantt

FOLDER = Path(__file__).resolve().parent
CPU, GPU = hrm.Processor.CPU, hrm.Processor.GPU
FIRST_LAYER, LAYERS = 15, 2
NAMES = {
    "cgopipe": "CGOPipe: CPU attention looks ahead, weights cross page by page",
    "unpaged": "Unpaged: as CGOPipe, a layer's weights crossing in one piece",
    "serial": "Serial: the GPU waits for each micro-batch's CPU attention",
    "kv-transfer": "KV transfer: attention on the GPU, the KV cache comes up",
    "layerwise": "Layer-wise: everything on the GPU but the streamed weights",
    "split": "CGOPipe with 1 of 8 experts computed by the CPU",
    "host": "Host: everything on the CPU",
}


def policy(name: str) -> hrm.Policy:
    """Return the policy of a picture."""
    schedule = hrm.ScheduleName("cgopipe" if name == "split" else name)
    attention = GPU if name in ("kv-transfer", "layerwise") else CPU
    return hrm.Policy(
        batch_size=1024,
        micro_batch_size=128,
        attention_device=attention,
        ffn_device=CPU if name == "host" else GPU,
        resident_experts=0,
        cpu_experts=1 if name == "split" else 0,
        kv_on_gpu=float(name == "layerwise"),
        schedule=schedule,
        weight_dtype=hrm.DType.FLOAT16,
        kv_dtype=hrm.DType.FLOAT16,
    )


def timeline(name: str, model: hrm.ModelSpec, machine: hrm.HardwareProfile) -> Timeline:
    """Simulate prefill and one decode pass, and cut out the layers that are drawn."""
    chosen, rates = policy(name), Rates(hardware=machine, measured=True)
    job = hrm.Workload(mean_prompt_len=1500.0, max_prompt_len=1500, gen_len=32)
    costs = [
        pass_costs(PolicyGrid.of(chosen), model, rates, job, Phase.PREFILL),
        pass_costs(PolicyGrid.of(chosen), model, rates, job, Phase.DECODE, 16.0),
    ]
    loads = [PassLoad(phase=one.phase, work_of=one.work_of) for one in costs]
    whole = simulate_timeline(build_schedule(chosen, model), loads, rates.shared)
    starts = {
        timed.task.layer: timed.start_s
        for timed in whole.of_lane(Lane.CPU if name == "host" else Lane.GPU)
        if timed.pass_index == 1 and timed.task.part == 0 and timed.task.kind is TaskKind.POST_ATTENTION
    }
    return whole.between(starts[FIRST_LAYER], starts[FIRST_LAYER + LAYERS])


def main() -> None:
    """Draw all pictures."""
    model, machine = hrm.load_model("mixtral-8x7b"), hrm.load_profile("gcp-g2-l4")
    conditions = (
        f"{model.name} on {machine.label}, decode, N = 1,024, μ = 128, context 1,516, fp16; {LAYERS} of 32 layers"
    )
    for name, title in NAMES.items():
        note = " (for this job its KV cache would not fit)" if name == "layerwise" else ""
        draw_gantt(timeline(name, model, machine), FOLDER / f"{name}.png", title, conditions + note)


if __name__ == "__main__":
    main()
