"""Experts on disk: the same answers as with all of them in memory, whole files or none, and errors that say where."""

import json
import os
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from executor.direct import DirectFile
from executor.disk import DiskStore
from executor.engine import Engine
from executor.expert_file import ExpertFile, open_expert_file
from executor.job import Job, run_job
from hrm.device.host import HostBackend
from hrm.device.huge_pages import aligned_memory
from hrm.dtypes import DType
from hrm.errors import FileError
from hrm.memory import DISK_BLOCK_BYTES
from hrm.policy import Processor, ScheduleName, Staging
from tests.engines import gpu_policy, plan_for, policy_of, prompts_for, reference_tokens, run, tiny_model, tokens_of
from tests.machines import ATTENTION_OF


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral")
    model = tiny_model("mixtral", seed=3)
    model.save_pretrained(folder)
    prompts = prompts_for(model)
    return folder, prompts, reference_tokens(model, prompts)


@pytest.mark.parametrize("disk_experts", [1, 3, 4])
@pytest.mark.parametrize(("micro_batch_size", "batch_size", "buffers"), [(2, 7, None), (7, 7, 3), (3, 5, 9)])
def test_answers_are_those_of_the_model(mixtral, disk_experts, micro_batch_size, batch_size, buffers):
    """In two waves of five sequences too, the last of which leaves micro-batches empty."""
    folder, prompts, expected = mixtral
    policy = policy_of(
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        disk_experts=disk_experts,
        disk_buffers=buffers,
    )

    assert tokens_of(run(folder, policy, prompts)) == expected


@pytest.mark.parametrize("disk_experts", [2, 4])
@pytest.mark.parametrize(("fuller_layers", "buffers"), [(1, None), (2, 2), (2, 9)])
def test_layers_may_differ_in_how_many_experts_they_read(mixtral, disk_experts, fuller_layers, buffers):
    folder, prompts, expected = mixtral
    policy = policy_of(
        batch_size=5,
        micro_batch_size=3,
        disk_experts=disk_experts,
        fuller_layers=fuller_layers,
        disk_buffers=buffers,
    )

    assert tokens_of(run(folder, policy, prompts)) == expected


def test_in_16_bits_answers_are_those_of_the_plan_without_a_disk(mixtral):
    """With one micro-batch the same products are made and added up in the same order."""
    folder, prompts, _ = mixtral
    in_memory = policy_of(micro_batch_size=7, weight_dtype=DType.BFLOAT16)

    expected = tokens_of(run(folder, in_memory, prompts))

    assert tokens_of(run(folder, replace(in_memory, disk_experts=3), prompts)) == expected


STREAMED = [
    (schedule, attention, disk_experts)
    for schedule, devices in ATTENTION_OF.items()
    for attention in devices
    for disk_experts in (1, 3, 4)
]


@pytest.mark.parametrize(("schedule", "attention", "disk_experts"), STREAMED)
def test_answers_of_a_gpu_are_those_of_the_model_too(mixtral, schedule, attention, disk_experts):
    """Under every schedule: with one of the streamed experts on disk, most of them, and all."""
    folder, prompts, expected = mixtral
    policy = gpu_policy(
        schedule=schedule,
        attention_device=attention,
        disk_experts=disk_experts,
        kv_on_gpu=0.4 if schedule is ScheduleName.KV_TRANSFER else float(attention is Processor.GPU),
    )

    assert tokens_of(run(folder, policy, prompts)) == expected


@pytest.mark.parametrize("staging", Staging)
@pytest.mark.parametrize("buffers", [2, 3, 9])
@pytest.mark.parametrize(("resident", "cpu_experts", "disk_experts"), [(0, 1, 2), (1, 0, 1), (2, 1, 1), (0, 0, 2)])
def test_experts_may_lie_in_three_memories_and_on_disk(mixtral, resident, cpu_experts, disk_experts, buffers, staging):
    """In waves of five sequences, the last of which leaves micro-batches empty."""
    folder, prompts, expected = mixtral
    policy = gpu_policy(
        batch_size=5,
        micro_batch_size=2,
        resident_experts=resident,
        cpu_experts=cpu_experts,
        disk_experts=disk_experts,
        disk_buffers=buffers,
        staging=staging,
    )

    assert tokens_of(run(folder, policy, prompts)) == expected


@pytest.mark.parametrize("kind", ["qwen3_moe-mixed", "deepseek_v3", "gpt_oss"])
def test_other_families_read_from_disk_for_a_gpu_too(tmp_path, kind):
    """With dense layers before and between those of experts, over which the pages spread."""
    model = tiny_model(kind, seed=3)
    model.save_pretrained(tmp_path)
    prompts = prompts_for(model)
    policy = gpu_policy(micro_batch_size=3, resident_experts=1, disk_experts=2, disk_buffers=3)

    assert tokens_of(run(tmp_path, policy, prompts)) == reference_tokens(model, prompts)


