"""Decode attention, compiled and through torch, against a float64 reference."""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import native
from executor.native import fallback
from executor.native import library as library_module
from hrm.errors import DeviceError

needs_library = pytest.mark.skipif(
    not native.available() and "CI" not in os.environ,
    reason="no compiled kernel here (python setup.py build_ext --inplace)",
)
TORCH = "torch"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    slack: int
    group: int
    num_kv_heads: int
    head_dim: int
    cache_dtype: torch.dtype
    query_dtype: torch.dtype


@dataclass(frozen=True)
class Cache:
    keys: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    capacities: torch.Tensor
    lengths: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.keys, self.values, self.offsets, self.capacities, self.lengths


cases = st.builds(
    Case,
    lengths=st.lists(st.one_of(st.integers(0, 40), st.integers(60, 150)), min_size=1, max_size=4).map(tuple),
    slack=st.integers(0, 5),
    group=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16]),
    num_kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 24, 32, 64, 80, 96, 128, 256, 5]),
    cache_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    query_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


def make_cache(case: Case) -> Cache:
    """A cache whose every element outside the valid tokens is NaN, blocks in reverse order and with gaps."""
    capacities = [length + case.slack for length in case.lengths]
    sizes = [case.num_kv_heads * capacity * case.head_dim for capacity in capacities]
    offsets = [sum(sizes[i + 1 :]) + 3 * (len(sizes) - i) for i in range(len(sizes))]
    keys = torch.full((sum(sizes) + 3 * len(sizes) + 3,), math.nan, dtype=case.cache_dtype)
    values = keys.clone()
    for offset, size, capacity, length in zip(offsets, sizes, capacities, case.lengths, strict=True):
        for buffer in (keys, values):
            block = buffer[offset : offset + size].view(case.num_kv_heads, capacity, case.head_dim)
            block[:, :length] = torch.randn(case.num_kv_heads, length, case.head_dim).to(case.cache_dtype)
    layout = [torch.tensor(numbers, dtype=torch.int64) for numbers in (offsets, capacities, case.lengths)]
    return Cache(keys, values, *layout)


def make_query(case: Case) -> torch.Tensor:
    shape = (len(case.lengths), case.group * case.num_kv_heads, case.head_dim)
    return (2.0 * torch.randn(shape)).to(case.query_dtype)


