import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from executor.sampling import Settings, pick, seed_for, uniform
from hrm.policy import Processor
from tests.engines import gpu_policy, policy_of, prompts_for, run, tiny_model, tokens_of

SHARES = (0.4, 0.3, 0.2, 0.1)
LOGITS = torch.tensor(SHARES).log()


def drawn(settings: Settings, logits: torch.Tensor = LOGITS, count: int = 4000) -> dict[int, float]:
    """Return the share of each token among those drawn for an answer of `count` tokens."""
    tokens = [int(pick(logits.unsqueeze(0), [settings], [number])[0]) for number in range(count)]
    return {token: found / count for token, found in Counter(tokens).items()}


def test_temperature_zero_takes_the_likeliest_whatever_the_rest_says():
    assert drawn(Settings(top_k=3, top_p=0.5, seed=7), count=20) == {0: 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_of_equally_likely_tokens_the_first_is_taken(dtype):
    logits = torch.zeros((3, 5000), dtype=dtype)
    for row, places in enumerate(([4999], [17, 4000], [0])):
        logits[row, places] = 1.0

    assert pick(logits, [Settings()] * 3, [0] * 3).tolist() == [4999, 17, 0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(temperature=1.0), SHARES),
        (Settings(temperature=1.0, top_k=2), (4 / 7, 3 / 7)),
        (Settings(temperature=1.0, top_p=0.7), (4 / 7, 3 / 7)),
        (Settings(temperature=1.0, top_p=0.71), (4 / 9, 3 / 9, 2 / 9)),
        (Settings(temperature=1.0, top_k=3, top_p=0.6), (4 / 7, 3 / 7)),
        (Settings(temperature=1.0, top_p=1e-9), (1.0,)),
        (Settings(temperature=0.5), tuple(share**2 / 0.3 for share in SHARES)),
        (Settings(temperature=1e-300), (1.0,)),
    ],
)
def test_tokens_come_in_proportion_to_the_shares_that_are_left(settings, expected):
    found = drawn(settings)

    assert set(found) == set(range(len(expected)))
    for token, share in enumerate(expected):
        assert abs(found[token] - share) < 4 * math.sqrt(share * (1 - share) / 4000) + 1e-9


def test_a_flat_law_over_many_tokens_is_cut_where_top_p_says():
    found = drawn(Settings(temperature=1.0, top_p=0.5), torch.zeros(5000), count=500)

    assert len(found) > 350


def test_what_is_drawn_follows_from_seed_and_number_alone():
    logits = torch.randn(5, 97, generator=torch.Generator().manual_seed(0))
    settings = [Settings(temperature=1.0, seed=row) for row in range(5)]
    together = pick(logits, settings, [3, 1, 4, 1, 5]).tolist()

    alone = [int(pick(logits[row : row + 1], settings[row : row + 1], [number])[0]) for row, number in
             enumerate([3, 1, 4, 1, 5])]  # fmt: skip

    assert together == alone
    assert len({uniform(seed, number) for seed in range(30) for number in range(30)}) == 900
    assert seed_for(1, "a") != seed_for(1, "b") != seed_for(2, "b")


def test_a_sampled_answer_does_not_depend_on_what_runs_beside_it(tmp_path):
    model = tiny_model("mixtral", seed=5)
    model.save_pretrained(tmp_path)
    prompts = [
        replace(prompt, settings=Settings(temperature=0.8, top_p=0.95, seed=number) if number % 2 else Settings())
        for number, prompt in enumerate(prompts_for(model))
    ]

    together = tokens_of(run(tmp_path, policy_of(), prompts))

    assert tokens_of(run(tmp_path, policy_of(batch_size=2, micro_batch_size=1), prompts[::-1])) == together[::-1]
    assert tokens_of(run(tmp_path, gpu_policy(attention_device=Processor.GPU), prompts)) == together
    assert [tokens_of(run(tmp_path, policy_of(), [prompt]))[0] for prompt in prompts] == together
    greedy = tokens_of(run(tmp_path, policy_of(), prompts_for(model)))
    assert [ours == theirs for ours, theirs in zip(together, greedy, strict=True)][::2] == [True] * 4
    assert together[1::2] != greedy[1::2]
