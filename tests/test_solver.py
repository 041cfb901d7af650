"""The grid search against enumeration of its own space, and plans that come back as they went."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.errors import InfeasibleError, PolicyError, SchemaError
from hrm.estimate import Fidelity
from hrm.files import to_plain
from hrm.memory import ledger
from hrm.plan import PlanStatus, load_plan, save_plan, summary
from hrm.policy import Processor
from hrm.predict import predict
from solver.grid import SIMULATED_WITHIN, make_plan, solve
from solver.space import Problem, build_space, most_resident_experts
from tests.machines import cpu_only, level, machine, machines, model, policy, workload


def problem(hardware=None, job=None, spec=None, **changes):
    return Problem(
        model=spec or model(),
        hardware=hardware or machine(),
        workload=job or workload(num_sequences=6),
        weight_dtype=DType.FLOAT32,
        kv_dtype=DType.FLOAT32,
        **changes,
    )


def everything(asked):
    """Every policy of the space that fits, however many experts it keeps."""
    space = build_space(asked)
    for placement in space.placements:
        kept = range(asked.model.num_experts + 1) if placement.ffn_device is Processor.GPU else [0]
        for batch_size in space.batch_sizes:
            for micro_batch_size in space.micro_batch_sizes(batch_size):
                for count in kept:
                    candidate = replace(
                        placement, batch_size=batch_size, micro_batch_size=micro_batch_size, resident_experts=count
                    )
                    if asked.short_of(candidate) is None:
                        yield candidate


def throughput(asked, chosen, fidelity):
    predicted = predict(chosen, asked.model, asked.hardware, asked.workload, fidelity=fidelity, fidelities=(fidelity,))
    return predicted.times.throughput_tokens_per_s


@given(machines(), st.integers(60_000, 200_000), st.integers(60_000, 200_000))
@settings(max_examples=12, deadline=None)
def test_nothing_in_the_space_beats_the_plan(hardware, gpu_bytes, cpu_bytes):
    """At `ceiling` up to what the search gives away to simulate; simulated, nothing that leads at `ceiling`."""
    sizes = {"gpu": gpu_bytes, "cpu": cpu_bytes}
    levels = {
        name: replace(one, capacity_bytes=sizes[name], usable_bytes=sizes[name])
        for name, one in hardware.levels.items()
    }
    asked = problem(replace(hardware, levels=levels), workload(6, 9, gen_len=3, num_sequences=5))
    candidates = list(everything(asked))
    if not candidates:
        with pytest.raises(InfeasibleError):
            solve(asked)
        return
    found = solve(asked)
    at_ceiling = {candidate: throughput(asked, candidate, Fidelity.CEILING) for candidate in candidates}
    leader = max(at_ceiling, key=lambda candidate: at_ceiling[candidate])
    chosen = found.prediction.by_fidelity

    assert asked.short_of(found.policy) is None
    assert found.status is PlanStatus.OPTIMAL
    assert chosen[Fidelity.CEILING].throughput_tokens_per_s >= SIMULATED_WITHIN * at_ceiling[leader] * (1 - 1e-9)
    assert chosen[Fidelity.SIMULATED].throughput_tokens_per_s >= throughput(asked, leader, Fidelity.SIMULATED) * (
        1 - 1e-9
    )


@given(st.integers(1_000, 400_000))
@settings(max_examples=40, deadline=None)
def test_as_many_experts_are_kept_as_fit(gpu_bytes):
    asked = problem(machine(gpu=level(1e10, 1e10, capacity_bytes=gpu_bytes)))
    fitting = [count for count in range(5) if asked.short_of(policy(batch_size=4, resident_experts=count)) is None]
    kept = most_resident_experts(asked, policy(batch_size=4))

    assert (kept.resident_experts if kept else None) == (max(fitting) if fitting else None)


def test_a_plan_runs_as_written():
    """The ledger and the prediction in it are those of the very policy in it."""
    asked = problem()
    found = solve(asked)

    found.policy.check(asked.model)
    assert found.memory == ledger(found.policy, asked.model, asked.workload)
    assert found.prediction == make_plan(asked, found.policy, PlanStatus.GIVEN, Fidelity.CEILING).prediction
    assert found.search is not None
    assert 0 < found.search.feasible <= found.search.candidates


def test_without_a_gpu_everything_runs_on_the_cpu():
    assert solve(problem(cpu_only())).policy.ffn_device is Processor.CPU


def test_a_gpu_that_is_faster_at_everything_is_used():
    quick = machine(gpu=level(1e13, 1e12), link_bytes_per_s=1e11)

    assert solve(problem(quick)).policy.ffn_device is Processor.GPU


def test_a_link_too_slow_to_use_is_not_used():
    """Left of P1 everything belongs where it lies; the GPU is too small to hold the model."""
    small = machine(gpu=level(1e13, 1e12, capacity_bytes=60_000), link_bytes_per_s=1e3)

    assert solve(problem(small)).policy.ffn_device is Processor.CPU


def test_infeasible_names_the_device_and_the_bytes():
    tiny = machine(cpu=level(1e9, 1e9, capacity_bytes=1000), gpu=level(1e9, 1e9, capacity_bytes=1000))

    with pytest.raises(InfeasibleError, match=r"does not fit made up .*(cpu|gpu) memory is short by [\d.]+ KiB"):
        solve(problem(tiny))


def test_a_limit_on_host_memory_is_kept():
    needed = solve(problem(cpu_only())).memory.cpu.total_bytes
    limited = solve(problem(cpu_only(), ram_limit_bytes=needed - 1))

    assert limited.memory.cpu.total_bytes < needed
    with pytest.raises(InfeasibleError, match="cpu memory is short"):
        solve(problem(cpu_only(), ram_limit_bytes=1000))


def test_a_plan_comes_back_from_its_file(tmp_path):
    found = solve(problem())
    save_plan(tmp_path / "plan.yaml", found)
    back = load_plan(tmp_path / "plan.yaml")

    assert (back.policy, back.model, back.workload, back.memory) == (
        found.policy,
        found.model,
        found.workload,
        found.memory,
    )
    assert back.prediction.times.decode_s == pytest.approx(found.prediction.times.decode_s, rel=1e-5)


@pytest.mark.parametrize(
    ("path", "value", "error", "said"),
    [
        (("policy", "batch_size"), 5000, SchemaError, "does not follow from the policy"),
        (("memory", "cpu", "kv_cache"), 1, SchemaError, "memory.cpu.kv_cache: 1 does not follow from the policy"),
        (("policy", "kv_on_gpu"), 0.5, PolicyError, "kv_on_gpu 0.5"),
        (("policy", "micro_batch_size"), 10**6, PolicyError, "exceeds batch_size"),
        (("policy", "resident_experts"), 99, PolicyError, "resident_experts 99"),
        (("policy", "batch_size"), "6", SchemaError, "policy.batch_size"),
        (("policy", "batch_size"), 6.5, SchemaError, "policy.batch_size"),
        (("policy", "speed"), 1, SchemaError, "policy.speed: unknown key"),
        (("workload", "gen_len"), 0, SchemaError, "workload.gen_len"),
    ],
)
def test_a_hand_edited_plan_is_refused(tmp_path, path, value, error, said):
    file = tmp_path / "plan.yaml"
    save_plan(file, solve(problem()))
    document = yaml.safe_load(file.read_text())
    *parents, last = path
    place = document
    for parent in parents:
        place = place[parent]
    place[last] = value
    file.write_text(yaml.safe_dump(document))

    with pytest.raises(error) as caught:
        load_plan(file)

    assert said in str(caught.value)


def test_the_summary_says_what_the_plan_says():
    found = solve(problem())
    document = summary(found)

    assert document["policy"]["resident_experts"] == found.policy.resident_experts
    assert document["throughput_tokens_per_s"] == found.prediction.times.throughput_tokens_per_s
    assert document["memory"]["gpu"]["total_bytes"] == found.memory.gpu.total_bytes
    assert document["by_fidelity"] == to_plain(found.prediction.by_fidelity)
