import random
from dataclasses import replace
from itertools import accumulate

import pytest

from executor.measure import WaveSpans, measured
from executor.running import Span
from executor.wave import MicroBatch, deal_waves, make_wave
from hrm.compare import KindTime
from hrm.dtypes import DType
from hrm.policy import Policy, Processor, ScheduleName
from hrm.schedule.task import Lane, Phase, TaskKey, TaskKind
from hrm.workload import Workload

POLICY = Policy(
    batch_size=10,
    micro_batch_size=4,
    attention_device=Processor.CPU,
    ffn_device=Processor.CPU,
    resident_experts=0,
    kv_on_gpu=0.0,
    schedule=ScheduleName.HOST,
    weight_dtype=DType.FLOAT32,
    kv_dtype=DType.FLOAT32,
)


@pytest.mark.parametrize("seed", range(200))
def test_no_wave_or_micro_batch_holds_more_than_the_ledger_counts(seed):
    draw = random.Random(seed)
    lens = [1 + int(draw.expovariate(1 / 80)) for _ in range(draw.randint(1, 60))]
    policy = replace(POLICY, batch_size=(size := draw.randint(1, 25)), micro_batch_size=draw.randint(1, size))
    workload = Workload.from_prompt_lens(tuple(lens), 4)

    waves = [make_wave(members, lens, policy) for members in deal_waves(lens, policy.batch_size)]

    assert sorted(place for wave in waves for place in wave.order) == list(range(len(lens)))
    for wave in waves:
        assert wave.prompt_lens == tuple(lens[place] for place in wave.order)
        assert wave.num_tokens <= workload.prompt_tokens(policy.batch_size)
        for batch in wave.micro_batches:
            assert batch.num_tokens <= workload.micro_batch_prompt_tokens(policy.micro_batch_size)


def test_micro_batches_lie_one_behind_the_other():
    lens = [5, 1, 4, 2, 3, 6, 7]
    wave = make_wave(range(7), lens, POLICY)

    first, second, third = wave.micro_batches
    assert (first.num_sequences, second.num_sequences, third.num_sequences) == (4, 3, 0)
    assert (first.token_first, first.token_last) == (0, first.num_tokens)
    assert (second.token_first, second.token_last) == (first.num_tokens, sum(lens))
    assert third.num_tokens == 0
    assert second.rows(1, 2) == slice(second.prompt_lens[0], second.prompt_lens[0] + second.prompt_lens[1])


def test_phases_end_with_the_first_tokens_and_look_ahead_counts_where_it_ran():
    post, copy = TaskKey(TaskKind.POST_ATTENTION, 0, 0), TaskKey(TaskKind.PAGE_COPY, 0, 0)
    spans = (
        Span(Phase.PREFILL, 0, post, Lane.GPU, 10.0, 14.0),
        Span(Phase.PREFILL, 0, copy, Lane.H2D, 12.0, 15.0),
        Span(Phase.DECODE, 1, post, Lane.GPU, 15.0, 16.0),
    )

    result = measured(
        [WaveSpans(begun_s=10.0, spans=spans)],
        sequences=3,
        prompt_tokens=8,
        generated_tokens=6,
        peak_bytes={"gpu": 1, "cpu": 2},
    )

    assert (result.prefill_s, result.decode_s) == (4.0, 2.0)
    assert result.busy == {Phase.PREFILL: {"gpu": 1.0, "h2d": 0.5}, Phase.DECODE: {"gpu": 0.5, "h2d": 0.5}}
    assert result.task_s[Phase.PREFILL][TaskKind.PAGE_COPY] == KindTime(seconds=3.0, count=1)
    assert result.throughput_tokens_per_s == 1.0
    assert result.decode_throughput_tokens_per_s == 1.5
    assert result.prefill_throughput_tokens_per_s == 2.0


def test_where_a_head_follows_split_experts_it_makes_the_first_tokens():
    def span(kind, part, start_s):
        return Span(Phase.PREFILL, 0, TaskKey(kind, 0, part), Lane.GPU, start_s, start_s + 1.0)

    posts = (span(TaskKind.POST_ATTENTION, 0, 0.0), span(TaskKind.POST_ATTENTION, 1, 1.0))
    heads = (span(TaskKind.HEAD, 0, 3.0), span(TaskKind.HEAD, 1, 5.0))
    later = Span(Phase.DECODE, 1, TaskKey(TaskKind.PAGE_COPY, 0, 0), Lane.H2D, 5.0, 9.0)

    windows = WaveSpans(begun_s=0.0, spans=(*posts, *heads, later)).windows

    assert windows == {Phase.PREFILL: (0.0, 6.0), Phase.DECODE: (6.0, 9.0)}


@pytest.mark.parametrize(
    ("lens", "most", "expected"),
    [
        ((3, 3, 3, 2, 2), 6, [(0, 2), (2, 3), (3, 5)]),
        ((9, 4, 4), 4, [(0, 1), (1, 2), (2, 3)]),
        ((0, 5, 0, 0), 100, [(1, 2)]),
        ((), 4, []),
    ],
)
def test_runs_are_of_one_length_and_hold_so_many_tokens(lens, most, expected):
    starts = tuple(accumulate(lens, initial=0))
    batch = MicroBatch(first=0, last=len(lens), prompt_lens=lens, token_starts=starts)

    assert list(batch.runs(most)) == expected
