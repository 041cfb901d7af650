import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from executor.engine import Engine
from executor.prompts import Prompt
from executor.sampling import Settings
from executor.tasks import TaskRunner
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.errors import HrmError, ModelError, PolicyError
from hrm.memory import ledger
from hrm.model_config import load_model
from hrm.policy import Processor, Staging
from hrm.schedule.task import Phase, TaskKind
from hrm.units import MIB
from hrm.workload import Workload
from hrm.workspace import workspace_bytes
from tests.engines import (
    GEN_LEN,
    PROMPT_LENS,
    emulated,
    gpu_policy,
    plan_for,
    policy_of,
    prompts_for,
    reference_tokens,
    run,
    tiny_model,
    tokens_of,
)


def fuse_experts(folder: Path) -> None:
    """Rewrite a checkpoint with all experts of a layer in two tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for layer in range(3):
        moe, mlp = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        w1, w2, w3 = (
            torch.stack([tensors.pop(f"{moe}.experts.{expert}.w{number}.weight") for expert in range(4)])
            for number in (1, 2, 3)
        )
        tensors[f"{mlp}.gate.weight"] = tensors.pop(f"{moe}.gate.weight")
        tensors[f"{mlp}.experts.gate_up_proj"] = torch.cat([w1, w3], dim=1)
        tensors[f"{mlp}.experts.down_proj"] = w2
    save_file(tensors, path)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A random Mixtral as transformers saves it, its prompts, and the tokens that transformers answers."""
    model = tiny_model("mixtral", seed=1)
    folder = tmp_path_factory.mktemp("mixtral")
    model.save_pretrained(folder)
    prompts = prompts_for(model)
    return folder, prompts, reference_tokens(model, prompts)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 7])
def test_same_tokens_as_transformers_on_the_cpu(mixtral, micro_batch_size):
    folder, prompts, expected = mixtral

    generation = run(folder, policy_of(micro_batch_size=micro_batch_size), prompts)

    assert tokens_of(generation) == expected
    assert [answer.id for answer in generation.completions] == [prompt.id for prompt in prompts]


@pytest.mark.parametrize("pages_per_layer", [None, 1, 3, 7])
@pytest.mark.parametrize("resident_experts", [0, 1, 2, 3, 4])
def test_same_tokens_as_transformers_when_experts_are_streamed(mixtral, resident_experts, pages_per_layer):
    folder, prompts, expected = mixtral
    policy = gpu_policy(resident_experts=resident_experts, pages_per_layer=pages_per_layer)

    assert tokens_of(run(folder, policy, prompts)) == expected


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 7])
@pytest.mark.parametrize("attention_device", list(Processor))
def test_same_tokens_for_any_micro_batch_and_attention_device(mixtral, attention_device, micro_batch_size):
    folder, prompts, expected = mixtral
    policy = gpu_policy(
        attention_device=attention_device, micro_batch_size=micro_batch_size, resident_experts=1, pages_per_layer=2
    )

    assert tokens_of(run(folder, policy, prompts)) == expected


@pytest.mark.parametrize("pages_per_layer", [1, 2, 5])
@pytest.mark.parametrize("attention_device", list(Processor))
def test_same_tokens_when_pages_are_pinned_on_the_way(mixtral, attention_device, pages_per_layer):
    folder, prompts, expected = mixtral
    policy = gpu_policy(
        attention_device=attention_device, staging=Staging.PAGEABLE, resident_experts=1, pages_per_layer=pages_per_layer
    )

    assert tokens_of(run(folder, policy, prompts)) == expected


