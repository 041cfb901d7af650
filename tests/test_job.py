import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from executor.engine import Engine
from executor.job import Job, run_job
from executor.journal import Journal
from executor.progress import Progress
from executor.sampling import Settings
from hrm.device.host import HostBackend
from hrm.errors import FileError
from tests.engines import GEN_LEN, plan_for, policy_of, prompts_for, run, tiny_model, tokens_of
from tests.full_disk import full_disk

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"
POLICY = policy_of(batch_size=2, micro_batch_size=1)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A random Mixtral, seven prompts with limits of their own, and the answers to each."""
    model = tiny_model("mixtral", seed=1)
    folder = tmp_path_factory.mktemp("mixtral")
    model.save_pretrained(folder)
    prompts = [
        replace(prompt, settings=Settings(max_new_tokens=1 + number % GEN_LEN))
        for number, prompt in enumerate(prompts_for(model))
    ]
    return folder, prompts, tokens_of(run(folder, POLICY, prompts))


@pytest.fixture
def job(mixtral, tmp_path):
    folder, prompts, _ = mixtral
    asked = [
        {"id": prompt.id, "tokens": list(prompt.tokens), "max_new_tokens": prompt.settings.max_new_tokens}
        for prompt in prompts
    ]
    write_lines(tmp_path / "prompts.jsonl", asked)
    return Job(checkpoint=folder, prompts=tmp_path / "prompts.jsonl", output=tmp_path / "out.jsonl")


def write_lines(path, lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def do(job, on_progress=None, **changes):
    backend = HostBackend(threads=1)
    try:
        return run_job(plan_for(job.checkpoint, replace(POLICY, **changes)), job, backend, on_progress)
    finally:
        backend.close()


def stop_after(count):
    def on_progress(at: Progress) -> None:
        if at.answered >= count:
            raise KeyboardInterrupt

    return on_progress


def test_answers_come_in_the_order_of_the_prompts_and_the_journal_goes(mixtral, job):
    _, prompts, expected = mixtral
    told: list[Progress] = []

    result = do(job, told.append)

    lines = read_lines(job.output)
    assert [line["id"] for line in lines] == [prompt.id for prompt in prompts]
    assert [tuple(line["tokens"]) for line in lines] == expected
    assert {line["finish_reason"] for line in lines} == {"length"}
    assert (result.answered, result.resumed, result.problems) == (7, 0, ())
    assert not job.journal.exists()
    assert (told[-1].answered, told[-1].prompts, told[-1].tokens) == (7, 7, sum(map(len, expected)))


def test_an_interrupted_job_goes_on_where_it_was(mixtral, job):
    _, _, expected = mixtral
    with pytest.raises(KeyboardInterrupt):
        do(job, stop_after(3))
    assert not job.output.exists()
    kept = len(job.journal.read_bytes().splitlines()) - 1
    told: list[Progress] = []

    result = do(job, told.append)

    assert [tuple(line["tokens"]) for line in read_lines(job.output)] == expected
    assert kept >= 3
    assert (result.resumed, result.generation.measured.num_sequences) == (kept, 7 - kept)
    assert (told[-1].answered, told[-1].prompts) == (7, 7)


def test_a_job_that_lacks_only_its_output_writes_it_without_running(mixtral, job, monkeypatch):
    _, _, expected = mixtral

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("executor.job._write", stop)
    with pytest.raises(KeyboardInterrupt):
        do(job)
    monkeypatch.undo()

    result = do(job)

    assert (result.generation, result.resumed) == (None, 7)
    assert [tuple(line["tokens"]) for line in read_lines(job.output)] == expected


def test_another_job_does_not_go_on_with_this_ones_answers(job):
    with pytest.raises(KeyboardInterrupt):
        do(job, stop_after(2))
    kept = job.journal.read_bytes()

    with pytest.raises(FileError, match="another plan"):
        do(job, batch_size=3)
    with pytest.raises(FileError, match="--temperature"):
        do(replace(job, settings=Settings(temperature=1.0)))
    job.prompts.write_text(job.prompts.read_text() + '{"id": "more", "tokens": [1]}\n')
    with pytest.raises(FileError, match="another prompt file"):
        do(job)
    assert job.journal.read_bytes() == kept


def test_a_checkpoint_that_has_changed_is_another_job(mixtral, job, tmp_path):
    folder, _, _ = mixtral
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        do(replace(job, checkpoint=copy), stop_after(2))
    (copy / "generation_config.json").write_text('{"eos_token_id": 5}')

    with pytest.raises(FileError, match="another checkpoint"):
        do(replace(job, checkpoint=copy))


def test_what_cannot_be_answered_is_reported_and_the_rest_is_answered(mixtral, job):
    _, _, expected = mixtral
    good = read_lines(job.prompts)
    write_lines(
        job.prompts,
        [
            good[0],
            "{broken",
            {"id": "long", "tokens": [1] * 12},
            {"id": "much", "tokens": [1], "max_new_tokens": GEN_LEN + 1},
            {"id": "foreign", "tokens": [97]},
            {"id": good[0]["id"], "tokens": [1]},
            {"id": "half", "tokens": [1], "stop": "\ud800"},
            {"id": "stops", "tokens": [1], "stop": ["x"]},
            good[1],
        ],
    )

    result = do(job)

    lines = read_lines(job.output)
    assert [line["id"] for line in lines] == ["0", None, "long", "much", "foreign", None, None, "stops", "1"]
    assert [tuple(line["tokens"]) for line in (lines[0], lines[-1])] == expected[:2]
    said = ["not valid JSON", "--max-prompt-len", "--gen-len", "vocabulary", "appears twice", "not valid text", "token"]
    for number, (line, words) in enumerate(zip(lines[1:-1], said, strict=True), 2):
        assert line["line"] == number
        assert words in line["error"]
        assert "\n" not in line["error"]
    assert (result.answered, len(result.problems)) == (2, 7)


def test_bytes_that_are_no_text_spoil_one_line(mixtral, job):
    _, _, expected = mixtral
    job.prompts.write_bytes(b'{"id": "\xff", "tokens": [1]}\n' + job.prompts.read_bytes().replace(b"\n", b"\r\n"))

    result = do(job)

    assert [tuple(line["tokens"]) for line in read_lines(job.output)[1:]] == expected
    assert len(result.problems) == 1


def test_a_run_that_fails_at_once_leaves_nothing(job, tmp_path):
    nowhere = replace(job, checkpoint=tmp_path / "nowhere")

    with pytest.raises(FileError, match="no such folder"):
        run_job(plan_for(job.checkpoint, POLICY), nowhere, HostBackend(threads=1))

    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl"}


def test_on_a_full_disk_the_job_goes_on_and_nothing_that_was_kept_is_lost(mixtral, job):
    _, _, expected = mixtral
    write_lines(job.prompts, [line | {"id": line["id"] * 60} for line in read_lines(job.prompts)])
    wanted = r"File too large; answers are kept in .*partial, but for "
    with full_disk(800), pytest.raises(FileError, match=wanted) as caught:
        do(job)
    assert not job.output.exists()
    kept = len(job.journal.read_bytes().splitlines()) - 1
    assert 0 < kept < 7
    assert "\n" not in str(caught.value)

    result = do(job)

    assert result.resumed == kept
    assert [tuple(line["tokens"]) for line in read_lines(job.output)] == expected


def test_an_output_that_fits_is_written_though_the_journal_was_cut_short(mixtral, job):
    _, _, expected = mixtral
    with full_disk(700):
        do(job)

    assert [tuple(line["tokens"]) for line in read_lines(job.output)] == expected
    assert not job.journal.exists()


def test_what_found_no_room_is_written_once_there_is_some(tmp_path):
    journal = Journal(tmp_path / "kept", {"plan": "x"})
    journal.add({1: {"id": "a"}})
    with full_disk(60):
        journal.add({2: {"id": "b" * 60}})
    assert (journal.unsaved, journal.problem) == ([2], "File too large")

    journal.add({3: {"id": "c"}})
    journal.close()

    assert journal.unsaved == []
    again = Journal(tmp_path / "kept", {"plan": "x"})
    assert again.answered == {1: {"id": "a"}, 2: {"id": "b" * 60}, 3: {"id": "c"}}
    again.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_end_is_dropped_and_written_over(tmp_path, cut):
    journal = Journal(tmp_path / "kept", {"plan": "x"})
    journal.add({1: {"id": "a"}})
    journal.add({2: {"id": "b"}})
    journal.close()
    whole = (tmp_path / "kept").read_bytes()
    (tmp_path / "kept").write_bytes(whole[:-cut])

    torn = Journal(tmp_path / "kept", {"plan": "x"})
    lost = {1, 2} - set(torn.answered)
    torn.add({line: {"id": "ab"[line - 1]} for line in sorted(lost)})
    torn.close()

    assert lost
    assert (tmp_path / "kept").read_bytes() == whole


def test_two_runs_do_not_write_the_same_journal(tmp_path):
    journal = Journal(tmp_path / "kept", {"plan": "x"})

    with pytest.raises(FileError, match="another run is writing it"):
        Journal(tmp_path / "kept", {"plan": "x"})

    journal.add({1: {"id": "a"}})
    journal.close()


def test_a_journal_without_answers_binds_nobody(tmp_path):
    (tmp_path / "kept").write_text('{"plan": "x"}\n')

    journal = Journal(tmp_path / "kept", {"plan": "y"})
    journal.close()

    assert not (tmp_path / "kept").exists()


def test_an_engine_error_keeps_what_was_answered(job, monkeypatch):
    generate = Engine.generate

    def fail_late(self, prompts, on_progress, on_answers):
        generate(self, prompts[:4], on_progress, on_answers)
        raise MemoryError

    monkeypatch.setattr(Engine, "generate", fail_late)
    with pytest.raises(MemoryError):
        do(job)
    monkeypatch.undo()

    assert do(job).resumed == 4


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_and_doubles_nothing():
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--rounds", "10", "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "10 kills" in finished.stdout
