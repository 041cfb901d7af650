"""Every family gives the tokens that transformers gives, wherever attention, experts and cache are."""

from typing import Any

import pytest

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
