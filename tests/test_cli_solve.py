"""`hrm solve`: methods, objectives and limits as options; what cannot be done said in one line, and in JSON."""

import functools
import json
import re

import pytest

MIXTRAL = ["--model", "mixtral-8x7b", "--hardware", "l4-case-study", "--weight-dtype", "float16"]
JOB = ["--prompt-len", "77", "--max-prompt-len", "418", "--gen-len", "32"]
ONE = ["--num-sequences", "1"]


@pytest.fixture
def solve(hrm):
    """Run `hrm solve` for Mixtral on the case study's machine; return exit code, stdout and stderr."""
    return functools.partial(hrm, "solve", *MIXTRAL)


def test_methods_agree(solve):
    found = {}
    for method in ("auto", "milp", "grid"):
        code, out, _ = solve(*JOB, "--num-sequences", 40, "--method", method, "--no-simulate", "--json")
        assert code == 0
        found[method] = json.loads(out)

    throughput = found["grid"]["by_fidelity"]["ceiling"]["throughput_tokens_per_s"]
    for document in found.values():
        assert document["by_fidelity"]["ceiling"]["throughput_tokens_per_s"] == pytest.approx(throughput, rel=1e-6)
        assert document["search"]["bound"] == pytest.approx(throughput, rel=1e-6)
        assert document["search"]["gap"] <= 1e-6
        assert set(document["by_fidelity"]) == {"roof", "ceiling"}


def test_the_program_is_written(solve, tmp_path):
    path = tmp_path / "policy.lp"
    code, _, _ = solve(*JOB, *ONE, "--method", "milp", "--no-simulate", "--write-lp", path)

    assert code == 0
    assert "\ncpu_memory: " in path.read_text()


def test_limits_are_kept_and_the_objective_is_reached(solve):
    _, out, _ = solve(*JOB, "--no-simulate", "--json")
    free = json.loads(out)
    _, out, _ = solve(*JOB, "--max-tpot-s", free["time_per_token_s"] / 2, "--no-simulate", "--json")
    limited = json.loads(out)
    _, out, _ = solve(*JOB, "--objective", "latency", "--no-simulate", "--json")
    quickest = json.loads(out)

    assert limited["time_per_token_s"] <= free["time_per_token_s"] / 2
    assert limited["throughput_tokens_per_s"] < free["throughput_tokens_per_s"]
    assert quickest["time_to_first_token_s"] < limited["time_to_first_token_s"]


def test_a_further_format_is_used_where_it_pays(solve):
    """One sequence reads weights at the pace of a memory, and fewer bytes of narrower ones."""
    formats = ["--also-weight-dtype", "int4", "--also-kv-dtype", "int8"]
    _, out, _ = solve(*JOB, *ONE, *formats, "--no-simulate", "--json")

    assert json.loads(out)["policy"]["weight_dtype"] == "int4"


def test_the_table_says_what_binds(solve):
    _, out, _ = solve(*JOB, "--no-simulate")

    assert "binding: prefill_gpu, decode_1_" in out


def test_the_table_says_what_lies_on_disk_where_something_does(hrm):
    on_cpu = ["--model", "olmoe-1b-7b", "--hardware", "epyc-zen5-vm-2-cores", "--num-sequences", "64", *JOB]
    code, out, _ = hrm("solve", *on_cpu, "--ram-limit", "6GiB", "--no-simulate")
    _, plain, _ = hrm("solve", *on_cpu, "--no-simulate")

    assert code == 0
    said = r"experts on disk +│ (\d+) of 64 per layer.*; ([\d.]+) GiB read in each pass"
    ((on_disk, read),) = re.findall(said, out)
    assert 0 < int(on_disk) < 64
    all_layers = 16 * int(on_disk) * 3 * 2048 * 1024 * 2 / 2**30
    assert (int(on_disk) - 1) / int(on_disk) <= float(read) / all_layers <= 1.01
    assert "on disk" not in plain


def test_infeasible_prints_a_document_and_one_line(solve):
    code, out, err = solve(*JOB, "--ram-limit", "1GiB", "--json")
    document = json.loads(out)

    assert code == 1
    assert len(err.splitlines()) == 1
    assert document["status"] == "infeasible"
    assert f"{document['short']['device']} memory is short" in document["reason"]
    assert document["short"]["missing_bytes"] > 0
    assert {"cpu_memory_bytes", "--weight-dtype"} & {one["change"] for one in document["remedies"]}


