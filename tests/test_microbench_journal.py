"""Profiles that are cut short: what the journal keeps, and what it does not take over."""

import json

import pytest

from hrm.device.host import HostBackend
from hrm.errors import DeviceError
from hrm.hardware import Measurement
from hrm.microbench import bench as bench_module
from hrm.microbench import memory, sections
from hrm.microbench.journal import Journal, finish, partial_path, samples_path
from hrm.microbench.profile import Request, profile_machine
from hrm.units import MIB

KEY = {"command": "hrm profile", "machine": "a CPU", "date": "2026-11-22"}


def counted(values):
    values = iter(values)
    return lambda: {"a": next(values)}


def test_a_section_is_measured_once_and_taken_over_later(tmp_path):
    path = tmp_path / "x.partial"
    first = Journal(path, KEY)
    measure = counted([1.0, 2.0])
    rounds = [{"result": {"a": 1.0}, "own_s": 0.1, "clean": True}]

    assert first.section("memory", dict[str, float], measure, lambda: rounds) == {"a": 1.0}
    assert first.section("memory", dict[str, float], measure) == {"a": 1.0}
    again = Journal(path, KEY, resume=True)
    assert again.section("memory", dict[str, float], measure) == {"a": 1.0}
    assert (first.resumed, again.resumed) == ([], ["memory"])
    assert json.loads(path.read_text().splitlines()[1])["rounds"] == rounds


@pytest.mark.parametrize(
    ("key", "resume"), [(KEY, False), (KEY | {"machine": "another CPU"}, True), (KEY | {"date": "2026-11-23"}, True)]
)
def test_another_machine_command_or_day_begins_anew(tmp_path, key, resume):
    path = tmp_path / "x.partial"
    Journal(path, KEY).section("memory", dict[str, float], counted([1.0]))

    assert Journal(path, key, resume=resume).section("memory", dict[str, float], counted([2.0])) == {"a": 2.0}


def test_a_line_cut_short_or_of_another_version_is_measured_again(tmp_path):
    path = tmp_path / "x.partial"
    journal = Journal(path, KEY)
    for name in ("old", "whole", "cut"):
        journal.section(name, dict[str, float], counted([1.0]))
    text = path.read_text()
    path.write_text(text[:-20])

    again = Journal(path, KEY, resume=True)
    assert again.section("whole", dict[str, float], counted([2.0])) == {"a": 1.0}
    assert again.section("cut", dict[str, float], counted([2.0])) == {"a": 2.0}
    measured = Measurement(median=1.0, iqr=0.0, count=3)
    assert again.section("old", Measurement, lambda: measured) == measured
    assert again.resumed == ["whole"]
    assert [json.loads(line) for line in path.read_text().splitlines()], "every line is whole again"


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Journal().section("memory", dict[str, float], counted([1.0])) == {"a": 1.0}
    assert not list(tmp_path.iterdir())


def test_a_profile_that_fails_half_way_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MOST_BYTES", MIB)
    monkeypatch.setattr(bench_module, "_QUICK_S", 1.0)
    output = tmp_path / "machine.yaml"
    request = Request(quick=True, output=output, resume=True)

    def broken(*_):
        raise DeviceError("the device went away (plug it in)")

    backend = HostBackend(threads=1)
    with monkeypatch.context() as breaking:
        breaking.setattr(sections, "launch_s", broken)
        with pytest.raises(DeviceError):
            profile_machine(backend, request=request)
    assert [path.name for path in tmp_path.iterdir()] == ["machine.yaml.partial"]

    def again(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(sections, "host_memory_samples", again)
    found = profile_machine(backend, request=request)
    backend.close()

    assert found.system["resumed"].startswith("3 sections")
    assert finish(output) == samples_path(output) == tmp_path / "machine.samples.jsonl"
    assert not partial_path(output).exists()
    lines = [json.loads(line) for line in samples_path(output).read_text().splitlines()]
    rounds = next(line["rounds"] for line in lines if line.get("section") == "host memory")
    assert {"result", "wall_s", "own_s", "foreign_s", "waited_s", "clean"} == set(rounds[0])
