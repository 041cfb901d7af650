"""Reading Hugging Face configurations: totals known from elsewhere, and what is refused."""

import json

import pytest

from hrm.dtypes import DType
from hrm.errors import FileError, ModelError
from hrm.model_config import from_hf_config, load_model

TINY = {
    "model_type": "mixtral",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "torch_dtype": "float16",
}


def read(**changes):
    return from_hf_config(TINY | changes, name="tiny", where="config.json")


def test_mixtral_has_its_published_parameters():
    """46.7 billion in total, 12.9 billion active (arXiv 2401.04088); to the unit, the published tensors' sum."""
    spec = load_model("mixtral-8x7b")

    assert spec.total_parameters == 46_702_792_704
    assert spec.active_parameters == 12_879_925_248


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_parameters_are_those_of_transformers(family, tied):
    transformers = pytest.importorskip("transformers")
    kind = {"mixtral": transformers.MixtralConfig, "llama": transformers.LlamaConfig}[family]
    values = {key: value for key, value in TINY.items() if key not in ("model_type", "torch_dtype")}
    config = kind(**values, tie_word_embeddings=tied)
    reference = transformers.AutoModelForCausalLM.from_config(config)
    spec = from_hf_config(config.to_dict(), name="tiny", where="config.json")

    assert spec.total_parameters == sum(weight.numel() for weight in reference.parameters())


def test_a_dense_model_is_one_expert_that_every_token_takes():
    spec = read(model_type="llama")

    assert (spec.num_experts, spec.experts_per_token) == (1, 1)
    assert spec.active_parameters == spec.total_parameters


def test_defaults_follow_hugging_face():
    config = {key: value for key, value in TINY.items() if key not in ("num_key_value_heads", "torch_dtype")}
    spec = from_hf_config(config, name="tiny", where="config.json")

    assert spec.num_kv_heads == spec.num_query_heads
    assert spec.head_dim * spec.num_query_heads == spec.hidden_size
    assert spec.dtype is DType.BFLOAT16
    assert read(head_dim=8).head_dim == 8
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).rope_theta == 5e5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2' is not supported"),
        ({"hidden_size": None}, "hidden_size: required field is missing"),
        ({"hidden_size": "16"}, "hidden_size: expected a positive integer, got '16'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected a positive integer"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok: 5 exceeds num_local_experts 4"),
        ({"sliding_window": 128}, "sliding_window: 128 is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type: 'yarn'"),
        ({"torch_dtype": "float8"}, "torch_dtype: 'float8' is not supported"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: expected a positive number"),
    ],
)
def test_refuses_what_it_does_not_understand(changes, said):
    with pytest.raises(ModelError) as caught:
        read(**changes)

    assert said in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def test_loads_from_a_folder_and_from_a_file(tmp_path):
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))

    assert load_model(folder) == load_model(folder / "config.json")
    assert load_model(folder).name == "some-model"


def test_an_unknown_name_lists_the_bundled_ones():
    with pytest.raises(FileError, match=r"no bundled model.*bundled: .*mixtral-8x7b"):
        load_model("mixtral-9x9b")
