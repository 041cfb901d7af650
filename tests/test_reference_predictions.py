"""The gate: a change that moves a prediction of a bundled model on a bundled machine must say so."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "reference_predictions.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reference_predictions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module
    patch.undo()


def test_no_prediction_moved(script):
    lines = script.all_moved(script.load_references())

    assert not lines, (
        "predictions moved:\n  "
        + "\n  ".join(lines)
        + "\nIf they should: say so in CHANGELOG.md and run python benchmarks/reference_predictions.py --write"
    )


def test_what_moves_is_named_with_both_numbers(script):
    name, was = next(iter(script.load_references().items()))
    key = "decode_s at ceiling"
    now = replace(was, numbers=was.numbers | {key: was.numbers[key] * 1.02}, binds=was.binds | {"decode": "else"})

    lines = script.moved(name, was, now)

    assert len(lines) == 2
    assert f"{name}: {key}: {was.numbers[key]:g} -> " in lines[0]
    assert "+2.00%" in lines[0]
    assert "decode is bound by else" in lines[1]


def test_rounding_does_not_count_as_moving(script):
    name, was = next(iter(script.load_references().items()))
    nearly = replace(was, numbers={key: value * (1 + 1e-5) for key, value in was.numbers.items()})

    assert script.moved(name, was, nearly) == []


def test_triples_cover_machines_with_and_without_measured_tables_and_more_than_one_gpu(script):
    from hrm.hardware import load_profile

    machines = [load_profile(triple.machine) for triple in script.TRIPLES]

    assert len({triple.name for triple in script.TRIPLES}) == len(script.TRIPLES) >= 10
    assert any(machine.ceilings for machine in machines)
    assert any(not machine.ceilings for machine in machines)
    assert any(level.count > 1 for machine in machines for level in machine.levels.values())
