"""Every number of a profile has a source, every source a number."""

from typing import Any

import pytest
from typer.testing import CliRunner

from hrm.achievable import Trait
from hrm.ceilings import CeilingTable, Kernel
from hrm.cli.machine import hardware_app
from hrm.dtypes import DType
from hrm.errors import SchemaError
from hrm.files import write_yaml
from hrm.hardware import HardwareProfile, Level, Measurement, Rate, SharedRate, load_profile
from hrm.provenance import check_provenance

MEASURED = "measured 2026-11-22, hrm profile"
TABLE = CeilingTable(
    kernel=Kernel.PROJECTION, level="cpu", dtype=DType.FLOAT32, sizes=(1.0,), rows=(1,), seconds=((1e-3,),)
)
SOURCES = {
    "levels.cpu.capacity_bytes": "datasheet of the board",
    "levels.cpu.usable_bytes": "inferred nine tenths",
    "levels.cpu.read_bytes_per_s.peak": "datasheet of the memory",
    "levels.cpu.read_bytes_per_s.measured": f"{MEASURED} --quick, n=3",
}


def machine(sources=SOURCES, level=None, **changes):
    values: dict[str, Any] = {
        "description": "a level",
        "capacity_bytes": 100,
        "usable_bytes": 90,
        "read_bytes_per_s": Rate(peak=2e9, measured=Measurement(median=1e9, iqr=0.0, count=3)),
    }
    cpu = Level(**values | (level or {}))
    return HardwareProfile(name="made up", levels={"cpu": cpu}, provenance=sources, **changes)


def test_a_profile_with_a_source_for_every_number_passes():
    check_provenance(machine(), "here")


def test_a_source_covers_what_lies_below_its_path():
    check_provenance(machine({"levels": "published in a paper"}), "here")


@pytest.mark.parametrize("path", SOURCES)
def test_a_number_without_a_source_is_named(path):
    sources = {name: source for name, source in SOURCES.items() if name != path}

    with pytest.raises(SchemaError, match=rf"^here: {path}: has no source \(add provenance\.{path}\)$"):
        check_provenance(machine(sources), "here")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"level": {"cores": 8}}, "levels.cpu.cores"),
        ({"level": {"count": 2}}, "levels.cpu.count"),
        ({"level": {"launch_s": 0.0}}, "levels.cpu.launch_s"),
        ({"ceilings": (TABLE,)}, "ceilings.projection.cpu.float32"),
        ({"contention": {"cpu": 0.9}}, "contention.cpu"),
        ({"level": {"assumed": {Trait.GEMM: 0.7}}}, "levels.cpu.assumed.gemm"),
        (
            {"shared": {"memory": SharedRate(bytes_per_s=Rate(peak=1e9), drawn_by={"cpu": 1.0})}},
            "shared.memory.bytes_per_s.peak",
        ),
    ],
)
def test_each_kind_of_number_wants_a_source(changes, path):
    with pytest.raises(SchemaError, match=f"^here: {path}: has no source"):
        check_provenance(machine(**changes), "here")
    check_provenance(machine(SOURCES | {path.split(".")[0]: "inferred from the case"}, **changes), "here")


@pytest.mark.parametrize("path", ["links", "levels.gpu.capacity_bytes", "levels.cpu.capacity", "levels.cpu.cores"])
def test_a_source_without_a_number_is_named(path):
    with pytest.raises(SchemaError, match=f"^here: provenance.{path}: no number lies there"):
        check_provenance(machine(SOURCES | {path: "datasheet of the board"}), "here")


@pytest.mark.parametrize("source", ["", "datasheet", "guessed it", "measured hrm profile", "measured 2026-11-22"])
def test_a_source_says_its_kind_and_more(source):
    with pytest.raises(SchemaError, match=r"names no source \(write `datasheet DOCUMENT`"):
        check_provenance(machine(SOURCES | {"levels.cpu.usable_bytes": source}), "here")


def test_a_datasheet_is_no_source_of_a_measurement():
    sources = {"levels": "datasheet of the board"}

    with pytest.raises(SchemaError, match=r"^here: levels.cpu.read_bytes_per_s.measured: has a datasheet"):
        check_provenance(machine(sources), "here")


def test_loading_is_lenient_where_validating_is_not(tmp_path):
    sourced, unsourced = tmp_path / "sourced.yaml", tmp_path / "unsourced.yaml"
    write_yaml(sourced, machine())
    write_yaml(unsourced, machine({}))

    assert load_profile(unsourced) == machine({})
    assert CliRunner().invoke(hardware_app, ["validate", str(sourced)]).exit_code == 0
    assert isinstance(CliRunner().invoke(hardware_app, ["validate", str(unsourced)]).exception, SchemaError)
