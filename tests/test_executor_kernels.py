import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm, MixtralSparseMoeBlock

from executor import native
from executor.attention import AttentionForm, append_kv, decode_attention, prefill_attention
from executor.experts import add_compiled, weighted_sum
from executor.kernels import kernel_probes
from executor.kv_cache import KVCache
from executor.linear import linear, suits_compiled
from executor.norm import rms_norm
from executor.routing import RouterWeights, choose_experts
from executor.weights import page_bounds
from executor.workspace import host_workspace
from hrm.ceilings import Kernel
from hrm.dtypes import DType
from hrm.errors import OutOfMemoryError
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.schedule.task import Lane
from hrm.workspace import experts_workspace_bytes, gathered_expert_workspace_bytes


def test_a_frame_gives_back_what_it_took_and_nothing_overlaps():
    workspace = host_workspace(1024)
    kept = workspace.take((3,), torch.float32)
    with workspace.frame():
        inside = workspace.take((5,), torch.float32)
        assert inside.data_ptr() >= kept.data_ptr() + kept.nbytes
        assert inside.data_ptr() % 64 == kept.data_ptr() % 64

    assert workspace.take((5,), torch.float32).data_ptr() == inside.data_ptr()
    with pytest.raises(OutOfMemoryError, match="of 1024 in use"):
        workspace.take((1000,), torch.float32)


@pytest.mark.skipif(
    not suits_compiled(torch.zeros(1, dtype=torch.bfloat16)), reason="bfloat16 products are a library's here"
)
def test_in_bfloat16_no_bit_of_a_token_depends_on_what_shares_its_batch():
    torch.manual_seed(0)
    x, router = torch.randn(70, 72).bfloat16(), torch.randn(4, 72).bfloat16()
    experts = [torch.randn(3 * 72 * 56).mul_(0.1).bfloat16() for _ in range(4)]
    whole = mixture(x, router, experts, host_workspace(2**22)).clone()
    wide = linear(x, experts[0][: 72 * 56].view(56, 72), host_workspace(2**20))
    for first, last in ((0, 1), (5, 7), (9, 18), (3, 36)):
        assert torch.equal(mixture(x[first:last], router, experts, host_workspace(2**22)), whole[first:last])
        alone = linear(x[first:last], experts[0][: 72 * 56].view(56, 72), host_workspace(2**20))
        assert torch.equal(alone, wide[first:last])


def test_rms_norm_is_that_of_transformers():
    torch.manual_seed(0)
    reference = MixtralRMSNorm(32, eps=1e-5)
    reference.weight.data.uniform_(0.5, 1.5)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        x = (3 * torch.randn(7, 32)).to(dtype)
        weight = reference.weight.detach().to(dtype)

        normed = rms_norm(x, weight, 1e-5, host_workspace(2**14))

        torch.testing.assert_close(normed.float(), reference(x.float()).detach(), rtol=tolerance, atol=tolerance)


def mixture(x, router, experts, workspace):
    """Route tokens by `router` [experts, hidden], two experts each, and return the experts' output."""
    model = replace(load_model("mixtral-8x7b"), num_experts=len(experts))
    shares, chosen = choose_experts(x, RouterWeights(weight=router), model, workspace)
    return weighted_sum(x, shares, chosen, experts, 0, workspace)


@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_mixture_is_that_of_transformers(tokens):
    torch.manual_seed(tokens)
    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2)
    block = MixtralSparseMoeBlock(config).eval()
    for parameter in block.parameters():
        parameter.data.normal_()
    x = torch.randn(tokens, 16)
    flat = [
        torch.cat([up.flatten(), down.flatten()])
        for up, down in zip(block.experts.gate_up_proj.data, block.experts.down_proj.data, strict=True)
    ]
    workspace = host_workspace(int(experts_workspace_bytes(tokens, 16, 24, 5, 2)))

    total = mixture(x, block.gate.weight.data, flat, workspace)

    torch.testing.assert_close(total, block(x[None])[0].detach(), rtol=1e-4, atol=1e-3)


def test_the_workspace_suffices_when_all_tokens_choose_the_same_expert():
    tokens, experts = 40, [torch.randn(3 * 16 * 24).bfloat16() for _ in range(4)]
    router = torch.zeros(4, 16).bfloat16()
    workspace = host_workspace(int(experts_workspace_bytes(tokens, 16, 24, 4, 2)))

    mixture(torch.randn(tokens, 16).bfloat16(), router, experts, workspace)

    assert 0 < workspace.peak_bytes <= workspace.capacity_bytes


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.sampled_from([1, 7, 64, 700]),
    sizes=st.tuples(st.sampled_from([8, 40]), st.sampled_from([16, 300])),
    routing=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda two: (max(two), min(two))),
)
def test_the_workspace_suffices_for_any_number_of_experts_a_token(tokens, sizes, routing):
    (hidden, intermediate), (num_experts, per_token) = sizes, routing
    x, expert = torch.randn(tokens, hidden).bfloat16(), torch.zeros(3 * hidden * intermediate).bfloat16()
    experts = [expert] * num_experts
    shares, chosen = torch.rand(tokens, num_experts).topk(per_token)

    weighted_sum(x, shares, chosen, experts, 0, host_workspace(int(experts_workspace_bytes(tokens, *sizes, *routing))))

    if suits_compiled(expert):
        gathered = host_workspace(int(gathered_expert_workspace_bytes(tokens, hidden, intermediate, per_token)))
        add_compiled(native.Experts(x, chosen, shares, experts, 0), torch.zeros(tokens, hidden), gathered)


