"""The bundled profiles: they load, answer to their names, and say where each number comes from."""

import re
from pathlib import Path

import pytest

from hrm.dtypes import DType
from hrm.files import read_yaml, to_plain
from hrm.hardware import bundled_profiles, load_profile
from hrm.units import GIB

ROOT = Path(__file__).resolve().parent.parent
PROFILES = {path.stem: path for path in bundled_profiles()}
SOURCES = ("datasheet ", "inferred ", "measured ", "published ")


def numbers(value, path=""):
    """Yield the dotted path of each number below `value`; a list counts as one."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from numbers(entry, f"{path}.{key}" if path else key)
    elif isinstance(value, int | float | list) and not isinstance(value, bool):
        yield path


def covers(source, path):
    return path == source or path.startswith(f"{source}.")


def test_number_finder_sees_nested_numbers_and_lists():
    assert list(numbers({"a": {"b": 1, "c": "text"}, "d": [1, 2]})) == ["a.b", "d"]


@pytest.fixture(params=PROFILES)
def name(request):
    return request.param


def test_profile_answers_to_its_file_name(name):
    assert load_profile(name).name == name


def test_every_number_has_a_source(name):
    document = read_yaml(PROFILES[name])
    sources = document["provenance"]

    stated = [
        path for part in ("levels", "links", "ceilings", "contention") for path in numbers(document.get(part), part)
    ]

    assert [path for path in stated if not any(covers(source, path) for source in sources)] == []


def test_every_source_belongs_to_a_number_and_says_its_kind(name):
    document = read_yaml(PROFILES[name])
    stated = list(numbers({key: value for key, value in document.items() if key != "provenance"}))

    for path, source in document["provenance"].items():
        assert any(covers(path, number) for number in stated), path
        assert source.startswith(SOURCES), path


def test_no_measurement_beats_its_datasheet(name):
    def rates(value):
        if isinstance(value, dict):
            if value.get("peak") and value.get("measured"):
                yield value
            for entry in value.values():
                yield from rates(entry)

    for rate in rates(to_plain(load_profile(name))):
        assert rate["measured"]["median"] <= rate["peak"]


def test_figures_are_of_a_plausible_size(name):
    machine = load_profile(name)
    cpu, gpu = machine.level("cpu"), machine.level("gpu")

    assert 4 * GIB <= gpu.usable_bytes <= gpu.capacity_bytes <= 96 * GIB
    assert gpu.capacity_bytes < cpu.usable_bytes <= cpu.capacity_bytes <= 4096 * GIB
    assert machine.link("h2d").bytes_per_s.roof < cpu.read_bytes_per_s.roof < gpu.read_bytes_per_s.roof * gpu.count
    assert cpu.compute_flop_per_s[DType.FLOAT32].roof < gpu.compute_flop_per_s[DType.FLOAT16].roof * gpu.count


def test_aliases_are_unique_and_load():
    taken = list(PROFILES)
    for stem, path in PROFILES.items():
        for alias in read_yaml(path).get("aliases", ()):
            assert load_profile(alias).name == stem
            taken.append(alias)

    assert len(taken) == len(set(taken))


def test_every_profile_is_in_the_table_of_its_folder():
    table = (ROOT / "hardware_profiles" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)

    assert listed == sorted(PROFILES)


def test_case_study_keeps_the_numbers_of_the_paper():
    """arXiv 2411.11217, section 3: CPU 100 GB/s and 1.3 TFLOP/s, GPU 300 GB/s and 242 TFLOP/s, link 16 GB/s."""
    machine = load_profile("l4-case-study")

    assert machine.level("cpu").read_bytes_per_s.peak == 100e9
    assert machine.level("cpu").compute_flop_per_s[DType.FLOAT16].peak == 1.3e12
    assert machine.level("gpu").read_bytes_per_s.peak == 300e9
    assert machine.level("gpu").compute_flop_per_s[DType.FLOAT16].peak == 242e12
    assert machine.link("h2d").bytes_per_s.peak == 16e9
