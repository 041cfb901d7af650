"""Kernels' tables: which shapes are timed in which time, what a cell holds, and what waking up takes."""

import time
from dataclasses import replace

import pytest

from hrm.device.emulated import EmulatedBackend
from hrm.device.streams import allowed_cores
from hrm.hardware import EmulatedSpec
from hrm.microbench import measure
from hrm.microbench.bench import Bench
from hrm.microbench.kernels import measure_table, waking_up
from hrm.units import MIB
from tests.probes import sleeping_probe

SPEC = EmulatedSpec(name="tiny", memory_capacity_bytes=32 * MIB, h2d_bytes_per_s=2e8, d2h_bytes_per_s=1e8)

two_cores = pytest.mark.skipif(len(allowed_cores()) < 2, reason="the emulated device needs a core of its own")


def test_a_table_of_what_calls_do_several_times_holds_what_each_adds(host):
    """A call costs 20 ms, and 10 ms for each time that it does the kernel."""

    def several(count):
        return lambda *_: lambda: time.sleep(0.02 + 0.01 * count)

    probe = replace(sleeping_probe(0.0), make=several(1), make_several=several, rows=(1, 4096))
    table = measure_table(host, probe, "cpu", budget_s=1e4, coarse=True)

    together, apart = table.seconds[0]
    assert together == pytest.approx(0.01, rel=0.2)
    assert apart >= 0.03, "so many rows are computed one by one"


def test_table_holds_every_shape_where_time_allows(host, monkeypatch):
    monkeypatch.setattr(host, "quick", False)
    monkeypatch.setattr(host, "rounds", 3)
    probe = sleeping_probe(1e-5)
    table = measure_table(host, probe, "cpu", budget_s=30.0)

    assert table.rows == probe.rows
    assert table.sizes == probe.sizes
    for size, line in zip(table.sizes, table.seconds, strict=True):
        assert all(seconds >= size * rows * 1e-5 for rows, seconds in zip(table.rows, line, strict=True))


@two_cores
def test_table_of_a_slowed_host_has_its_times_without_its_sleep():
    backend = EmulatedBackend(replace(SPEC, host_slowdown=1e6))
    table = measure_table(Bench(backend, quick=True), sleeping_probe(1e-6), "cpu", budget_s=0.0)
    backend.close()

    assert all(
        seconds >= 1e6 * 1e-6 * size * rows
        for size, line in zip(table.sizes, table.seconds, strict=True)
        for rows, seconds in zip(table.rows, line, strict=True)
    )


@two_cores
def test_waking_up_is_what_the_first_call_after_a_sleep_takes_longer():
    last_s = [0.0]

    def call():
        if time.perf_counter() - last_s[0] > 0.006:
            time.sleep(0.003)
        last_s[0] = time.perf_counter()

    probe = replace(sleeping_probe(0.0), make_task=lambda *_: call)
    backend = EmulatedBackend(replace(SPEC, host_slowdown=10.0))
    found = waking_up(Bench(backend, quick=True), probe)
    backend.close()

    assert found.median == pytest.approx(0.03, rel=0.5)


def test_table_has_two_row_counts_even_without_time_unless_the_second_takes_long(host):
    assert len(measure_table(host, sleeping_probe(1e-6), "cpu", budget_s=0.0).rows) == 2

    probe = sleeping_probe(0.01)
    table = measure_table(host, probe, "cpu", budget_s=0.0, coarse=True)
    assert table.rows == (probe.rows[(len(probe.rows) - 1) // 2],)
    assert table.sizes == (1, 4), "a quick table has the ends of the sizes"


def test_table_leaves_out_row_counts_that_do_not_fit(host, monkeypatch):
    """Trials and rounds at 32 rows would take 2.2 s, more than there is from the beginning."""
    monkeypatch.setattr(measure.CpuWatch, "contaminated", lambda _: False)
    begun_s = time.perf_counter()
    table = measure_table(host, sleeping_probe(0.002), "cpu", budget_s=1.5)

    assert 4 in table.rows
    assert table.rows[-1] < 32
    assert time.perf_counter() - begun_s < 10