def attend_alone(query, keys, values, out, form):
    """Attend within one prompt."""
    prefill_attention(query, keys.flatten(), values.flatten(), out, [len(query)], form)


def test_decode_over_the_cache_equals_prefill_of_the_whole_sequence():
    """Ragged sequences: the last row of causal attention is what one decode step computes."""
    model = ModelSpec(
        name="tiny",
        family="mixtral",
        num_layers=1,
        hidden_size=24,
        intermediate_size=8,
        num_query_heads=6,
        num_kv_heads=2,
        head_dim=16,
        num_experts=2,
        experts_per_token=1,
        vocab_size=7,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    lens = [5, 1, 12]
    cache = KVCache(
        model, [length + 3 for length in lens], torch.float32, lambda shape, kind: torch.empty(shape, dtype=kind)
    )
    sequences = [tuple(torch.randn(length + 1, heads, 16) for heads in (6, 2, 2)) for length in lens]
    prompts = [torch.cat([parts[at][:-1].transpose(0, 1).flatten() for parts in sequences]) for at in (1, 2)]
    cache.store_prompts(0, 0, lens, prompts)
    query, new_keys, new_values = (torch.stack([parts[at][-1] for parts in sequences]) for at in range(3))
    cached = torch.tensor(lens)
    out = torch.empty_like(query)

    view = cache.view(0, 0, 3)
    append_kv(new_keys, new_values, view.keys, view.values, view.next_places(cached))
    decode_attention(query, view.keys, view.values, view.valid(cached + 1), 2, out)

    for index, (queries, keys, values) in enumerate(sequences):
        whole = torch.empty(lens[index] + 1, 6 * 16)
        attend_alone(queries, keys.transpose(0, 1), values.transpose(0, 1), whole, AttentionForm(scale=0.25))
        torch.testing.assert_close(out[index].flatten(), whole[-1], rtol=1e-4, atol=1e-5)


def test_prefill_attention_is_causal_and_grouped():
    torch.manual_seed(0)
    query, keys, values = torch.randn(9, 6, 8), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    out = torch.empty(9, 48)

    attend_alone(query, keys, values, out, AttentionForm(scale=8**-0.5))

    keys, values = (part.repeat_interleave(3, dim=0) for part in (keys, values))
    expected = F.scaled_dot_product_attention(query.transpose(0, 1), keys, values, is_causal=True)
    torch.testing.assert_close(out.view(9, 6, 8), expected.transpose(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "form",
    [AttentionForm(scale=0.3), AttentionForm(scale=0.3, window=4), AttentionForm(scale=0.3, sinks=torch.ones(6))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_of_one_length_attend_together_as_each_does_alone(form, dtype):
    torch.manual_seed(1)
    query = torch.randn(3, 9, 6, 16).to(dtype)
    keys, values = (torch.randn(3, 2, 9, 16).to(dtype) for _ in range(2))
    together, alone = torch.empty(3, 9, 96, dtype=dtype), torch.empty(3, 9, 96, dtype=dtype)

    prefill_attention(query.flatten(0, 1), keys.flatten(), values.flatten(), together.flatten(0, 1), [9] * 3, form)
    for at in range(3):
        attend_alone(query[at], keys[at], values[at], alone[at], form)

    assert torch.equal(together, alone)


@pytest.mark.parametrize(("num_elements", "num_pages"), [(0, 3), (5, 4), (1000, 7), (4096, 1), (100_000, 13)])
def test_pages_cover_everything_once_and_are_nearly_equal(num_elements, num_pages):
    bounds = page_bounds(num_elements, num_pages, 2)

    sizes = [last - first for first, last in pairwise(bounds)]
    assert (len(sizes), bounds[0], bounds[-1]) == (num_pages, 0, num_elements)
    assert min(sizes) >= 0
    assert all(abs(size - num_elements / num_pages) <= 64 / 2 for size in sizes)
    assert all(bound * 2 % 64 == 0 for bound in bounds[1:-1])


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_every_kernel_has_a_probe_that_runs(dtype):
    probes = kernel_probes(dtype, quick=True)

    assert {probe.kernel for probe in probes} == set(Kernel)
    for probe in probes:
        assert list(probe.sizes) == sorted(set(probe.sizes))
        assert list(probe.rows) == sorted(set(probe.rows))
        call = probe.make(probe.sizes[0], probe.rows[1], Lane.CPU, torch.device("cpu"))
        call()
        call()


@pytest.mark.skipif(not native.available() and "CI" not in os.environ, reason="no compiled kernel here")
def test_the_cpus_kernels_are_timed_without_what_leads_to_them(monkeypatch):
    times = []

    def counted(*operands):
        times.append(1)
        return weighted_sum(*operands)

    monkeypatch.setattr("executor.kernels.weighted_sum", counted)
    probe = next(probe for probe in kernel_probes(DType.BFLOAT16, quick=True) if probe.kernel is Kernel.EXPERT_FFN)
    size, rows, device = probe.sizes[-1], 2, torch.device("cpu")

    def added(call):
        before = len(times)
        for _ in range(3):
            call()
        return len(times) - before

    alone = probe.make(size, rows, Lane.CPU, device)
    alone()
    assert added(alone) == 0
    assert added(probe.make(size, rows, Lane.GPU, device)) == 3
    assert probe.make_task is not None
    assert added(probe.make_task(size, rows, Lane.CPU, device)) == 3
