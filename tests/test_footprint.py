"""What a run holds of host memory is what the plan says, and pages of files do not pile up in it."""

import ctypes
import mmap
import sys

import psutil
import pytest
import torch
from safetensors.torch import save_file

from executor.footprint import Footprint
from executor.loading import CheckpointReader
from hrm.device.host import HostBackend
from hrm.errors import OutOfMemoryError
from hrm.units import MIB


def test_an_overrun_of_host_memory_is_one_line_with_both_numbers(monkeypatch):
    monkeypatch.setattr("executor.footprint._UNPLANNED_BYTES", 8 * MIB)
    backend = HostBackend(threads=1)
    footprint = Footprint(backend, planned_bytes=4 * MIB)
    footprint.look()
    # Fresh pages: what tests before this one have freed may still be held by the allocator.
    ballast = mmap.mmap(-1, 64 * MIB)
    ballast.write(bytes(64 * MIB))

    with pytest.raises(OutOfMemoryError, match=rf"plan counts {4 * MIB} .*smaller batch") as caught:
        footprint.look()

    backend.close()
    assert "\n" not in str(caught.value)
    assert footprint.peak_bytes >= 0.9 * len(ballast)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries give back what is freed in ways of their own")
def test_memory_that_was_freed_is_no_overrun(monkeypatch):
    monkeypatch.setattr("executor.footprint._UNPLANNED_BYTES", 8 * MIB)
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    backend = HostBackend(threads=1)
    footprint = Footprint(backend, planned_bytes=4 * MIB)
    # Small blocks come from one growing piece of memory, and the last one keeps those before it from being given back.
    blocks = [library.malloc(64 * 1024) for _ in range(1024)]
    for block in blocks:
        ctypes.memset(block, 1, 64 * 1024)
    for block in blocks[:-1]:
        library.free(block)

    footprint.look()

    library.free(blocks[-1])
    backend.close()
    assert footprint.peak_bytes < 12 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="pages are let go on Linux only")
def test_what_was_copied_out_of_a_file_leaves_memory_and_can_be_read_again(tmp_path):
    save_file({"large": torch.arange(8 * MIB), "small": torch.ones(3)}, tmp_path / "model.safetensors")
    reader, process = CheckpointReader(tmp_path), psutil.Process()
    tensor, mine = reader.read("large", (8 * MIB,)), torch.ones(3)
    total = int(tensor.sum())
    held_bytes = process.memory_info().rss

    reader.release(tensor[: 4 * MIB])
    reader.release(mine)

    assert held_bytes - process.memory_info().rss >= 24 * MIB
    assert int(tensor.sum()) == total
    assert mine.sum() == reader.read("small", (3,)).sum() == 3
