"""What is missing is what is missing, and every change that is offered does."""

from dataclasses import replace

import pytest

from hrm.dtypes import DType
from solver.infeasible import NoPlanError
from solver.search import search
from tests.machines import cpu_only, level, machine, with_level, workload
from tests.problems import problem


def why(asked):
    with pytest.raises(NoPlanError) as caught:
        search(asked)
    assert "\n" not in str(caught.value)
    return caught.value


def changed(asked, remedy):
    """The problem with a change made."""
    name, value = remedy.change, remedy.value
    if name == "--weight-dtype":
        return replace(asked, weight_dtype=DType(value), expert_dtype=None)
    if name == "--kv-dtype":
        return replace(asked, kv_dtype=DType(value))
    if name == "--num-sequences":
        return replace(asked, workload=replace(asked.workload, num_sequences=value))
    if name == "limits":
        return replace(asked, **{f"max_{one}_s": limit * value for one, limit in asked.time_limits_s.items()})
    if name.startswith("--max-"):
        return replace(asked, **{name.removeprefix("--").replace("-", "_"): value})
    device = name.removesuffix("_memory_bytes")
    more = asked.hardware.levels[device].usable_bytes + value
    return replace(asked, hardware=with_level(asked.hardware, device, usable_bytes=more, capacity_bytes=more))


TINY = machine(
    cpu=level(1e9, 1e9, capacity_bytes=40_000), gpu=level(1e9, 1e9, capacity_bytes=30_000), link_bytes_per_s=1e8
)
TIMED = problem(job=workload(num_sequences=40))


@pytest.mark.parametrize(
    "asked",
    [
        problem(TINY),
        problem(cpu_only(level(1e9, 1e9, capacity_bytes=45_000))),
        replace(TIMED, max_ttft_s=1e-6),
        replace(TIMED, max_tpot_s=1e-6),
        replace(TIMED, max_ttft_s=1e-6, max_tpot_s=1e-6),
        replace(TIMED, max_makespan_s=1e-3),
    ],
)
def test_every_change_offered_does(asked):
    found = why(asked).why

    assert found.remedies
    for remedy in found.remedies:
        search(changed(asked, remedy))


def test_memory_offered_is_the_least_that_does():
    asked = problem(TINY)
    for remedy in why(asked).why.remedies:
        if remedy.change.endswith("_memory_bytes"):
            why(changed(asked, replace(remedy, value=remedy.value - 1)))


def test_what_is_short_is_what_more_memory_of_its_kind_mends():
    found = why(problem(TINY)).why
    offered = [remedy.value for remedy in found.remedies if remedy.change == f"{found.short.device}_memory_bytes"]

    assert offered
    assert offered[0] == pytest.approx(found.short.missing_bytes, rel=0.01)


def test_a_larger_job_than_offered_is_not_done_in_time():
    asked = replace(TIMED, max_makespan_s=1e-3)
    (fewer,) = (remedy for remedy in why(asked).why.remedies if remedy.change == "--num-sequences")

    why(changed(asked, replace(fewer, value=fewer.value + 1)))


def test_the_device_and_its_bytes_are_named():
    error = why(problem(TINY))

    assert error.exit_code == 1
    assert error.why.short.device in ("cpu", "gpu")
    assert error.why.short.missing_bytes > 0
    assert f"{error.why.short.device} memory is short by" in str(error)


def test_a_limit_on_host_memory_is_what_is_short():
    error = why(problem(cpu_only(), ram_limit_bytes=1000))

    assert error.why.short.device == "cpu"
    assert error.why.short.usable_bytes <= 1000


def test_limits_no_policy_keeps_are_named_with_the_least_that_one_reaches():
    error = why(replace(TIMED, max_ttft_s=1e-6, max_tpot_s=1.0))

    assert error.why.limit == "ttft"
    assert error.why.least_s > 1e-6
    assert "--max-ttft-s 1e-06" in str(error)
    assert "--max-tpot-s" not in str(error)


def test_the_document_says_what_the_error_says():
    error = why(problem(TINY))
    document = error.document()

    assert document["status"] == "infeasible"
    assert document["error"] == str(error)
    assert document["short"]["missing_bytes"] == error.why.short.missing_bytes
    assert [one["change"] for one in document["remedies"]] == [one.change for one in error.why.remedies]
