"""A profile whose parts contradict each other is refused in one line that names the field."""

from typing import Any

import pytest

from hrm.achievable import DeviceClass
from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.errors import SchemaError
from hrm.files import from_plain, to_plain, write_yaml
from hrm.hardware import HardwareProfile, Level, Link, Rate, SharedRate, load_profile
from hrm.hardware_check import check_profile

RATE = Rate(peak=1e9)


def level(**changes):
    values: dict[str, Any] = {
        "description": "a level",
        "capacity_bytes": 100,
        "usable_bytes": 90,
        "read_bytes_per_s": RATE,
    }
    return Level(**values | changes)


def link(source, target, **changes):
    return Link(**{"source": source, "target": target, "bytes_per_s": RATE} | changes)


def table(**changes):
    values: dict[str, Any] = {
        "kernel": Kernel.PROJECTION,
        "level": "cpu",
        "dtype": DType.FLOAT32,
        "sizes": (1.0, 2.0),
        "rows": (1,),
        "seconds": ((1e-3,), (2e-3,)),
    }
    return CeilingTable(**values | changes)


def machine(**changes):
    """Disk, two sockets, four cards, each pair of cards on lanes of its own."""
    values: dict[str, Any] = {
        "name": "made up",
        "levels": {
            "disk": level(device_class=DeviceClass.DISK),
            "cpu": level(device_class=DeviceClass.SERVER_CPU, count=2, cores=32),
            "gpu": level(device_class=DeviceClass.INFERENCE_GPU, count=4),
        },
        "links": {
            "disk": link("disk", "cpu"),
            "h2d": link("cpu", "gpu", paths=2),
            "d2h": link("gpu", "cpu", paths=2),
        },
        "ceilings": (table(),),
        "contention": {"gpu": 0.9},
        "shared": {"host_memory": SharedRate(bytes_per_s=RATE, drawn_by={"cpu": 1.0, "h2d": 1.0, "pin": 2.0})},
    }
    return HardwareProfile(**values | changes)


def with_entry(section, name, value):
    entries = dict(getattr(machine(), section))
    if value is None:
        del entries[name]
    else:
        entries[name] = value
    return machine(**{section: entries})


def test_a_ladder_of_disk_sockets_and_cards_is_accepted_and_comes_back_from_a_file(tmp_path):
    write_yaml(tmp_path / "machine.yaml", machine())

    check_profile(machine(), "here")

    assert load_profile(tmp_path / "machine.yaml") == machine()
    assert from_plain(HardwareProfile, to_plain(machine()), where="here") == machine()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (with_entry("levels", "cpu", None), "levels.cpu: required"),
        (with_entry("levels", "gpu", level(usable_bytes=101)), "levels.gpu.usable_bytes: 101 exceeds"),
        (
            with_entry("levels", "gpu", level(device_class=DeviceClass.DISK)),
            "levels.gpu.device_class: disk is no class",
        ),
        (with_entry("levels", "cpu", level(copy_bytes_per_s=Rate())), "levels.cpu.copy_bytes_per_s: needs `peak`"),
        (
            with_entry("levels", "gpu", level(compute_flop_per_s={DType.FLOAT16: Rate()})),
            "levels.gpu.compute_flop_per_s.float16: needs `peak`",
        ),
        (with_entry("links", "d2h", None), "a machine with a gpu needs the links h2d and d2h (add them)"),
        (with_entry("links", "disk", None), "a machine with a disk needs the link disk (add it)"),
        (with_entry("links", "disk", link("cpu", "disk")), "links.disk: leads from cpu to disk (turn it round"),
        (with_entry("links", "nvlink", link("gpu", "gpu2")), "links.nvlink: 'gpu2' is no level"),
        (with_entry("links", "h2d", link("cpu", "gpu", paths=5)), "links.h2d.paths: 5 exceeds the count"),
        (with_entry("links", "h2d", link("cpu", "gpu", bytes_per_s=Rate())), "links.h2d.bytes_per_s: needs `peak`"),
        (
            with_entry("shared", "host_memory", SharedRate(bytes_per_s=RATE, drawn_by={"npu": 1.0})),
            "shared.host_memory.drawn_by.npu: is no lane (lanes: gpu, cpu, h2d, d2h, disk, pin)",
        ),
        (
            with_entry("shared", "host_memory", SharedRate(bytes_per_s=RATE, drawn_by={})),
            "shared.host_memory.drawn_by: is empty",
        ),
        (
            with_entry("shared", "host_memory", SharedRate(bytes_per_s=Rate(), drawn_by={"cpu": 1.0})),
            "shared.host_memory.bytes_per_s: needs `peak`",
        ),
        (with_entry("contention", "dma", 0.5), "contention.dma: is no lane"),
        (machine(ceilings=(table(level="npu"),)), "ceilings.0.level: 'npu' is no level"),
        (machine(ceilings=(table(sizes=(2.0, 1.0)),)), "ceilings.0.sizes: must ascend"),
        (machine(ceilings=(table(seconds=((1e-3,),)),)), "ceilings.0.seconds: must be 2 lines of 1 numbers"),
    ],
)
def test_a_contradiction_is_named_in_one_line(broken, said):
    with pytest.raises(SchemaError) as caught:
        check_profile(broken, "machine.yaml")

    assert str(caught.value).startswith("machine.yaml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
