"""`hrm run` on a tiny model: what it writes, says and exits with, and that other verbs read what it recorded."""

import json

import pytest

from executor.journal import Journal
from tests.engines import prompts_for, tiny_model

ON_THE_CPU = ["--hardware", "epyc-zen3-vm-2-cores", "--weight-dtype", "float32", "--kv-dtype", "float32"]
LENGTHS = ["--prompt-len", "6", "--max-prompt-len", "11", "--gen-len", "6"]
SIZES = ["--batch-size", "4", "--micro-batch-size", "2", "--attention-device", "cpu", "--ffn-device", "cpu"]


@pytest.fixture
def run(hrm, tmp_path):
    """Plan for a tiny model; what is returned runs the plan on lines, with options, and returns what `hrm` does."""
    model = tiny_model("mixtral", seed=1)
    model.save_pretrained(tmp_path / "model")
    planned = ["--model", tmp_path / "model", *ON_THE_CPU, *LENGTHS, "-o", tmp_path / "plan.yaml"]
    assert hrm("predict", *planned, *SIZES)[0] == 0

    def on(lines, *options):
        (tmp_path / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines))
        files = ["--checkpoint", tmp_path / "model", "--prompts", tmp_path / "prompts.jsonl"]
        return hrm("run", tmp_path / "plan.yaml", *files, "-o", tmp_path / "out.jsonl", *options)

    return on


LINES = [
    json.dumps({"id": prompt.id, "tokens": list(prompt.tokens)}) for prompt in prompts_for(tiny_model("mixtral", 1))
]


def test_a_run_tells_how_far_it_is_beside_what_was_predicted(run):
    code, out, err = run(LINES, "--json")

    assert code == 0
    assert json.loads(out)["job"] == {"answered": 7, "resumed": 0, "problems": []}
    assert "7 of 7 answered, 42 tokens" in err
    assert "tokens/s (predicted " in err


def test_prompts_that_are_not_answered_are_told_and_make_exit_code_1(run, tmp_path):
    code, _, err = run([LINES[0], "{broken", *LINES[1:]])

    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert code == 1
    assert "prompts.jsonl, line 2: not valid JSON" in err
    assert "1 of 8 prompts were not answered" in err
    assert [("tokens" in answer, "error" in answer) for answer in answers] == [
        (number != 1, number == 1) for number in range(8)
    ]


def test_an_interrupted_run_says_how_to_go_on(run, tmp_path, monkeypatch):
    add = Journal.add

    def add_and_stop(journal, entries):
        add(journal, entries)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add_and_stop)
    code, _, err = run(LINES)
    monkeypatch.undo()

    assert code == 130
    assert f"answers so far are in {tmp_path / 'out.jsonl.partial'}; the same command goes on" in err
    assert not (tmp_path / "out.jsonl").exists()


def test_options_hold_for_prompts_that_do_not_say_otherwise(run, tmp_path):
    own = json.dumps({"id": "own", "tokens": [1, 2], "max_new_tokens": 4})

    code, _, err = run([*LINES[:2], own], "--max-new-tokens", "2", "--temperature", "0.7", "--report", tmp_path / "r")

    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert code == 0, err
    assert [len(answer["tokens"]) for answer in answers] == [2, 2, 4]
    notes = json.loads((tmp_path / "r").read_text())["notes"]
    assert any("answers of 6 tokens" in note for note in notes)


def test_recorded_routing_is_read_by_predict_and_solve(run, hrm, tmp_path):
    code, _, err = run(LINES, "--record-routing", tmp_path / "routing.jsonl")
    assert code == 0, err
    model = ["--model", tmp_path / "model", *ON_THE_CPU, *LENGTHS, "--routing", tmp_path / "routing.jsonl", "--json"]

    for verb, sizes in (("predict", SIZES), ("solve", ["--method", "grid", "--no-simulate"])):
        code, out, err = hrm(verb, *model, *sizes)

        assert code == 0, err
        assert json.loads(out)["routing"].startswith("trace (routing.jsonl: 3 layers, ")
