"""Memory for direct reads: where it begins, and that buffers do not overlap."""

import ctypes

import pytest

from hrm.device.direct_memory import direct_buffers, direct_memory
from hrm.units import MIB

PAGE_BYTES = 4096


def address(buffer):
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize("num_bytes", [PAGE_BYTES, 2 * MIB, 5 * MIB])
def test_memory_is_zeroed_and_begins_at_a_page(num_bytes):
    found = direct_memory(num_bytes)

    assert address(found) % PAGE_BYTES == 0
    assert bytes(found) == bytes(num_bytes)


def test_buffers_lie_one_behind_the_other():
    buffers = direct_buffers(PAGE_BYTES, 3)
    for number, buffer in enumerate(buffers):
        buffer[:] = bytes([number]) * PAGE_BYTES

    assert [address(buffer) - address(buffers[0]) for buffer in buffers] == [0, PAGE_BYTES, 2 * PAGE_BYTES]
    assert [set(buffer) for buffer in buffers] == [{0}, {1}, {2}]


def test_a_buffer_outlives_the_others():
    kept = direct_buffers(PAGE_BYTES, 2)[1]
    kept[0] = 1

    assert kept[0] == 1
