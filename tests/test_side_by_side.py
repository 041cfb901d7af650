"""Tensors allocated side by side: none overlaps another, each is aligned, and few pieces of memory hold them all."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.memory import SideBySide
from hrm.units import MIB

SHAPES = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 50)), min_size=1, max_size=12)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64])


class Counted:
    """Allocates, and keeps how many bytes each time."""

    def __init__(self):
        self.asked = []

    def __call__(self, shape, dtype):
        self.asked.append(math.prod(shape) * dtype.itemsize)
        return torch.empty(tuple(shape), dtype=dtype)


@given(SHAPES, DTYPES)
def test_tensors_keep_what_is_written_to_them_whatever_follows(shapes, dtype):
    allocate = SideBySide(torch_empty := Counted())

    tensors = [allocate(shape, dtype).fill_(number) for number, shape in enumerate(shapes)]

    assert all(tensor.shape == shape for tensor, shape in zip(tensors, shapes, strict=True))
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(tensors))
    assert all((tensor.data_ptr() - tensors[0].data_ptr()) % 64 == 0 for tensor in tensors if tensor.numel())
    assert len(torch_empty.asked) <= 1


def test_a_large_tensor_gets_memory_of_its_own_size_and_the_piece_goes_on():
    allocate = SideBySide(counted := Counted())

    small = [allocate((1000,), torch.uint8)]
    large = allocate((40 * MIB,), torch.uint8)
    small.append(allocate((1000,), torch.uint8))

    assert counted.asked[1:] == [large.nbytes]
    assert small[1].data_ptr() - small[0].data_ptr() == 1024


def test_a_full_piece_is_followed_by_another():
    allocate = SideBySide(counted := Counted())

    tensors = [allocate((20 * MIB,), torch.uint8) for _ in range(5)]

    assert len(counted.asked) == 2
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
