"""Random models, policies of every schedule, and made-up seconds of tasks, for the tests of schedules."""

from typing import Any

from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.schedule.sharing import Burst, Shared, Work
from hrm.schedule.task import Lane

GPU_SCHEDULES = [name for name in ScheduleName if name is not ScheduleName.HOST]
NUM_EXPERTS = 4


def tiny_model(**changes):
    values: dict[str, Any] = {
        "name": "tiny",
        "family": "mixtral",
        "num_layers": 3,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_query_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "num_experts": NUM_EXPERTS,
        "experts_per_token": 2,
        "vocab_size": 32,
        "max_position_embeddings": 64,
    }
    return ModelSpec(**values | changes)


def tiny_policy(schedule=ScheduleName.CGOPIPE, **changes):
    on_cpu = schedule in (ScheduleName.CGOPIPE, ScheduleName.UNPAGED, ScheduleName.SERIAL, ScheduleName.HOST)
    attention = changes.get("attention_device", Processor.CPU if on_cpu else Processor.GPU)
    whole = 0.5 if schedule is ScheduleName.KV_TRANSFER else 1.0
    values: dict[str, Any] = {
        "batch_size": 4,
        "micro_batch_size": 1,
        "attention_device": attention,
        "ffn_device": Processor.CPU if schedule is ScheduleName.HOST else Processor.GPU,
        "resident_experts": 0,
        "kv_on_gpu": 0.0 if attention is Processor.CPU else whole,
        "schedule": schedule,
        "weight_dtype": DType.FLOAT32,
        "kv_dtype": DType.FLOAT32,
    }
    return Policy(**values | changes)


@st.composite
def models(draw, max_layers=6):
    """Models with some layers dense and some with a window."""
    num_layers = draw(st.integers(1, max_layers))
    layers = st.sets(st.integers(0, num_layers - 1))
    return tiny_model(
        num_layers=num_layers,
        dense_layers=tuple(sorted(draw(st.just(frozenset()) | layers))),
        dense_intermediate_size=4,
        sliding_window=4,
        windowed_layers=tuple(sorted(draw(st.just(frozenset()) | layers))),
    )


@st.composite
def policies(draw, schedules=tuple(ScheduleName), max_micro_batches=6):
    schedule = draw(st.sampled_from(schedules))
    micro_batches, micro_batch = draw(st.integers(1, max_micro_batches)), draw(st.integers(1, 2))
    if schedule is ScheduleName.HOST:
        return tiny_policy(
            schedule,
            batch_size=micro_batches * micro_batch,
            micro_batch_size=micro_batch,
            disk_experts=draw(st.integers(0, NUM_EXPERTS)),
            disk_buffers=draw(st.none() | st.integers(2, 9)),
        )
    changes: dict[str, Any] = {}
    if schedule in (ScheduleName.CGOPIPE, ScheduleName.UNPAGED):
        changes["attention_device"] = draw(st.sampled_from(Processor))
    if schedule is ScheduleName.KV_TRANSFER:
        changes["kv_on_gpu"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    resident = draw(st.integers(0, NUM_EXPERTS))
    if changes.get("attention_device", tiny_policy(schedule).attention_device) is Processor.GPU and draw(st.booleans()):
        changes["ffn_device"] = Processor.CPU
    else:
        changes["cpu_experts"] = on_cpu = draw(st.just(0) | st.integers(0, NUM_EXPERTS - resident))
        changes["disk_experts"] = draw(st.just(0) | st.integers(0, NUM_EXPERTS - resident - on_cpu))
        changes["disk_buffers"] = draw(st.none() | st.integers(2, 9))
    return tiny_policy(
        schedule,
        batch_size=micro_batches * micro_batch,
        micro_batch_size=micro_batch,
        resident_experts=resident,
        staging=draw(st.sampled_from(Staging)),
        pages_per_layer=draw(st.none() | st.integers(1, 7)),
        **changes,
    )


@st.composite
def works(draw, latencies=True):
    """A function from tasks to work, drawn per kind, and apart for the first micro-batch or page."""
    table: dict[Any, Work] = {}

    def work_of(task):
        key = (task.kind, task.lane, task.part == 0)
        if key not in table:
            moving_s = draw(st.floats(1e-3, 5) | st.just(1.0))
            latency_s = draw(st.sampled_from([0.0, 0.25])) if latencies else 0.0
            moved_bytes = draw(st.sampled_from([0.0, 1.0, 5.0, 20.0]))
            table[key] = Work(moving_s + latency_s, moved_bytes, latency_s)
        return table[key]

    return work_of


@st.composite
def shared_rates(draw, most=2):
    lanes = st.dictionaries(st.sampled_from(Lane), st.sampled_from([0.5, 1.0, 2.0]))
    burst = st.builds(Burst, st.floats(0.5, 50), awake=st.sampled_from([1.0, 0.25]))
    processors = st.sampled_from([Lane.CPU, Lane.GPU])
    bursts: st.SearchStrategy[dict[Lane, Burst]] = st.just({}) | st.dictionaries(processors, burst)
    names = [f"rate {number}" for number in range(draw(st.integers(0, most)))]
    return tuple(
        Shared(name=name, bytes_per_s=draw(st.floats(0.5, 50)), drawn_by=draw(lanes), bursts=draw(bursts))
        for name in names
    )
