"""The cases of a validation: per model and machine the best plans, every schedule, and plans from everywhere."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hrm.errors import HrmError, InfeasibleError
from hrm.estimate import Fidelity
from hrm.records import record

if TYPE_CHECKING:
    from executor.prompts import Prompt
    from hrm.hardware import HardwareProfile
    from hrm.model import ModelSpec
    from hrm.policy import Policy
    from hrm.validation.cases import Case, Draw, Origin
    from hrm.workload import Workload
    from solver.problem import Problem

__all__ = ["Asked", "Pool", "Site", "Source", "plan_cases", "pool_of"]

JOB_SIZES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
JOB_GEN_LENS, JOB_PROMPTS = (4, 12), (0.0, 0.5)
"""Of the job that decisions are judged by, drawn: tokens per sequence, how far into the prompts by length it begins."""
JOB_DRAWS = 8
"""Jobs drawn, of which that is taken whose best plan keeps a second lane busiest."""
LEAST_GEN_LEN, MOST_GEN_LEN = 2, 16
LEAST_PROMPT_LEN, MOST_PROMPT_LEN = 6.0, 40.0
"""Mean lengths of random prompts; one prompt is from half as long to half as long again."""
SHORTEST, LONGEST = 0.3, 2.5
"""How long a case may take, in multiples of what is aimed at: shorter says little, longer costs the others' runs."""
DRAWS_PER_CASE = 60
SURELY_BUSY = 0.7
"""Share of a run that a second lane should work as predicted, so that it is busy in the measured one too."""


@record
class Asked:
    """What a validation was asked for: best and spread plans per model and machine, seconds of a case, the seed."""

    plans: int
    spread: int
    case_s: float
    seed: int


@record
class Pool:
    """Prompts that jobs take theirs from: real ones by length, or none; then random tokens of the vocabulary."""

    vocab_size: int
    real: tuple[Prompt, ...] = ()

    def take(self, count: int, share: float, seed: int) -> tuple[tuple[int, ...], ...]:
        """Return `count` prompts, of real ones neighbours in length from a share of the way on, all over again if few.

        Random ones are the longer the larger the share.
        """
        if self.real:
            ordered = sorted((prompt.tokens for prompt in self.real), key=len)
            first = round(share * max(len(ordered) - count, 0))
            return tuple(ordered[(first + index) % len(ordered)] for index in range(count))
        draw = random.Random(seed)
        mean = LEAST_PROMPT_LEN * (MOST_PROMPT_LEN / LEAST_PROMPT_LEN) ** share
        lens = [round(draw.uniform(0.5 * mean, 1.5 * mean)) for _ in range(count)]
        return tuple(tuple(draw.randrange(self.vocab_size) for _ in range(length)) for length in lens)


@record
class Source:
    """A checkpoint: its folder, the model in it, and the prompts for it."""

    folder: str
    model: ModelSpec
    pool: Pool


@record
class Site:
    """Where plans are made for: a model on a machine, by the name that its cases begin with."""

    name: str
    machine: str
    model_name: str
    source: Source
    hardware: HardwareProfile

    @property
    def model(self) -> ModelSpec:
        """The model."""
        return self.source.model

    @property
    def pool(self) -> Pool:
        """The prompts that jobs are made of."""
        return self.source.pool

    def problem(self, workload: Workload) -> Problem:
        """Pose a job here, in the formats in which the model is stored."""
        from solver.problem import Problem

        kv = self.model.dtype.activation_dtype
        return Problem(
            model=self.model, hardware=self.hardware, workload=workload, weight_dtype=self.model.dtype, kv_dtype=kv
        )


def pool_of(checkpoint: Path, model: ModelSpec, prompts: Path | None) -> Pool:
    """Return the prompts for a checkpoint: those of the file where it has a tokenizer to read them."""
    from executor.prompts import read_prompts
    from executor.tokenizer import Tokenizer

    real = read_prompts(prompts, checkpoint) if prompts is not None and Tokenizer(checkpoint).exists else ()
    return Pool(vocab_size=model.vocab_size, real=real)


Tokens = tuple[tuple[int, ...], ...]


def plan_cases(site: Site, asked: Asked) -> Iterator[tuple[Case, Tokens]]:
    """Yield the cases of a model on a machine, each with its prompts."""
    from hrm.validation.cases import Origin

    job = f"{site.name}-job"
    tokens, workload = _sized_job(site, asked)
    size, seen = len(tokens), set()
    for policy in _best_policies(site.problem(workload), asked.plans):
        seen.add(policy)
        yield _case(site, job, Origin.BEST, len(seen), (policy, workload)), tokens
    count = 0
    for policy in _per_schedule(site.problem(workload), LONGEST * asked.case_s):
        if policy not in seen:
            seen.add(policy)
            count += 1
            yield _case(site, job, Origin.SCHEDULE, count, (policy, workload)), tokens
    for number, (policy, drawn, own) in enumerate(_spread(site, size, asked), start=1):
        name = f"{site.name}-spread-{number}"
        yield _case(site, name, Origin.SPREAD, number, (policy, own)), drawn


def _case(site: Site, job: str, origin: Origin, number: int, what: tuple[Policy, Workload]) -> Case:
    from hrm.validation.cases import Case

    return Case(
        name=f"{site.name}-{origin}-{number}",
        machine=site.machine,
        model=site.model_name,
        job=job,
        origin=origin,
        policy=what[0],
        workload=what[1],
    )


def _workload(tokens: Sequence[Sequence[int]], gen_len: int) -> Workload:
    from hrm.workload import Workload

    return Workload.from_prompt_lens(tuple(len(one) for one in tokens), gen_len)


