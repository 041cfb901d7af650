"""Every family gives the tokens that transformers gives, wherever attention, experts and cache are."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from executor.checkpoint import synth_like
from executor.decoder import next_logits
from executor.mxfp4 import from_mxfp4, to_mxfp4
from hrm.dtypes import DType
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName
from tests.engines import FAMILIES, gpu_policy, policy_of, prompts_for, reference_tokens, run, tiny_model, tokens_of

KINDS = [kind for kind in FAMILIES if kind not in ("llama", "mixtral")]
GPU: dict[str, Any] = {"attention_device": Processor.GPU}
POLICIES: dict[str, Policy] = {
    "host": policy_of(),
    "streamed": gpu_policy(resident_experts=1, pages_per_layer=3),
    "gpu attention": gpu_policy(**GPU, micro_batch_size=3),
    "divided cache": gpu_policy(**GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=0.5),
    "split experts": gpu_policy(resident_experts=1, cpu_experts=2, micro_batch_size=1),
    "cpu experts": gpu_policy(**GPU, ffn_device=Processor.CPU, batch_size=4),
    "layerwise": gpu_policy(**GPU, schedule=ScheduleName.LAYERWISE, batch_size=3),
}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """A random model as transformers saves it, prompts, and the tokens transformers answers."""
    model = tiny_model(request.param, seed=8)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    prompts = prompts_for(model)
    return folder, prompts, reference_tokens(model, prompts)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_same_tokens_as_transformers(checkpoint, policy):
    folder, prompts, expected = checkpoint

    assert tokens_of(run(folder, policy, prompts)) == expected


BFLOAT16 = {"weight_dtype": DType.BFLOAT16, "kv_dtype": DType.BFLOAT16}


@pytest.mark.parametrize("attention_device", list(Processor))
@pytest.mark.parametrize("kind", FAMILIES)
def test_in_bfloat16_logits_are_close_to_those_of_float32(kind, attention_device, tmp_path, monkeypatch):
    """Teacher-forced: transformers computes in both formats, on the same rounded weights, what follows our own tokens.

    We may be off by half more than it is itself in bfloat16.

    All experts are chosen, for a choice that rounding turns is another function; that of float32 is tested above.
    """
    family, changes = FAMILIES[kind]
    chosen = {"num_experts_per_tok": changes.get("n_routed_experts", 4), "topk_group": changes.get("n_group", 1)}
    monkeypatch.setitem(FAMILIES, kind, (family, changes | (chosen if family != "llama" else {})))
    model = tiny_model(kind, seed=3).bfloat16().float()
    model.save_pretrained(tmp_path)
    prompt = prompts_for(model)[1]
    seen = []

    def recording(*arguments: Any) -> torch.Tensor:
        logits = next_logits(*arguments)
        seen.append(logits.float().clone())
        return logits

    monkeypatch.setattr("executor.state.next_logits", recording)
    (answer,) = run(tmp_path, gpu_policy(attention_device=attention_device, **BFLOAT16), [prompt]).completions

    sequence = torch.tensor([(*prompt.tokens, *answer.tokens)])
    with torch.inference_mode():
        exact = model(sequence).logits[0, len(prompt.tokens) - 1 : -1]
        model.set_experts_implementation("eager")  # The others want wider experts in bfloat16.
        rounded = model.bfloat16()(sequence).logits[0, len(prompt.tokens) - 1 : -1]
    ours, theirs = torch.cat(seen)[-len(exact) :] - exact, rounded.float() - exact
    assert ours.square().mean() < 1.5**2 * theirs.square().mean()


def fuse(folder, moe_layers):
    """Rewrite a checkpoint with all experts of a layer in two tensors, as transformers holds them."""
    tensors = load_file(folder / "model.safetensors")
    for layer in moe_layers:
        stem = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = (
            [tensors.pop(name) for name in sorted(tensors) if name.startswith(stem) and name.endswith(f"{part}.weight")]
            for part in ("gate_proj", "up_proj", "down_proj")
        )
        tensors[f"{stem}.gate_up_proj"] = torch.cat((torch.stack(gates), torch.stack(ups)), dim=1)
        tensors[f"{stem}.down_proj"] = torch.stack(downs)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["olmoe", "qwen3_moe-mixed", "deepseek_v3"])
def test_fused_experts_and_shards_hold_the_same_model(kind, tmp_path):
    model = tiny_model(kind, seed=2)
    prompts = prompts_for(model)
    expected = reference_tokens(model, prompts)
    fused, sharded = tmp_path / "fused", tmp_path / "sharded"
    model.save_pretrained(fused)
    model.save_pretrained(sharded, max_shard_size="20KB")
    fuse(fused, load_model(fused).moe_layers)
    assert len(list(sharded.glob("*.safetensors"))) > 1

    assert tokens_of(run(fused, gpu_policy(resident_experts=1), prompts)) == expected
    assert tokens_of(run(sharded, policy_of(), prompts)) == expected


def test_experts_in_mxfp4_are_those_that_transformers_reads(tmp_path, monkeypatch):
    """The checkpoint as published: blocks and scales beside everything else in its own format."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    monkeypatch.setitem(
        FAMILIES, "mxfp4", ("gpt_oss", FAMILIES["gpt_oss"][1] | {"hidden_size": 32, "intermediate_size": 64})
    )
    model = tiny_model("mxfp4", seed=4)
    model.config.quantization_config = {"quant_method": "mxfp4"}
    model.config.save_pretrained(tmp_path)
    tensors = dict(model.state_dict())
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        blocks, scales = to_mxfp4(tensors.pop(name).transpose(1, 2))
        model.get_parameter(name).data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        tensors |= {f"{name}_blocks": blocks.contiguous(), f"{name}_scales": scales.contiguous()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    prompts = prompts_for(model)

    assert load_model(tmp_path).expert_dtype is DType.MXFP4
    assert tokens_of(run(tmp_path, gpu_policy(resident_experts=1), prompts)) == reference_tokens(model, prompts)


@given(
    st.lists(st.sampled_from([0.0, 0.5, -1.0, 1.5, 2.0, -3.0, 4.0, 6.0]), min_size=64, max_size=64), st.integers(-9, 9)
)
def test_what_mxfp4_can_say_survives_a_round_trip(values, exponent):
    exact = torch.tensor(values).view(1, 64) * 2.0**exponent

    blocks, scales = to_mxfp4(exact)

    assert (blocks.shape, scales.shape) == ((1, 2, 16), (1, 2))
    assert torch.equal(from_mxfp4(blocks, scales), exact)


@given(st.integers(0, 2**31))
def test_rounding_to_mxfp4_is_off_by_a_quarter_at_most_of_what_its_block_spans(seed):
    values = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))

    off = (from_mxfp4(*to_mxfp4(values)) - values).abs()

    assert (off <= values.abs().amax(dim=-1, keepdim=True) / 4).all()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_random_checkpoint_of_any_family_holds_what_transformers_saves(kind, tmp_path):
    model = tiny_model(kind, seed=1)
    saved, made = tmp_path / "saved", tmp_path / "made"
    model.save_pretrained(saved)

    synth_like(saved / "config.json", made, seed=5)

    shapes = [
        {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (saved, made)
    ]
    assert shapes[0] == shapes[1]
    prompts = prompts_for(model)
    loaded = type(model).from_pretrained(made).float().eval()
    assert tokens_of(run(made, gpu_policy(resident_experts=1), prompts)) == reference_tokens(loaded, prompts)
