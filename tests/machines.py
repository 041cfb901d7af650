"""Small machines, models, jobs and policies for the tests of the model: built by hand, or drawn at random."""

from typing import Any

from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.hardware import HardwareProfile, Level, Link, Rate
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.units import GIB
from hrm.workload import Workload


def model(**changes):
    values: dict[str, Any] = {
        "name": "tiny",
        "family": "mixtral",
        "num_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_query_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "num_experts": 4,
        "experts_per_token": 2,
        "vocab_size": 32,
        "max_position_embeddings": 4096,
    }
    return ModelSpec(**values | changes)


def rate(peak):
    return Rate(peak=float(peak))


def level(compute_flop_per_s, read_bytes_per_s, capacity_bytes=GIB, launch_s=0.0):
    return Level(
        description="a level",
        capacity_bytes=capacity_bytes,
        usable_bytes=capacity_bytes,
        compute_flop_per_s={DType.FLOAT32: rate(compute_flop_per_s)},
        read_bytes_per_s=rate(read_bytes_per_s),
        launch_s=launch_s,
    )


def machine(cpu=None, gpu=None, link_bytes_per_s=1e8, latency_s=0.0, contention=None):
    """A machine with a GPU; `cpu_only` drops it."""
    links = {
        "h2d": Link(source="cpu", target="gpu", bytes_per_s=rate(link_bytes_per_s), latency_s=latency_s),
        "d2h": Link(source="gpu", target="cpu", bytes_per_s=rate(link_bytes_per_s), latency_s=latency_s),
    }
    levels = {"cpu": cpu or level(1e9, 1e9), "gpu": gpu or level(1e10, 1e10)}
    return HardwareProfile(name="made up", levels=levels, links=links, contention=contention or {})


def cpu_only(cpu=None):
    return HardwareProfile(name="made up", levels={"cpu": cpu or level(1e9, 1e9)})


def policy(attention=Processor.CPU, ffn=Processor.GPU, **changes):
    values: dict[str, Any] = {
        "batch_size": 6,
        "micro_batch_size": 2,
        "attention_device": attention,
        "ffn_device": ffn,
        "resident_experts": 0,
        "kv_on_gpu": 1.0 if attention is Processor.GPU else 0.0,
        "schedule": ScheduleName.CGOPIPE if ffn is Processor.GPU else ScheduleName.HOST,
        "weight_dtype": DType.FLOAT32,
        "kv_dtype": DType.FLOAT32,
    }
    return Policy(**values | changes)


def workload(mean_prompt_len=12, max_prompt_len=20, gen_len=4, num_sequences=None):
    return Workload(
        mean_prompt_len=float(mean_prompt_len),
        max_prompt_len=max_prompt_len,
        gen_len=gen_len,
        num_sequences=num_sequences,
    )


def powers(low, high):
    """Rates spread over orders of magnitude."""
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


@st.composite
def models(draw):
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    num_experts = draw(st.integers(1, 6))
    return model(
        num_layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(4, 40)),
        intermediate_size=draw(st.integers(4, 40)),
        num_kv_heads=kv_heads,
        num_query_heads=kv_heads * group,
        head_dim=draw(st.integers(2, 8)),
        num_experts=num_experts,
        experts_per_token=draw(st.integers(1, num_experts)),
    )


@st.composite
def machines(draw, contended=True):
    shares = st.dictionaries(st.sampled_from(["cpu", "gpu", "h2d", "d2h"]), st.floats(0.3, 1.0))
    return machine(
        cpu=level(draw(powers(7, 10)), draw(powers(7, 10)), launch_s=draw(st.floats(0, 1e-5))),
        gpu=level(draw(powers(8, 12)), draw(powers(8, 11)), launch_s=draw(st.floats(0, 1e-5))),
        link_bytes_per_s=draw(powers(6, 10)),
        latency_s=draw(st.floats(0, 1e-5)),
        contention=draw(shares) if contended else {},
    )


@st.composite
def policies(draw, num_experts=4):
    ffn = draw(st.sampled_from(Processor))
    attention = draw(st.sampled_from(Processor)) if ffn is Processor.GPU else Processor.CPU
    batch = draw(st.integers(1, 9))
    return policy(
        attention,
        ffn,
        batch_size=batch,
        micro_batch_size=draw(st.integers(1, batch)),
        resident_experts=draw(st.integers(0, num_experts)) if ffn is Processor.GPU else 0,
        staging=draw(st.sampled_from(Staging)),
        pages_per_layer=draw(st.none() | st.integers(1, 4)),
    )


@st.composite
def workloads(draw, max_gen_len=5):
    mean = draw(st.integers(1, 40))
    return workload(
        mean_prompt_len=mean,
        max_prompt_len=mean + draw(st.integers(0, 30)),
        gen_len=draw(st.integers(1, max_gen_len)),
        num_sequences=draw(st.none() | st.integers(1, 12)),
    )
