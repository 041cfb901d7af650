"""Every schedule, split of the experts and division of the KV cache gives the tokens that transformers gives.

Each runs on a device just as large as its ledger says, so none holds more than that either.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.kv_cache import firsts_on_host
from executor.wave import make_wave
from hrm.device.emulated import EmulatedBackend
from hrm.device.streams import current_lane
from hrm.dtypes import DType
from hrm.model_config import load_model
from hrm.policy import Processor, ScheduleName, Staging
from hrm.schedule.task import Lane, Phase, TaskKind
from tests.engines import GEN_LEN, gpu_policy, prompts_for, reference_tokens, run, tiny_model, tokens_of
from tests.machines import ATTENTION_OF

CPU, GPU = Processor.CPU, Processor.GPU
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def made(kind, tmp_path_factory):
    """A random model as transformers saves it, its experts per layer, prompts, and the tokens transformers answers."""
    model = tiny_model(kind, seed=6)
    folder = tmp_path_factory.mktemp(kind)
    model.save_pretrained(folder)
    prompts = prompts_for(model)
    return folder, 4 if kind == "mixtral" else 1, prompts, reference_tokens(model, prompts)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return made("mixtral", tmp_path_factory)


@pytest.fixture(scope="module", params=["mixtral", "llama"])
def checkpoint(request, tmp_path_factory):
    return made(request.param, tmp_path_factory)


@st.composite
def gpu_policies(draw, num_experts):
    """Policies that use the GPU, of every schedule, experts kept, streamed (from disk too) and on the CPU at random."""
    schedule = draw(st.sampled_from(list(ATTENTION_OF)))
    attention = draw(st.sampled_from(ATTENTION_OF[schedule]))
    resident, batch = draw(st.integers(0, num_experts)), draw(st.integers(1, 8))
    changes: dict[str, Any] = {"ffn_device": CPU} if attention is GPU and draw(st.booleans()) else {}
    if not changes:
        changes["cpu_experts"] = on_cpu = draw(st.just(0) | st.integers(0, num_experts - resident))
        changes["disk_experts"] = draw(st.just(0) | st.integers(0, num_experts - resident - on_cpu))
    if schedule is ScheduleName.KV_TRANSFER:
        changes["kv_on_gpu"] = draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
    return gpu_policy(
        schedule=schedule,
        attention_device=attention,
        batch_size=batch,
        micro_batch_size=draw(st.integers(1, batch)),
        resident_experts=resident,
        staging=draw(st.sampled_from(Staging)),
        pages_per_layer=draw(st.none() | st.integers(1, 4)),
        **changes,
    )


@given(st.data())
@PROPERTY
def test_same_tokens_as_transformers_within_the_ledger(checkpoint, data):
    folder, num_experts, prompts, expected = checkpoint
    policy = data.draw(gpu_policies(num_experts))
    count, gen_len = data.draw(st.integers(1, len(prompts))), data.draw(st.integers(1, GEN_LEN))

    generation = run(folder, policy, prompts[:count], gen_len)

    assert tokens_of(generation) == [tokens[:gen_len] for tokens in expected[:count]]


PLACEMENTS: dict[str, dict[str, Any]] = {
    "on the device": {"resident_experts": 4},
    "streamed": {"resident_experts": 0},
    "half streamed": {"resident_experts": 2},
    "on the CPU": {"resident_experts": 0, "cpu_experts": 4},
    "half streamed from disk": {"resident_experts": 0, "disk_experts": 2},
    "split four ways": {"resident_experts": 1, "cpu_experts": 1, "disk_experts": 1},
    "split three ways": {"resident_experts": 1, "cpu_experts": 2},
}
MATRIX = [
    (schedule, attention, pages, placement)
    for schedule, devices in ATTENTION_OF.items()
    for attention in devices
    for pages in ((1, 3) if schedule is ScheduleName.CGOPIPE else (None,))
    for placement in PLACEMENTS
    if pages in (1, None) or placement != "on the device"
]


@pytest.mark.parametrize(("schedule", "attention", "pages", "placement"), MATRIX)
def test_every_schedule_page_size_and_placement_gives_the_same_tokens(mixtral, schedule, attention, pages, placement):
    folder, _, prompts, expected = mixtral
    policy = gpu_policy(
        schedule=schedule,
        attention_device=attention,
        pages_per_layer=pages,
        kv_on_gpu=0.4 if schedule is ScheduleName.KV_TRANSFER else float(attention is GPU),
        **PLACEMENTS[placement],
    )

    assert tokens_of(run(folder, policy, prompts)) == expected


def counts(generation):
    return {kind: times.count for kind, times in generation.measured.task_s[Phase.DECODE].items()}


def test_a_divided_cache_comes_up_and_split_experts_meet_again(checkpoint):
    """What ran are the schedule's tasks: one of a kind per layer, micro-batch and pass, the head in the last layer."""
    folder, num_experts, prompts, _ = checkpoint
    policy = gpu_policy(
        schedule=ScheduleName.KV_TRANSFER, attention_device=GPU, kv_on_gpu=0.5, cpu_experts=num_experts, batch_size=7
    )

    ran = counts(run(folder, policy, prompts))

    all_layers = 3 * policy.num_micro_batches * (GEN_LEN - 1)
    kinds = (TaskKind.KV_LOAD, TaskKind.QKV_OFFLOAD, TaskKind.EXPERT_OFFLOAD, TaskKind.CPU_EXPERTS)
    assert {ran[kind] for kind in (*kinds, TaskKind.EXPERT_UPLOAD)} == {all_layers}
    assert ran[TaskKind.HEAD] == all_layers // 3
    assert TaskKind.PAGE_COPY not in ran
    assert TaskKind.GPU_EXPERTS not in ran


