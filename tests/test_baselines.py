"""Simpler ways to choose: none beats exhaustive search, each is what it says, the published planner is its paper's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings

from hrm.policy import Processor, ScheduleName
from hrm.units import GIB
from solver.baselines import baselines
from solver.optimum import found, optimum
from solver.published_planner import GPU_MEMORY_SHARE, layer_s, published_plan
from tests.machines import level, machine, policy
from tests.test_explain import best_of, case_study, problem, problems


def exhaustive(asked):
    """The fastest of all integer N, mu and resident experts, on all devices: the whole space of a small problem."""
    most = asked.workload.num_sequences
    fastest = 0.0
    for attention, ffn in ((Processor.CPU, Processor.GPU), (Processor.GPU, Processor.GPU), (Processor.CPU,) * 2):
        for batch in range(1, most + 1):
            for micro in range(1, batch + 1):
                for kept in range(asked.model.num_experts + 1 if ffn is Processor.GPU else 1):
                    one = policy(attention, ffn, batch_size=batch, micro_batch_size=micro, resident_experts=kept)
                    reached = found(asked, one)
                    fastest = max(fastest, reached.throughput_tokens_per_s if reached else 0.0)
    return fastest


@given(problems())
@settings(max_examples=10, deadline=None)
def test_no_baseline_beats_exhaustive_search(asked):
    assume(optimum(asked) is not None)
    best = best_of(asked)
    limit = exhaustive(asked)

    for one in baselines(asked, best):
        if one.found is not None:
            assert one.found.throughput_tokens_per_s <= limit * (1 + 1e-9)


def reached(asked, name):
    """What a baseline reaches that finds something."""
    (one,) = (each.found for each in baselines(asked, best_of(asked)) if each.name == name)
    assert one is not None
    return one


def test_baselines_are_what_they_say():
    asked = case_study()
    best = best_of(asked)

    assert reached(asked, "all on the CPU").policy.main_device is Processor.CPU
    for name in ("all streamed, attention on the CPU", "all streamed, attention on the GPU"):
        assert reached(asked, name).policy.resident_experts == 0
    for one in baselines(asked, best):
        assert one.found is not None
        assert one.gain == pytest.approx(best.throughput_tokens_per_s / one.found.throughput_tokens_per_s - 1)
        assert asked.short_of(one.found.policy) is None


def test_greedy_leaves_room_for_nothing_more():
    asked = case_study()
    greedy = reached(asked, "greedy by bytes").policy

    assert asked.short_of(greedy) is None
    assert asked.short_of(replace(greedy, resident_experts=greedy.resident_experts + 1)).device == "gpu"
    assert asked.short_of(replace(greedy, micro_batch_size=greedy.micro_batch_size + 1)) is not None


def test_where_the_simple_way_is_as_good_it_is_recommended():
    """Without a GPU worth using the CPU alone is the optimum."""
    slow = machine(gpu=level(1e3, 1e3), link_bytes_per_s=1e3)
    asked = problem(slow)

    assert baselines(asked, best_of(asked))[0].verdict == "no gain: use the simple one"


def test_the_published_planner_counts_as_its_equations_do():
    """Eq. 12 by hand for the case study, N = 64 in one micro-batch, nothing resident: the link sets the pace."""
    asked = case_study()
    one = np.ones(1)
    experts, hidden = 8 * 3 * 4096 * 14336 * 2, 64 * 4096 * 2

    found_s = float(layer_s(asked, 64 * one, 64 * one, 0 * one)[0])

    assert found_s == pytest.approx((experts + hidden) / 16e9)


def test_the_published_planner_takes_resident_all_it_can():
    asked = case_study()
    found_plan = published_plan(asked)
    assert found_plan is not None
    held = asked.model.num_layers * 8 * asked.model.expert_parameters * 2 * found_plan.weights_on_gpu

    assert found_plan.policy.resident_experts == int(8 * found_plan.weights_on_gpu)
    assert 0 < held < GPU_MEMORY_SHARE * asked.hardware.level("gpu").capacity_bytes
    assert found_plan.policy.schedule is ScheduleName.CGOPIPE
    assert published_plan(replace(asked, ram_limit_bytes=GIB)) is None


def test_a_choice_that_does_not_fit_is_lowered_until_it_does():
    asked = case_study()
    chosen = published_plan(asked)
    assert chosen is not None
    (judged,) = (one for one in baselines(asked, best_of(asked)) if one.name == "published planner")
    assert judged.found is not None

    assert asked.short_of(chosen.policy) is not None
    assert judged.short == str(asked.short_of(chosen.policy))
    assert judged.found.policy.resident_experts == chosen.policy.resident_experts
    assert judged.found.policy.micro_batch_size < chosen.policy.micro_batch_size
    one_more = replace(judged.found.policy, micro_batch_size=judged.found.policy.micro_batch_size + 1)
    assert asked.short_of(one_more) is not None
