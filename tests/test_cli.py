"""The command line: exit codes, one line per error, JSON that says what the design promises."""

import json

import pytest
import yaml

MIXTRAL = ["--model", "mixtral-8x7b", "--hardware", "l4-case-study"]
JOB = ["--prompt-len", "77", "--gen-len", "32"]
SIZES = ["--batch-size", "64", "--micro-batch-size", "16"]


def test_predict_json_has_the_promised_keys(hrm):
    code, out, _ = hrm("predict", *MIXTRAL, *JOB, *SIZES, "--json")

    document = json.loads(out)
    rates = {"throughput_tokens_per_s", "decode_throughput_tokens_per_s", "prefill_throughput_tokens_per_s"}
    assert code == 0
    assert rates | {"prefill_s", "decode_s", "by_fidelity", "bottleneck", "memory", "status", "solve_s"} <= set(
        document
    )
    assert set(document["by_fidelity"]) == {"roof", "ceiling", "simulated"}
    assert {
        "batch_size", "micro_batch_size", "attention_device", "ffn_device", "experts_on_cpu", "weights_on_gpu",
        "resident_experts", "kv_on_gpu", "schedule", "weight_dtype", "kv_dtype", "staging",
    } <= set(document["policy"])  # fmt: skip


def test_rates_follow_from_times(hrm):
    _, out, _ = hrm("predict", *MIXTRAL, *JOB, *SIZES, "--json")

    document = json.loads(out)
    generated, made_in_decode = 64 * 32, 64 * 31
    assert document["throughput_tokens_per_s"] == pytest.approx(
        generated / (document["prefill_s"] + document["decode_s"])
    )
    assert document["decode_throughput_tokens_per_s"] == pytest.approx(made_in_decode / document["decode_s"])


def test_solve_writes_a_plan_that_loads(hrm, tmp_path):
    from hrm.plan import load_plan

    path = tmp_path / "plan.yaml"
    code, out, _ = hrm("solve", *MIXTRAL, *JOB, "--num-sequences", "48", "-o", path, "--json")

    plan = load_plan(path)
    assert code == 0
    assert plan.policy.batch_size == json.loads(out)["policy"]["batch_size"] <= 48


def test_a_plan_is_predicted_again_for_another_machine(hrm, tmp_path):
    path = tmp_path / "plan.yaml"
    hrm("predict", *MIXTRAL, *JOB, *SIZES, "-o", path)

    code, out, _ = hrm("predict", "--plan", path, "--hardware", "gcp-g2-l4", "--json")

    document = json.loads(out)
    assert code == 0
    assert document["machine"] == "gcp-g2-l4"
    assert document["policy"]["batch_size"] == 64


def test_a_hand_edited_plan_is_refused(hrm, tmp_path):
    path = tmp_path / "plan.yaml"
    hrm("predict", *MIXTRAL, *JOB, *SIZES, "-o", path)
    document = yaml.safe_load(path.read_text())
    document["policy"]["batch_size"] = 4096
    path.write_text(yaml.safe_dump(document))

    code, _, err = hrm("run", path, "--checkpoint", tmp_path, "--prompts", path, "-o", tmp_path / "out.jsonl")

    assert code == 2
    assert "memory.gpu" in err
    assert "does not follow from the policy" in err


