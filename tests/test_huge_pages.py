"""Memory in huge pages: asked for is what lies inside a tensor, as long as it lives, and for small ones nothing."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from hrm.device.huge_pages import huge_paged
from hrm.units import MIB

SMAPS = Path("/proc/self/smaps")
needs_smaps = pytest.mark.skipif(not SMAPS.exists(), reason="this system does not say which memory is advised")


def flagged_bytes(flag):
    """Add up the process's mappings with a flag: hg where huge pages were asked for, nh where there may be none."""
    mappings = re.findall(r"^Size: +(\d+) kB$.*?^VmFlags:([^\n]*)$", SMAPS.read_text(), re.MULTILINE | re.DOTALL)
    return sum(int(size) * 1024 for size, flags in mappings if flag in flags.split())


@pytest.mark.parametrize("shape", [(3, 5), (1024, 3, 1024), (0,), (2 * MIB,)])
def test_shape_and_format_are_those_asked_for_and_it_is_memory_of_its_own(shape):
    found, other = (huge_paged(shape, torch.bfloat16).fill_(value) for value in (1, 2))

    assert (found.shape, found.dtype, found.is_contiguous()) == (shape, torch.bfloat16, True)
    assert (found.storage_offset(), found.untyped_storage().nbytes()) == (0, found.nbytes)
    assert (found == 1).all()
    assert (other == 2).all()


@needs_smaps
def test_whole_huge_pages_inside_a_tensor_are_asked_for_as_long_as_it_lives():
    before = flagged_bytes("hg")
    found = huge_paged((7 * MIB + 5,), torch.uint8)

    assert flagged_bytes("hg") - before == 6 * MIB
    assert found.data_ptr() % (2 * MIB) == 0
    view = found[3:]
    del found
    assert flagged_bytes("hg") - before == 6 * MIB
    del view
    assert flagged_bytes("hg") == before


@needs_smaps
def test_where_the_system_makes_huge_pages_of_any_memory_a_tensor_holds_no_more_than_its_elements():
    before = flagged_bytes("nh")
    found = huge_paged((7 * MIB + 5,), torch.uint8)

    assert flagged_bytes("nh") - before == 3 * MIB + mmap.PAGESIZE
    del found
    assert flagged_bytes("nh") == before


@needs_smaps
def test_nothing_is_asked_for_a_small_tensor():
    before = flagged_bytes("hg")
    kept = huge_paged((2 * MIB - 1,), torch.uint8)

    assert flagged_bytes("hg") == before
    assert kept.nbytes == 2 * MIB - 1
