"""The front of throughput against latency: strictly a trade, and each point what `predict` says of it."""

from dataclasses import replace
from itertools import pairwise

import pytest

from hrm.estimate import Fidelity
from hrm.predict import predict
from solver.pareto import pareto_front
from tests.test_explain import best_of, case_study


def test_the_front_trades_latency_for_throughput():
    asked = case_study(num_sequences=512)
    front = pareto_front(asked)
    best = best_of(asked)

    assert len(front) > 3
    for one, other in pairwise(front):
        assert one.latency_s < other.latency_s
        assert one.throughput_tokens_per_s < other.throughput_tokens_per_s
    assert front[-1].throughput_tokens_per_s == pytest.approx(best.throughput_tokens_per_s, rel=0.02)


def test_points_of_the_front_are_what_predict_says():
    asked = case_study(num_sequences=64)
    for point in pareto_front(asked):
        one_batch = replace(asked.workload, num_sequences=point.policy.batch_size)
        times = predict(point.policy, asked.model, asked.hardware, one_batch, fidelities=(Fidelity.CEILING,)).times
        assert point.batch_s == pytest.approx(times.prefill_s + times.decode_s)
        assert point.latency_s == pytest.approx(times.decode_s / 127)


def test_the_front_of_jobs_of_one_token_is_by_the_time_to_it():
    front = pareto_front(case_study(num_sequences=8, gen_len=1))

    assert all(point.latency_s == point.time_to_first_token_s for point in front)
