"""Counts that follow from a model's dimensions."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from hrm.cli.model import model_app
from hrm.model import LatentAttention, LayerKind, ModelSpec

MIXTURE = ModelSpec(
    name="tiny",
    family="mixtral",
    num_layers=4,
    hidden_size=16,
    intermediate_size=24,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=4,
    num_experts=6,
    experts_per_token=2,
    vocab_size=32,
    max_position_embeddings=64,
)
LATENT = LatentAttention(kv_lora_rank=8, nope_head_dim=4, rope_head_dim=2, value_head_dim=5)


def test_a_dense_layer_in_place_of_a_mixture_changes_the_total_by_the_difference():
    mixed = replace(MIXTURE, dense_layers=(0,), dense_intermediate_size=48)

    change = 3 * 16 * 48 - MIXTURE.num_experts * MIXTURE.expert_parameters - MIXTURE.router_parameters
    assert mixed.total_parameters - MIXTURE.total_parameters == change


@pytest.mark.parametrize("changes", [{"shared_intermediate_size": 8}, {"bias_parameters": 7}, {"vocab_size": 64}])
def test_what_every_token_passes_is_active(changes):
    changed = replace(MIXTURE, **changes)

    grown = changed.total_parameters - MIXTURE.total_parameters
    assert grown == changed.active_parameters - MIXTURE.active_parameters > 0


def test_tied_embeddings_are_counted_once():
    tied = replace(MIXTURE, tie_word_embeddings=True)

    assert MIXTURE.total_parameters - tied.total_parameters == 32 * 16


def test_biases_of_an_expert_belong_to_it():
    assert replace(MIXTURE, expert_bias=True).expert_parameters == 3 * 16 * 24 + 24 + 24 + 16


def test_latent_attention_caches_one_vector_for_all_heads():
    latent = replace(MIXTURE, latent=LATENT)

    assert latent.cache_width == 8 + 2
    assert MIXTURE.cache_width == 2 * 2 * 4
    assert latent.query_size == 4 * latent.cache_width
    assert latent.attended_size == 4 * 8
    assert latent.output_projection == (4 * 5, 16)
    assert latent.attention_projections == ((16, 4 * 6), (16, 10), (8, 4 * 9))
    with_rank = replace(latent, latent=replace(LATENT, q_lora_rank=3))
    assert with_rank.attention_projections[:2] == ((16, 3), (3, 4 * 6))


def test_layer_kinds_cover_every_layer_once():
    mixed = replace(MIXTURE, dense_layers=(0,), sliding_window=8, windowed_layers=(1, 3))

    assert mixed.layer_kinds == {LayerKind(False, None): 1, LayerKind(True, 8): 2, LayerKind(True, None): 1}
    assert sum(mixed.layer_kinds.values()) == mixed.num_layers


def shown(*arguments):
    result = CliRunner().invoke(model_app, arguments)
    assert result.exit_code == 0
    return result.stdout


def test_show_gives_what_follows_from_the_dimensions():
    found = json.loads(shown("show", "gpt-oss-20b", "--json"))

    assert found["expert_bytes"] == found["expert_parameters"] * 17 / 32
    assert found["kv_bytes_per_token"] == 24 * 2 * 8 * 64 * 2
    assert found["layer_kinds"] == [
        {"moe": True, "window": 128, "layers": 12},
        {"moe": True, "window": None, "layers": 12},
    ]
    assert found["active_parameters"] < found["total_parameters"]


def test_show_as_a_table_says_what_the_layers_are():
    table = shown("show", "deepseek-v2-lite")

    assert "1 dense attending to all tokens, 26 MoE attending to all tokens" in table


def test_list_names_models_that_can_be_shown():
    assert shown("list").split() == json.loads(shown("list", "--json"))["models"]