def test_the_file_is_made_once_and_again_for_another_checkpoint(mixtral, tmp_path):
    folder, _, _ = mixtral
    copy = tmp_path / "copy"
    copy.mkdir()
    for source in folder.iterdir():
        (copy / source.name).write_bytes(source.read_bytes())
    policy, model = policy_of(disk_experts=2), plan_for(copy, policy_of()).model
    open_expert_file(policy, model, copy)
    path = copy / "experts-float32.hrm-pages"
    first = path.stat().st_ino
    open_expert_file(policy, model, copy)
    again = path.stat().st_ino
    os.utime(copy / "model.safetensors", ns=(0, 0))
    open_expert_file(policy, model, copy)

    assert first == again != path.stat().st_ino
    assert [one.name for one in copy.glob(".*")] == []


def test_no_room_for_the_file_is_said_and_leaves_nothing(mixtral, monkeypatch):
    folder, prompts, _ = mixtral
    for name in folder.glob("*.hrm-pages"):
        name.unlink()
    nearly_full = SimpleNamespace(free=1000)
    monkeypatch.setattr("executor.expert_file.shutil.disk_usage", lambda _: nearly_full)

    with pytest.raises(FileError, match=r"hrm-pages: needs .* 1000.0 B are free"):
        run(folder, policy_of(disk_experts=2), prompts)

    assert list(folder.glob("*hrm-pages*")) == []


def test_a_disk_that_fills_up_is_named_with_the_byte_and_leaves_nothing(mixtral, monkeypatch):
    folder, prompts, _ = mixtral
    for name in folder.glob("*.hrm-pages"):
        name.unlink()
    write, written = os.write, [0]

    def full(handle, data):
        if written[0] >= 3 * DISK_BLOCK_BYTES:
            raise OSError(28, "No space left on device")
        count = write(handle, data[:DISK_BLOCK_BYTES])
        written[0] += count
        return count

    monkeypatch.setattr("executor.expert_file.os.write", full)

    with pytest.raises(FileError, match="cannot be written at byte 12288: No space left on device"):
        run(folder, policy_of(disk_experts=2), prompts)

    assert list(folder.glob("*hrm-pages*")) == []


@pytest.mark.parametrize("end", [5 * DISK_BLOCK_BYTES, 7 * DISK_BLOCK_BYTES + 100])
def test_a_file_cut_short_under_way_is_named_with_the_byte(mixtral, end):
    """It is whole when it is opened, and then loses its end, perhaps within a block."""
    folder, prompts, _ = mixtral
    policy = policy_of(disk_experts=2)
    backend = HostBackend(threads=1)
    try:
        engine = Engine(plan_for(folder, policy), folder, backend)
        path = folder / "experts-float32.hrm-pages"
        whole = path.read_bytes()
        os.truncate(path, end)
        with pytest.raises(FileError, match=rf"experts-float32.hrm-pages: ends at byte {max(end, 28672)}"):
            engine.generate(prompts)
        path.write_bytes(whole)
    finally:
        backend.close()


def test_a_shorter_file_is_refused(mixtral):
    folder, prompts, _ = mixtral
    policy = policy_of(disk_experts=2)
    run(folder, policy, prompts)
    path = folder / "experts-float32.hrm-pages"
    os.truncate(path, path.stat().st_size - 1)
    try:
        with pytest.raises(FileError, match=r"ends at byte \d+, expected \d+ \(delete it"):
            run(folder, policy, prompts)
    finally:
        path.unlink()


def test_a_read_error_names_file_and_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("executor.direct.REQUEST_BYTES", 4 * DISK_BLOCK_BYTES)
    path = tmp_path / "file"
    path.write_bytes(bytes(16 * DISK_BLOCK_BYTES))

    def broken(_, buffers, offset):
        if offset == 12 * DISK_BLOCK_BYTES:
            raise OSError(5, "Input/output error")
        return sum(map(len, buffers))

    monkeypatch.setattr("executor.direct.os.preadv", broken)

    with pytest.raises(FileError, match=f"file: cannot be read at byte {12 * DISK_BLOCK_BYTES}: Input/output error"):
        DirectFile(path).read(0, aligned_memory(16 * DISK_BLOCK_BYTES))


def cut_short(path, _):
    os.truncate(path, 5 * DISK_BLOCK_BYTES)


