"""Plans come back from their files as they went, and what was edited by hand is refused."""

from dataclasses import replace

import pytest
import yaml

from hrm.errors import PolicyError, SchemaError
from hrm.estimate import Fidelity
from hrm.files import to_plain
from hrm.memory import ledger
from hrm.plan import Limits, Plan, PlanStatus, Search, load_plan, machine_of, save_plan, summary
from hrm.policy import Processor, ScheduleName
from hrm.predict import predict
from tests.machines import machine, model, policy, workload


def made(chosen=None, spec=None):
    """A plan for a small job on a made-up machine."""
    chosen, spec, job = chosen or policy(resident_experts=1), spec or model(), workload(num_sequences=6)
    return Plan(
        status=PlanStatus.GIVEN,
        policy=chosen,
        machine=machine_of(machine()),
        model=spec,
        workload=job,
        limits=Limits(usable_bytes={"gpu": 10**9, "cpu": 10**9}),
        memory=ledger(chosen, spec, job),
        prediction=predict(chosen, spec, machine(), job, fidelity=Fidelity.SIMULATED),
    )


def optimal():
    """A plan as a search makes it, with limits that it just keeps."""
    plan = made()
    times = plan.prediction.by_fidelity[Fidelity.CEILING]
    limits = Limits(
        usable_bytes={"gpu": plan.memory.gpu.total_bytes, "cpu": 10**9},
        ram_limit_bytes=plan.memory.cpu.total_bytes,
        max_ttft_s=times.time_to_first_token_s,
        max_tpot_s=times.time_per_token_s,
        max_makespan_s=times.prefill_s + times.decode_s,
    )
    search = Search(method="milp", candidates=1, feasible=1, solve_s=1.0)
    return replace(plan, status=PlanStatus.OPTIMAL, limits=limits, search=search)


@pytest.mark.parametrize(
    "plan",
    [
        made(),
        optimal(),
        made(policy(Processor.CPU, Processor.CPU)),
        made(policy(Processor.GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=0.25, cpu_experts=2)),
        made(spec=model(sliding_window=4, windowed_layers=(0,), dense_layers=(1,), dense_intermediate_size=8)),
    ],
    ids=["streamed", "limited", "host", "kv-transfer", "layers of several kinds"],
)
def test_a_plan_comes_back_from_its_file(tmp_path, plan):
    save_plan(tmp_path / "plan.yaml", plan)
    back = load_plan(tmp_path / "plan.yaml")

    for name in ("status", "policy", "machine", "model", "workload", "memory"):
        assert getattr(back, name) == getattr(plan, name), name
    assert back.prediction.times.decode_s == pytest.approx(plan.prediction.times.decode_s, rel=1e-5)
    assert set(back.prediction.by_fidelity) == set(Fidelity)


@pytest.mark.parametrize(
    ("path", "value", "error", "said"),
    [
        (("limits", "usable_bytes", "gpu"), 1000, SchemaError, "limits.usable_bytes.gpu: 1000 is"),
        (("limits", "usable_bytes"), {}, SchemaError, "limits.usable_bytes.gpu: 0 is"),
        (("prediction", "by_fidelity"), {}, SchemaError, "prediction.by_fidelity: holds no ceiling"),
        (("limits", "ram_limit_bytes"), 1000, SchemaError, "limits.ram_limit_bytes: 1000 is"),
        (("limits", "max_ttft_s"), 1e-9, SchemaError, "limits.max_ttft_s: 1e-09 is less than the"),
        (("limits", "max_tpot_s"), 1e-9, SchemaError, "limits.max_tpot_s: 1e-09"),
        (("limits", "max_makespan_s"), 1e-9, SchemaError, "limits.max_makespan_s: 1e-09"),
        (("limits", "max_makespan_s"), -1.0, SchemaError, "limits.max_makespan_s"),
        (("policy", "batch_size"), 5000, SchemaError, "does not follow from the policy"),
        (("policy", "expert_dtype"), "mxfp4", SchemaError, "does not follow from the policy"),
        (("model", "hidden_size"), 32, SchemaError, "does not follow from the policy"),
        (("memory", "cpu", "kv_cache"), 1, SchemaError, "memory.cpu.kv_cache: 1 does not follow from the policy"),
        (("policy", "kv_on_gpu"), 0.5, PolicyError, "kv_on_gpu 0.5"),
        (("policy", "micro_batch_size"), 10**6, PolicyError, "exceeds batch_size"),
        (("policy", "resident_experts"), 99, PolicyError, "resident_experts 99"),
        (("policy", "cpu_experts"), 99, PolicyError, "cpu_experts 99"),
        (("policy", "schedule"), "layerwise", PolicyError, "schedule layerwise"),
        (("policy", "schedule"), "faster", SchemaError, "policy.schedule"),
        (("policy", "batch_size"), "6", SchemaError, "policy.batch_size"),
        (("policy", "batch_size"), 6.5, SchemaError, "policy.batch_size"),
        (("policy", "speed"), 1, SchemaError, "policy.speed: unknown key"),
        (("workload", "gen_len"), 0, SchemaError, "workload.gen_len"),
    ],
)
def test_a_hand_edited_plan_is_refused(tmp_path, path, value, error, said):
    file = tmp_path / "plan.yaml"
    save_plan(file, optimal())
    document = yaml.safe_load(file.read_text())
    *parents, last = path
    place = document
    for parent in parents:
        place = place[parent]
    place[last] = value
    file.write_text(yaml.safe_dump(document))

    with pytest.raises(error) as caught:
        load_plan(file)

    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_the_summary_says_what_the_plan_says():
    plan = made()
    document = summary(plan)

    assert document["policy"]["resident_experts"] == 1
    assert document["policy"]["weights_on_gpu"] == 0.25
    assert document["throughput_tokens_per_s"] == plan.prediction.times.throughput_tokens_per_s
    assert document["memory"]["gpu"]["total_bytes"] == plan.memory.gpu.total_bytes
    assert document["by_fidelity"] == to_plain(plan.prediction.by_fidelity)


@pytest.mark.parametrize(
    ("chosen", "share"),
    [
        (policy(), 0.0),
        (policy(resident_experts=1, cpu_experts=2), 0.5),
        (policy(Processor.GPU, Processor.CPU, resident_experts=1, schedule=ScheduleName.CGOPIPE), 0.75),
        (policy(Processor.CPU, Processor.CPU), 1.0),
    ],
    ids=["none", "cpu_experts", "ffn_device", "host"],
)
def test_the_summary_says_what_share_of_the_experts_the_cpu_computes(chosen, share):
    assert summary(made(chosen))["policy"]["experts_on_cpu"] == share
