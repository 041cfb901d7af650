"""Links: sizes, the fit of latency and rate, both directions at once, through the emulated backend."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.device.emulated import EmulatedBackend
from hrm.device.streams import allowed_cores
from hrm.hardware import EmulatedSpec
from hrm.microbench.bench import Bench
from hrm.microbench.links import both_ways_samples, fitted_link, link_samples
from hrm.schedule.task import Lane
from hrm.units import MIB

SPEC = EmulatedSpec(name="tiny", memory_capacity_bytes=8 * MIB, h2d_bytes_per_s=2e8, d2h_bytes_per_s=1e8)

pytestmark = pytest.mark.skipif(len(allowed_cores()) < 2, reason="the emulated device needs a core of its own")


@pytest.fixture
def bench():
    backend = EmulatedBackend(SPEC)
    yield Bench(backend, quick=True)
    backend.close()


@given(latency_s=st.floats(0, 1e-3), bytes_per_s=st.floats(1e7, 1e11))
def test_fit_finds_latency_and_rate(latency_s, bytes_per_s):
    sizes = [2**power for power in range(16, 29)]
    times = {size: [latency_s + size / bytes_per_s] * 3 for size in sizes}

    found_s, found_rate = fitted_link(times)

    assert found_rate == pytest.approx(bytes_per_s, rel=1e-3)
    assert found_s == pytest.approx(latency_s, abs=1e-3 * sizes[0] / bytes_per_s + 1e-6 * latency_s)


def test_fit_follows_the_median_and_knows_no_negative_latency():
    times = {2**16: [1.0, 1e-4, 1e-4], 2**20: [1.6e-3, 1.6e-3, 9.0]}
    assert fitted_link(times)[1] == pytest.approx(2**20 / 1.6e-3, rel=1e-2)

    falling = {2**16: [1e-6], 2**20: [1e-3]}
    assert fitted_link(falling)[0] == 0.0
    assert fitted_link({2**20: [2.0]}) == (0.0, 2.0**19)


@pytest.mark.parametrize(("lane", "pace"), [(Lane.H2D, 2e8), (Lane.D2H, 1e8)])
def test_no_copy_is_faster_than_the_pace_whatever_its_size(bench, lane, pace):
    found = link_samples(bench, lane, pinned=True)

    assert next(iter(found.seconds)) == 64 * 1024
    assert max(found.seconds) <= SPEC.memory_capacity_bytes // 4
    for size, times in found.seconds.items():
        assert all(size / seconds <= pace * 1.001 for seconds in times)
    assert fitted_link(found.seconds)[1] == pytest.approx(pace, rel=0.3)
    assert bench.backend.memory_used_bytes == 0, "the copies' buffers must be given back"


def test_both_directions_at_once_keep_their_paces(bench):
    found = both_ways_samples(bench)

    assert max(found[Lane.H2D]) <= 2.01e8
    assert max(found[Lane.D2H]) <= 1.01e8
    assert min(found[Lane.D2H]) > 2e7
