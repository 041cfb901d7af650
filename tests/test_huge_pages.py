"""Memory in huge pages: asked for is what lies inside a tensor, as long as it lives, and for small ones nothing."""

import re
from pathlib import Path

import pytest
import torch

from hrm.device.huge_pages import huge_paged
from hrm.units import MIB

SMAPS = Path("/proc/self/smaps")
needs_smaps = pytest.mark.skipif(not SMAPS.exists(), reason="this system does not say which memory is advised")


def advised_bytes():
    """Add up the process's mappings of which the system may make huge pages."""
    mappings = re.findall(r"^Size: +(\d+) kB$.*?^VmFlags:([^\n]*)$", SMAPS.read_text(), re.MULTILINE | re.DOTALL)
    return sum(int(size) * 1024 for size, flags in mappings if " hg" in flags)


@pytest.mark.parametrize("shape", [(3, 5), (1024, 3, 1024), (0,), (2 * MIB,)])
def test_shape_and_format_are_those_asked_for_and_it_is_memory_of_its_own(shape):
    found, other = (huge_paged(shape, torch.bfloat16).fill_(value) for value in (1, 2))

    assert (found.shape, found.dtype, found.is_contiguous()) == (shape, torch.bfloat16, True)
    assert (found.storage_offset(), found.untyped_storage().nbytes()) == (0, found.nbytes)
    assert (found == 1).all()
    assert (other == 2).all()


@needs_smaps
def test_whole_huge_pages_inside_a_tensor_are_asked_for_as_long_as_it_lives():
    before = advised_bytes()
    found = huge_paged((7 * MIB + 5,), torch.uint8)

    assert advised_bytes() - before == 6 * MIB
    assert found.data_ptr() % (2 * MIB) == 0
    view = found[3:]
    del found
    assert advised_bytes() - before == 6 * MIB
    del view
    assert advised_bytes() == before


@needs_smaps
def test_nothing_is_asked_for_a_small_tensor():
    before = advised_bytes()
    kept = huge_paged((2 * MIB - 1,), torch.uint8)

    assert advised_bytes() == before
    assert kept.nbytes == 2 * MIB - 1
