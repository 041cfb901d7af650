"""The statistics that judge predictions, against scipy and by hand."""

import random
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import beta, kendalltau

from hrm.validation.statistics import Ranked, coverage, error_of, held_out_regret, regret, spearman, told_apart

RATES = st.floats(1.0, 1e4, allow_nan=False)


def plans(pairs, spread=0.0):
    return [Ranked(predicted=predicted, measured=measured, spread=spread) for predicted, measured in pairs]


@given(st.lists(st.tuples(RATES, RATES), min_size=2, max_size=12, unique_by=(lambda p: p[0], lambda p: p[1])))
def test_tau_is_scipys_where_every_pair_is_told_apart(pairs):
    assume(len({round(m, 6) for _, m in pairs}) == len(pairs))
    expected = kendalltau(*zip(*pairs, strict=True)).statistic

    assert told_apart(plans(pairs)).tau == pytest.approx(expected, abs=1e-12)


def test_pairs_within_twice_their_spread_do_not_count():
    three = [
        Ranked(predicted=3.0, measured=100.0, spread=2.0),
        Ranked(predicted=2.0, measured=104.0, spread=2.0),
        Ranked(predicted=1.0, measured=120.0, spread=1.0),
    ]

    pairs = told_apart(three)

    assert (pairs.count, pairs.concordant, pairs.tau) == (2, 0.0, -1.0)
    assert told_apart(three[:2]).tau is None


def test_a_tie_in_prediction_counts_as_half():
    assert told_apart(plans([(5.0, 1.0), (5.0, 9.0)])).tau == 0.0


@given(st.lists(st.tuples(RATES, RATES), min_size=1, max_size=9))
def test_regret_is_nothing_for_the_right_choice_and_never_negative(pairs):
    found = plans(pairs)

    assert 0.0 <= regret(found) < 1.0
    assert regret(plans([(measured, measured) for _, measured in pairs])) == 0.0


def test_regret_among_plans_that_are_alike_is_luck_and_held_out_it_is_nothing():
    draw = random.Random(0)

    def alike():
        runs = [tuple(draw.gauss(10.0, 1.0) for _ in range(3)) for _ in range(5)]
        return [Ranked(predicted=9.0, measured=statistics.median(one), spread=2.0, runs=one) for one in runs]

    jobs = [alike() for _ in range(2000)]

    assert statistics.fmean(map(regret, jobs)) > 0.05
    assert abs(statistics.fmean(map(held_out_regret, jobs))) < 0.015


def test_held_out_regret_is_regret_where_runs_do_not_differ():
    pair = [Ranked(predicted=10.0, measured=8.0, spread=0.0, runs=(8.0,) * 3)]
    pair.append(Ranked(predicted=9.0, measured=10.0, spread=0.0, runs=(10.0,) * 3))

    assert held_out_regret(pair) == pytest.approx(regret(pair)) == pytest.approx(0.2)


def test_regret_by_hand():
    assert regret(plans([(10.0, 8.0), (9.0, 10.0)])) == pytest.approx(0.2)


def test_ranks_that_agree_and_that_are_reversed():
    assert spearman(plans([(1.0, 2.0), (2.0, 4.0), (3.0, 9.0)])) == pytest.approx(1.0)
    assert spearman(plans([(3.0, 2.0), (2.0, 4.0), (1.0, 9.0)])) == pytest.approx(-1.0)
    assert spearman(plans([(1.0, 2.0), (2.0, 4.0)])) is None


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_coverage_has_the_exact_binomial_band(inside):
    """Clopper and Pearson: the ends are quantiles of beta laws."""
    held, count = sum(inside), len(inside)
    found = coverage(inside)

    assert found.low == pytest.approx(beta.ppf(0.025, held, count - held + 1) if held else 0.0, abs=1e-9)
    assert found.high == pytest.approx(beta.ppf(0.975, held + 1, count - held) if held < count else 1.0, abs=1e-9)
    assert found.low <= found.share <= found.high


def test_forty_of_forty_is_too_many_for_four_of_five():
    assert coverage([True] * 40).low > 0.8
    assert coverage([True] * 33 + [False] * 7).low < 0.8


def test_errors_by_hand():
    found = error_of([0.1, -0.3, 0.05])

    assert found.mean == pytest.approx(-0.05)
    assert found.mape == pytest.approx(0.15)
    assert (found.worst, found.count) == (-0.3, 3)
