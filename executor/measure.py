"""From when each task ran to what is reported: phase times, rates, busy lanes, seconds per task kind, peak bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from executor.running import Span
from hrm.compare import KindTime, Measured
from hrm.records import record
from hrm.schedule.task import Lane, Phase, TaskKind

__all__ = ["WaveSpans", "measured"]

_MAKES_TOKENS = (TaskKind.POST_ATTENTION, TaskKind.HEAD)
"""The last of these to end in prefill made the last first token: the head comes with one, or after it as the other."""


@record
class WaveSpans:
    """What ran in a wave, from the moment its first task was submitted; once more after each time seats are taken."""

    begun_s: float
    spans: Iterable[Span]

    @property
    def windows(self) -> dict[Phase, tuple[float, float]]:
        """Begin and end of each phase; decode is empty where prefill made the only token."""
        firsts = (span.ended_s for span in self.spans if span.phase is Phase.PREFILL and span.key.kind in _MAKES_TOKENS)
        first_tokens_s = max(firsts)
        end_s = max((span.ended_s for span in self.spans if span.phase is Phase.DECODE), default=first_tokens_s)
        return {Phase.PREFILL: (self.begun_s, first_tokens_s), Phase.DECODE: (first_tokens_s, end_s)}


def measured(
    waves: Sequence[WaveSpans], *, sequences: int, prompt_tokens: int, generated_tokens: int, peak_bytes: dict[str, int]
) -> Measured:
    """Sum up the waves of a job; `generated_tokens` are those of its answers."""
    windows = [wave.windows for wave in waves]
    by_phase = {phase: [window[phase] for window in windows] for phase in Phase}
    lasted = {phase: sum(end - begin for begin, end in by_phase[phase]) for phase in Phase}
    prefill_s = lasted[Phase.PREFILL]
    decode_s, decoded = lasted[Phase.DECODE], generated_tokens - sequences
    return Measured(
        prefill_s=prefill_s,
        decode_s=decode_s,
        num_sequences=sequences,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        throughput_tokens_per_s=generated_tokens / (prefill_s + decode_s),
        decode_throughput_tokens_per_s=decoded / decode_s if decode_s else 0.0,
        prefill_throughput_tokens_per_s=prompt_tokens / prefill_s,
        peak_bytes=peak_bytes,
        busy={phase: _busy(waves, by_phase[phase], lasted[phase]) for phase in Phase},
        task_s={phase: _task_s(waves, phase) for phase in Phase},
    )


def _busy(waves: Sequence[WaveSpans], windows: Sequence[tuple[float, float]], lasted_s: float) -> dict[Lane, float]:
    """Share of a phase, of which these are the waves' windows, in which each lane worked, whosever its work was."""
    worked: dict[Lane, float] = defaultdict(float)
    for wave, (begin, end) in zip(waves, windows, strict=True):
        by_lane: dict[Lane, list[tuple[float, float]]] = defaultdict(list)
        for span in wave.spans:
            by_lane[span.lane].append((max(span.started_s, begin), min(span.ended_s, end)))
        for lane, intervals in by_lane.items():
            worked[lane] += _union_s(intervals)
    return {lane: seconds / lasted_s if lasted_s > 0 else 0.0 for lane, seconds in worked.items()}


def _union_s(intervals: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by the intervals, overlaps once.

    >>> _union_s([(0.0, 2.0), (1.0, 3.0), (5.0, 4.0)])
    3.0
    """
    covered, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered


def _task_s(waves: Sequence[WaveSpans], phase: Phase) -> dict[TaskKind, KindTime]:
    seconds: dict[TaskKind, float] = defaultdict(float)
    count: dict[TaskKind, int] = defaultdict(int)
    for span in (span for wave in waves for span in wave.spans if span.phase is phase):
        seconds[span.key.kind] += span.ended_s - span.started_s
        count[span.key.kind] += 1
    return {kind: KindTime(seconds=seconds[kind], count=count[kind]) for kind in seconds}
