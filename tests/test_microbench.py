"""The profiler: how it times, what it leaves out, and that what it writes can be read back."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.device.openmp import end_helpers
from hrm.device.streams import allowed_cores
from hrm.dtypes import DType
from hrm.files import write_yaml
from hrm.hardware import EmulatedSpec, load_profile
from hrm.microbench import bench as bench_module
from hrm.microbench import compute, measure, memory
from hrm.microbench.bench import Bench
from hrm.microbench.compute import best_shapes, product_samples
from hrm.microbench.contention import shared_host_memory
from hrm.microbench.profile import Request, profile_machine
from hrm.schedule.task import Lane
from hrm.units import MIB
from tests.probes import sleeping_probe

SPEC = EmulatedSpec(
    name="tiny", memory_capacity_bytes=32 * MIB, h2d_bytes_per_s=2e8, d2h_bytes_per_s=1e8, host_slowdown=2.0
)

two_cores = pytest.mark.skipif(len(allowed_cores()) < 2, reason="the emulated device needs a core of its own")


@pytest.fixture
def small(monkeypatch):
    """Small buffers and little time: what is measured then is a cache, which is enough to test the way."""
    monkeypatch.setattr(memory, "_BUFFER_BYTES", MIB)
    monkeypatch.setattr(memory, "_MOST_BYTES", MIB)
    monkeypatch.setattr(bench_module, "_QUICK_S", 1.0)


def _verdicts(monkeypatch: pytest.MonkeyPatch, *contaminated: bool) -> None:
    """Let the watch say of successive rounds whether they were contaminated; clean when the list ends."""
    verdicts = iter(contaminated)
    monkeypatch.setattr(measure.CpuWatch, "contaminated", lambda _: next(verdicts, False))


def test_cases_take_turns(monkeypatch):
    _verdicts(monkeypatch)
    order: list[str] = []

    def case(name: str, seconds: float) -> measure.Timed:
        def once() -> float:
            order.append(name)
            return seconds

        return once

    times = measure.measure({"a": case("a", 1.0), "b": case("b", 2.0)}, rounds=3, budget_s=1.0)

    assert "".join(order) == "ababab"
    assert times == {"a": (1.0,) * 3, "b": (2.0,) * 3}


def test_contaminated_rounds_are_redone_and_left_out(monkeypatch):
    _verdicts(monkeypatch, True, False, True)
    ticks = iter(range(1, 100))
    times = measure.measure({"a": lambda: float(next(ticks))}, rounds=3, budget_s=1.0)

    assert times == {"a": (2.0, 4.0, 5.0)}


def test_parts_that_others_disturbed_most_of_the_time_are_named(host, monkeypatch):
    _verdicts(monkeypatch, False, True, False, False, *[True] * 10)
    for part in ("calm", "disturbed"):
        host.say(part)
        host.times(Lane.CPU, {"nothing": lambda: None})

    assert host.disturbed == ["disturbed"]


def test_redoing_is_bounded_and_then_uses_what_there_is(monkeypatch):
    _verdicts(monkeypatch, *[True] * 100)
    times = measure.measure({"a": lambda: 1.0}, rounds=3, budget_s=1.0)

    assert 3 <= len(times["a"]) <= 6


def test_a_spent_budget_still_gives_three_rounds(monkeypatch):
    _verdicts(monkeypatch)
    assert len(measure.measure({"a": lambda: 1.0}, rounds=50, budget_s=0.0)["a"]) == 3


def test_watch_sees_another_process_at_work():
    watch = measure.CpuWatch()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True, timeout=60)
    assert watch.contaminated()


@pytest.mark.parametrize(
    ("foreign_s", "waited_s", "contaminated"),
    [(0.0, 0.01, False), (0.009, 0.0, False), (0.009, 0.005, True), (0.04, 0.0, True)],
)
def test_a_short_round_is_contaminated_when_threads_waited_for_others(monkeypatch, foreign_s, waited_s, contaminated):
    """Within 20 ms the kernel's ticks alone look like a foreign process."""
    use = measure.CpuUse(wall_s=0.02, own_s=0.04, foreign_s=foreign_s, waited_s=waited_s)
    monkeypatch.setattr(measure.CpuWatch, "use", lambda _: use)

    assert measure.CpuWatch().contaminated() is contaminated


