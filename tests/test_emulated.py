"""The emulated device: a hard capacity, a link that moves every byte and keeps its pace, and how it is opened."""

import dataclasses
import gc
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from hrm.device.arena import Arena
from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.device.locked import locked_bytes
from hrm.device.opening import DEFAULT_SPEC, bundled_specs, load_spec, open_backend, parse_device
from hrm.device.streams import allowed_cores
from hrm.errors import DeviceError, OutOfMemoryError, SchemaError
from hrm.hardware import EmulatedSpec
from hrm.schedule.task import Lane
from hrm.units import MIB

SPEC = EmulatedSpec(name="tiny", memory_capacity_bytes=4 * MIB, h2d_bytes_per_s=1e8, d2h_bytes_per_s=5e7)

two_cores = pytest.mark.skipif(len(allowed_cores()) < 2, reason="the emulated device needs a core of its own")


@pytest.fixture
def backend():
    made = EmulatedBackend(SPEC)
    yield made
    made.close()


def test_arena_counts_a_tensor_until_its_last_view_dies():
    arena = Arena(1000)
    tensor = arena.empty((10, 10), torch.float32)
    view = tensor.view(torch.uint8)[3:5]
    assert arena.used_bytes == 400

    del tensor
    assert arena.used_bytes == 400
    del view
    assert (arena.used_bytes, arena.peak_bytes) == (0, 400)


def test_arena_capacity_is_hard_and_names_the_bytes():
    arena = Arena(1000)
    kept = arena.empty((150,), torch.float32)

    with pytest.raises(OutOfMemoryError, match=r"404 bytes asked with 600 in use .* 1000 bytes"):
        arena.empty((101,), torch.float32)
    assert arena.used_bytes == kept.nbytes
    assert arena.empty((100,), torch.float32).nbytes == 400


def test_arena_counts_exactly_under_threads():
    arena = Arena(10**9)

    def churn():
        for size in range(200):
            arena.empty((size,), torch.int64)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert arena.used_bytes == 0
    assert 199 * 8 <= arena.peak_bytes <= 4 * 199 * 8


@two_cores
@pytest.mark.parametrize("num_bytes", [1, 1000, 256 * 1024, 256 * 1024 + 7, MIB + 1])
def test_copy_moves_every_byte_and_no_other(backend, num_bytes):
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)
    around = backend.empty((num_bytes + 2,), torch.uint8)
    around.fill_(7)
    backend.stream(Lane.H2D).submit(lambda: backend.copy(around[1:-1], source)).wait()
    back = backend.host_empty((num_bytes,), torch.uint8, pinned=True)
    backend.stream(Lane.D2H).submit(lambda: backend.copy(back, around[1:-1])).wait()

    assert torch.equal(back, source)
    assert around[0] == around[-1] == 7


@two_cores
@pytest.mark.parametrize(("lane", "pace"), [(Lane.H2D, 1e8), (Lane.D2H, 5e7)])
def test_copies_are_never_faster_than_the_pace(backend, lane, pace):
    device, host = backend.empty((MIB,), torch.uint8), backend.host_empty((MIB,), torch.uint8)
    target, source = (device, host) if lane is Lane.H2D else (host, device)
    stream = backend.stream(lane)
    events = [stream.submit(lambda: backend.copy(target, source)) for _ in range(4)]
    events[-1].wait()

    took_s = [event.ended_s - event.started_s for event in events]
    assert min(took_s) >= MIB / pace
    assert events[-1].ended_s - events[0].started_s >= 4 * MIB / pace


@two_cores
def test_a_copy_that_waits_for_the_link_starts_when_the_one_before_ends_and_no_sooner_than_it_is_ready(backend):
    device, host = backend.empty((MIB,), torch.uint8), backend.host_empty((MIB,), torch.uint8)
    stream, seconds = backend.stream(Lane.H2D), MIB / 1e8
    first, second = (stream.submit(lambda: backend.copy(device, host)) for _ in range(2))
    needed = backend.stream(Lane.GPU).submit(lambda: time.sleep(3 * seconds))
    third = stream.submit(lambda: backend.copy(device, host), [needed])
    third.wait()

    assert second.started_s == pytest.approx(first.started_s + seconds, rel=0, abs=1e-9)
    assert third.started_s >= needed.ended_s