def test_roofline_json_has_turning_points(hrm):
    code, out, _ = hrm("roofline", *MIXTRAL, "--weight-dtype", "float16", "--micro-batch-size", "128", "--json")

    points = json.loads(out)["turning_points"]
    assert code == 0
    assert points["p1"]["operational_intensity_flop_per_byte"] == pytest.approx(81.25)
    assert points["p2"]["operational_intensity_flop_per_byte"] == pytest.approx(600, rel=0.01)
    assert points["p2"]["batch_size"] == pytest.approx(2400, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["solve", *MIXTRAL[:2], "--hardware", "nope", *JOB], "nope"),
        (["solve", "--model", "nope", *MIXTRAL[2:], *JOB], "model nope"),
        (["solve", *MIXTRAL, "--gen-len", "32"], "--prompt-len"),
        (["solve", *MIXTRAL, "--prompt-len", "0", "--gen-len", "32"], "--prompt-len"),
        (["solve", *MIXTRAL, "--prompt-len", "77", "--gen-len", "many"], "--gen-len"),
        (["solve", *MIXTRAL, "--prompt-len", "77", "--max-prompt-len", "5", "--gen-len", "3"], "--max-prompt-len"),
        (["solve", *MIXTRAL, *JOB, "--ram-limit", "plenty"], "--ram-limit"),
        (["solve", *MIXTRAL, "--prompt-len", "40000", "--gen-len", "32"], "32768 positions"),
        (["predict", *MIXTRAL, *JOB, *SIZES, "--weights-on-gpu", "0.3"], "whole experts"),
        (["predict", *MIXTRAL, *JOB, "--batch-size", "4", "--micro-batch-size", "8"], "micro_batch_size"),
        (["predict", *MIXTRAL, *JOB, *SIZES, "--fidelity", "wild"], "--fidelity"),
        (["predict", *MIXTRAL, *JOB], "--batch-size"),
        (["predict", *JOB, *SIZES], "--hardware"),
        (["roofline", *MIXTRAL, "--batch-size", "4", "--micro-batch-size", "8"], "--micro-batch-size"),
        (["roofline", *MIXTRAL, "-o", "picture.gif"], "picture.gif"),
        (["hardware", "show", "nope"], "nope"),
        (["hardware", "validate", "no-such-file.yaml"], "no-such-file.yaml"),
        (["model", "show", "no-such-model"], "no-such-model"),
        (["run", "no-plan.yaml", "--checkpoint", "x", "--prompts", "p", "-o", "o"], "no-plan.yaml"),
        (["compare", "no-report.json"], "no-report.json"),
        (["profile", "--device", "emulated:no-such-spec"], "no-such-spec"),
        (["checkpoint", "upcycle", "no-such-source", "dest"], "no-such-source"),
        (["checkpoint", "synth", "dest", "--query-heads", "7"], "--query-heads"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(hrm, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    code, _, err = hrm(*arguments)

    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_outputs_never_replace_an_input_or_one_another(hrm, tmp_path):
    plan, prompts, out = tmp_path / "plan.yaml", tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    hrm("predict", *MIXTRAL, *JOB, *SIZES, "-o", plan)
    prompts.write_text('{"id": "a", "tokens": [1]}\n')
    for outputs in (["-o", prompts], ["-o", plan], ["-o", out, "--report", prompts], ["-o", out, "--report", out]):
        code, _, err = hrm("run", plan, "--checkpoint", tmp_path, "--prompts", prompts, *outputs)

        assert code == 2
        assert "given twice" in err
    assert prompts.read_text() == '{"id": "a", "tokens": [1]}\n'
    assert not out.exists()


def test_infeasible_is_exit_code_1_with_the_bytes_missing(hrm):
    code, _, err = hrm("solve", *MIXTRAL, *JOB, "--ram-limit", "1GiB")

    assert code == 1
    assert "short by" in err
    assert len(err.splitlines()) == 1


def test_a_policy_that_does_not_fit_is_exit_code_1_and_writes_no_plan(hrm, tmp_path):
    path = tmp_path / "plan.yaml"

    code, _, err = hrm("predict", *MIXTRAL, *JOB, *SIZES, "--weights-on-gpu", "1.0", "-o", path)

    assert code == 1
    assert "gpu memory is short by" in err
    assert not path.exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda profile: profile["levels"]["gpu"]["read_bytes_per_s"].update(peak="3e11"), "3.000000e+11"),
        (lambda profile: profile["levels"]["gpu"].update(bandwidth_GBps=300), "bandwidth_GBps"),
        (lambda profile: profile["levels"]["gpu"].pop("capacity_bytes"), "capacity_bytes"),
        (lambda profile: profile["levels"]["gpu"].update(capacity_bytes=-1), "capacity_bytes"),
        (lambda profile: profile["links"].pop("h2d"), "h2d"),
        (lambda profile: profile.update(schema_version=7), "schema_version"),
    ],
)
def test_a_broken_profile_names_file_and_field(hrm, tmp_path, edit, said):
    from hrm.hardware import bundled_profiles

    source = next(path for path in bundled_profiles() if path.stem == "l4-case-study")
    profile = yaml.safe_load(source.read_text())
    edit(profile)
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(profile))

    code, _, err = hrm("hardware", "validate", broken)

    assert code == 2
    assert "broken.yaml" in err
    assert said in err
    assert len(err.splitlines()) == 1


def test_an_interrupt_says_so_and_ends_with_130(hrm, monkeypatch):
    """Typer turns Ctrl-C into an exit code of its own; either way the user hears one word."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hrm.hardware.load_profile", interrupted)

    code, _, err = hrm("hardware", "show", "l4-case-study")

    assert code == 130
    assert err.strip().endswith("hrm: interrupted")