def break_disk(_, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("executor.direct.os.preadv", broken)


@pytest.mark.parametrize(("fault", "said"), [(cut_short, "ends at byte"), (break_disk, "cannot be read at byte")])
def test_a_disk_that_fails_under_way_costs_no_answer_that_was_made(mixtral, tmp_path, monkeypatch, fault, said):
    """The error names file and byte; what was answered is kept, and the same job goes on from there."""
    folder, prompts, expected = mixtral
    lines = [{"id": prompt.id, "tokens": list(prompt.tokens)} for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = Job(checkpoint=folder, prompts=tmp_path / "prompts.jsonl", output=tmp_path / "out.jsonl")
    plan, path = plan_for(folder, policy_of(batch_size=2, disk_experts=3)), folder / "experts-float32.hrm-pages"

    def fail(progress):
        if progress.answered == 2:
            fault(path, monkeypatch)

    backend = HostBackend(threads=1)
    with pytest.raises(FileError, match=rf"experts-float32.hrm-pages: {said} \d+"):
        run_job(plan, job, backend, fail)
    backend.close()

    assert not job.output.exists()
    kept = [json.loads(line) for line in job.journal.read_text().splitlines()[1:]]
    assert len(kept) == 2
    monkeypatch.undo()
    path.unlink()
    backend = HostBackend(threads=1)
    result = run_job(plan, job, backend)
    backend.close()
    assert (result.resumed, result.answered) == (2, len(prompts))
    assert [tuple(json.loads(line)["tokens"]) for line in job.output.read_text().splitlines()] == expected


def noting(monkeypatch):
    """Return a list to which the experts that are asked for are added."""
    asked, begin = [], ExpertFile.begin

    def noted(file, layer, expert, target):
        asked.append((layer, expert))
        return begin(file, layer, expert, target)

    monkeypatch.setattr(ExpertFile, "begin", noted)
    return asked


def test_an_expert_is_asked_for_as_soon_as_its_buffer_is_free(mixtral, monkeypatch):
    folder, _, _ = mixtral
    policy = policy_of(disk_experts=3, disk_buffers=2)
    store, asked = DiskStore(policy, plan_for(folder, policy).model, folder), noting(monkeypatch)
    store.begin_round()
    store.read(0, 0)
    assert asked == [(0, 1), (0, 2)]
    store.read(0, 1)
    read = [store.expert().clone()]
    store.used()
    assert asked == [(0, 1), (0, 2), (0, 3)]
    read.append(store.expert().clone())
    store.used()
    assert asked[3:] == [(1, 1)]
    another = DiskStore(policy, plan_for(folder, policy).model, folder)
    for part, wanted in enumerate(read):
        another.load(0, 1 + part, found := torch.empty_like(wanted))
        assert torch.equal(found, wanted)


def one_pass(store, places):
    for place in places:
        store.read(*place)
        store.used()


def test_what_was_asked_for_is_kept_for_the_next_round(mixtral, monkeypatch):
    folder, _, _ = mixtral
    policy = policy_of(disk_experts=3, disk_buffers=4)
    model = plan_for(folder, policy).model
    store, asked = DiskStore(policy, model, folder), noting(monkeypatch)
    places = list(product(model.moe_layers, range(3)))
    for _ in range(2):
        store.begin_round()
        one_pass(store, places)

    wanted = [(layer, 1 + part) for layer, part in places]
    assert asked == 2 * wanted + wanted[:4]


def test_after_a_pass_that_was_broken_off_the_first_expert_is_read_again(mixtral, monkeypatch):
    folder, _, _ = mixtral
    policy = policy_of(disk_experts=3, disk_buffers=4)
    store = DiskStore(policy, plan_for(folder, policy).model, folder)
    store.read(0, 0)
    first = store.expert().clone()
    store.used()
    store.read(0, 1)
    asked = noting(monkeypatch)
    store.begin_round()
    store.read(0, 0)

    assert asked == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert torch.equal(store.expert(), first)


@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
def test_a_piece_is_read_whole_in_any_number_of_requests(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr("executor.direct.REQUEST_BYTES", blocks * DISK_BLOCK_BYTES)
    path = tmp_path / "file"
    content = os.urandom(8 * DISK_BLOCK_BYTES)
    path.write_bytes(content)
    target = aligned_memory(5 * DISK_BLOCK_BYTES)

    DirectFile(path).read(2 * DISK_BLOCK_BYTES, target)

    assert bytes(target.numpy()) == content[2 * DISK_BLOCK_BYTES : 7 * DISK_BLOCK_BYTES]
    assert isinstance(target, torch.Tensor)
