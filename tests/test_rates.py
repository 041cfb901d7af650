"""Rates: measured before assumed, assumed before the default of the class, and peaks at roof."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.achievable import DeviceClass, Trait, default
from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.errors import SchemaError
from hrm.hardware import EmulatedSpec, Link, SharedRate, bundled_profiles, load_profile
from hrm.rates import Rates, class_of
from hrm.schedule.sharing import Burst
from hrm.schedule.task import Lane
from tests.machines import GPU_CLASSES, any_machines, level, machine, rate, unshared, with_level, with_link

PROPERTY = settings(max_examples=100, deadline=None)


def ceiling(hardware):
    return Rates(hardware=hardware, measured=True)


def roof(hardware):
    return Rates(hardware=hardware, measured=False)


def datasheet():
    """A machine of which only the datasheet is known."""
    plain = with_level(with_level(machine(), "gpu", launch_s=None), "cpu", launch_s=None)
    return with_link(with_link(plain, "h2d", latency_s=None), "d2h", latency_s=None)


def every_rate(rates):
    """All rates that a prediction may read, by what they are of."""
    found: dict[object, float] = {"staging": rates.staging_bytes_per_s}
    for place in ("cpu", "gpu"):
        for kernel in (None, *Kernel):
            found[place, "read", kernel] = rates.read_bytes_per_s(place, kernel)
            for dtype in DType:
                found[place, "flop", dtype, kernel] = rates.flop_per_s(place, dtype, kernel)
    return found | {name: rates.link_bytes_per_s(name) for name in ("h2d", "d2h")}


@given(any_machines())
@PROPERTY
def test_no_rate_beats_its_roof(hardware):
    roofs = every_rate(roof(hardware))

    for name, found in every_rate(ceiling(hardware)).items():
        assert 0 < found <= roofs[name] * (1 + 1e-12), name


@pytest.mark.parametrize("device_class", GPU_CLASSES)
def test_what_was_not_measured_is_the_default_of_the_class(device_class):
    rates = ceiling(with_level(datasheet(), "gpu", device_class=device_class))

    def share(trait):
        return default(trait, device_class).value

    assert rates.read_bytes_per_s("gpu") == pytest.approx(1e10 * share(Trait.READ))
    assert rates.flop_per_s("gpu", DType.FLOAT32) == pytest.approx(1e10 * share(Trait.GEMM))
    assert rates.link_bytes_per_s("h2d") == rates.link_bytes_per_s("d2h") == pytest.approx(1e8 * share(Trait.LINK))
    assert rates.launch_s("gpu") == share(Trait.LAUNCH)
    assert rates.latency_s("h2d") == share(Trait.LATENCY)


@pytest.mark.parametrize(
    ("kernel", "trait"),
    [(Kernel.EXPERT_FFN, Trait.EXPERT_GEMM), (Kernel.ATTENTION_PREFILL, Trait.PREFILL_ATTENTION)],
)
def test_a_kernel_computes_at_its_share_of_large_products(kernel, trait):
    rates = ceiling(datasheet())
    plain, share = rates.flop_per_s("gpu", DType.FLOAT32), rates.trait(trait, "gpu")

    assert rates.flop_per_s("gpu", DType.FLOAT32, kernel) == pytest.approx(plain * share)
    assert rates.flop_per_s("gpu", DType.FLOAT32, Kernel.PROJECTION) == plain


@pytest.mark.parametrize(
    ("kernel", "trait"),
    [
        (Kernel.PROJECTION, Trait.FEW_ROWS),
        (Kernel.EXPERT_FFN, Trait.FEW_ROWS),
        (Kernel.ATTENTION_DECODE, Trait.DECODE_ATTENTION),
    ],
)
def test_a_kernel_reads_at_its_share_of_streaming(kernel, trait):
    rates = ceiling(datasheet())
    streaming, share = rates.read_bytes_per_s("cpu"), rates.trait(trait, "cpu")

    assert rates.read_bytes_per_s("cpu", kernel) == pytest.approx(streaming * share)
    assert rates.read_bytes_per_s("cpu", Kernel.ELEMENTWISE) == streaming


def test_quantised_weights_are_widened_at_a_cost():
    rates = ceiling(datasheet())
    share = rates.trait(Trait.QUANTIZED_GEMM, "gpu")

    assert rates.flop_per_s("gpu", DType.INT4) == pytest.approx(rates.flop_per_s("gpu", DType.FLOAT32) * share)
    assert rates.flop_per_s("gpu", DType.BFLOAT16) == rates.flop_per_s("gpu", DType.FLOAT32)
    assert roof(datasheet()).flop_per_s("gpu", DType.INT4) == 1e10


def test_measured_goes_before_assumed_and_assumed_before_the_default():
    stated = with_level(datasheet(), "gpu", assumed={Trait.READ: 0.5, Trait.LINK: 0.25})
    seen = with_level(stated, "gpu", read_bytes_per_s=rate(1e10, measured=3e9))

    assert ceiling(stated).read_bytes_per_s("gpu") == pytest.approx(5e9)
    assert ceiling(seen).read_bytes_per_s("gpu") == 3e9
    assert roof(seen).read_bytes_per_s("gpu") == 1e10
    assert ceiling(stated).link_bytes_per_s("h2d") == pytest.approx(2.5e7)
    assert ceiling(with_link(stated, "h2d", bytes_per_s=rate(1e8, measured=9e7))).link_bytes_per_s("h2d") == 9e7


def test_latency_and_launch_not_stated_are_the_default_and_zero_is_zero():
    plain, none = datasheet(), machine(latency_s=0.0)

    assert ceiling(plain).latency_s("d2h") > 0 == ceiling(none).latency_s("d2h")
    assert ceiling(plain).launch_s("gpu") > 0 == ceiling(none).launch_s("gpu")
    assert ceiling(plain).launch_s("cpu") == default(Trait.LAUNCH, DeviceClass.SERVER_CPU).value
    assert ceiling(with_level(plain, "gpu", launch_s=0.5)).launch_s("gpu") == 0.5
    assert ceiling(with_level(plain, "gpu", assumed={Trait.LAUNCH: 0.25})).launch_s("gpu") == 0.25


@given(any_machines())
@PROPERTY
def test_at_peaks_starting_costs_nothing(hardware):
    assert [roof(hardware).latency_s(name) for name in ("h2d", "d2h")] == [0.0, 0.0]
    assert [roof(hardware).launch_s(name) for name in ("cpu", "gpu")] == [0.0, 0.0]


def test_processors_and_paths_multiply():
    two = with_link(with_level(datasheet(), "gpu", count=2), "h2d", paths=2)

    for one_rate, two_rate in (
        (ceiling(datasheet()).read_bytes_per_s("gpu"), ceiling(two).read_bytes_per_s("gpu")),
        (ceiling(datasheet()).flop_per_s("gpu", DType.FLOAT32), ceiling(two).flop_per_s("gpu", DType.FLOAT32)),
        (ceiling(datasheet()).link_bytes_per_s("h2d"), ceiling(two).link_bytes_per_s("h2d")),
    ):
        assert two_rate == pytest.approx(2 * one_rate)
    assert ceiling(two).launch_s("gpu") == ceiling(datasheet()).launch_s("gpu")


def test_staging_is_what_one_thread_copies_each_byte_read_and_written():
    plain = with_level(datasheet(), "cpu", read_bytes_per_s=rate(1e12))
    copied = with_level(plain, "cpu", one_thread_copy_bytes_per_s=rate(9e9, measured=8e9))

    assert roof(plain).staging_bytes_per_s == 1e12 / 2
    assert ceiling(plain).staging_bytes_per_s == default(Trait.STAGING, DeviceClass.SERVER_CPU).value
    assert ceiling(copied).staging_bytes_per_s == 8e9 / 2
    assert ceiling(with_level(copied, "gpu", count=2)).staging_bytes_per_s == 2 * 8e9 / 2


def test_staging_is_no_faster_than_memory_whatever_a_thread_could_do():
    slow = with_level(datasheet(), "cpu", read_bytes_per_s=rate(1e9))

    assert ceiling(slow).staging_bytes_per_s == roof(slow).staging_bytes_per_s == 5e8


def test_lanes_share_host_memory_unless_the_profile_says_what():
    (memory,) = ceiling(datasheet()).shared
    bus = SharedRate(bytes_per_s=rate(2e9, measured=1e9), drawn_by={"h2d": 1.0})

    assert memory.bytes_per_s == ceiling(datasheet()).read_bytes_per_s("cpu")
    assert memory.drawn_by == {"cpu": 1.0, "h2d": 1.0, "d2h": 1.0, "pin": 2.0, "disk": 1.0}
    for rates, expected in ((ceiling, 1e9), (roof, 2e9)):
        (found,) = rates(replace(datasheet(), shared={"bus": bus})).shared
        assert (found.name, found.bytes_per_s, found.drawn_by) == ("bus", expected, bus.drawn_by)


def test_processors_collide_where_a_device_has_no_memory_of_its_own_a_slowed_host_at_its_own_speed():
    both = {"memory": SharedRate(bytes_per_s=rate(2e9), drawn_by={"cpu": 1.0, "gpu": 1.0, "h2d": 2.0})}
    spec = EmulatedSpec(
        name="slow", memory_capacity_bytes=1, h2d_bytes_per_s=1.0, d2h_bytes_per_s=1.0, host_slowdown=4.0
    )
    rates = ceiling(replace(datasheet(), shared=both, emulated=spec))
    (memory,) = rates.shared

    assert memory.bursts[Lane.CPU] == Burst(4 * rates.read_bytes_per_s("cpu"), 0.25)
    assert memory.bursts[Lane.GPU] == Burst(rates.read_bytes_per_s("gpu"))
    assert all(not one.bursts for one in ceiling(datasheet()).shared), "a card's kernels read its own memory"


def test_a_level_without_a_class_is_taken_for_a_server_part():
    hardware = unshared(machine())

    assert class_of("cpu", hardware.level("cpu")) is DeviceClass.SERVER_CPU
    assert class_of("gpu", hardware.level("gpu")) is DeviceClass.DATACENTER_GPU
    assert class_of("disk", level(1e9, 1e9)) is DeviceClass.DISK
    assert class_of("gpu", replace(level(1e9, 1e9), device_class=DeviceClass.CONSUMER_GPU)) is DeviceClass.CONSUMER_GPU


def test_a_disk_has_a_rate_and_a_latency_without_being_measured():
    disk = replace(level(1e9, 2e9), compute_flop_per_s={}, launch_s=None)
    link = Link(source="disk", target="cpu", bytes_per_s=rate(1e9))
    hardware = replace(machine(), levels={**machine().levels, "disk": disk}, links={"disk": link})

    assert ceiling(hardware).read_bytes_per_s("disk") < 2e9
    assert ceiling(hardware).link_bytes_per_s("disk") < 1e9
    assert ceiling(hardware).latency_s("disk") > 0


def test_only_a_table_of_the_kernel_the_level_and_the_format_is_read():
    table = CeilingTable(
        kernel=Kernel.PROJECTION, level="cpu", dtype=DType.FLOAT32, sizes=(1.0,), rows=(1,), seconds=((1.0,),)
    )
    hardware = replace(machine(), ceilings=(table,))

    assert ceiling(hardware).table("cpu", Kernel.PROJECTION, DType.FLOAT32) == table
    assert roof(hardware).table("cpu", Kernel.PROJECTION, DType.FLOAT32) is None
    for other in (("gpu", table.kernel, table.dtype), ("cpu", Kernel.EXPERT_FFN, table.dtype)):
        assert ceiling(hardware).table(*other) is None
    assert ceiling(hardware).table("cpu", table.kernel, DType.BFLOAT16) is None


def test_a_level_without_a_processor_is_named():
    store = replace(level(1e9, 1e9), compute_flop_per_s={})

    with pytest.raises(SchemaError, match="compute_flop_per_s has no figure for float32"):
        ceiling(machine(cpu=store)).flop_per_s("cpu", DType.FLOAT32)


@pytest.mark.parametrize("path", list(bundled_profiles()), ids=lambda path: path.stem)
def test_every_bundled_machine_has_every_rate(path):
    """Whatever its file leaves out has a default; formats that it has no figure for are those of a wider one."""
    hardware = load_profile(path)
    for rates in (roof(hardware), ceiling(hardware)):
        for place, processors in hardware.levels.items():
            assert rates.read_bytes_per_s(place) > 0
            if processors.compute_flop_per_s:
                assert all(rates.flop_per_s(place, DType.BFLOAT16, kernel) > 0 for kernel in Kernel)
                assert rates.launch_s(place) >= 0
        for name in hardware.links:
            assert rates.link_bytes_per_s(name) > 0
            assert rates.latency_s(name) >= 0
        assert rates.staging_bytes_per_s > 0
        assert all(one.bytes_per_s > 0 for one in rates.shared)


@given(any_machines(), st.sampled_from(["cpu", "gpu"]))
@PROPERTY
def test_a_trait_is_what_the_level_assumes_or_its_class(hardware, place):
    spot = hardware.level(place)
    for trait in (Trait.READ, Trait.GEMM, Trait.FEW_ROWS):
        expected = spot.assumed.get(trait, default(trait, class_of(place, spot)).value)

        assert ceiling(hardware).trait(trait, place) == expected


@pytest.mark.parametrize(("times_float32", "trait"), [(2, Trait.GEMM), (16, Trait.MATRIX_UNIT)])
def test_a_matrix_unit_of_a_cpu_sustains_its_own_share(times_float32, trait):
    """Vector units do 16-bit products twice as fast as float32's; whatever does them much faster is another unit."""
    peaks = {DType.FLOAT32: rate(1e12), DType.BFLOAT16: rate(times_float32 * 1e12)}
    rates = ceiling(with_level(datasheet(), "cpu", compute_flop_per_s=peaks))

    assert rates.flop_per_s("cpu", DType.BFLOAT16) == pytest.approx(times_float32 * 1e12 * rates.trait(trait, "cpu"))
