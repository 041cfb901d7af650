"""The search against enumeration of its own space, and plans that come back as they went."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.errors import HrmError, InfeasibleError
from hrm.estimate import Fidelity
from hrm.files import to_plain
from hrm.memory import ledger
from hrm.plan import PlanStatus, load_plan, save_plan, summary
from hrm.policy import Processor, ScheduleName
from hrm.predict import predict
from solver.candidates import distinct, explore
from solver.grid import make_plan
from solver.problem import Objective
from solver.search import Method, search
from solver.simulated import SIMULATED_CANDIDATES, TIED_WITHIN, simulated_best
from solver.space import build_space, refined
from tests.machines import cpu_only, level, machine, workload
from tests.problems import cost, everything, grids_of, predicted_all, problem, problems, solved, with_limits


def at_ceiling(asked, policy):
    found = predict(policy, asked.model, asked.hardware, asked.workload, fidelities=(Fidelity.CEILING,))
    return found.by_fidelity[Fidelity.CEILING]


@given(problems(largest_job=5))
@settings(max_examples=60, deadline=None)
def test_no_policy_of_the_space_beats_the_one_found(asked):
    every = list(everything(asked, build_space(asked)))
    if not every:
        with pytest.raises(InfeasibleError):
            solved(asked)
        return
    found = search(asked)
    own = cost(asked, at_ceiling(asked, found))

    assert asked.short_of(found) is None
    found.check(asked.model)
    for policy in every[:: max(1, len(every) // 60)]:
        assert own <= cost(asked, at_ceiling(asked, policy)) * (1 + 1e-9)


@given(problems(largest_job=5))
@settings(max_examples=60, deadline=None)
def test_all_methods_find_as_good_a_policy(asked):
    assume(predicted_all(asked, build_space(asked)) is not None)
    found = {method: solved(asked, method=method, simulate=False) for method in Method}
    costs = {method: cost(asked, at_ceiling(asked, plan.policy)) for method, plan in found.items()}

    assert costs[Method.AUTO] == pytest.approx(costs[Method.GRID], rel=1e-6)
    assert costs[Method.MILP] == pytest.approx(costs[Method.GRID], rel=1e-6)
    for plan in found.values():
        bound = plan.search.bound if asked.objective is Objective.LATENCY else 1.0 / plan.search.bound
        assert bound == pytest.approx(costs[Method.GRID], rel=1e-6)
        assert plan.search.gap <= 1e-6
        assert 0 < plan.search.feasible <= plan.search.candidates


def test_candidates_cut_a_batch_into_parts_and_a_job_into_equal_waves():
    asked = problem(job=workload(num_sequences=100))
    grid = grids_of(asked)[0]

    assert {100.0, 50.0, 34.0, 25.0} <= set(grid.batch_size)
    assert np.all(grid.micro_batch_size <= grid.batch_size)
    assert len(np.unique(np.stack([grid.batch_size, grid.micro_batch_size]), axis=1).T) == grid.batch_size.size


def around(asked, policy):
    return refined(asked, policy, 1.1)


def test_a_refinement_surrounds_its_policy():
    asked = problem(job=workload())
    chosen = replace(search(asked), batch_size=500, micro_batch_size=50)
    grid = around(asked, chosen)
    sizes = set(zip(grid.batch_size, grid.micro_batch_size, strict=True))

    assert (500.0, 50.0) in sizes
    assert {(500.0, 49.0), (500.0, 51.0), (500.0, 46.0), (500.0, 56.0)} <= sizes
    assert grid.batch_size.min() == 455
    assert grid.batch_size.max() == 550


def test_a_plan_runs_as_written():
    """The ledger and the prediction in it are those of the very policy in it."""
    asked = problem()
    found = solved(asked)

    found.policy.check(asked.model)
    assert found.memory == ledger(found.policy, asked.model, asked.workload)
    assert found.prediction == make_plan(asked, found.policy, PlanStatus.GIVEN, Fidelity.CEILING).prediction
    assert found.status is PlanStatus.OPTIMAL
    assert found.search is not None
    assert 0 < found.search.feasible <= found.search.candidates


def test_ties_are_named_and_the_simplest_goes_first():
    found = solved(problem(job=workload(num_sequences=64)))

    def simulated(policy):
        asked = problem(job=workload(num_sequences=64))
        made = predict(policy, asked.model, asked.hardware, asked.workload)
        return made.by_fidelity[Fidelity.SIMULATED].throughput_tokens_per_s

    best = max(map(simulated, (found.policy, *found.search.ties)))
    assert found.search.ties
    for policy in (found.policy, *found.search.ties):
        assert simulated(policy) >= best / (1 + TIED_WITHIN)
        assert policy.num_micro_batches >= found.policy.num_micro_batches


@given(problems(largest_job=5))
@settings(max_examples=60, deadline=None)
def test_leaving_candidates_out_of_simulation_changes_neither_the_best_nor_the_ties(asked):
    assume(predicted_all(asked, build_space(asked)) is not None)
    explored = explore(asked)
    found = simulated_best(asked, explored, Fidelity.CEILING)
    costs = {}
    for one in distinct(explored, SIMULATED_CANDIDATES):
        made = predict(one.policy, asked.model, asked.hardware, asked.workload)
        costs[one.policy] = cost(asked, made.by_fidelity[Fidelity.SIMULATED])
    tied = {policy for policy, own in costs.items() if own <= min(costs.values()) * (1 + TIED_WITHIN)}

    assert tied == {found.candidate.policy, *found.ties}


def test_without_simulation_a_plan_has_none():
    found = solved(problem(), simulate=False)

    assert set(found.prediction.by_fidelity) == {Fidelity.ROOF, Fidelity.CEILING}
    assert found.prediction.interval is None
    with pytest.raises(HrmError, match="--no-simulate"):
        solved(problem(), simulate=False, fidelity=Fidelity.SIMULATED)


def test_a_program_is_written_where_one_is_made(tmp_path):
    solved(problem(), method=Method.MILP, write_lp=tmp_path / "policy.lp")

    assert "one_policy" in (tmp_path / "policy.lp").read_text()
    with pytest.raises(HrmError, match="--method milp"):
        solved(problem(), write_lp=tmp_path / "other.lp")


def test_what_binds_is_named_as_in_the_program():
    narrow = solved(problem(machine(link_bytes_per_s=1e5), schedules=(ScheduleName.LAYERWISE,)))
    small = machine(gpu=level(1e13, 1e12, capacity_bytes=60_000), link_bytes_per_s=1e7)
    full = solved(problem(small, job=workload(num_sequences=60), schedules=(ScheduleName.LAYERWISE,)))

    assert {"prefill_gpu", "decode_1_gpu"} <= set(narrow.search.binding)
    assert "gpu_memory" in full.search.binding
    assert "gpu_memory" not in narrow.search.binding


def test_without_a_gpu_everything_runs_on_the_cpu():
    assert solved(problem(cpu_only())).policy.ffn_device is Processor.CPU


def test_a_gpu_that_is_faster_at_everything_is_used():
    quick = machine(gpu=level(1e13, 1e12), link_bytes_per_s=1e11)

    assert solved(problem(quick)).policy.ffn_device is Processor.GPU


def test_a_link_too_slow_to_use_is_not_used():
    """Left of P1 everything belongs where it lies; the GPU is too small to hold the model."""
    small = machine(gpu=level(1e13, 1e12, capacity_bytes=60_000), link_bytes_per_s=1e3)

    assert solved(problem(small)).policy.ffn_device is Processor.CPU


def test_experts_are_split_where_that_is_allowed_and_pays():
    """The CPU is as fast as the GPU, which has room for few experts."""
    even = machine(cpu=level(1e10, 1e10), gpu=level(1e10, 1e10, capacity_bytes=80_000), link_bytes_per_s=1e9)
    whole, split = (problem(even, split_experts=allowed) for allowed in (False, True))

    assert search(whole).cpu_experts == 0
    assert search(split).cpu_experts > 0
    assert cost(split, at_ceiling(split, search(split))) < cost(whole, at_ceiling(whole, search(whole)))


def test_a_cache_is_divided_where_that_is_allowed_and_pays():
    asked = problem(
        machine(gpu=level(1e12, 1e12, capacity_bytes=90_000), link_bytes_per_s=1e8),
        schedules=(ScheduleName.KV_TRANSFER,),
        kv_shares=(0.0, 0.25, 0.5, 0.75, 1.0),
    )
    fixed = replace(asked, kv_shares=(0.0,))

    assert search(asked).kv_on_gpu > 0.0
    assert cost(asked, at_ceiling(asked, search(asked))) < cost(fixed, at_ceiling(fixed, search(fixed)))


def test_a_narrower_format_is_taken_where_it_is_allowed():
    asked = problem(cpu_only(level(1e13, 1e9)))

    assert search(asked).weight_dtype is DType.FLOAT32
    assert search(replace(asked, more_weight_dtypes=(DType.INT4,))).weight_dtype is DType.INT4


def test_a_latency_job_takes_few_sequences_at_a_time():
    asked = problem(job=workload(num_sequences=64))
    quickest = search(replace(asked, objective=Objective.LATENCY))

    assert quickest.batch_size < search(asked).batch_size


@pytest.mark.parametrize("name", ["ttft", "tpot", "makespan"])
def test_limits_are_kept(name):
    asked = problem(job=workload(num_sequences=64))
    free, quick = at_ceiling(asked, search(asked)), replace(asked, objective=Objective.LATENCY)
    least = at_ceiling(asked, search(quick))
    reached = {"ttft": "time_to_first_token_s", "tpot": "time_per_token_s"}
    if name == "makespan":
        asked = replace(asked, objective=Objective.LATENCY, max_makespan_s=1.5 * (free.prefill_s + free.decode_s))
        within = at_ceiling(asked, search(asked))
        assert within.prefill_s + within.decode_s <= asked.max_makespan_s
        return
    limit = (getattr(free, reached[name]) + getattr(least, reached[name])) / 2
    within = at_ceiling(asked, search(replace(asked, **{f"max_{name}_s": limit})))

    assert getattr(within, reached[name]) <= limit < getattr(free, reached[name])
    assert within.throughput_tokens_per_s <= free.throughput_tokens_per_s


@given(problems(largest_job=5), st.sampled_from([0.9, 1.0, 1.05]))
@settings(max_examples=40, deadline=None)
def test_a_plan_keeps_limits_on_time_when_simulated(asked, factor):
    assume(predicted_all(asked, build_space(asked)) is not None)
    times = solved(asked).prediction.by_fidelity[Fidelity.SIMULATED]
    limited = with_limits(asked, times, (factor,) * 3)
    try:
        plan = solved(limited)
    except InfeasibleError:
        return

    assert limited.limits.missed(plan.prediction.by_fidelity[Fidelity.SIMULATED]) is None
    assert plan.limits == limited.limits


def flattered():
    """A problem whose best plan takes longer when simulated than at `ceiling`, and what it takes at either."""
    even = machine(cpu=level(1e9, 1e9), gpu=level(1e10, 1e10), link_bytes_per_s=1e8)
    asked = problem(even, job=workload(num_sequences=64), schedules=(ScheduleName.UNPAGED,))
    made = solved(asked).prediction.by_fidelity
    return asked, made[Fidelity.CEILING], made[Fidelity.SIMULATED]


def test_another_plan_is_sought_where_simulation_breaks_a_limit():
    asked, ceiling, simulated = flattered()
    limit = 0.3 * ceiling.time_per_token_s + 0.7 * simulated.time_per_token_s
    assert ceiling.time_per_token_s < limit < simulated.time_per_token_s
    plan = solved(replace(asked, max_tpot_s=limit))

    assert plan.prediction.by_fidelity[Fidelity.SIMULATED].time_per_token_s <= limit


def test_limits_kept_at_ceiling_alone_are_refused_with_what_would_do():
    asked, ceiling, _ = flattered()
    limited = replace(asked, max_makespan_s=1.0001 * (ceiling.prefill_s + ceiling.decode_s))
    with pytest.raises(InfeasibleError, match=r"--max-makespan-s .* when simulated") as caught:
        solved(limited)

    assert "--no-simulate" in str(caught.value)
    assert solved(limited, simulate=False).limits == limited.limits


def test_a_limit_on_host_memory_is_kept():
    needed = solved(problem(cpu_only())).memory.cpu.total_bytes
    limited = solved(problem(cpu_only(), ram_limit_bytes=needed - 1))

    assert limited.memory.cpu.total_bytes < needed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_ttft_s": 0.0}, "--max-ttft-s 0.0"),
        ({"max_tpot_s": -1.0}, "--max-tpot-s -1.0"),
        ({"max_makespan_s": float("nan")}, "--max-makespan-s nan"),
        ({"max_makespan_s": float("inf")}, "--max-makespan-s inf"),
        ({"ram_limit_bytes": 0}, "--ram-limit 0"),
        ({"max_ttft_s": 2.0, "max_makespan_s": 1.0}, "--max-ttft-s 2: exceeds --max-makespan-s 1"),
        ({"max_tpot_s": 2.0, "max_makespan_s": 1.0}, "--max-tpot-s 2: exceeds --max-makespan-s 1"),
        ({"kv_shares": (1.5,)}, "kv_shares: 1.5"),
        ({"job": workload(num_sequences=10**10)}, "--num-sequences 10000000000"),
        ({"job": workload(mean_prompt_len=float("nan"))}, "--prompt-len nan"),
    ],
)
def test_bad_numbers_are_named_and_refused(changes, said):
    with pytest.raises(HrmError) as caught:
        problem(**changes)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exploring_looks_further_around_the_best():
    asked = problem(job=workload(num_sequences=1000))
    explored = explore(asked)

    assert len(explored.space.grids) > len(build_space(asked).grids)
    assert 0 < len(explored.parts) <= len(explored.space.grids)
    assert explored.leader.best_s == min(part.best_s for part in explored.parts)


def test_a_plan_comes_back_from_its_file(tmp_path):
    found = solved(problem())
    save_plan(tmp_path / "plan.yaml", found)
    back = load_plan(tmp_path / "plan.yaml")

    for name in ("policy", "model", "workload", "memory"):
        assert getattr(back, name) == getattr(found, name)
    assert to_plain(back.search)["ties"] == to_plain(found.search)["ties"]
    assert back.prediction.times.decode_s == pytest.approx(found.prediction.times.decode_s, rel=1e-5)


def test_the_summary_says_what_the_plan_says():
    found = solved(problem())
    document = summary(found)

    assert document["policy"]["resident_experts"] == found.policy.resident_experts
    assert document["throughput_tokens_per_s"] == found.prediction.times.throughput_tokens_per_s
    assert document["memory"]["gpu"]["total_bytes"] == found.memory.gpu.total_bytes
    assert document["by_fidelity"] == to_plain(found.prediction.by_fidelity)
    assert document["search"]["binding"] == list(found.search.binding)