def test_spread_beyond_a_tenth_of_the_median_is_noisy():
    calm, wild = measure.summary([1.0, 1.01, 1.02]), measure.summary([1.0, 2.0, 3.0])

    assert (calm.median, calm.count, calm.noisy) == (1.01, 3, False)
    assert (wild.median, wild.iqr, wild.noisy) == (2.0, 1.0, True)
    assert measure.summary([2.0]).iqr == 0.0


def test_absurdly_slow_dtype_is_tried_tiny_only(host, monkeypatch):
    """A float16 product done in software would take minutes at full size."""
    sizes: list[int] = []
    real = torch.mm

    def mm(operand, weight, *, out):
        if operand.dtype is torch.float16:
            sizes.append(len(weight))
            time.sleep(0.3)
            return None
        return real(operand, weight, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    found = product_samples(host, Lane.CPU, best_shapes(host, Lane.CPU))
    rates = {one.dtype: one for one in found}

    assert rates[DType.FLOAT16].absurd
    assert not rates[DType.FLOAT32].absurd
    assert set(sizes) == {128}
    assert max(rates[DType.FLOAT16].flop_per_s) < min(rates[DType.FLOAT32].flop_per_s) / compute.ABSURD_FACTOR


def test_a_dtype_that_torch_cannot_multiply_is_left_out(host, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(host, "quick", False)
    monkeypatch.setattr(host, "case_s", 0.002)
    monkeypatch.setattr(torch, "_int_mm", refuse)
    dtypes = {one.dtype for one in best_shapes(host, Lane.CPU)}

    assert DType.FLOAT32 in dtypes
    assert DType.INT8 not in dtypes


def test_the_search_finds_a_shape_far_from_the_fastest_square(host, monkeypatch):
    """No square says that few rows, a long inner side and few columns together are fast."""
    rates = {(512, 512, 512): 2e10, (256, 2048, 512): 8e10}

    def made(*arguments):
        rows, inner, columns = shape = arguments[3]
        flop = 2.0 * rows * inner * columns
        return flop, lambda: time.sleep(flop / rates.get(shape, 1e10))

    monkeypatch.setattr(compute, "product", made)
    monkeypatch.setattr(host, "quick", False)
    monkeypatch.setattr(host, "case_s", 0.2)

    assert compute._fastest(host, Lane.CPU, (DType.FLOAT32, 1), 10.0) == [(256, 2048, 512)]


def test_the_roof_is_the_shape_with_the_higher_median():
    one, other = (
        compute.ProductSamples(dtype=DType.FLOAT32, threads=1, shape=(side,) * 3, absurd=False, flop_per_s=rates)
        for side, rates in ((512, (1.0, 2.0, 9.0)), (1024, (3.0, 3.0, 3.0)))
    )

    assert compute.best_of((one, other)) == compute.best_of((other, one)) == {(DType.FLOAT32, 1): other}


def test_rounds_end_when_the_spread_is_small(monkeypatch):
    _verdicts(monkeypatch)
    calm = measure.measure({"a": lambda: 1.0}, rounds=50, budget_s=10.0)
    ticks = iter(range(1, 1000))
    wild = measure.measure({"a": lambda: 1.0, "b": lambda: float(next(ticks))}, rounds=20, budget_s=10.0)

    assert len(calm["a"]) == 5
    assert len(wild["a"]) == 20


def test_every_round_is_logged_with_its_cpu_time(monkeypatch):
    _verdicts(monkeypatch, True, False, False, False)
    logged: list[tuple[dict[str, float], measure.CpuUse]] = []
    ticks = iter(range(1, 100))
    measure.measure(
        {"a": lambda: float(next(ticks))}, rounds=3, budget_s=5.0, log=lambda result, use: logged.append((result, use))
    )

    assert [result["a"] for result, _ in logged] == [1.0, 2.0, 3.0, 4.0]
    assert [use.clean for _, use in logged] == [False, True, True, True]
    assert all(use.wall_s > 0 and use.own_s >= 0 and use.foreign_s >= 0 for _, use in logged)


def test_a_slow_first_product_does_not_make_a_dtype_absurd(host, monkeypatch):
    """Early products of 20 us took up to 7 ms where two threads had begun on one core."""
    slow = {torch.bfloat16: 3}
    real = torch.mm

    def mm(operand, weight, *, out):
        if slow.get(operand.dtype, 0):
            slow[operand.dtype] -= 1
            time.sleep(0.05)
        return real(operand, weight, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    found_s = compute._tiny_s(host, Lane.CPU, DType.BFLOAT16)
    assert found_s is not None
    assert found_s < 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of the process as Linux lists them")
def test_making_operands_leaves_no_threads_in_the_lanes_way(host):
    def num_threads():
        return len(list(Path("/proc/self/task").iterdir()))

    end_helpers()
    before = num_threads()
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        host.made_for(Lane.CPU, lambda device: torch.ones(1 << 20, device=device).mul_(2))
        until_s = time.monotonic() + 1
        while num_threads() > before and time.monotonic() < until_s:
            time.sleep(0.01)
    finally:
        torch.set_num_threads(usual)
    assert num_threads() <= before


def test_what_lanes_draw_together_is_measured_without_a_slowed_hosts_sleep():
    def gigabytes_per_s(slowdown):
        backend = EmulatedBackend(replace(SPEC, host_slowdown=slowdown))
        found = shared_host_memory(Bench(backend, quick=True))
        backend.close()
        return found.bytes_per_s.roof / 1e9

    assert gigabytes_per_s(50.0) > 0.3 * gigabytes_per_s(1.0)


@two_cores
@pytest.mark.usefixtures("small")
def test_emulated_profile_says_its_sources_and_reads_back_as_written(tmp_path):
    backend = EmulatedBackend(SPEC)
    said: list[str] = []
    request = Request(quick=True, command="hrm profile --device emulated:tiny")
    profile = profile_machine(backend, [sleeping_probe(1e-5)], request, progress=said.append)
    used_bytes = backend.memory_used_bytes
    backend.close()
    _assert_sources(profile)
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    write_yaml(first, profile)
    loaded = load_profile(first)
    write_yaml(second, loaded)

    assert first.read_text() == second.read_text()
    assert (loaded.device, loaded.emulated) == ("emulated", SPEC)
    assert loaded.level("cpu").cores == len(SPEC.host_cores)
    assert loaded.level("gpu").capacity_bytes == SPEC.memory_capacity_bytes
    assert used_bytes == 0, "the profiler must give back the device memory it used"
    for name, pace in (("h2d", 2e8), ("d2h", 1e8)):
        rate = loaded.link(name).bytes_per_s
        assert rate.peak == pace
        assert rate.measured is not None
        assert rate.measured.median <= pace
    assert {(table.kernel, table.level) for table in loaded.ceilings} == {("projection", "cpu"), ("projection", "gpu")}
    assert set(loaded.contention) == {"cpu", "gpu", "h2d", "d2h"}
    assert all(0 < share <= 1 for share in loaded.contention.values())
    assert any("kernel projection" in text for text in said)


def _assert_sources(profile):
    paths = [f"levels.{level}.{name}" for level in ("cpu", "gpu") for name in ("read_bytes_per_s", "launch_s")]
    for level in ("cpu", "gpu"):
        paths += [f"levels.{level}.compute_flop_per_s.{dtype}" for dtype in ("float32", "bfloat16", "float16")]
    paths += [f"links.{link}.{name}" for link in ("h2d", "d2h") for name in ("bytes_per_s", "latency_s")]
    for path in [*paths, "ceilings.projection.gpu.float32", "contention"]:
        assert "hrm profile --device emulated:tiny" in profile.provenance[path]
    assert "slowed 2 times by emulation" in profile.provenance["levels.cpu.read_bytes_per_s"]
    assert "emulated" in profile.provenance["levels.gpu.read_bytes_per_s"]


@pytest.mark.usefixtures("small")
def test_host_profile_has_no_device():
    backend = HostBackend(threads=1)
    profile = profile_machine(backend, request=Request(quick=True))
    backend.close()

    assert (profile.device, profile.has_gpu, profile.links, profile.emulated) == ("none", False, {}, None)
    level = profile.level("cpu")
    assert level.usable_bytes < level.capacity_bytes
    assert level.compute_flop_per_s[DType.FLOAT32].roof > 1e8


def test_two_threads_have_no_more_than_two_cores_and_the_caller_keeps_its_own_number():
    threads = torch.get_num_threads()

    assert 0.2 <= measure.cores_kept() <= 1.0
    assert torch.get_num_threads() == threads