def reference(case: Case, cache: Cache, query: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(query.shape, dtype=torch.float64)
    for i, length in enumerate(case.lengths):
        capacity, offset = int(cache.capacities[i]), int(cache.offsets[i])
        for head in range(query.shape[1] if length else 0):
            start = offset + head // case.group * capacity * case.head_dim
            rows = slice(start, start + length * case.head_dim)
            k = cache.keys[rows].double().view(length, case.head_dim)
            v = cache.values[rows].double().view(length, case.head_dim)
            scores = k @ query[i, head].double() / math.sqrt(case.head_dim)
            out[i, head] = torch.softmax(scores, dim=0) @ v
    return out


def use_path(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("HRM_NATIVE", "0" if path == TORCH else "1")
    monkeypatch.setenv("HRM_NATIVE_ISA", "" if path == TORCH else path)


paths = pytest.mark.parametrize("path", [TORCH, *native.instruction_sets()])


@paths
@settings(max_examples=40, deadline=None)
@given(case=cases, num_threads=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_attention_matches_float64_and_ignores_what_lies_beyond_the_lengths(path, case, num_threads, seed):
    torch.manual_seed(seed)
    cache, query = make_cache(case), make_query(case)
    out = torch.full_like(query, math.nan)

    with pytest.MonkeyPatch.context() as monkeypatch:
        use_path(monkeypatch, path)
        native.decode_attention(query, *cache.tensors, case.num_kv_heads, out, num_threads)

    expected = reference(case, cache, query)
    # The AVX512-BF16 path rounds weights to bfloat16, the others only the output where that is asked for.
    tolerance = TOLERANCE[case.query_dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@needs_library
@pytest.mark.parametrize("path", native.instruction_sets())
def test_the_number_of_threads_does_not_change_a_bit(path, monkeypatch):
    case = Case((700, 3, 1290, 640), 2, 4, 2, 128, torch.bfloat16, torch.bfloat16)  # large enough for 5 threads
    cache, query = make_cache(case), make_query(case)
    use_path(monkeypatch, path)
    outs = [torch.empty_like(query) for _ in range(3)]
    for num_threads, out in zip((1, 2, 5), outs, strict=True):
        native.decode_attention(query, *cache.tensors, case.num_kv_heads, out, num_threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@needs_library
@pytest.mark.parametrize("path", native.instruction_sets())
def test_large_scores_neither_overflow_nor_lose_the_largest(path, monkeypatch):
    torch.manual_seed(0)
    case = Case((130,), 0, 4, 1, 64, torch.float32, torch.float32)
    cache = make_cache(case)
    query = 1e4 * make_query(case)
    out = torch.empty_like(query)
    use_path(monkeypatch, path)
    native.decode_attention(query, *cache.tensors, 1, out, 1)
    torch.testing.assert_close(out.double(), reference(case, cache, query), rtol=1e-3, atol=1e-3)


@paths
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16])
def test_append_writes_one_row_per_head_and_nothing_else(path, cache_dtype, query_dtype, monkeypatch):
    case = Case((0, 5, 2), 1, 1, 2, 24, cache_dtype, query_dtype)
    cache = make_cache(case)
    before = cache.keys.clone()
    new_keys, new_values = (torch.randn(3, 2, 24).to(query_dtype) for _ in range(2))
    use_path(monkeypatch, path)

    native.append_kv(new_keys, new_values, *cache.tensors)

    written = torch.zeros(before.shape, dtype=torch.bool)
    for i, length in enumerate(case.lengths):
        for head in range(2):
            start = int(cache.offsets[i]) + (head * (length + 1) + length) * 24
            written[start : start + 24] = True
            assert torch.equal(cache.keys[start : start + 24], new_keys[i, head].to(cache_dtype))
            assert torch.equal(cache.values[start : start + 24], new_values[i, head].to(cache_dtype))
    unchanged = ~written
    torch.testing.assert_close(cache.keys[unchanged], before[unchanged], rtol=0, atol=0, equal_nan=True)


@paths
def test_lengths_and_blocks_that_do_not_fit_are_refused(path, monkeypatch):
    case = Case((4, 2), 0, 1, 1, 8, torch.float32, torch.float32)
    cache, query = make_cache(case), make_query(case)
    out = torch.empty_like(query)
    use_path(monkeypatch, path)
    with pytest.raises(ValueError, match="beyond its capacity"):
        native.append_kv(query, query, *cache.tensors)
    cache.lengths[0] = 5
    with pytest.raises(ValueError, match="beyond its capacity"):
        native.decode_attention(query, *cache.tensors, 1, out, 1)
    cache.capacities[0] = 50
    with pytest.raises(ValueError, match="outside the buffer"):
        native.decode_attention(query, *cache.tensors, 1, out, 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"query": torch.zeros(1, 4, 8, dtype=torch.float64)}, "query: expected"),
        ({"values": torch.zeros(15)}, "keys and values"),
        ({"lengths": torch.zeros(1, dtype=torch.int32)}, "int64"),
        ({"num_kv_heads": 3}, "does not divide"),
        ({"out": torch.zeros(1, 4, 4)}, "out: expected"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(change, text):
    numbers = torch.ones(1, dtype=torch.int64)
    arguments: dict[str, Any] = {
        "query": torch.zeros(1, 4, 8),
        "keys": torch.zeros(16),
        "values": torch.zeros(16),
        "offsets": numbers - 1,
        "capacities": numbers,
        "lengths": numbers,
        "num_kv_heads": 2,
        "out": torch.zeros(1, 4, 8),
        "num_threads": 1,
    }
    native.decode_attention(**arguments)
    with pytest.raises(ValueError, match=text):
        native.decode_attention(**(arguments | change))


def test_float16_runs_through_torch():
    case = Case((9,), 1, 2, 2, 16, torch.float16, torch.float16)
    cache, query = make_cache(case), make_query(case)
    out = torch.empty_like(query)
    native.decode_attention(query, *cache.tensors, 2, out, 1)
    torch.testing.assert_close(out.double(), reference(case, cache, query), rtol=2e-3, atol=2e-3)


def test_turned_off_it_says_so_and_uses_torch(monkeypatch):
    monkeypatch.setenv("HRM_NATIVE", "0")
    calls = []
    monkeypatch.setattr(fallback, "decode_attention", lambda *arguments: calls.append(arguments))
    assert not native.available()
    assert native.instruction_sets() == ()
    assert native.status_line() == "compiled kernels: none, using torch (HRM_NATIVE=0)"
    one, query = torch.ones(1, dtype=torch.int64), torch.zeros(1, 1, 8)
    native.decode_attention(query, torch.zeros(8), torch.zeros(8), one - 1, one, one, 1, torch.zeros(1, 1, 8), 1)
    assert len(calls) == 1


def test_a_missing_library_names_the_remedy(monkeypatch):
    monkeypatch.delenv("HRM_NATIVE", raising=False)
    monkeypatch.setattr(library_module, "_library", lambda: None)
    assert not native.available()
    assert "install a C++ compiler" in native.status_line()


@needs_library
def test_the_forced_path_is_reported_and_an_unknown_one_refused(monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", "scalar")
    assert native.status_line() == "compiled kernels: scalar"
    monkeypatch.setenv("HRM_NATIVE_ISA", "avx1024")
    with pytest.raises(DeviceError, match="choose one of scalar"):
        native.status_line()


@needs_library
def test_other_python_threads_run_during_a_call(monkeypatch):
    """With the interpreter lock held, the counting thread would stand still for as long as the call takes."""
    monkeypatch.setenv("HRM_NATIVE_ISA", "scalar")
    case = Case((4000,) * 8, 0, 64, 1, 64, torch.float32, torch.float32)
    cache, query = make_cache(case), make_query(case)
    out = torch.empty_like(query)
    started, done = threading.Event(), threading.Event()
    longest_gap_s = [0.0]

    def watch() -> None:
        last_s = time.perf_counter()
        while not done.is_set():
            started.set()
            now_s = time.perf_counter()
            longest_gap_s[0], last_s = max(longest_gap_s[0], now_s - last_s), now_s

    watcher = threading.Thread(target=watch)
    watcher.start()
    started.wait()
    start_s = time.perf_counter()
    native.decode_attention(query, *cache.tensors, 1, out, 1)
    call_s = time.perf_counter() - start_s
    done.set()
    watcher.join()
    assert longest_gap_s[0] < 0.7 * call_s