@two_cores
def test_gaps_between_entries_of_the_first_dimension_are_left_alone(backend):
    host, device = torch.arange(24.0).view(3, 8), backend.empty((3, 10), torch.float32).zero_()
    backend.stream(Lane.H2D).submit(lambda: backend.copy(device[:, 2:7], host[:, :5])).wait()

    assert torch.equal(device[:, 2:7], host[:, :5])
    assert device[:, :2].sum() == device[:, 7:].sum() == 0


@two_cores
def test_copy_outside_its_lanes_or_of_unlike_tensors_is_refused(backend):
    tensor = torch.zeros(4, 4)
    with pytest.raises(DeviceError, match="no lane"):
        backend.copy(tensor, tensor)
    with pytest.raises(DeviceError, match="gpu"):
        backend.stream(Lane.GPU).submit(lambda: backend.copy(tensor, tensor)).wait()
    for target in (torch.zeros(3), torch.zeros(4, 4).half(), torch.zeros(4, 8)[:, ::2]):
        with pytest.raises(DeviceError, match="copy of"):
            backend.stream(Lane.H2D).submit(lambda target=target: backend.copy(target, tensor)).wait()


@two_cores
def test_out_of_memory_inside_a_stream_reaches_its_dependents(backend):
    bad = backend.stream(Lane.GPU).submit(lambda: backend.empty((5 * MIB,), torch.uint8))
    dependent = backend.stream(Lane.CPU).submit(lambda: None, [bad])

    with pytest.raises(OutOfMemoryError, match="emulated device"):
        dependent.wait()
    assert backend.memory_used_bytes == 0


@two_cores
def test_device_and_host_use_the_threads_of_their_cores(backend):
    numbers = {}
    for lane in (Lane.GPU, Lane.CPU, Lane.PIN):
        backend.stream(lane).submit(lambda lane=lane: numbers.update({lane: torch.get_num_threads()})).wait()

    assert numbers == {Lane.GPU: 1, Lane.CPU: 1, Lane.PIN: 1}


@two_cores
@pytest.mark.parametrize("cores", [{"device_cores": (4096,)}, {"device_cores": ()}, {"device_cores": (0,)}])
def test_impossible_cores_are_refused(cores):
    with pytest.raises(DeviceError, match="cores"):
        EmulatedBackend(dataclasses.replace(SPEC, **cores))


def test_one_core_is_not_enough(monkeypatch):
    monkeypatch.setattr("hrm.device.emulated.allowed_cores", lambda: (0,))
    with pytest.raises(DeviceError, match="one core"):
        EmulatedBackend(SPEC)


def test_bundled_machines_load_and_keep_their_turning_points_apart():
    specs = {name: load_spec(name) for name in bundled_specs()}

    assert sorted(specs) == ["mini-device-bound", "mini-host-bound", "mini-l4", "mini-link-bound", "mini-t4"]
    assert all(spec.name == name for name, spec in specs.items())
    capacities = specs["mini-t4"].memory_capacity_bytes / specs["mini-l4"].memory_capacity_bytes
    assert capacities == pytest.approx(16 / 24, rel=1e-3)
    # P1 is the slowed host over the link: 67 FLOP/byte on a T4-class server, 81.25 on the L4 case study.
    host_over_link = {name: 1 / spec.host_slowdown / spec.h2d_bytes_per_s for name, spec in specs.items()}
    assert host_over_link["mini-t4"] / host_over_link["mini-l4"] == pytest.approx(66.7 / 81.25, rel=0.05)


def test_device_texts_are_understood(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("{name: own, memory_capacity_bytes: 1024, h2d_bytes_per_s: 1, d2h_bytes_per_s: 2.0e+6}")

    assert parse_device("none").device == "none"
    assert parse_device("cuda:1").index == 1
    assert parse_device("emulated").emulated == load_spec(DEFAULT_SPEC)
    assert parse_device("emulated:mini-t4").emulated == load_spec("mini-t4")
    own = parse_device(f"emulated:{path}").emulated
    assert own is not None
    assert own.d2h_bytes_per_s == 2e6
    assert parse_device("auto").device == ("cuda" if torch.cuda.is_available() else "none")


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "none:1", "emulated:", "emulated:nowhere", "auto:1"])
def test_other_device_texts_are_refused_with_what_is_allowed(text):
    with pytest.raises(DeviceError, match=r"allowed|bundled"):
        parse_device(text)


