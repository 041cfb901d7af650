"""Products with weight matrices, by every way there is; a library's meet few numbers of rows."""

import pytest
import torch

from executor import linear as linear_module
from executor import native
from executor.decoder import ModelWeights, next_logits
from executor.experts import PLAIN, ExpertForm, apply_expert, feed_forward, weighted_sum
from executor.linear import linear, operand, suits_compiled
from executor.workspace import host_workspace
from hrm import workspace as workspace_module
from hrm.model_config import load_model
from hrm.workspace import (
    experts_workspace_bytes,
    gathered_expert_workspace_bytes,
    linear_workspace_bytes,
    workspace_bytes,
)


@pytest.fixture
def library(monkeypatch):
    """Leave products to the library, in bfloat16 too; return the numbers of rows that it meets."""
    met = []
    multiply = torch.mm

    def mm(left, right, *, out):
        met.append(left.shape[0])
        return multiply(left, right, out=out) if left.shape[0] * right.numel() < 2**24 else out

    monkeypatch.setenv("HRM_NATIVE", "0")
    monkeypatch.setattr(linear_module, "is_native", lambda _kind, _device: True)
    monkeypatch.setattr(torch, "mm", mm)
    return met


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_linear_is_the_product_in_every_format_and_by_every_way(monkeypatch, rows, dtype, native):
    monkeypatch.setattr(linear_module, "is_native", lambda kind, _device: native or kind == torch.float32)
    monkeypatch.setattr(workspace_module, "PIECE_ELEMENTS", 100)
    monkeypatch.setattr(linear_module, "ROWS_AT_A_TIME", 8)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 24).to(dtype), torch.randn(15, 24).to(dtype)
    expected = x.double() @ weight.double().t()
    workspace = host_workspace(4 * rows * (24 + 15) + linear_workspace_bytes(rows, 24, 15))

    narrow = linear(x, weight, workspace)

    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.double(), expected, rtol=2e-2, atol=5e-2)
    wide = linear(operand(x, weight, workspace), weight, host_workspace(2**16))
    torch.testing.assert_close(wide.double(), expected, rtol=2e-2, atol=5e-2)


def test_whether_a_processor_has_a_formats_products_is_asked_on_one_thread_by_its_own_time(monkeypatch):
    # Two threads on a busy machine wait for each other: both formats then take as long as the scheduler's turns.
    threads = []

    def probe_s(_: object) -> float:
        threads.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(linear_module, "_probe_s", probe_s)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert linear_module.is_native.__wrapped__(torch.bfloat16, "cpu")

        assert threads == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not native.available(), reason="no compiled kernel here (python setup.py build_ext --inplace)")
@pytest.mark.parametrize(("library_s", "compiled_serve"), [(1.0, True), (0.6, True), (0.2, False)])
def test_bfloat16_products_are_a_librarys_only_where_it_is_far_faster(monkeypatch, library_s, compiled_serve):
    seconds = iter([library_s, 1.0])
    monkeypatch.setattr(linear_module, "_probe_s", lambda _: next(seconds))
    monkeypatch.setattr(linear_module, "_library_is_far_faster", linear_module._library_is_far_faster.__wrapped__)

    assert suits_compiled(torch.zeros(1, dtype=torch.bfloat16)) == compiled_serve


@pytest.mark.parametrize("rows", [*range(20), 255, 256, 257, 1000])
def test_a_librarys_products_are_whole_within_the_room_that_is_counted(library, rows):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 24).bfloat16(), torch.randn(15, 24).bfloat16()
    workspace = host_workspace(4 * rows * (24 + 15) + linear_workspace_bytes(rows, 24, 15))

    found = linear(x, weight, workspace)

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), x.double() @ weight.double().t(), rtol=2e-2, atol=5e-2)
    assert library or not rows


def test_a_library_meets_few_numbers_of_rows_and_keeps_little(library):
    weight = torch.ones(1, 8).bfloat16()
    for rows in range(1, 700):
        linear(torch.ones(rows, 8).bfloat16(), weight, host_workspace(2**17))

    assert len(set(library)) <= 44
    assert max(library) == linear_module.LIBRARY_ROWS


@pytest.mark.parametrize("form", [PLAIN, ExpertForm(biased=True, limit=7.0)])
@pytest.mark.parametrize(("tokens", "met"), [(1, {1}), (9, {10}), (17, {20}), (33, {40}), (257, {256, 8})])
def test_experts_meet_few_numbers_too_and_what_fills_them_up_is_lost(library, tokens, met, form):
    torch.manual_seed(tokens)
    x, shares, chosen = torch.randn(tokens, 40).bfloat16(), torch.ones(tokens, 1), torch.zeros(tokens, 1).long()
    expert = torch.randn(3 * 40 * 24 + form.biased * (2 * 24 + 40)).mul_(0.2).bfloat16()
    room = int(experts_workspace_bytes(tokens, 40, 24, 1, 1))
    gathered = int(gathered_expert_workspace_bytes(tokens, 40, 24, 1))

    routed = weighted_sum(x, shares, chosen, [expert], 0, host_workspace(room), form)
    shared = feed_forward(x, expert, host_workspace(room), form)
    total = torch.zeros(tokens, 40, dtype=torch.bfloat16)
    apply_expert(x, torch.arange(tokens), shares, expert, host_workspace(gathered), total, form)

    assert set(library) == met
    wide = feed_forward(x.float(), expert.float(), host_workspace(4 * room), form)
    for found in (routed, shared, total):
        torch.testing.assert_close(found.float(), wide, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b", "llama-4-scout"])
def test_the_head_of_a_large_model_has_room_for_any_number_of_sequences(library, name):
    """Its outputs are so many that rows filled up weigh most; what is multiplied here is memory never touched."""
    model = load_model(name)
    shape = (model.vocab_size, model.hidden_size)
    head = torch.empty(shape, dtype=torch.bfloat16)
    weights = ModelWeights(embedding=head, layers=(), final_norm=torch.ones(shape[1]).bfloat16(), head=head)
    for sequences in (1, 9, 17, 65):
        hidden = torch.ones(sequences, shape[1]).bfloat16()
        next_logits(hidden, weights, model, host_workspace(int(workspace_bytes(model, sequences, sequences))))

    assert set(library) == {1, 10, 20, 72}
