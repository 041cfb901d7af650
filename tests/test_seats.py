import json
import shutil
from dataclasses import replace

import pytest
import tokenizers

from executor.answer import Answer, Rules
from executor.engine import Engine
from executor.prompts import Prompt
from executor.sampling import Settings
from executor.seats import Seats
from executor.tokenizer import TextStream, Tokenizer
from executor.wave import make_wave
from hrm.device.host import HostBackend
from hrm.policy import Processor, ScheduleName
from tests.engines import (
    GEN_LEN,
    gpu_policy,
    plan_for,
    policy_of,
    prompts_for,
    reference_tokens,
    run,
    tiny_model,
    tokens_of,
)

LIMITS = (2, 6, 1, 3, 6, 1, 4, 5, 2, 6, 1, 3, 1, 6)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A random Mixtral, twice seven ragged prompts with limits of their own, and the greedy tokens of each alone."""
    model = tiny_model("mixtral", seed=1)
    folder = tmp_path_factory.mktemp("mixtral")
    model.save_pretrained(folder)
    drawn = prompts_for(model) + prompts_for(model, seed=3)
    prompts = [
        replace(prompt, id=str(at), settings=Settings(max_new_tokens=limit))
        for at, (prompt, limit) in enumerate(zip(drawn, LIMITS, strict=True))
    ]
    expected = [tokens[:limit] for tokens, limit in zip(reference_tokens(model, prompts), LIMITS, strict=True)]
    return folder, prompts, expected


POLICIES = {
    "host": policy_of(batch_size=4),
    "host, one by one": policy_of(batch_size=3, micro_batch_size=1),
    "cgopipe": gpu_policy(batch_size=5, resident_experts=1, pages_per_layer=2),
    "kv-transfer": gpu_policy(
        batch_size=5,
        attention_device=Processor.GPU,
        kv_on_gpu=0.4,
        schedule=ScheduleName.KV_TRANSFER,
        resident_experts=1,
    ),
    "split experts": gpu_policy(batch_size=5, resident_experts=1, cpu_experts=2),
}


@pytest.mark.parametrize("name", POLICIES)
def test_who_takes_a_free_seat_gets_the_same_answer(mixtral, name):
    folder, prompts, expected = mixtral

    generation = run(folder, POLICIES[name], prompts)

    assert tokens_of(generation) == expected
    assert generation.measured.generated_tokens == sum(LIMITS)
    assert {answer.finish_reason for answer in generation.completions} == {"length"}


def test_seats_are_taken_again_rather_than_left_empty(mixtral):
    folder, prompts, _ = mixtral
    long_one = [replace(prompts[1], id="long")]
    short = [replace(prompts[2], id=f"short {at}", settings=Settings(max_new_tokens=1)) for at in range(4)]

    generation = run(folder, policy_of(batch_size=2, micro_batch_size=1), long_one + short)

    passes = [max(span.pass_index for span in wave.spans) + 1 for wave in generation.waves]
    assert [len(answer.tokens) for answer in generation.completions] == [GEN_LEN, 1, 1, 1, 1]
    assert sum(passes) < GEN_LEN + 2 * 2 + 2


def test_a_wave_ends_with_its_last_answer(mixtral):
    folder, prompts, _ = mixtral
    asked = [replace(prompt, settings=Settings(max_new_tokens=2)) for prompt in prompts[:3]]

    generation = run(folder, policy_of(), asked)

    (wave,) = generation.waves
    assert max(span.pass_index for span in wave.spans) == 1
    assert tokens_of(generation) == [tokens[:2] for tokens in reference_of(mixtral, 3)]


def reference_of(mixtral, count):
    folder, prompts, _ = mixtral
    return tokens_of(run(folder, policy_of(), [replace(prompt, settings=Settings()) for prompt in prompts[:count]]))


def test_an_unforeseen_end_costs_one_pass_at_most(mixtral, tmp_path):
    folder, prompts, _ = mixtral
    (tokens,) = reference_of(mixtral, 1)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens[1]}))
    asked = replace(prompts[0], settings=Settings())

    (answer,), (wave,) = (generation := run(tmp_path, policy_of(), [asked])).completions, generation.waves

    assert (answer.tokens, answer.finish_reason) == (tokens[: tokens.index(tokens[1]) + 1], "stop")
    assert max(span.pass_index for span in wave.spans) <= len(answer.tokens)
    (whole,) = tokens_of(run(tmp_path, policy_of(), [replace(asked, settings=Settings(ignore_eos=True))]))
    assert whole == tokens


def seats_for(lens, batch_size, limits):
    rules = Rules(gen_len=8, end_tokens=frozenset(), tokenizer=Tokenizer("nowhere"))
    answers = [
        Answer(Prompt(id=str(at), tokens=(1,) * length, settings=Settings(max_new_tokens=limit)), rules)
        for at, (length, limit) in enumerate(zip(lens, limits, strict=True))
    ]
    waiting = dict.fromkeys(sorted(answers, key=lambda answer: -len(answer.prompt.tokens)))
    wave = make_wave(range(batch_size), lens, policy_of(batch_size=batch_size))
    return Seats(wave, answers, waiting, rules.gen_len), waiting


def test_a_seat_takes_the_longest_prompt_that_is_no_longer_than_the_one_it_was_dealt_to():
    seats, waiting = seats_for([5, 9, 7, 4, 6, 10], 2, [1, 8, 8, 8, 8, 8])
    seats.seat()
    assert [answer.prompt.id for _, answer in seats.live] == ["1", "0"]

    finished = seats.take(0, [3, 3])
    seats.seat()

    assert [answer.prompt.id for answer in finished] == ["0"]
    assert {answer.prompt.id for _, answer in seats.live} == {"1", "3"}
    assert [answer.prompt.id for answer in waiting] == ["5", "2", "4"]


def test_those_who_go_on_wait_for_newcomers_once_as_much_is_lost_without_them():
    seats, _ = seats_for([5, 5, 5, 5, 5, 5], 4, [1, 8, 8, 8, 8, 8])
    seats.seat()
    totals = []
    for index in range(3):
        seats.take(index, [3] * 4)
        totals.append(seats.passes_after(index))

    # One seat of four is free from the first pass on; the third loss equals the three that would stand still.
    assert totals == [8, 8, 4]


def byte_tokenizer(folder):
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def encoded(tokenizer, text):
    return tokenizer.encode_prompt(text, "here")


def test_text_comes_when_its_last_byte_does(tmp_path):
    tokenizer = byte_tokenizer(tmp_path)
    stream, seen = TextStream(tokenizer), []
    for token in encoded(tokenizer, "a né🙂 b"):
        stream.add(token)
        seen.append(stream.text)

    assert seen == ["a", "a ", "a n", "a n", "a né", "a né", "a né", "a né", "a né🙂", "a né🙂 ", "a né🙂 b"]


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (("🙂",), "so 🙂 it", "so "),
        (("end", "nd"), "the end", "the "),
        (("b c", "c"), "a b c", "a "),
        (("never",), "all of it", "all of it"),
    ],
)
def test_an_answer_ends_before_its_stop_text(tmp_path, stop, text, expected):
    tokenizer = byte_tokenizer(tmp_path)
    rules = Rules(gen_len=100, end_tokens=frozenset(), tokenizer=tokenizer)
    tokens = encoded(tokenizer, text)
    answer = Answer(Prompt(id="a", tokens=(1,), settings=Settings(stop=stop, max_new_tokens=len(tokens))), rules)
    for token in tokens:
        answer.take(token)
        if not answer.left:
            break

    made = answer.completion()

    assert made.text == expected
    assert made.finish_reason == ("length" if expected == text else "stop")
    assert tokenizer.decode(made.tokens).startswith(expected)


def test_a_stop_text_without_a_tokenizer_is_refused(mixtral):
    folder, prompts, _ = mixtral
    engine = Engine(plan_for(folder, policy_of()), folder, HostBackend(threads=1))

    assert "tokenizer" in (engine.problem(replace(prompts[0], settings=Settings(stop=("x",)))) or "")
    engine.backend.close()