def test_a_machine_file_with_text_for_a_number_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("{name: bad, memory_capacity_bytes: 1024, h2d_bytes_per_s: 1e8, d2h_bytes_per_s: 1.0}")
    with pytest.raises(SchemaError, match=r"bad\.yaml: h2d_bytes_per_s.*1\.000000e\+08"):
        parse_device(f"emulated:{path}")


def test_host_backend_has_no_device_lanes_and_counts_no_memory():
    backend = open_backend("none")
    assert isinstance(backend, HostBackend)
    tensor = backend.empty((8,), torch.float32)
    backend.stream(Lane.CPU).submit(tensor.zero_).wait()
    for lane in (Lane.GPU, Lane.H2D, Lane.D2H):
        with pytest.raises(DeviceError, match=str(lane)):
            backend.stream(lane)
    with pytest.raises(DeviceError, match="no link"):
        backend.copy(tensor, tensor)
    assert (backend.memory_capacity_bytes, backend.memory_used_bytes, backend.memory_peak_bytes) == (0, 0, 0)
    backend.close()


def test_opening_what_cannot_be_opened_says_why():
    with pytest.raises(DeviceError, match="hrm profile"):
        open_backend("unspecified")
    with pytest.raises(DeviceError, match="emulated"):
        open_backend("emulated")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda:0"):
            open_backend("cuda")


@pytest.mark.parametrize("num_bytes", [0, 1, 4096, 100_000])
def test_locked_memory_is_as_large_as_asked_and_unlocked_with_its_last_view(num_bytes):
    locked: list[int] = []
    flat = locked_bytes(num_bytes, lambda address, _: locked.append(address), locked.remove)
    view = flat[num_bytes // 2 :].fill_(7)

    assert flat.numel() == num_bytes
    assert locked[0] % 4096 == 0
    del flat
    assert len(locked) == 1
    assert int(view.long().sum()) == 7 * view.numel()
    del view
    gc.collect()
    assert locked == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_cuda_backend_copies_computes_and_times_in_order():
    backend = open_backend("cuda")
    host = backend.host_empty((1024, 1024), torch.float32, pinned=True).normal_()
    device, result = (backend.empty((1024, 1024), torch.float32) for _ in range(2))
    back = backend.host_empty((1024, 1024), torch.float32, pinned=True)
    up = backend.stream(Lane.H2D).submit(lambda: backend.copy(device, host))
    work = backend.stream(Lane.GPU).submit(lambda: torch.mul(device, 2, out=result), [up])
    down = backend.stream(Lane.D2H).submit(lambda: backend.copy(back, result), [work])
    after = backend.stream(Lane.CPU).submit(lambda: None, [down])
    after.wait()

    assert torch.equal(back, host * 2)
    assert up.ended_s <= work.started_s <= work.ended_s <= down.started_s
    assert backend.memory_used_bytes >= 2 * host.nbytes
    bad = backend.stream(Lane.GPU).submit(lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        backend.stream(Lane.CPU).submit(lambda: None, [bad]).wait()
    backend.close()


def _spinning():
    """Cores of the threads of this process that run when nobody else does."""
    threads = [int(one.name) for one in Path("/proc/self/task").iterdir()]
    return [os.sched_getaffinity(one) for one in threads if os.sched_getscheduler(one) == os.SCHED_IDLE]


@two_cores
@pytest.mark.skipif(sys.platform != "linux", reason="needs the policy SCHED_IDLE")
def test_cores_of_a_slowed_host_alone_are_kept_awake_until_it_is_closed():
    before = len(_spinning())
    EmulatedBackend(SPEC).close()
    assert len(_spinning()) == before

    backend = EmulatedBackend(dataclasses.replace(SPEC, host_slowdown=2.0))
    assert _spinning()[before:] == [{allowed_cores()[core]} for core in SPEC.host_cores]

    backend.close()
    deadline_s = time.monotonic() + 30.0
    while len(_spinning()) > before and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert len(_spinning()) == before