@pytest.mark.parametrize("policy", [policy_of(batch_size=3), gpu_policy(batch_size=5, resident_experts=2)])
def test_jobs_larger_than_the_batch_run_in_waves(mixtral, policy):
    folder, prompts, expected = mixtral

    generation = run(folder, policy, prompts)

    assert tokens_of(generation) == expected
    assert len(generation.waves) == -(-len(prompts) // policy.batch_size)


def test_a_job_smaller_than_the_batch_leaves_micro_batches_empty(mixtral):
    folder, prompts, expected = mixtral

    assert tokens_of(run(folder, gpu_policy(resident_experts=1), prompts[:3])) == expected[:3]


@pytest.mark.parametrize("policy", [policy_of(), gpu_policy(resident_experts=2)])
def test_one_token_is_made_by_prefill_alone(mixtral, policy):
    folder, prompts, expected = mixtral

    generation = run(folder, policy, prompts, gen_len=1)

    assert tokens_of(generation) == [tokens[:1] for tokens in expected]
    assert generation.measured.decode_s == 0.0


@pytest.mark.parametrize("seed", [2, 3])
def test_fused_experts_and_shards_hold_the_same_model(tmp_path, seed):
    model = tiny_model("mixtral", seed)
    prompts = prompts_for(model, seed)
    expected = reference_tokens(model, prompts)
    fused, sharded = tmp_path / "fused", tmp_path / "sharded"
    model.save_pretrained(fused)
    model.save_pretrained(sharded, max_shard_size="20KB")
    fuse_experts(fused)
    assert len(list(sharded.glob("*.safetensors"))) > 1

    assert tokens_of(run(fused, gpu_policy(resident_experts=1), prompts)) == expected
    assert tokens_of(run(sharded, policy_of(), prompts)) == expected


@pytest.mark.parametrize("policy", [policy_of(), gpu_policy(), gpu_policy(resident_experts=1)])
def test_a_dense_llama_with_tied_embeddings_is_one_expert_without_router(tmp_path, policy):
    model = tiny_model("llama", seed=4)
    model.save_pretrained(tmp_path)
    prompts = prompts_for(model)

    assert tokens_of(run(tmp_path, policy, prompts)) == reference_tokens(model, prompts)


def test_bfloat16_gives_the_same_tokens_on_every_device(mixtral):
    folder, prompts, _ = mixtral
    dtypes = {"weight_dtype": DType.BFLOAT16, "kv_dtype": DType.BFLOAT16}
    on_host = tokens_of(run(folder, policy_of(**dtypes), prompts))

    assert tokens_of(run(folder, gpu_policy(resident_experts=1, **dtypes), prompts)) == on_host
    assert tokens_of(run(folder, gpu_policy(attention_device=Processor.GPU, **dtypes), prompts)) == on_host


def test_an_end_token_cuts_the_answer_and_so_does_max_new_tokens(mixtral, tmp_path):
    folder, prompts, expected = mixtral
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    end = next(token for token in expected[0] if token != expected[1][0])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    asked = (prompts[0], replace(prompts[1], settings=Settings(max_new_tokens=1)))

    first, second = run(tmp_path, policy_of(), asked).completions

    assert first.tokens == expected[0][: expected[0].index(end) + 1]
    assert (first.finish_reason, second.finish_reason) == ("stop", "length")
    assert second.tokens == expected[1][:1]


def test_what_is_measured_is_consistent(mixtral):
    folder, prompts, _ = mixtral
    policy = gpu_policy(resident_experts=2)

    generation = run(folder, policy, prompts)

    result, (wave,) = generation.measured, generation.waves
    decode_passes = GEN_LEN - 1
    assert result.task_s[Phase.DECODE][TaskKind.POST_ATTENTION].count == 3 * 4 * decode_passes
    assert result.task_s[Phase.DECODE][TaskKind.ATTENTION].count == 3 * 4 * decode_passes
    assert set(result.busy[Phase.DECODE]) == {"gpu", "cpu", "h2d", "d2h"}
    assert all(0 <= share <= 1 for lanes in result.busy.values() for share in lanes.values())
    assert all(span.ended_s >= span.started_s >= wave.begun_s for span in wave.spans)
    total_s = result.prefill_s + result.decode_s
    assert result.throughput_tokens_per_s == pytest.approx(len(prompts) * GEN_LEN / total_s)
    assert result.decode_throughput_tokens_per_s == pytest.approx(len(prompts) * decode_passes / result.decode_s)


@pytest.mark.parametrize("attention_device", list(Processor))
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [(DType.FLOAT32, DType.FLOAT32), (DType.BFLOAT16, DType.BFLOAT16), (DType.BFLOAT16, DType.FLOAT32)],
)
def test_device_memory_stays_within_the_ledger(mixtral, attention_device, dtype, kv_dtype):
    folder, prompts, _ = mixtral
    policy = gpu_policy(attention_device=attention_device, resident_experts=2, weight_dtype=dtype, kv_dtype=kv_dtype)
    plan = plan_for(folder, policy)

    peak_bytes = run(folder, policy, prompts).measured.peak_bytes["gpu"]

    assert peak_bytes <= ledger(policy, plan.model, plan.workload).gpu.total_bytes


