"""Repeated work: it does what the work itself does, and what torch computes is never taken for repeatable."""

import os

import pytest
import torch

from executor import native
from executor.norm import add_to, rms_norm
from executor.repeated import Repeated
from executor.workspace import host_workspace
from hrm.dtypes import DType
from tests.engines import policy_of, prompts_for, run, tiny_model, tokens_of

pytestmark = pytest.mark.skipif(
    not native.available() and "CI" not in os.environ,
    reason="no compiled kernel here (python setup.py build_ext --inplace)",
)


class Work:
    """Adds a norm of its operand to a sum; counts how often it was done itself."""

    def __init__(self):
        self.workspace = host_workspace(1 << 12)
        self.operand, self.sum, self.weight = torch.ones(2, 3, 8), torch.zeros(2, 3, 8), torch.ones(8)
        self.times = 0

    def __call__(self):
        self.times += 1
        with self.workspace.frame():
            add_to(self.sum[1], rms_norm(self.operand[1], self.weight, 0.0, self.workspace))


def test_what_is_repeated_works_on_what_lies_there_now():
    work, repeated = Work(), Repeated()
    for number in range(1, 5):
        work.operand.fill_(number).mul_(torch.tensor([1.0, -1.0] * 4))
        repeated.run("key", "alike", work)

    assert work.times == 1
    assert work.sum[1].tolist() == [[4.0, -4.0] * 4] * 3
    assert not work.sum[0].any()


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.add_(1),
        lambda x: x.clone(),
        lambda x: x.to(torch.float64),
        lambda x: x[torch.tensor([0])],
        lambda x: x[0, [1, 0]],
        lambda x: x.tolist(),
        lambda x: torch.mm(x[0], x[0].t()),
        lambda x: x + 1,
    ],
)
def test_work_of_which_torch_computes_a_part_is_done_each_time(compute):
    work, repeated = Work(), Repeated()

    def both():
        work()
        compute(work.operand)

    for _ in range(3):
        repeated.run("key", "alike", both)

    assert work.times == 3


def test_each_key_has_work_of_its_own():
    works, repeated = [Work(), Work()], Repeated()
    for _ in range(3):
        for key, work in enumerate(works):
            repeated.run(key, "alike", work)

    assert [work.times for work in works] == [1, 1]
    assert all(torch.equal(work.sum[1], torch.full((3, 8), 3.0)) for work in works)


@pytest.mark.parametrize("keeps", [True, False])
def test_memory_that_the_work_allocated_lives_on_or_is_made_anew(keeps):
    source, repeated, made = torch.ones(1, 1, 1 << 16), Repeated(), []

    def work():
        target = torch.empty(source.shape)
        if keeps:
            native.keep(target)
        native.copy_rows(source, target, 1)
        made.append(target.data_ptr())

    repeated.run("key", "alike", work)
    others = [torch.zeros(source.shape) for _ in range(8)]
    repeated.run("key", "alike", work)

    assert len(made) == (1 if keeps else 2)
    assert not any(other.any() for other in others)
    assert not keeps or made[0] not in {other.data_ptr() for other in others}


def test_work_alike_is_repeated_as_the_first_of_it_was():
    works, repeated = [Work(), Work(), Work()], Repeated()

    def computing():
        works[2]()
        works[2].sum.add_(1)

    for _ in range(3):
        repeated.run(0, "plain", works[0])
        repeated.run(1, "plain", works[1])
        repeated.run(2, "computing", computing)
        repeated.run(3, "computing", computing)

    assert [work.times for work in works] == [1, 1, 6]
    assert torch.equal(works[0].sum, works[1].sum)


def test_an_error_is_not_remembered():
    repeated = Repeated()
    calls: list[int] = []

    def work():
        calls.append(len(calls))
        if len(calls) == 1:
            raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        repeated.run("key", "alike", work)
    repeated.run("key", "alike", work)

    assert calls == [0, 1]


def test_decode_on_the_cpu_repeats_its_layers(tmp_path, monkeypatch):
    model = tiny_model("mixtral", seed=3)
    model.save_pretrained(tmp_path)
    prompts, times, experts = prompts_for(model), list[int](), native.experts

    def counted(*arguments, **options):
        times.append(1)
        experts(*arguments, **options)

    monkeypatch.setattr(native, "experts", counted)
    policy = policy_of(weight_dtype=DType.BFLOAT16, kv_dtype=DType.BFLOAT16)

    short = tokens_of(run(tmp_path, policy, prompts, gen_len=2))
    of_short = len(times)
    long = tokens_of(run(tmp_path, policy, prompts, gen_len=9))

    assert len(times) == 2 * of_short > 0
    assert [answer[:2] for answer in long] == short
