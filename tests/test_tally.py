import json

import pytest
import torch

from executor.engine import Engine
from executor.job import Job, run_job
from executor.routing import choose_experts
from hrm.device.host import HostBackend
from hrm.errors import ModelError
from hrm.model_config import load_model
from hrm.routing import Routing
from tests.engines import GEN_LEN, PROMPT_LENS, emulated, gpu_policy, plan_for, policy_of, prompts_for, run, tiny_model

TOKENS = sum(PROMPT_LENS) + len(PROMPT_LENS) * (GEN_LEN - 1)
"""What each layer computes in a job of one wave."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model("mixtral", seed=1)
    folder = tmp_path_factory.mktemp("mixtral")
    model.save_pretrained(folder)
    return folder


def recorded(folder, where, policy, backend):
    prompts = prompts_for(tiny_model("mixtral", seed=1))
    lines = [json.dumps({"id": prompt.id, "tokens": list(prompt.tokens)}) for prompt in prompts]
    (where / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    routing = where / "routing.jsonl"
    job = Job(checkpoint=folder, prompts=where / "prompts.jsonl", output=where / "out.jsonl", routing=routing)
    try:
        run_job(plan_for(folder, policy), job, backend)
    finally:
        backend.close()
    return [json.loads(line) for line in routing.read_text().splitlines()]


def test_every_choice_of_a_run_is_counted_and_read_back(folder, tmp_path, monkeypatch):
    seen = []

    def listening(x, router, model, workspace):
        shares, chosen = choose_experts(x, router, model, workspace)
        if router.listener is not None:
            seen.append(chosen.clone())
        return shares, chosen

    monkeypatch.setattr("executor.decoder.choose_experts", listening)
    lines = recorded(folder, tmp_path, policy_of(), HostBackend(threads=1))

    spec = load_model(folder)
    assert [line["layer"] for line in lines] == [0, 1, 2]
    assert [line["tokens"] for line in lines] == [TOKENS] * 3
    counted = torch.tensor([line["chosen"] for line in lines]).sum(dim=0)
    assert counted.tolist() == torch.bincount(torch.cat(seen).flatten(), minlength=4).tolist()
    law = Routing.from_trace(tmp_path / "routing.jsonl", spec)
    frequencies = [[count / TOKENS for count in line["chosen"]] for line in lines]
    for tokens in (1, 2, 8):
        expected = sum(1 - (1 - share) ** tokens for layer in frequencies for share in layer) / 3
        assert law.distinct_experts(spec, float(tokens)) == pytest.approx(expected, rel=1e-3)


def test_where_experts_are_computed_makes_no_difference(folder, tmp_path):
    split = gpu_policy(resident_experts=1, cpu_experts=2)

    on_host = recorded(folder, tmp_path, policy_of(), HostBackend(threads=1))

    assert recorded(folder, tmp_path, split, emulated(2**24)) == on_host


def test_listening_changes_no_answer(folder):
    prompts = prompts_for(tiny_model("mixtral", seed=1))
    backend = HostBackend(threads=1)
    engine = Engine(plan_for(folder, policy_of()), folder, backend)
    engine.record_routing()

    heard = engine.generate(prompts).completions
    backend.close()

    assert heard == run(folder, policy_of(), prompts).completions


def test_a_model_without_a_router_says_so(tmp_path):
    model = tiny_model("llama", seed=4)
    model.save_pretrained(tmp_path)
    backend = HostBackend(threads=1)
    engine = Engine(plan_for(tmp_path, policy_of()), tmp_path, backend)

    with pytest.raises(ModelError, match="no router"):
        engine.record_routing()
    backend.close()
