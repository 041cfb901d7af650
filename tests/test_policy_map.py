"""The map of which policy wins where, the paper's hardware study on it, and pictures of maps and fronts."""

from dataclasses import replace
from typing import Any

import pytest

from hrm.dtypes import DType
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.policy import Processor, ScheduleName
from hrm.what_if import Change, Resource, scaled
from hrm.workload import Workload
from solver.drawing import check_picture, draw_front, draw_map
from solver.pareto import pareto_front
from solver.policy_map import axis_of, placement_of, policy_map, read_axes
from solver.problem import Problem
from tests.machines import cpu_only, model, policy
from tests.test_explain import best_of, case_study, problem

SCHEDULES = (ScheduleName.CGOPIPE, ScheduleName.KV_TRANSFER, ScheduleName.HOST)


def small_map(asked, axes="link,cpu", count=3, fidelity=Fidelity.CEILING, **changes):
    x, y = (axis_of(asked, axis.resource, count=count) for axis in read_axes(axes, asked))
    return policy_map(asked, (x, y), fidelity, **changes)


def hardware_study():
    """Section 6.3: Mixtral 8x7B on two A100 of 80 GB, s = 512, n = 32."""
    return Problem(
        model=load_model("mixtral-8x7b"),
        hardware=load_profile("a100-80gb-case-study-2x"),
        workload=Workload(mean_prompt_len=512.0, max_prompt_len=512, gen_len=32),
        weight_dtype=DType.FLOAT16,
        kv_dtype=DType.FLOAT16,
        schedules=SCHEDULES,
        split_experts=False,
        kv_shares=(0.0,),
    )


def study_map(ratios: tuple[float, float], fidelity: Fidelity) -> Any:
    asked = hardware_study()
    links = axis_of(asked, Resource.LINK, 100 / 31.5, 500 / 31.5, 4)
    return policy_map(asked, (links, axis_of(asked, Resource.CPU, *ratios, count=3)), fidelity)


@pytest.mark.parametrize("fidelity", [Fidelity.ROOF, Fidelity.CEILING])
def test_hardware_study_a_faster_link_moves_weights_to_the_cpu(fidelity):
    for row in study_map((1.0, 5.0), fidelity).cells:
        resident = [cell.policy.resident_experts for cell in row]

        assert resident == sorted(resident, reverse=True)
        assert resident[-1] < resident[0] == 8


def test_hardware_study_the_cache_follows_only_to_fast_cpu_memory():
    """At peaks, as the study counts, on the slowest of its links; at `ceiling` ten times the host is not yet enough."""
    at_peaks, as_measured = (
        [row[0].policy.kv_on_gpu for row in study_map((1.0, 10.0), fidelity).cells]
        for fidelity in (Fidelity.ROOF, Fidelity.CEILING)
    )
    faster_still = study_map((1.0, 40.0), Fidelity.CEILING).cells[-1][0]

    assert at_peaks == [1.0, 1.0, 0.0]
    assert as_measured == [1.0, 1.0, 1.0]
    assert faster_still.policy.kv_on_gpu == 0.0


def test_the_middle_of_a_map_is_the_optimum_of_the_machine():
    asked = replace(case_study(), schedules=SCHEDULES)
    best = best_of(asked)
    found = small_map(asked)

    assert found.at_machine == found.cells[1][1]
    assert found.at_machine.throughput_tokens_per_s == pytest.approx(best.throughput_tokens_per_s, rel=1e-3)
    assert placement_of(found.at_machine.policy, asked.model) == placement_of(best.policy, asked.model)
    assert small_map(asked, also=(best.policy,)).at_machine.policy == best.policy


def test_more_of_either_resource_is_never_slower():
    cells = small_map(replace(case_study(), schedules=SCHEDULES)).cells
    speed = [[cell.throughput_tokens_per_s if cell else 0.0 for cell in row] for row in cells]

    for row in speed:
        assert row == sorted(row)
    for column in zip(*speed, strict=True):
        assert list(column) == sorted(column)


def test_nothing_fits_where_memory_is_too_small():
    asked = case_study()
    axes = axis_of(asked, Resource.LINK, 1.0, 2.0, 2), axis_of(asked, Resource.CPU_MEMORY, 0.01, 1.0, 2)

    (empty, full) = policy_map(asked, axes).cells

    assert empty == (None, None)
    assert None not in full


def test_cells_are_of_the_scaled_machine():
    asked = case_study()
    found = small_map(asked, "link,gpu_memory")
    there = scaled(
        asked.hardware,
        [Change(resource=Resource.LINK, factor=0.25), Change(resource=Resource.GPU_MEMORY, factor=4.0)],
    )
    best = best_of(replace(asked, hardware=there))

    assert found.cells[2][0].throughput_tokens_per_s >= best.throughput_tokens_per_s * (1 - 1e-9)


def test_axes_are_read_with_and_without_ranges():
    asked = case_study()
    link, cpu = read_axes("link=8GB/s..32GB/s, cpu=1x..10x", asked)

    assert (link.resource, cpu.resource) == (Resource.LINK, Resource.CPU)
    assert (link.factors[0], link.factors[-1]) == pytest.approx((0.5, 2.0))
    assert 1.0 in link.factors
    assert (link.words(0.5), cpu.words(10.0)) == ("8 GB/s", "10x")
    assert 1.0 in read_axes("link,cpu", asked)[0].factors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("link", "two different resources"),
        ("link,link", "two different resources"),
        ("link,cpu,gpu", "two different resources"),
        ("link,warp", "no such resource"),
        ("link=2x,cpu", "no range (write link=0.5x..4x"),
        ("link=4x..2x,cpu", "no range from 4x to 2x"),
        ("link=1x..1x,cpu", "no range from 1x to 1x"),
        ("link=1x..,cpu", "no value that link can take"),
        ("link,gpus", "gpus: a map needs what can be had in any amount"),
    ],
)
def test_bad_axes_are_named(text, said):
    with pytest.raises(HrmError) as caught:
        read_axes(text, case_study())

    assert said in str(caught.value)


def test_a_machine_without_a_gpu_has_no_link_to_map():
    with pytest.raises(HrmError, match="has no gpu"):
        read_axes("link,cpu", problem(cpu_only()))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (policy(), "attention CPU, KV CPU, experts streamed"),
        (policy(Processor.GPU), "attention GPU, KV GPU, experts streamed"),
        (policy(resident_experts=4), "attention CPU, KV CPU, experts resident"),
        (policy(cpu_experts=1), "attention CPU, KV CPU, experts split"),
        (policy(cpu_experts=4), "attention CPU, KV CPU, experts CPU"),
        (policy(ffn=Processor.CPU), "all on the CPU"),
        (
            policy(Processor.GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=0.5),
            "attention GPU, KV both, experts streamed",
        ),
    ],
)
def test_placements_have_words(chosen, words):
    assert placement_of(chosen, model()) == words


@pytest.fixture(scope="module")
def drawn_map():
    return small_map(replace(case_study(), schedules=SCHEDULES))


def test_a_map_is_drawn_whole_and_the_same_each_time(tmp_path, drawn_map):
    asked = case_study()
    for name in ("one.svg", "two.svg", "map.png"):
        draw_map(drawn_map, asked.model, "a map", tmp_path / name)

    assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_front_is_drawn(tmp_path):
    asked = case_study(num_sequences=16)
    draw_front(pareto_front(asked), asked.model, "a front", tmp_path / "front.png")

    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_other_formats_are_refused():
    with pytest.raises(HrmError, match=r"-o map\.gif: drawn as \.png or \.svg"):
        check_picture("map.gif", "-o")