def test_limits_are_kept_in_the_plan_and_checked_when_it_is_loaded(solve, hrm, tmp_path):
    path = tmp_path / "plan.yaml"
    limits = ["--ram-limit", "150GiB", "--max-tpot-s", "9", "--max-ttft-s", "900", "--max-makespan-s", "9000"]
    code, out, _ = solve(*JOB, "--num-sequences", 64, *limits, "--no-simulate", "-o", path, "--json")
    kept = json.loads(out)["limits"]
    path.write_text(path.read_text().replace("max_ttft_s: 900.0", "max_ttft_s: 0.5"))
    refused, _, err = hrm("predict", "--plan", path)

    assert code == 0
    assert (kept["ram_limit_bytes"], kept["max_tpot_s"], kept["max_makespan_s"]) == (150 * 2**30, 9.0, 9000.0)
    assert refused == 2
    assert "limits.max_ttft_s: 0.5 is less than the" in err


def test_a_few_sequences_divide_the_experts_between_the_devices(solve):
    """Left of P1 each byte is best used where it lies: the GPU computes the experts it holds, the CPU the others."""
    quickest = ["--num-sequences", 1, "--objective", "latency", "--no-simulate", "--json"]
    (_, split, _), (_, whole, _) = solve(*JOB, *quickest), solve(*JOB, *quickest, "--whole-experts")
    divided, undivided = json.loads(split), json.loads(whole)

    assert divided["policy"]["resident_experts"] > 0
    assert 0 < divided["policy"]["experts_on_cpu"] < 1
    assert divided["time_per_token_s"] < 0.95 * undivided["time_per_token_s"]


def test_schedules_may_be_named(solve):
    _, out, _ = solve(*JOB, "--schedule", "layerwise", "--schedule", "serial", "--no-simulate", "--json")

    assert json.loads(out)["policy"]["schedule"] in ("layerwise", "serial")


def test_a_schedule_that_the_machine_cannot_run_is_infeasible(hrm):
    on_cpu = ["--model", "olmoe-1b-7b", "--hardware", "i9-14900k", "--schedule", "layerwise"]
    code, _, err = hrm("solve", *on_cpu, *JOB)

    assert code == 1
    assert "i9-14900k has no gpu" in err
    assert "--schedule host" in err


def test_limits_that_no_policy_keeps_are_exit_code_1_with_what_would_do(solve):
    code, out, err = solve(*JOB, *ONE, "--max-ttft-s", "0.01")

    assert code == 1
    assert out == ""
    assert "no policy keeps --max-ttft-s 0.01: the least that any reaches is" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-ttft-s", "0"], "--max-ttft-s 0.0: must be a positive number"),
        (["--max-tpot-s", "-1"], "--max-tpot-s -1.0"),
        (["--max-makespan-s", "nan"], "--max-makespan-s nan"),
        (["--max-tpot-s", "7", "--max-makespan-s", "5"], "--max-tpot-s 7: exceeds --max-makespan-s 5"),
        (["--num-sequences", "1" + 12 * "0"], "--num-sequences 1000000000000"),
        (["--num-sequences", "0"], "--num-sequences"),
        (["--write-lp", "policy.lp"], "--write-lp: needs --method milp"),
        (["--no-simulate", "--fidelity", "simulated"], "--no-simulate: not with --fidelity simulated"),
        (["--method", "guess"], "--method"),
        (["--objective", "fame"], "--objective"),
        (["--ram-limit", "nan"], "--ram-limit"),
        (["--ram-limit", "99999999999999GiB"], "--ram-limit 99999999999999GiB: exceeds the 192 GiB"),
        (["--schedule", "fastest"], "--schedule"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(solve, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = solve(*JOB, *arguments)

    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


@pytest.mark.parametrize("length", ["nan", "inf", "-3", "0", "1e300"])
def test_a_length_that_is_none_is_refused(solve, length):
    code, _, err = solve("--prompt-len", length, "--gen-len", "32")

    assert code == 2
    assert len(err.splitlines()) == 1
