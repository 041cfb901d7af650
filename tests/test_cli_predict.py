"""`hrm predict`: policies by options, all schedules side by side, and what is refused."""

import json

import pytest

ON_L4 = ["--model", "mixtral-8x7b", "--hardware", "S2", "--weight-dtype", "float16"]
SIZES = ["--batch-size", "64", "--micro-batch-size", "16"]


@pytest.fixture
def predict(hrm):
    """Run `hrm predict`; return exit code, the JSON document on stdout or None, and stderr."""

    def run(*arguments):
        code, out, err = hrm("predict", *arguments, "--json")
        return code, json.loads(out) if out else None, err

    return run


def test_lengths_nobody_gave_are_stated(predict):
    _, document, _ = predict(*ON_L4, *SIZES)

    assert (document["workload"]["mean_prompt_len"], document["workload"]["gen_len"]) == (512, 128)


def test_an_interval_holds_the_prediction(predict):
    _, document, _ = predict(*ON_L4, *SIZES)

    interval = document["interval"]
    assert interval["low"] < document["throughput_tokens_per_s"] < interval["high"]


def test_padding_and_staging_and_skew_cost_what_they_cost(predict):
    lengths = ["--prompt-len", "76.1", "--max-prompt-len", "418"]
    plain, padded, staged, skewed = (
        predict(*ON_L4, *SIZES, *lengths, *more)[1]
        for more in ([], ["--padded"], ["--staging", "pageable"], ["--routing", "zipf:1.2"])
    )

    assert padded["prefill_s"] > plain["prefill_s"]
    assert staged["decode_s"] >= plain["decode_s"]
    assert skewed["decode_s"] <= plain["decode_s"]
    assert (plain["routing"], skewed["routing"]) == ("uniform", "skewed (Zipf exponent 1.2)")


def test_experts_on_disk_are_read_once_per_pass(predict):
    on_laptop = ["--model", "mixtral-8x7b", "--hardware", "laptop-ryzen-7840hs-rtx4060", "--weight-dtype", "int4"]
    on_cpu = ["--attention-device", "cpu", "--ffn-device", "cpu", "--batch-size", "8", "--fidelity", "roof"]
    none, half, every = (predict(*on_laptop, *on_cpu, "--experts-on-disk", share)[1] for share in ("0", "0.5", "1"))

    assert (none["policy"]["experts_on_disk"], half["policy"]["experts_on_disk"]) == (0.0, 0.5)
    assert half["bottleneck"]["decode"] | {"busy": {}} == {
        "lane": "disk",
        "bound": "cross-level",
        "limit": "lane",
        "busy": {},
    }
    assert every["decode_s"] == pytest.approx(2 * half["decode_s"])
    assert none["memory"]["cpu"]["expert_weights"] == 2 * half["memory"]["cpu"]["expert_weights"]


def test_experts_on_the_cpu(predict):
    """Batch 1, attention on the GPU: the experts that do not fit there are computed where they lie."""
    devices = ["--attention-device", "gpu", "--ffn-device", "cpu", "--weights-on-gpu", "0.25", "--batch-size", "1"]
    code, document, _ = predict(
        "--model", "qwen3-30b-a3b", "--hardware", "R2080_10900X", "--weight-dtype", "Q4_K_M", *devices
    )

    assert code == 0
    assert (document["policy"]["experts_on_cpu"], document["policy"]["weights_on_gpu"]) == (0.75, 0.25)
    assert {"cpu_experts", "gpu_experts", "expert_offload"} <= set(document["task_s"]["decode"])


def test_a_split_streams_the_rest(predict):
    _, streamed, _ = predict(*ON_L4, *SIZES)
    _, split, _ = predict(*ON_L4, *SIZES, "--experts-on-cpu", "0.5")

    assert split["task_s"]["decode"]["page_copy"] == pytest.approx(
        streamed["task_s"]["decode"]["page_copy"] / 2, rel=0.01
    )


def test_all_schedules_best_first(predict):
    code, document, _ = predict(*ON_L4, *SIZES, "--schedule", "all")

    schedules = document["schedules"]
    speeds = [one["throughput_tokens_per_s"] for one in schedules if one["short"] is None]
    assert code == 0
    assert {one["schedule"] for one in schedules} == {"cgopipe", "unpaged", "serial", "kv-transfer", "layerwise"}
    assert speeds == sorted(speeds, reverse=True)
    assert all(one["policy"]["schedule"] == one["schedule"] for one in schedules)


def test_kv_can_be_divided_under_kv_transfer_only(predict):
    divided = ["--attention-device", "gpu", "--kv-on-gpu", "0.5"]
    code, document, _ = predict(*ON_L4, *SIZES, "--schedule", "kv-transfer", *divided)
    refused, _, said = predict(*ON_L4, *SIZES, *divided)

    assert (code, document["policy"]["kv_on_gpu"]) == (0, 0.5)
    assert (refused, "kv_on_gpu" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--schedule", "fastest"], "--schedule fastest"),
        (["--best-policy"], "--best-policy"),
        (["--routing", "zipf:steep"], "--routing"),
        (["--routing", "no-such-trace.jsonl"], "no-such-trace.jsonl"),
        (["--experts-on-cpu", "0.3"], "--experts-on-cpu"),
        (["--ffn-device", "cpu", "--attention-device", "gpu", "--experts-on-cpu", "0.5"], "--experts-on-cpu"),
        (["--schedule", "host"], "schedule host"),
        (["--schedule", "serial", "--attention-device", "gpu"], "attention_device"),
    ],
)
def test_contradictions_are_named(predict, arguments, said):
    code, document, err = predict(*ON_L4, *SIZES, *arguments)

    assert (code, document) == (2, None)
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--schedule", "all", "--fidelity", "roof"], "--fidelity: means nothing with --schedule all"),
        (["--schedule", "all", "--best-policy"], "--batch-size: --best-policy chooses it"),
        (["--best-policy"], "--best-policy: goes with --schedule all"),
        (
            ["--schedule", "all", "--attention-device", "cpu", "--ffn-device", "cpu"],
            "--schedule all: with everything on the CPU there is one schedule",
        ),
    ],
)
def test_options_that_would_be_ignored_are_refused(predict, options, said):
    code, _, message = predict(*ON_L4, *SIZES, *options)

    assert code == 2
    assert message.startswith(f"hrm: {said}")


def test_a_plan_says_what_to_predict(predict, tmp_path):
    plan = tmp_path / "plan.yaml"
    predict(*ON_L4, *SIZES, "-o", plan)

    code, document, _ = predict("--plan", plan, "--hardware", "S2", "--schedule", "all")
    assert code == 0
    assert {one["policy"]["batch_size"] for one in document["schedules"]} == {64}
    for options, said in (
        (["--batch-size", "8"], "--batch-size: the plan says what to predict"),
        (["--schedule", "serial"], "--schedule serial: the plan names its own"),
        (["--schedule", "all"], "--hardware: needed"),
    ):
        code, _, message = predict("--plan", plan, *options)
        assert code == 2
        assert message.startswith(f"hrm: {said}")
