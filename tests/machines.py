"""Small machines, models, jobs and policies for the tests of the model: built by hand, or drawn at random."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from hrm.achievable import DeviceClass, Trait
from hrm.dtypes import DType
from hrm.hardware import HardwareProfile, Level, Link, Measurement, Rate, SharedRate
from hrm.model import LatentAttention, ModelSpec
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.routing import Routing, RoutingLaw
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


def rate(peak, measured=None):
    return Rate(peak=float(peak), measured=None if measured is None else measurement(measured))


def measurement(median):
    return Measurement(median=float(median), iqr=0.0, count=5)


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
    """A machine with a GPU; `cpu_only` drops it, `with_disk` adds a disk."""
    links = {
        "h2d": Link(source="cpu", target="gpu", bytes_per_s=rate(link_bytes_per_s), latency_s=latency_s),
        "d2h": Link(source="gpu", target="cpu", bytes_per_s=rate(link_bytes_per_s), latency_s=latency_s),
    }
    levels = {"cpu": cpu or level(1e9, 1e9), "gpu": gpu or level(1e10, 1e10)}
    return HardwareProfile(name="made up", levels=levels, links=links, contention=contention or {})


def with_disk(hardware, bytes_per_s=1e8, latency_s=0.0):
    """The machine with a disk that reads so fast."""
    disk = replace(level(1.0, bytes_per_s), compute_flop_per_s={}, launch_s=None)
    link = Link(source="disk", target="cpu", bytes_per_s=rate(bytes_per_s), latency_s=latency_s)
    return replace(hardware, levels=hardware.levels | {"disk": disk}, links=hardware.links | {"disk": link})


def with_level(hardware, name, **changes):
    return replace(hardware, levels=hardware.levels | {name: replace(hardware.levels[name], **changes)})


def with_link(hardware, name, **changes):
    return replace(hardware, links=hardware.links | {name: replace(hardware.links[name], **changes)})


def unshared(hardware):
    """The machine with lanes that get in each other's way nowhere: what they share, none of them draws on."""
    nothing = SharedRate(bytes_per_s=rate(1.0), drawn_by={"disk": 0.0})
    return replace(hardware, shared={"nothing": nothing}, contention={})


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
    made = machine(
        cpu=level(draw(powers(7, 10)), draw(powers(7, 10)), launch_s=draw(st.floats(0, 1e-5))),
        gpu=level(draw(powers(8, 12)), draw(powers(8, 11)), launch_s=draw(st.floats(0, 1e-5))),
        link_bytes_per_s=draw(powers(6, 10)),
        latency_s=draw(st.floats(0, 1e-5)),
        contention=draw(shares) if contended else {},
    )
    return with_disk(made, bytes_per_s=draw(powers(6, 10)), latency_s=draw(st.floats(0, 1e-5)))


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


@st.composite
def any_models(draw, num_experts=4):
    """Models of any kind that the code knows: latent attention, windows, dense layers, shared experts, tied heads."""
    num_layers = draw(st.integers(1, 4))
    some_layers = st.sets(st.integers(0, num_layers - 1)).map(sorted).map(tuple)
    latent = LatentAttention(
        q_lora_rank=draw(st.none() | st.integers(2, 8)),
        kv_lora_rank=draw(st.integers(2, 8)),
        nope_head_dim=draw(st.integers(2, 8)),
        rope_head_dim=2,
        value_head_dim=draw(st.integers(2, 8)),
    )
    return replace(
        draw(models()),
        num_layers=num_layers,
        num_experts=num_experts,
        experts_per_token=draw(st.integers(1, num_experts)),
        latent=draw(st.sampled_from([None, latent])),
        sliding_window=draw(st.integers(1, 30)),
        windowed_layers=draw(some_layers),
        dense_layers=draw(some_layers),
        dense_intermediate_size=draw(st.integers(1, 40)),
        shared_intermediate_size=draw(st.sampled_from([0, 8])),
        tie_word_embeddings=draw(st.booleans()),
        expert_bias=draw(st.booleans()),
    )


@st.composite
def any_rates(draw, low, high):
    """A rate known by its peak alone, or measured too, at no more than the peak."""
    peak = draw(powers(low, high))
    return rate(peak, draw(st.none() | st.floats(0.05, 1.0).map(lambda share: share * peak)))


@st.composite
def any_levels(draw, classes):
    """A level that leaves out what a datasheet may leave out: then the defaults of its class count."""
    compute = {
        dtype: draw(any_rates(8, 12)) for dtype in (DType.FLOAT32, *draw(st.sets(st.sampled_from(DType), max_size=3)))
    }
    shares = st.sampled_from([Trait.READ, Trait.GEMM, Trait.EXPERT_GEMM, Trait.FEW_ROWS, Trait.LINK])
    return Level(
        description="a level",
        device_class=draw(st.none() | st.sampled_from(classes)),
        capacity_bytes=GIB,
        usable_bytes=GIB,
        count=draw(st.integers(1, 2)),
        compute_flop_per_s=compute,
        read_bytes_per_s=draw(any_rates(7, 11)),
        one_thread_copy_bytes_per_s=draw(st.none() | any_rates(7, 10)),
        launch_s=draw(st.none() | st.floats(0, 1e-4)),
        assumed=draw(st.dictionaries(shares, st.floats(0.1, 1.0), max_size=2)),
    )


