"""What is predicted but not run is refused in one line, before anything is loaded."""

import json
from dataclasses import replace

import pytest

from executor.engine import Engine
from executor.supported import check_runnable
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.errors import HrmError, ModelError, PolicyError
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName
from hrm.workload import Workload

MODEL = ModelSpec(
    name="tiny",
    family="mixtral",
    num_layers=2,
    hidden_size=16,
    intermediate_size=24,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=4,
    num_experts=4,
    experts_per_token=2,
    vocab_size=32,
    max_position_embeddings=64,
)
POLICY = Policy(
    batch_size=2,
    micro_batch_size=1,
    attention_device=Processor.CPU,
    ffn_device=Processor.GPU,
    resident_experts=0,
    kv_on_gpu=0.0,
    schedule=ScheduleName.CGOPIPE,
    weight_dtype=DType.BFLOAT16,
    kv_dtype=DType.BFLOAT16,
)
HOST = replace(POLICY, ffn_device=Processor.CPU, schedule=ScheduleName.HOST)


ON_GPU = replace(POLICY, attention_device=Processor.GPU, kv_on_gpu=1.0)


@pytest.mark.parametrize(
    "policy",
    [
        POLICY,
        HOST,
        replace(POLICY, expert_dtype=DType.BFLOAT16),
        replace(POLICY, schedule=ScheduleName.UNPAGED),
        replace(POLICY, schedule=ScheduleName.SERIAL),
        replace(ON_GPU, schedule=ScheduleName.LAYERWISE),
        replace(ON_GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=0.5),
        replace(POLICY, cpu_experts=1),
        replace(ON_GPU, ffn_device=Processor.CPU),
    ],
)
@pytest.mark.parametrize("model", [MODEL, replace(MODEL, family="llama", num_experts=1, experts_per_token=1)])
def test_plain_models_and_policies_are_run(model, policy):
    check_runnable(model, policy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "qwen2_moe"}, "model_type qwen2_moe"),
        ({"bias_parameters": 8}, "biases"),
        ({"qkv_bias": True}, "biases"),
        ({"qkv_clip": 8.0}, "clipped queries"),
        ({"plain_rope": False}, "rotary embedding"),
        ({"dtype": DType.FLOAT8}, "weights stored as float8"),
        ({"expert_dtype": DType.MXFP4}, "weights stored as mxfp4"),
    ],
)
def test_other_models_are_refused(changes, said):
    with pytest.raises(ModelError, match=f"^tiny: is predicted, not run yet: {said}") as caught:
        check_runnable(replace(MODEL, **changes), POLICY)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (replace(POLICY, expert_dtype=DType.INT4), "expert_dtype int4"),
        (replace(POLICY, weight_dtype=DType.INT4), "weight_dtype int4"),
        (replace(POLICY, kv_dtype=DType.INT8), "kv_dtype int8"),
    ],
)
def test_other_policies_are_refused(policy, said):
    with pytest.raises(PolicyError, match=f"^the plan is predicted, not run yet: {said}") as caught:
        check_runnable(MODEL, policy)

    assert "\n" not in str(caught.value)


class Plan:
    policy = HOST
    workload = Workload(mean_prompt_len=4, max_prompt_len=4, gen_len=2)

    def __init__(self, model):
        self.model = model


def test_the_engine_refuses_before_it_looks_for_weights(tmp_path):
    """The folder holds no weights, so any attempt to load them would be another error."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    backend = HostBackend(threads=1)

    with pytest.raises(HrmError, match="predicted, not run yet: rotary embedding"):
        Engine(Plan(load_model(tmp_path)), tmp_path, backend)

    backend.close()