def _sized_job(site: Site, asked: Asked) -> tuple[Tokens, Workload]:
    """Return, of some jobs that are drawn, the one whose best plan keeps a second lane busiest."""
    from solver.optimum import optimum

    draw, chosen, busiest = random.Random(asked.seed), None, -1.0
    for _ in range(JOB_DRAWS if site.hardware.has_gpu else 1):
        tokens, workload = _of_a_case(site, asked, draw.randint(*JOB_GEN_LENS), draw.uniform(*JOB_PROMPTS))
        best = optimum(site.problem(workload))
        second = _foreseen(site, best.policy, workload, Fidelity.SIMULATED).second_busy if best else 0.0
        if second > busiest:
            chosen, busiest = (tokens, workload), second
    assert chosen is not None
    return chosen


def _of_a_case(site: Site, asked: Asked, gen_len: int, share: float) -> tuple[Tokens, Workload]:
    """Return the largest job of a kind that the best plan does in the time of a case, or the smallest."""
    from solver.optimum import optimum

    chosen = None
    for size in JOB_SIZES:
        tokens = site.pool.take(size, share, asked.seed)
        workload = _workload(tokens, gen_len)
        best = optimum(site.problem(workload))
        if best is None:
            break
        if chosen is None or size * gen_len / best.throughput_tokens_per_s <= asked.case_s:
            chosen = tokens, workload
        else:
            break
    if chosen is None:
        raise HrmError(f"{site.name}: not even {JOB_SIZES[0]} sequences fit (take a smaller model or a larger device)")
    return chosen


def _best_policies(problem: Problem, count: int) -> Iterable[Policy]:
    """Return what solving gives, and the next best that differ from it and from each other."""
    from solver.candidates import distinct, explore
    from solver.search import solve

    chosen = solve(problem, fidelity=Fidelity.SIMULATED).policy
    others = [one.policy for one in distinct(explore(problem), count) if one.policy != chosen]
    return [chosen, *others][:count]


def _per_schedule(problem: Problem, longest_s: float) -> Iterator[Policy]:
    """Yield each other schedule at its own best policy, unless it would take too long."""
    from solver.ablation import GPU_SCHEDULES
    from solver.search import solve

    if not problem.hardware.has_gpu:
        return
    for schedule in GPU_SCHEDULES:
        try:
            plan = solve(replace(problem, schedules=(schedule,)), fidelity=Fidelity.SIMULATED)
        except InfeasibleError:
            continue
        times = plan.prediction.times
        if times.prefill_s + times.decode_s <= longest_s:
            yield plan.policy


def _spread(site: Site, size: int, asked: Asked) -> Iterator[tuple[Policy, Tokens, Workload]]:
    """Yield policies from all over the space, each with a job of its own, that take about the time of a case.

    Those that should keep two lanes busy go before the others: where one lane sets the pace alone, little is predicted.
    Of a CPU alone, which has no other, there are half as many.
    """
    from itertools import islice

    from hrm.validation.cases import draws, fitted

    wanted: list[tuple[Policy, Tokens, Workload]] = []
    others: list[tuple[Policy, Tokens, Workload]] = []
    count = asked.spread if site.hardware.has_gpu else max(1, asked.spread // 2)
    for number, draw in enumerate(islice(draws(count, asked.seed), DRAWS_PER_CASE * count)):
        tokens = site.pool.take(size, draw.prompt_len, asked.seed + number)
        gen_len = round(LEAST_GEN_LEN * (MOST_GEN_LEN / LEAST_GEN_LEN) ** draw.gen_len)
        workload = _workload(tokens, gen_len)
        policy = fitted(_placement(site, workload, draw), draw, site.model, site.hardware, workload)
        if policy is None:
            continue
        quick = _foreseen(site, policy, workload, Fidelity.CEILING)
        if SHORTEST * asked.case_s <= quick.whole_s <= LONGEST * asked.case_s:
            # Nothing is busier in the schedule than at the bounds, so only what these promise is simulated.
            keeps_two = quick.second_busy >= SURELY_BUSY and (
                _foreseen(site, policy, workload, Fidelity.SIMULATED).second_busy >= SURELY_BUSY
            )
            (wanted if keeps_two or not site.hardware.has_gpu else others).append((policy, tokens, workload))
        if len(wanted) == count:
            break
    yield from (wanted + others)[:count]


@record
class _Foreseen:
    """Seconds that a policy should take, and the share of them that the second busiest lane should work."""

    whole_s: float
    second_busy: float


def _foreseen(site: Site, policy: Policy, workload: Workload, level: Fidelity) -> _Foreseen:
    from hrm.predict import predict
    from hrm.schedule.task import Lane, Phase

    found = predict(policy, site.model, site.hardware, workload, fidelity=level, fidelities=(level,))
    lasted = {Phase.PREFILL: found.times.prefill_s, Phase.DECODE: found.times.decode_s}
    whole_s = sum(lasted.values())
    worked_s = sorted(
        sum(one.busy.get(lane, 0.0) * lasted[phase] for phase, one in found.bottleneck.items()) for lane in Lane
    )
    return _Foreseen(whole_s=whole_s, second_busy=worked_s[-2] / whole_s)


def _placement(site: Site, workload: Workload, draw: Draw) -> Policy:
    from hrm.policy import ScheduleName
    from solver.space import placements

    problem = replace(site.problem(workload), schedules=tuple(ScheduleName), split_experts=True)
    choices = list(placements(problem))
    return choices[min(int(draw.placement * len(choices)), len(choices) - 1)]
