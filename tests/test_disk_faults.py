"""Faults of `hrm run` with experts on disk: a line that names file and byte, and nothing that was kept is lost.

With everything on the CPU, and with an emulated device behind a link.
"""

import json
import os
from dataclasses import replace

import pytest

from executor.journal import Journal
from hrm.files import write_yaml
from hrm.hardware import EmulatedSpec
from hrm.memory import DISK_BLOCK_BYTES
from tests.engines import prompts_for, tiny_model
from tests.full_disk import full_disk
from tests.machines import machine, with_disk

PAGES = "experts-float32.hrm-pages"
SPEC = EmulatedSpec(name="tiny", memory_capacity_bytes=10**8, h2d_bytes_per_s=2e9, d2h_bytes_per_s=2e9)
FLOATS = ["--weight-dtype", "float32", "--kv-dtype", "float32"]
LENGTHS = ["--prompt-len", "6", "--max-prompt-len", "11", "--gen-len", "6"]
SIZES = ["--batch-size", "2", "--micro-batch-size", "1", "--experts-on-disk", "0.75", "--attention-device", "cpu"]


@pytest.fixture(params=["cpu", "gpu"])
def run(request, hrm, tmp_path):
    """Plan with three of four experts on disk; what is returned runs the job."""
    tiny_model("mixtral", seed=1).save_pretrained(tmp_path / "model")
    made = with_disk(machine())
    on_gpu = request.param == "gpu"
    write_yaml(
        tmp_path / "machine.yaml",
        replace(made, device="emulated" if on_gpu else "none", emulated=SPEC if on_gpu else None),
    )
    prompts = prompts_for(tiny_model("mixtral", 1))
    lines = [json.dumps({"id": prompt.id * 60, "tokens": list(prompt.tokens)}) for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines))
    inputs = ["--model", tmp_path / "model", "--hardware", tmp_path / "machine.yaml", *FLOATS, *LENGTHS, *SIZES]
    code, _, err = hrm("predict", *inputs, "--ffn-device", request.param, "-o", tmp_path / "plan.yaml")
    assert code == 0, err

    def job(output="out.jsonl"):
        files = ["--checkpoint", tmp_path / "model", "--prompts", tmp_path / "prompts.jsonl", "-o", tmp_path / output]
        return hrm("run", tmp_path / "plan.yaml", *files)

    return job


@pytest.fixture
def expected(run, tmp_path):
    """What the job writes where nothing fails."""
    assert run("whole.jsonl")[0] == 0
    return (tmp_path / "whole.jsonl").read_bytes()


def after_answers(monkeypatch, fault):
    """Let something happen as soon as the first answers are kept."""
    add = Journal.add

    def add_and_fail(journal, entries):
        add(journal, entries)
        if entries:
            fault()

    monkeypatch.setattr(Journal, "add", add_and_fail)


def kept(tmp_path):
    return (tmp_path / "out.jsonl.partial").read_bytes()


def assert_one_line(err, *said):
    last = [line for line in err.splitlines() if line.startswith("hrm: ")]
    assert len(last) == 1, err
    for words in said:
        assert words in last[0]


def assert_goes_on(run, expected, tmp_path):
    """The same command ends with the very output, and the journal is gone."""
    assert not (tmp_path / "out.jsonl").exists()
    code, _, err = run()

    assert code == 0, err
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_experts_cut_short_under_way(run, expected, tmp_path, monkeypatch):
    """What is left is refused by name too, and made again once it is deleted."""
    path = tmp_path / "model" / PAGES
    after_answers(monkeypatch, lambda: os.truncate(path, 3 * DISK_BLOCK_BYTES))
    code, _, err = run()
    monkeypatch.undo()

    assert code == 2
    assert_one_line(err, f"{path}: ends at byte ", "delete it, it is made again")
    answers = kept(tmp_path)
    assert len(answers.splitlines()) > 1
    code, _, err = run()
    assert code == 2
    assert_one_line(err, f"{path}: ends at byte {3 * DISK_BLOCK_BYTES}, expected")
    assert kept(tmp_path) == answers
    path.unlink()
    assert_goes_on(run, expected, tmp_path)


def test_a_read_error_under_way(run, expected, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    after_answers(monkeypatch, lambda: monkeypatch.setattr("executor.direct.os.preadv", broken))
    code, _, err = run()
    monkeypatch.undo()

    assert code == 2
    assert_one_line(
        err, f"{tmp_path / 'model' / PAGES}: cannot be read at byte ", "Input/output error (check the disk)"
    )
    assert len(kept(tmp_path).splitlines()) > 1
    assert_goes_on(run, expected, tmp_path)


def test_a_checkpoint_cut_short_under_way_is_not_read_again(run, expected, tmp_path, monkeypatch):
    """All that runs was read; who comes later is told by name."""
    path = tmp_path / "model" / "model.safetensors"
    after_answers(monkeypatch, lambda: os.truncate(path, 5000))

    assert run()[0] == 0
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    monkeypatch.undo()
    code, _, err = run("again.jsonl")
    assert code == 2
    assert_one_line(err, f"{path}: not a whole safetensors file")
    assert not (tmp_path / "again.jsonl").exists()


def test_no_room_for_the_experts(run, expected, tmp_path):
    path = tmp_path / "model" / PAGES
    path.unlink()
    with full_disk(5 * DISK_BLOCK_BYTES):
        code, _, err = run()

    assert code == 2
    assert_one_line(err, f"{PAGES}.{os.getpid()}: cannot be written at byte {5 * DISK_BLOCK_BYTES}: ", "(make room)")
    assert list((tmp_path / "model").glob("*hrm-pages*")) == []
    assert_goes_on(run, expected, tmp_path)


def test_no_room_for_the_answers(run, expected, tmp_path):
    """Some answers found room in the journal; the others are made again."""
    with full_disk(len(expected) - 100):
        code, _, err = run()

    assert code == 2
    assert_one_line(err, f"{tmp_path / 'out.jsonl'}: cannot be written: ", "answers are kept in ", "run the same again")
    assert len(kept(tmp_path).splitlines()) > 1
    assert_goes_on(run, expected, tmp_path)
