"""Which cases a validation runs: jobs and plans in which more than one lane has something to do come first."""

import random

import pytest

from hrm.cli import validation_cases
from hrm.cli.validation_cases import Asked, Pool, Site, Source
from hrm.estimate import Fidelity
from solver.optimum import optimum
from tests.machines import cpu_only, level, machine, model

ASKED = Asked(plans=1, spread=4, case_s=0.1, seed=5)
FAST = level(2e8, 1e9, capacity_bytes=2**22)


def site(hardware):
    spec = model(vocab_size=64)
    source = Source(folder="nowhere", model=spec, pool=Pool(vocab_size=64))
    return Site(name="here", machine="m", model_name="n", source=source, hardware=hardware)


def second_busy(where, policy, workload):
    return validation_cases._foreseen(where, policy, workload, Fidelity.SIMULATED).second_busy


def second_busy_of_best(where, workload):
    best = optimum(where.problem(workload))
    assert best is not None
    return second_busy(where, best.policy, workload)


def test_plans_that_keep_two_lanes_busy_come_before_others():
    where = site(machine(cpu=FAST, gpu=FAST))
    drawn = list(validation_cases._spread(where, 16, ASKED))

    keep_two = [second_busy(where, policy, workload) >= validation_cases.SURELY_BUSY for policy, _, workload in drawn]

    assert len(drawn) == ASKED.spread
    assert keep_two == sorted(keep_two, reverse=True)


def test_a_cpu_alone_has_half_as_many_spread_plans():
    assert len(list(validation_cases._spread(site(cpu_only(FAST)), 16, ASKED))) == ASKED.spread // 2


def test_of_the_jobs_drawn_the_one_is_taken_that_keeps_a_second_lane_busiest():
    where = site(machine(cpu=FAST, gpu=FAST))
    draw, found = random.Random(ASKED.seed), []
    for _ in range(validation_cases.JOB_DRAWS):
        gen_len, share = draw.randint(*validation_cases.JOB_GEN_LENS), draw.uniform(*validation_cases.JOB_PROMPTS)
        _, workload = validation_cases._of_a_case(where, ASKED, gen_len, share)
        found.append(second_busy_of_best(where, workload))

    _, chosen = validation_cases._sized_job(where, ASKED)

    assert second_busy_of_best(where, chosen) == pytest.approx(max(found))


def test_a_cpu_alone_has_no_second_lane():
    where = site(cpu_only(FAST))
    _, workload = validation_cases._sized_job(where, ASKED)

    assert second_busy_of_best(where, workload) == 0.0