def test_of_a_cache_that_comes_up_only_what_is_valid_crosses(checkpoint, monkeypatch):
    folder, num_experts, prompts, _ = checkpoint
    model = load_model(folder)
    crossed: list[int] = []
    copy = EmulatedBackend.copy

    def count(backend: EmulatedBackend, target: torch.Tensor, source: torch.Tensor) -> None:
        crossed.append(source.nbytes if current_lane() is Lane.H2D else 0)
        copy(backend, target, source)

    monkeypatch.setattr(EmulatedBackend, "copy", count)
    policy = gpu_policy(
        schedule=ScheduleName.KV_TRANSFER, attention_device=GPU, kv_on_gpu=0.0, resident_experts=num_experts
    )

    run(folder, policy, prompts)

    cached = sum(len(prompt.tokens) + earlier for prompt in prompts for earlier in range(GEN_LEN - 1))
    assert sum(crossed) == cached * model.num_layers * 2 * model.kv_size * 4


@pytest.mark.parametrize("kv_dtype", [DType.BFLOAT16, DType.FLOAT32])
@pytest.mark.parametrize("kv_on_gpu", [0.0, 0.5, 1.0])
def test_in_bfloat16_too_a_cache_may_lie_anywhere(checkpoint, kv_on_gpu, kv_dtype):
    folder, _, prompts, _ = checkpoint
    dtypes = {"attention_device": GPU, "weight_dtype": DType.BFLOAT16, "kv_dtype": kv_dtype}
    whole = tokens_of(run(folder, gpu_policy(**dtypes), prompts))

    divided = gpu_policy(schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=kv_on_gpu, **dtypes)
    assert tokens_of(run(folder, divided, prompts)) == whole


@given(
    lens=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    batch=st.integers(1, 20),
    micro_batch=st.integers(1, 20),
    share=st.floats(0, 1),
)
def test_a_cache_is_divided_by_whole_sequences_close_to_its_share(lens, batch, micro_batch, share):
    policy = gpu_policy(batch_size=max(batch, len(lens)), micro_batch_size=min(micro_batch, max(batch, len(lens))))
    wave = make_wave(range(len(lens)), lens, policy)
    cuts = firsts_on_host(wave.micro_batches, wave.prompt_lens, share)

    kept = 0
    for batch_, cut in zip(wave.micro_batches, cuts, strict=True):
        assert batch_.first <= cut <= batch_.last
        kept += sum(wave.prompt_lens[batch_.first : cut])
        on_host = sum(wave.prompt_lens[cut : batch_.last])
        assert on_host <= (1 - share) * batch_.num_tokens + max(lens) + 1e-9
    assert share * sum(lens) - max(lens) - 1e-9 <= kept <= share * sum(lens) + 1e-9
