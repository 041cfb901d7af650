"""Problems for the tests of the solver: built by hand, or drawn at random with spaces small enough to enumerate."""

from dataclasses import replace

from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.policy import ScheduleName
from solver.grid import exhaustive, objective_s, within_limits
from solver.problem import Objective, Problem
from solver.search import solve
from solver.space import build_space
from tests.machines import any_machines, any_models, any_workloads, machine, model, powers, with_level, workload


def problem(hardware=None, job=None, spec=None, **changes):
    return Problem(
        model=spec or model(),
        hardware=hardware or machine(),
        workload=job or workload(num_sequences=6),
        weight_dtype=DType.FLOAT32,
        kv_dtype=DType.FLOAT32,
        **changes,
    )


@st.composite
def problems(draw, largest_job=4):
    """Problems of any model on any machine, most with too little memory for everything, of one or two schedules."""
    spec = draw(st.integers(1, 4).flatmap(any_models))
    hardware = draw(any_machines())
    if draw(st.booleans()):
        hardware = replace(hardware, levels={name: one for name, one in hardware.levels.items() if name != "disk"})
    for name in hardware.levels:
        size = int(draw(powers(4.3, 5.7)))
        hardware = with_level(hardware, name, capacity_bytes=size, usable_bytes=size)
    return Problem(
        model=spec,
        hardware=hardware,
        workload=replace(draw(any_workloads(4)), num_sequences=draw(st.integers(1, largest_job))),
        weight_dtype=draw(st.sampled_from([DType.FLOAT32, DType.BFLOAT16, DType.INT4])),
        kv_dtype=draw(st.sampled_from([DType.FLOAT32, DType.INT8])),
        schedules=tuple(sorted(draw(st.sets(st.sampled_from(ScheduleName), min_size=1, max_size=2)))),
        split_experts=draw(st.booleans()),
        kv_shares=draw(st.sampled_from([(0.0,), (0.0, 0.5, 1.0)])),
        objective=draw(st.sampled_from(Objective)),
    )


def with_limits(asked, times, factors):
    """The problem with limits at so many times what a policy takes, as far as they do not contradict each other."""
    reached = (times.time_to_first_token_s, times.time_per_token_s, times.prefill_s + times.decode_s)
    ttft, tpot, makespan = (
        float(own) * factor if own > 0 else None for own, factor in zip(reached, factors, strict=True)
    )
    limits = {"max_ttft_s": ttft, "max_tpot_s": tpot, "max_makespan_s": makespan}
    return replace(asked, **{name: min(one, makespan) for name, one in limits.items() if one is not None})


def everything(asked, space):
    """Every policy of a space that fits, however many experts it keeps."""
    for grid in space.grids:
        for place in range(grid.batch_size.size):
            candidate = grid.take(place)
            if candidate.disk_experts and candidate.schedule is ScheduleName.HOST:
                on_disk = range(asked.model.num_experts + 1)
                wholes = [replace(candidate, disk_experts=count) for count in on_disk]
            elif most := candidate.disk_experts:
                counts = range(most + 1)
                wholes = [replace(candidate, resident_experts=kept, disk_experts=most - kept) for kept in counts]
            else:
                most = asked.model.num_experts - candidate.cpu_experts
                on_gpu = range(1 if candidate.schedule is ScheduleName.HOST else most + 1)
                wholes = [replace(candidate, resident_experts=count) for count in on_gpu]
            for whole in wholes:
                if asked.short_of(whole) is None:
                    yield whole


def cost(asked, times):
    """A policy's objective, infinite where it breaks a limit."""
    return float(objective_s(asked, times)) if within_limits(asked, times) else float("inf")


def predicted_all(asked, space):
    """The best policy of a space, every one predicted."""
    return exhaustive(asked, space)


def solved(asked, **options):
    """The plan of a problem."""
    return solve(asked, **options)


def grids_of(asked):
    """The grids of a problem's space."""
    return build_space(asked).grids
