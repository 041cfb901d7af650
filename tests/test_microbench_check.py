"""Checking a profile: what counts as drift, and that it is found."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hrm.cli.main import app
from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.device.streams import allowed_cores
from hrm.dtypes import DType
from hrm.files import write_yaml
from hrm.hardware import EmulatedSpec, Measurement, Rate
from hrm.microbench import bench as bench_module
from hrm.microbench import memory
from hrm.microbench.check import check_machine, drift
from hrm.microbench.profile import Request, profile_machine
from hrm.units import MIB


def figure(median, iqr=0.0):
    return Measurement(median=median, iqr=iqr, count=5)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(memory, "_MOST_BYTES", MIB)
    monkeypatch.setattr(bench_module, "_QUICK_S", 1.0)


@pytest.mark.parametrize(
    ("profiled", "now", "drifted"),
    [
        (figure(100.0), figure(109.0), False),
        (figure(100.0), figure(111.0), True),
        (figure(100.0), figure(89.0), True),
        (figure(100.0, 5.0), figure(114.0), False),
        (figure(100.0), figure(114.0, 5.0), False),
        (figure(100.0, 5.0), figure(116.0, 5.0), True),
    ],
)
def test_drift_is_more_than_a_tenth_and_than_three_spreads(profiled, now, drifted):
    found = drift("a roof", profiled, now)

    assert found.drifted is drifted
    assert found.ratio == now.median / profiled.median


@pytest.mark.usefixtures("small")
def test_a_roof_of_another_machine_is_found(tmp_path):
    backend = HostBackend(threads=1)
    profile = profile_machine(backend, request=Request(quick=True))
    cpu = profile.level("cpu")
    faster = {DType.FLOAT32: Rate(measured=figure(1e15))}
    changed = replace(cpu, compute_flop_per_s=cpu.compute_flop_per_s | faster)
    report = check_machine(backend, replace(profile, levels={"cpu": changed}))
    backend.close()

    assert "levels.cpu.compute_flop_per_s.float32" in report.drifted
    assert {"levels.cpu.read_bytes_per_s", "levels.cpu.copy_bytes_per_s"} <= {roof.name for roof in report.roofs}

    path = tmp_path / "machine.yaml"
    write_yaml(path, replace(profile, levels={"cpu": changed}))
    done = CliRunner().invoke(app, ["profile", "--check", str(path), "--json"])
    assert done.exit_code == 1
    assert "levels.cpu.compute_flop_per_s.float32" in json.loads(done.stdout)["drifted"]
    assert path.exists()


@pytest.mark.skipif(len(allowed_cores()) < 2, reason="the emulated device needs a core of its own")
@pytest.mark.usefixtures("small")
def test_a_device_is_checked_with_its_links():
    spec = EmulatedSpec(name="tiny", memory_capacity_bytes=32 * MIB, h2d_bytes_per_s=2e8, d2h_bytes_per_s=1e8)
    backend = EmulatedBackend(spec)
    profile = profile_machine(backend, request=Request(quick=True))
    slower = replace(profile.link("h2d"), bytes_per_s=Rate(measured=figure(1e7)))
    report = check_machine(backend, replace(profile, links=profile.links | {"h2d": slower}))
    backend.close()

    assert "links.h2d.bytes_per_s" in report.drifted
    names = {roof.name for roof in report.roofs}
    assert {"links.d2h.bytes_per_s", "levels.gpu.read_bytes_per_s"} <= names
