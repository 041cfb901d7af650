"""Memory roofs: which are measured, on which threads and memory; cores and threads side by side."""

import os
import sys
import threading

import pytest
import torch

from hrm.device.host import HostBackend
from hrm.device.streams import allowed_cores
from hrm.microbench import machine, memory, native, threads
from hrm.microbench.bench import Bench
from hrm.microbench.memory import cache_samples, host_memory_samples
from hrm.microbench.native import Stream
from hrm.units import MIB

linux = pytest.mark.skipif(sys.platform != "linux", reason="cores are pinned on Linux only")
compiled = pytest.mark.skipif(not native.available(), reason="the streaming kernels were not compiled")


@pytest.fixture
def bench(monkeypatch):
    """Few, short repeats on small buffers: what is measured is a cache, which is enough to test the way."""
    monkeypatch.setattr(memory, "_MOST_BYTES", MIB)
    monkeypatch.setattr(memory, "_PILOT_BYTES", MIB)
    backend = HostBackend(threads=min(2, len(allowed_cores())))
    bench = Bench(backend, quick=False)
    bench.rounds, bench.case_s = 3, 0.002
    yield bench
    backend.close()


@compiled
def test_every_access_is_measured_by_one_and_by_all_threads(bench):
    found = host_memory_samples(bench)
    most = min(2, len(allowed_cores()))

    kinds = ["torch_copy", *(kind.name.lower() for kind in native.streams())]
    assert set(found) == {f"dram_{kind}_x{count}" for kind in kinds for count in {1, most}}
    assert all(len(one.bytes_per_s) >= 3 and min(one.bytes_per_s) > 1e7 for one in found.values())
    assert found[f"dram_read_x{most}"].thread_bytes == MIB // most


def test_without_compiled_kernels_torch_reads(bench, monkeypatch):
    monkeypatch.setattr(memory, "streams", lambda: ())
    found = host_memory_samples(bench)

    assert {name.rpartition("_")[0] for name in found} == {"dram_read", "dram_torch_copy"}
    assert cache_samples(bench) == {}


@compiled
def test_caches_are_read_in_their_sizes(bench):
    found = cache_samples(bench)

    assert found["l1_read_x1"].thread_bytes == 16 * 1024
    assert found["l2_read_x1"].thread_bytes == 256 * 1024
    assert {name.split("_")[0] for name in found} <= {"l1", "l2", "l3"}


def test_threads_share_the_last_cache(monkeypatch):
    monkeypatch.setattr(memory, "last_cache_bytes", lambda: 64 * MIB)

    assert memory._shared_cache_bytes(4) == 8 * MIB
    assert memory._shared_cache_bytes(64) == MIB // 2


@compiled
def test_each_numa_node_reads_its_own_memory(bench, monkeypatch):
    if len(allowed_cores()) < 2:
        pytest.skip("two nodes need two cores")
    monkeypatch.setattr(memory, "numa_nodes", lambda cores: {0: cores[1:2], 3: cores[:1]})
    found = host_memory_samples(bench)

    assert {"dram_read_node0_x1", "dram_read_node3_x1"} <= set(found)
    assert found["dram_read_x1"].thread_bytes == MIB // 2, "one thread reads what is near it"


def test_buffers_lie_within_their_part_and_differ_in_their_low_address_bits():
    part = torch.zeros(MIB // 8, dtype=torch.float64)
    for kind in (Stream.COPY, Stream.TRIAD_NT):
        buffers = memory._buffers(part, kind)

        assert len({buffer.nbytes for buffer in buffers}) == 1
        assert 0.99 * part.nbytes < sum(buffer.nbytes for buffer in buffers) <= part.nbytes
        assert len({buffer.data_ptr() % 4096 for buffer in buffers}) == len(buffers)


@linux
def test_works_run_at_once_each_on_its_core_and_the_caller_keeps_its_cores():
    cores = (allowed_cores() * 2)[:2]
    together = threading.Barrier(2, timeout=10)
    seen: list[tuple[int, set[int]]] = []

    def work(index):
        def run():
            together.wait()
            seen.append((index, set(os.sched_getaffinity(0))))

        return run

    before = os.sched_getaffinity(0)
    threads.side_by_side(cores, [work(0), work(1)])

    assert sorted(seen) == [(index, {core}) for index, core in enumerate(cores)]
    assert os.sched_getaffinity(0) == before


def test_a_failing_thread_fails_all():
    def fail():
        raise MemoryError("no room")

    core = allowed_cores()[0]
    with pytest.raises(MemoryError, match="no room"):
        threads.side_by_side((core, core), [lambda: None, fail])


def test_cores_are_told_apart_and_sorted_into_nodes(tmp_path, monkeypatch):
    for core in range(4):
        folder = tmp_path / f"cpu{core}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 2},{core % 2 + 2}\n")
    for node, cores in {0: "0,2", 1: "1-1,3"}.items():
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}/cpulist").write_text(cores)
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine, "_NODES", tmp_path)

    assert machine.one_per_core((0, 1, 2, 3)) == (0, 1)
    assert machine.numa_nodes((0, 1, 2)) == {0: (0, 2), 1: (1,)}


def test_system_facts_are_words():
    facts = machine.system_facts()

    assert {"processor", "kernel", "huge pages", "governor", "numa nodes", "torch", "load at the start"} <= set(facts)
    assert all(type(value) is str and value for value in facts.values())
