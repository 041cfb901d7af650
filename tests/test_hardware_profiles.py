"""The bundled profiles: they load, answer to their names, say where each number comes from and agree with the facts."""

import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hrm.cli.machine import hardware_app
from hrm.dtypes import DType
from hrm.files import read_yaml, to_plain
from hrm.hardware import bundled_profiles, load_profile
from hrm.provenance import check_provenance
from hrm.units import GIB

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT.parent / "shared" / "facts" / "hardware.yaml"
"""Published hardware facts, by id."""
PROFILES = {path.stem: path for path in bundled_profiles()}
MACHINES = {stem: load_profile(path) for stem, path in PROFILES.items()}
README = (ROOT / "hardware_profiles" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(params=PROFILES)
def name(request):
    return request.param


def test_profile_answers_to_its_file_name(name):
    assert load_profile(name).name == name


def test_every_number_has_a_source_and_every_source_a_number(name):
    check_provenance(MACHINES[name], name)


def test_every_level_has_a_class_and_every_cpu_its_cores(name):
    levels = MACHINES[name].levels

    assert [level.description for level in levels.values() if level.device_class is None] == []
    assert levels["cpu"].cores or "case-study" in name


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
    machine = MACHINES[name]
    cpu = machine.level("cpu")
    host_bytes, host_bytes_per_s = cpu.usable_bytes * cpu.count, cpu.read_bytes_per_s.roof * cpu.count

    assert 16 * GIB <= host_bytes <= cpu.capacity_bytes * cpu.count <= 4096 * GIB
    for way, link in machine.links.items():
        assert link.bytes_per_s.roof * link.paths < host_bytes_per_s, way
    if machine.has_gpu:
        gpu = machine.level("gpu")
        assert 4 * GIB <= gpu.usable_bytes <= gpu.capacity_bytes <= 96 * GIB
        assert gpu.capacity_bytes * gpu.count < host_bytes
        assert host_bytes_per_s < gpu.read_bytes_per_s.roof * gpu.count
        assert max(rate.roof for rate in cpu.compute_flop_per_s.values()) < gpu.compute_flop_per_s[DType.FLOAT16].roof


def test_names_and_aliases_are_unique_and_load():
    taken = list(PROFILES)
    for stem, machine in MACHINES.items():
        for alias in machine.aliases:
            assert load_profile(alias).name == stem
            taken.append(alias)

    assert len(taken) == len(set(taken))


def test_the_table_of_the_folder_lists_every_profile_as_it_is():
    rows = re.findall(r"^\| `(.+?)` \| (.*?) ?\| (.+?) \|$", README, flags=re.MULTILINE)

    assert rows == [
        (stem, ", ".join(machine.aliases), machine.description) for stem, machine in sorted(MACHINES.items())
    ]


def test_the_listing_shows_cards_memory_and_paths():
    listed = json.loads(CliRunner().invoke(hardware_app, ["list", "--json"]).stdout)["profiles"]
    row = next(row for row in listed if row["name"] == "xeon-8592-4xl40s")

    assert [row["name"] for row in listed] == list(PROFILES)
    assert (row["aliases"], row["gpu"], row["link"]) == (["L40S-4x"], "4 x NVIDIA L40S", "4 x 31.5 GB/s")
    assert row["memory"] == "2 x 1 TiB + 4 x 48 GiB"


@pytest.fixture(scope="module")
def facts():
    if not FACTS.is_file() and "CI" not in os.environ:
        pytest.skip(f"needs {FACTS.relative_to(ROOT.parent)} beside the checkout")
    return read_yaml(FACTS)


def test_every_machine_of_the_facts_answers_to_its_id(facts):
    aliases = {alias for machine in MACHINES.values() for alias in machine.aliases}

    assert set(facts) - aliases == set()


def agrees(fact, *values):
    """A fact that is null agrees with anything; one that is not, with either of a rate's figures."""
    return fact is None or any(value == pytest.approx(fact, rel=0.01) for value in values if value)


def figures(rate):
    return rate.peak, rate.measured.median if rate.measured else None


def test_hosts_agree_with_the_facts_where_they_state_a_number(facts):
    for alias, fact in facts.items():
        cpu = load_profile(alias).level("cpu")

        assert agrees(fact["ram_bytes"], cpu.capacity_bytes * cpu.count), alias
        assert cpu.cores is not None
        assert agrees(fact["cpu_cores"], cpu.cores * cpu.count), alias
        rates = [rate * cpu.count for rate in figures(cpu.read_bytes_per_s) if rate]
        assert agrees(fact["cpu_mem_bw_Bps"], *rates), alias


def test_cards_agree_with_the_facts(facts):
    for alias, fact in facts.items():
        gpu = load_profile(alias).levels.get("gpu")
        if gpu is None or " + " in fact["gpu"]:
            continue  # not stated; two unlike cards, which are one equivalent device here

        assert gpu.count == fact["gpus"], alias
        assert agrees(fact["gpu_mem_bytes"], gpu.capacity_bytes, gpu.usable_bytes), alias
        assert agrees(fact["gpu_bw_Bps"], gpu.read_bytes_per_s.peak), alias
        assert agrees(fact.get("gpu_bw_Bps_measured"), *figures(gpu.read_bytes_per_s)), alias
        assert agrees(fact["gpu_fp16_flops"], gpu.compute_flop_per_s[DType.FLOAT16].peak), alias


def test_links_agree_with_the_facts(facts):
    for alias, fact in facts.items():
        machine = load_profile(alias)
        if machine.has_gpu and " + " not in fact["gpu"]:
            rate = machine.link("h2d").bytes_per_s
            assert agrees(fact["pcie_Bps_theoretical"], rate.peak), alias
            assert agrees(fact.get("pcie_Bps_measured"), *figures(rate)), alias


def test_cards_that_share_the_host_link_have_one_path():
    """MoE-Lightning's T4 machines (S6 to S9), and its planner: tensor parallelism does not multiply the host's link."""
    for name in ("S6", "S7", "S8", "S9", "a100-80gb-case-study-2x"):
        machine = load_profile(name)
        assert machine.level("gpu").count > 1
        assert {machine.link("h2d").paths, machine.link("d2h").paths} == {1}


def test_case_study_keeps_the_numbers_of_the_paper():
    """arXiv 2411.11217, section 3: CPU 100 GB/s and 1.3 TFLOP/s, GPU 300 GB/s and 242 TFLOP/s, link 16 GB/s."""
    machine = load_profile("l4-case-study")

    assert machine.level("cpu").read_bytes_per_s.peak == 100e9
    assert machine.level("cpu").compute_flop_per_s[DType.FLOAT16].peak == 1.3e12
    assert machine.level("gpu").read_bytes_per_s.peak == 300e9
    assert machine.level("gpu").compute_flop_per_s[DType.FLOAT16].peak == 242e12
    assert machine.link("h2d").bytes_per_s.peak == 16e9