CPU_CLASSES = (DeviceClass.SERVER_CPU, DeviceClass.DESKTOP_CPU)
GPU_CLASSES = (DeviceClass.DATACENTER_GPU, DeviceClass.INFERENCE_GPU, DeviceClass.CONSUMER_GPU)
_DRAWN = st.dictionaries(st.sampled_from(["cpu", "gpu", "h2d", "d2h", "pin", "disk"]), st.floats(0, 2), min_size=1)


@st.composite
def any_machines(draw):
    """Machines of one or two CPUs and GPUs, measured in part, whose lanes contend and share in any way."""
    link = {"paths": draw(st.integers(1, 2)), "latency_s": draw(st.none() | st.floats(0, 1e-4))}
    up, down = Link(source="cpu", target="gpu", bytes_per_s=draw(any_rates(6, 10)), **link), draw(any_rates(6, 10))
    shared = st.builds(SharedRate, bytes_per_s=any_rates(7, 11), drawn_by=_DRAWN)
    lanes = st.sampled_from(["cpu", "gpu", "h2d", "d2h"])
    made = HardwareProfile(
        name="made up",
        levels={"cpu": draw(any_levels(CPU_CLASSES)), "gpu": draw(any_levels(GPU_CLASSES))},
        links={"h2d": up, "d2h": Link(source="gpu", target="cpu", bytes_per_s=down, **link)},
        contention=draw(st.dictionaries(lanes, st.floats(0.3, 1.0))),
        shared=draw(st.dictionaries(st.sampled_from(["dram", "bus"]), shared)),
    )
    return with_disk(made, bytes_per_s=draw(powers(6, 10)), latency_s=draw(st.floats(0, 1e-4)))


@st.composite
def any_policies(draw, num_experts=4, max_batch=9):
    """Policies of every schedule, with experts kept, streamed and computed on the CPU in any mixture."""
    schedule = draw(st.sampled_from(ScheduleName))
    batch = draw(st.integers(1, max_batch))
    changes: dict[str, Any] = {
        "batch_size": batch,
        "micro_batch_size": draw(st.integers(1, batch)),
        "schedule": schedule,
        "weight_dtype": draw(st.sampled_from([DType.FLOAT32, DType.BFLOAT16, DType.INT4])),
        "kv_dtype": draw(st.sampled_from([DType.FLOAT32, DType.INT8])),
        "expert_dtype": draw(st.sampled_from([None, DType.MXFP4])),
        "staging": draw(st.sampled_from(Staging)),
        "pages_per_layer": draw(st.none() | st.integers(1, 4)),
    }
    if schedule is ScheduleName.HOST:
        changes["disk_experts"] = draw(st.integers(0, num_experts))
        changes["disk_buffers"] = draw(st.none() | st.integers(2, 9))
        return policy(Processor.CPU, Processor.CPU, **changes)
    changes["resident_experts"] = resident = draw(st.integers(0, num_experts))
    attention = draw(st.sampled_from(ATTENTION_OF[schedule]))
    if schedule is ScheduleName.KV_TRANSFER:
        changes["kv_on_gpu"] = draw(st.sampled_from([0.0, 0.25, 1.0]))
    if attention is Processor.GPU and draw(st.booleans()):
        return policy(attention, Processor.CPU, **changes)
    changes["cpu_experts"] = on_cpu = draw(st.just(0) | st.integers(0, num_experts - resident))
    changes["disk_experts"] = draw(st.just(0) | st.integers(0, num_experts - resident - on_cpu))
    changes["disk_buffers"] = draw(st.none() | st.integers(2, 9))
    return policy(attention, **changes)


def with_fuller_layers(chosen, spec, count):
    """The policy with so many fuller layers, or as many as it may have."""
    most = spec.num_moe_layers - 1 if chosen.computes_from_disk and chosen.disk_experts > 1 else 0
    return replace(chosen, fuller_layers=max(0, min(count, most)))


ATTENTION_OF = {
    ScheduleName.CGOPIPE: tuple(Processor),
    ScheduleName.UNPAGED: tuple(Processor),
    ScheduleName.SERIAL: (Processor.CPU,),
    ScheduleName.KV_TRANSFER: (Processor.GPU,),
    ScheduleName.LAYERWISE: (Processor.GPU,),
}


@st.composite
def any_workloads(draw, max_gen_len=7):
    """Jobs with skewed routing or padding too."""
    skewed = Routing(law=RoutingLaw.SKEWED, exponent=1.2)
    return replace(
        draw(workloads(max_gen_len)), padded=draw(st.booleans()), routing=draw(st.sampled_from([Routing(), skewed]))
    )
