"""Disks: what is read, that the file is gone, and what cannot be measured."""

import os
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hrm.device.direct_memory import direct_buffers
from hrm.device.host import HostBackend
from hrm.errors import DeviceError
from hrm.microbench import disk
from hrm.microbench.bench import Bench
from hrm.microbench.disk import check_disk, disk_samples, request_name
from hrm.units import MIB


@pytest.fixture
def bench():
    backend = HostBackend(threads=1)
    bench = Bench(backend, quick=True)
    bench.case_s = 0.01
    yield bench
    backend.close()


@pytest.fixture
def folder(tmp_path):
    """A folder on a disk that can be read directly; not every machine's temporary folder is on one."""
    for candidate in (tmp_path, Path(__file__).parent):
        with suppress(DeviceError):
            check_disk(candidate)
            return candidate
    pytest.skip("no folder here allows reads past the page cache")


def test_reads_go_past_the_page_cache_and_leave_no_file(bench, folder, monkeypatch):
    monkeypatch.setattr(disk, "_FILE_BYTES", 256 * MIB)
    flags: list[int] = []
    real_open = os.open

    def opened(path, mode, *rest, **named):
        flags.append(mode)
        return real_open(path, mode, *rest, **named)

    monkeypatch.setattr(os, "open", opened)
    before = set(folder.iterdir())
    found = disk_samples(bench, folder)

    assert found.file_bytes == 64 * MIB
    assert all(min(rates) > 1e6 for rates in found.bytes_per_s.values())
    assert list(found.bytes_per_s) == ["16MiB_x4"]
    assert len(found.latency_s) == 100
    assert all(0 < share <= 1 for share in found.kept)
    assert len(found.together_bytes_per_s) == len(found.kept)
    assert any(mode & os.O_DIRECT for mode in flags)
    assert set(folder.iterdir()) == before


def test_a_thorough_profile_reads_by_size_and_depth():
    assert request_name(disk.REQUEST_BYTES[0], disk.DEPTHS[0]) == "128KiB_x1"
    assert request_name(MIB, 16) == "1MiB_x16"


def test_the_file_is_gone_when_reading_fails(bench, folder, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    before = set(folder.iterdir())
    monkeypatch.setattr(disk.DirectReader, "rates", broken)
    monkeypatch.setattr(disk, "_FILE_BYTES", 64 * MIB)
    with pytest.raises(KeyboardInterrupt):
        disk_samples(bench, folder)

    assert set(folder.iterdir()) == before


def test_every_byte_of_the_file_is_asked_for_in_turn(folder, monkeypatch):
    """Requests in flight together never read the same place, and the file begins again after its end."""
    monkeypatch.setattr(disk, "read_requests", lambda *_: False)
    asked: list[int] = []
    with disk.nameless_file(folder) as (writing, reading):
        disk.fill_file(writing, 16 * MIB)
        real = os.preadv

        def preadv(handle, buffers, offset):
            asked.append(offset)
            return real(handle, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        reader = disk.DirectReader(reading, 16 * MIB)
        reader.read(direct_buffers(4 * MIB, 2), 6)

    assert sorted(asked) == sorted([at * 4 * MIB for at in (0, 1, 2, 3, 0, 1)])


@pytest.mark.parametrize(
    ("kind", "free_bytes", "message"),
    [
        ("tmpfs", 1e12, "tmpfs keeps its files in memory"),
        ("ext4", 1e6, "free, 256 MiB wanted"),
    ],
)
def test_what_is_no_disk_is_refused_in_one_line(tmp_path, monkeypatch, kind, free_bytes, message):
    monkeypatch.setattr(disk, "_file_system", lambda _: kind)
    monkeypatch.setattr(psutil, "disk_usage", lambda _: type("Usage", (), {"free": free_bytes}))
    with pytest.raises(DeviceError, match=rf"--disk .*: .*{message}.* \(choose "):
        check_disk(tmp_path)


def test_a_file_system_without_direct_reads_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(disk, "_file_system", lambda _: "overlay")
    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(DeviceError, match=r"overlay allows no reads past the page cache"):
        check_disk(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DeviceError, match="no such folder"):
        check_disk(tmp_path / "nowhere")


def test_a_disk_goes_by_the_fastest_request_at_the_depth_that_the_executor_reads_with():
    rates: dict[str, tuple[float, ...]] = {
        "1MiB_x4": (2.0, 2.0, 9.0),
        "4MiB_x4": (3.0, 3.0, 3.0),
        "4MiB_x16": (8.0, 8.0, 8.0),
    }
    samples = disk.DiskSamples(
        bytes_per_s=rates,
        latency_s=(1e-4,),
        kept=(0.9,),
        together_bytes_per_s=(9.0,),
        capacity_bytes=1,
        free_bytes=1,
        file_bytes=1,
        file_system="ext4",
    )

    assert samples.best_request == "4MiB_x4"
