"""Memory in huge pages: what is asked for is only what lies inside the tensor, and small tensors ask for nothing."""

import mmap
import sys

import pytest
import torch

from hrm.device import huge_pages
from hrm.device.huge_pages import huge_paged
from hrm.units import MIB


class Asked:
    """Stands for the C library; keeps what it was asked."""

    def __init__(self):
        self.ranges = []

    def madvise(self, first, num_bytes, advice):
        assert advice == mmap.MADV_HUGEPAGE
        self.ranges.append((first.value, num_bytes.value))


@pytest.fixture
def asked(monkeypatch):
    library = Asked()
    monkeypatch.setattr(huge_pages, "_libc", lambda: library)
    return library


def test_shape_and_format_are_those_asked_for():
    found = huge_paged((3, 5), torch.bfloat16)

    assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 5), torch.bfloat16, True)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such advice")
def test_whole_huge_pages_inside_a_tensor_are_asked_for(asked):
    found = huge_paged((7 * MIB,), torch.uint8)

    ((first, num_bytes),) = asked.ranges
    assert first % (2 * MIB) == num_bytes % (2 * MIB) == 0
    assert found.data_ptr() <= first < found.data_ptr() + 2 * MIB
    assert first + num_bytes <= found.data_ptr() + found.nbytes < first + num_bytes + 2 * MIB


def test_nothing_is_asked_for_a_small_tensor(asked):
    huge_paged((MIB,), torch.uint8)

    assert asked.ranges == []
