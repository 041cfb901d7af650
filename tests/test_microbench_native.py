"""The compiled parts of the profiler: what the streaming kernels compute and refuse, what the reader reads."""

import os

import pytest
import torch

from hrm.device.direct_memory import direct_buffers
from hrm.microbench import native
from hrm.microbench.native import GRANULE_BYTES, Stream, read_requests, stream, streams

WORDS = 4 * GRANULE_BYTES // 8

compiled = pytest.mark.skipif(not native.available(), reason="the streaming kernels were not compiled")


def test_without_the_library_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(native, "_library", lambda: None)

    assert (native.available(), native.streams(), native.instruction_set()) == (False, (), "")
    assert not read_requests(0, direct_buffers(4096, 1), [0])


@compiled
def test_read_uses_every_word_on_every_pass():
    words = torch.randint(-(2**40), 2**40, (WORDS,), dtype=torch.int64)
    total = torch.zeros(8, dtype=torch.int64)

    stream(Stream.READ, (total, words), 3)

    assert total[0] == 3 * words.sum()


@compiled
@pytest.mark.parametrize("kind", [kind for kind in streams() if kind is not Stream.READ])
def test_copies_copy_and_triads_add(kind):
    b, c = torch.arange(float(WORDS), dtype=torch.float64), torch.ones(WORDS, dtype=torch.float64)
    a = torch.zeros_like(b)

    stream(kind, (a, b, c)[: kind.buffers], 2)

    assert torch.equal(a, b if kind.buffers == 2 else b + 3 * c)


@compiled
@pytest.mark.parametrize(
    "buffers",
    [
        (torch.zeros(WORDS + 1, dtype=torch.float64),) * 2,
        (torch.zeros(2 * WORDS, dtype=torch.float64), torch.zeros(WORDS, dtype=torch.float64)),
        (torch.zeros(2 * WORDS, dtype=torch.float64)[1 : WORDS + 1],) * 2,
    ],
)
def test_buffers_that_do_not_suit_are_refused(buffers):
    with pytest.raises(ValueError, match="COPY: "):
        stream(Stream.COPY, buffers, 1)


@compiled
@pytest.mark.parametrize("depth", [1, 3])
def test_each_request_is_read_into_a_buffer(tmp_path, depth):
    path, size = tmp_path / "file", 4096
    path.write_bytes(b"".join(bytes([number]) * size for number in range(depth)))
    buffers = direct_buffers(size, depth)
    handle = os.open(path, os.O_RDONLY)
    try:
        assert read_requests(handle, buffers, [number * size for number in range(depth)] * 2)
    finally:
        os.close(handle)

    assert all(len(set(buffer[:])) == 1 for buffer in buffers)
    assert {buffer[0] for buffer in buffers} <= set(range(depth))


@compiled
def test_a_read_past_the_end_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    handle = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            read_requests(handle, direct_buffers(4096, 1), [0, 4096])
    finally:
        os.close(handle)
