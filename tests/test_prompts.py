import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from executor.prompts import Completion, answer_line, read_prompts
from executor.sampling import Settings, seed_for
from executor.tokenizer import Tokenizer, end_tokens
from hrm.errors import FileError

WORDS = ("<unk>", "<s>", "<|user|>", "<|assistant|>", "hello", "world", "<end>")
TEMPLATE = "{{ bos_token }} {% for m in messages %}<|{{ m.role }}|> {{ m.content }} {% endfor %}<|assistant|>"


def checkpoint(folder: Path, *, template: bool) -> Path:
    """Write a word-level tokenizer of seven words, with or without a chat template."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}} | ({"chat_template": TEMPLATE} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def prompt_file(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_a_prompt_becomes_a_user_message_where_there_is_a_template(tmp_path):
    path = prompt_file(tmp_path, {"id": "a", "prompt": "hello world"}, "", {"id": 2, "prompt": "hello"})

    (plain, second) = read_prompts(path, checkpoint(tmp_path, template=False))
    (chat, _) = read_prompts(path, checkpoint(tmp_path, template=True))

    assert (plain.id, plain.tokens, second.id) == ("a", (4, 5), "2")
    assert chat.tokens == (1, 2, 4, 5, 3)


def test_messages_and_tokens_are_taken_as_they_are(tmp_path):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    path = prompt_file(
        tmp_path, {"id": "a", "messages": messages}, {"id": "b", "tokens": [6, 0], "max_new_tokens": 3, "note": "kept"}
    )

    (chat, given) = read_prompts(path, checkpoint(tmp_path, template=True))

    assert chat.tokens == (1, 2, 4, 3, 5, 3)
    assert (given.tokens, given.settings.max_new_tokens) == ((6, 0), 3)


def test_a_line_says_how_it_is_answered_and_defaults_fill_the_rest(tmp_path):
    own = {"temperature": 1, "top_k": 5, "seed": 3, "stop": "hello", "ignore_eos": True}
    path = prompt_file(tmp_path, {"id": "a", "tokens": [1]} | own, {"id": "b", "tokens": [1], "top_p": None})
    defaults = Settings(top_p=0.5, stop=("world",), max_new_tokens=4)

    (first, second) = (prompt.settings for prompt in read_prompts(path, tmp_path, defaults))

    assert first == Settings(
        temperature=1.0, top_k=5, top_p=0.5, seed=3, stop=("hello",), max_new_tokens=4, ignore_eos=True
    )
    assert second == replace(defaults, seed=seed_for(0, "b"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id": "b", "prompt": ', "not valid JSON"),
        ("[1]", "holds list"),
        ({"prompt": "hello"}, "id: expected"),
        ({"id": True, "prompt": "hello"}, "id: expected"),
        ({"id": "b", "prompt": "\ud800"}, "not valid text"),
        ("[" * 100000, "not read"),
        ('{"id": "b", "tokens": [1], "seed": ' + "9" * 5000 + "}", "not read"),
        ({"id": "b"}, "exactly one of"),
        ({"id": "b", "prompt": "hello", "tokens": [1]}, "exactly one of"),
        ({"id": "b", "prompt": 3}, "prompt: expected text"),
        ({"id": "b", "prompt": ""}, "at least one token"),
        ({"id": "b", "tokens": [1, -1]}, "tokens: expected a list"),
        ({"id": "b", "messages": [{"role": "user"}]}, "messages: expected a list"),
        ({"id": "b", "tokens": [1], "max_new_tokens": 0}, "max_new_tokens: input should be greater than 0"),
        ({"id": "b", "tokens": [1], "temperature": -1}, "temperature: input should be greater than or equal to 0"),
        ({"id": "b", "tokens": [1], "top_p": 1.5}, "top_p: input should be less than or equal to 1"),
        ({"id": "b", "tokens": [1], "top_k": 2.5}, "top_k: input should be a valid integer"),
        ({"id": "b", "tokens": [1], "stop": [""]}, "stop.0: string should have at least 1 character"),
        ({"id": "b", "messages": [{"role": "user", "content": "hello"}]}, "no chat template"),
    ],
)
def test_a_broken_line_is_one_line_with_file_and_number(tmp_path, line, complaint):
    path = prompt_file(tmp_path, {"id": "a", "tokens": [1]}, line)

    with pytest.raises(FileError, match=complaint) as caught:
        read_prompts(path, checkpoint(tmp_path, template=False))

    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_serve_are_named(tmp_path):
    with pytest.raises(FileError, match="nowhere"):
        read_prompts(tmp_path / "nowhere.jsonl", tmp_path)
    with pytest.raises(FileError, match="holds no prompt"):
        read_prompts(prompt_file(tmp_path), tmp_path)
    with pytest.raises(FileError, match="appears twice"):
        read_prompts(prompt_file(tmp_path, {"id": "a", "tokens": [1]}, {"id": "a", "tokens": [2]}), tmp_path)
    with pytest.raises(FileError, match=r"tokenizer\.json is missing"):
        read_prompts(prompt_file(tmp_path, {"id": "a", "prompt": "hello"}), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileError, match="not a tokenizer"):
        read_prompts(prompt_file(tmp_path, {"id": "a", "prompt": "hello"}), tmp_path)


def test_a_template_that_refuses_says_so(tmp_path):
    checkpoint(tmp_path, template=False)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")

    with pytest.raises(FileError, match="no such role"):
        read_prompts(prompt_file(tmp_path, {"id": "a", "prompt": "hello"}), tmp_path)


def test_an_answer_is_written_with_text_where_there_is_some(tmp_path):
    tokenizer = Tokenizer(checkpoint(tmp_path, template=False))
    first = Completion(id="a", prompt_tokens=1, tokens=(4, 6), text=tokenizer.decode([4, 6]), finish_reason="stop")
    second = Completion(id="b", prompt_tokens=1, tokens=(5,), text=None, finish_reason="length")

    assert answer_line(first) == {"id": "a", "tokens": [4, 6], "text": "hello", "finish_reason": "stop"}
    assert answer_line(second) == {"id": "b", "tokens": [5], "finish_reason": "length"}


def test_end_tokens_come_from_the_generation_config_first(tmp_path):
    assert end_tokens(tmp_path) == frozenset()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert end_tokens(tmp_path) == {2}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert end_tokens(tmp_path) == {3, 4}
