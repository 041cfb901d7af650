"""`hrm validate` from plans to report, on a tiny model and profiles made by hand: what it keeps, and goes on from."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from executor.checkpoint import synth
from hrm.cli.main import main
from hrm.dtypes import DType
from hrm.files import write_yaml
from hrm.hardware import EmulatedSpec
from hrm.policy import ScheduleName
from hrm.validation.cases import Origin, load_cases, load_runs
from tests.machines import cpu_only, level, machine, model

SPEC = EmulatedSpec(name="tiny", memory_capacity_bytes=2**22, h2d_bytes_per_s=2e8, d2h_bytes_per_s=2e8)
FAST = level(2e8, 1e9, capacity_bytes=2**22)
"""Slow enough that cases of a tenth of a second have some sequences."""


@pytest.fixture
def hrm(monkeypatch, capsys):
    """Run a command line; return exit code, stdout and stderr."""
    threads = torch.get_num_threads()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hrm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def asked(tmp_path):
    """Return the options of a validation whose machines are profiled already."""
    synth(tmp_path / "small", model(name="small", vocab_size=64, dtype=DType.FLOAT32), seed=0)
    spec = tmp_path / "tiny.yaml"
    write_yaml(spec, SPEC)
    report = tmp_path / "report"
    (report / "machines").mkdir(parents=True)
    device = replace(machine(cpu=FAST, gpu=FAST), name="tiny", device="emulated", emulated=SPEC)
    write_yaml(report / "machines" / "tiny.yaml", device)
    write_yaml(report / "machines" / "cpu.yaml", replace(cpu_only(FAST), name="cpu", device="none"))
    return [
        "--checkpoint", tmp_path / "small", "-o", report, "--plans", 2, "--case-s", 0.1,
        "--device", "none", "--device", f"emulated:{spec}",
    ]  # fmt: skip


def test_runs_judges_and_goes_on(hrm, asked, tmp_path):
    report = tmp_path / "report"

    code, out, err = hrm("validate", *asked, "--rounds", 1, "--json")

    assert code == 0, err
    cases = [case for name in ("cpu", "tiny") for case in load_cases(report / "cases" / f"{name}.json").cases]
    first = load_runs(report / "runs.jsonl")
    assert {case.origin for case in cases} == set(Origin)
    assert {case.machine for case in cases} == {"cpu", "tiny"}
    assert {case.policy.schedule for case in cases} >= {ScheduleName.HOST, ScheduleName.CGOPIPE}
    assert sorted(run.case for run in first) == sorted(case.name for case in cases)
    assert not [run.failed for run in first if run.failed]
    document = json.loads(out)
    assert len(document["cases"]) == len(cases)
    assert {"mape", "tau", "regret", "coverage", "errors", "decisions", "targets", "orders"} <= document.keys()
    assert json.loads((report / "report.json").read_text()) == document
    assert (report / "report.html").stat().st_size > 10_000

    lines = (report / "runs.jsonl").read_bytes()
    last = lines.rstrip(b"\n").rfind(b"\n") + 1
    (report / "runs.jsonl").write_bytes(lines[: last + 40])
    assert hrm("validate", *asked, "--rounds", 2)[0] == 0
    runs = load_runs(report / "runs.jsonl")

    assert runs[: len(first) - 1] == first[:-1]
    assert sorted((run.case, run.round) for run in runs) == sorted((case.name, n) for case in cases for n in (0, 1))
    assert all(not run.timeline for run in runs if run.round)


def test_other_wishes_do_not_mix_with_what_is_there(hrm, asked):
    assert hrm("validate", *asked, "--rounds", 1)[0] == 0

    code, _, err = hrm("validate", *asked, "--rounds", 1, "--seed", 1)

    assert code == 2
    assert "made with other seed" in err
    assert err.count("\n") >= 1


def test_bad_input_is_one_line_before_any_work(hrm, tmp_path):
    missing = ["validate", "--checkpoint", tmp_path / "nowhere", "-o", tmp_path / "other"]

    code, _, err = hrm(*missing)

    assert (code, err.count("\n")) == (2, 1)
    assert "no such folder" in err
    assert not (tmp_path / "other").exists()


def test_without_runs_there_is_nothing_to_report(hrm, asked):
    code, _, err = hrm("validate", *asked, "--report-only")

    assert code == 2
    assert "no run has succeeded" in err