@pytest.mark.parametrize("tokens", [64, 4096, 20000])
def test_the_workspace_of_a_large_model_is_what_the_ledger_counts(tokens):
    model = load_model("mixtral-8x7b")
    workload = Workload(mean_prompt_len=tokens, max_prompt_len=tokens, gen_len=8)
    counted = ledger(gpu_policy(batch_size=1, micro_batch_size=1), model, workload).gpu.workspace

    assert workspace_bytes(model, tokens, 1) <= counted


def test_a_device_too_small_is_one_line(mixtral):
    folder, _, _ = mixtral
    backend = emulated(capacity_bytes=2**14)

    with pytest.raises(HrmError, match="capacity") as caught:
        Engine(plan_for(folder, gpu_policy()), folder, backend)

    backend.close()
    assert "\n" not in str(caught.value)


def test_a_failing_task_ends_the_run_with_its_error(mixtral, monkeypatch):
    folder, prompts, _ = mixtral

    def fail(*_args: object) -> None:
        raise HrmError("the link broke")

    monkeypatch.setattr("executor.weights.ExpertStore.copy_page", fail)

    with pytest.raises(HrmError, match="the link broke"):
        run(folder, gpu_policy(), prompts)


@pytest.mark.parametrize("error", [KeyboardInterrupt, HrmError])
def test_when_a_run_is_broken_off_what_was_submitted_is_dropped(mixtral, monkeypatch, error):
    """The first decode task waits until the rest has been dropped, and is the only one that runs."""
    folder, prompts, _ = mixtral
    dropped, ran = threading.Event(), []
    drop = TaskRunner.drop

    def dropping(runner: TaskRunner) -> None:
        drop(runner)
        dropped.set()

    def pre_attention(*_args: object) -> None:
        dropped.wait(timeout=60)
        ran.append(1)

    def break_off(*_args: object) -> None:
        raise error("stop")

    monkeypatch.setattr(TaskRunner, "drop", dropping)
    monkeypatch.setattr("executor.decode.DecodeTasks.pre_attention", pre_attention)
    backend = HostBackend(threads=1)

    with pytest.raises(error):
        Engine(plan_for(folder, policy_of()), folder, backend).generate(prompts, break_off)

    backend.close()
    assert len(ran) <= 1


def test_host_memory_stays_within_the_ledger(tmp_path):
    """Some 100 MB, so that what is not counted is small beside it."""
    sizes: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_local_experts": 8,
    }
    config = MixtralConfig(
        **sizes, vocab_size=4096, num_attention_heads=8, num_key_value_heads=2, sliding_window=None, dtype="bfloat16"
    )
    MixtralForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    prompts = [Prompt(id=str(length), tokens=(1,) * length) for length in PROMPT_LENS]
    dtypes = {"weight_dtype": DType.BFLOAT16, "kv_dtype": DType.BFLOAT16}

    for policy in (policy_of(**dtypes), gpu_policy(resident_experts=2, **dtypes)):
        plan = plan_for(tmp_path, policy)
        planned = ledger(policy, plan.model, plan.workload).cpu.total_bytes
        held = run(tmp_path, policy, prompts).measured.peak_bytes["cpu"]
        assert held <= 1.05 * planned + 48 * MIB


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (Prompt(id="p", tokens=(1,) * 12), "--max-prompt-len"),
        (Prompt(id="p", tokens=(97,)), "vocabulary"),
        (Prompt(id="p", tokens=(1,), settings=Settings(max_new_tokens=7)), "--gen-len"),
    ],
)
def test_a_prompt_that_the_plan_does_not_cover_is_refused(mixtral, prompt, complaint):
    folder, _, _ = mixtral

    with pytest.raises(HrmError, match=f"'p'.*{complaint}"):
        run(folder, policy_of(), [prompt])


def test_another_model_or_an_impossible_policy_is_refused(mixtral):
    folder, _, _ = mixtral
    backend = HostBackend(threads=1)
    plan = plan_for(folder, policy_of())

    with pytest.raises(ModelError, match="num_layers is 3, the plan is for 5"):
        Engine(replace(plan, model=replace(plan.model, num_layers=5)), folder, backend)
    with pytest.raises(PolicyError, match="has no device"):
        Engine(plan_for(folder, gpu_policy()), folder, backend)
    with pytest.raises(PolicyError, match="weight_dtype int4"):
        Engine(plan_for(folder, policy_of(weight_dtype=DType.INT4)), folder, backend)
    backend.close()
