"""What a datasheet does not say: the share of its peaks that good software reaches, and what starting work costs.

These defaults stand in wherever a profile has no measurement, one per trait and class of device, each with the evidence
it rests on and the range that holds in four of five cases. A profile may state its own in `assumed`; a measurement
always goes before. None was fitted to a run that the predictions are judged by.
"""

from __future__ import annotations

from enum import StrEnum

from hrm.records import record

__all__ = ["ABSOLUTE", "DEFAULTS", "Default", "DeviceClass", "Trait", "default"]


class DeviceClass(StrEnum):
    """Kinds of device that reach different shares of their datasheet peaks."""

    SERVER_CPU = "server-cpu"
    DESKTOP_CPU = "desktop-cpu"
    DATACENTER_GPU = "datacenter-gpu"
    INFERENCE_GPU = "inference-gpu"
    """Data-centre cards of about 70 W (L4): clocks fall under sustained load."""
    TURING_INFERENCE_GPU = "turing-inference-gpu"
    """The same a generation before asynchronous copies (T4), which pipelined kernels are written for."""
    CONSUMER_GPU = "consumer-gpu"
    DISK = "disk"


class Trait(StrEnum):
    """A quantity that has a default."""

    READ = "read"
    """Share of the datasheet memory rate that streaming reads reach."""
    GEMM = "gemm"
    """Share of the compute peak that large matrix products sustain."""
    MATRIX_UNIT = "matrix_unit"
    """Share of its peak that a CPU's matrix unit (AMX) sustains, where a 16-bit peak counts one."""
    EXPERT_GEMM = "expert_gemm"
    """Rate of grouped expert products, as a share of what plain large products sustain."""
    QUANTIZED_GEMM = "quantized_gemm"
    """Rate of products that widen quantised weights, as a share of plain ones."""
    PREFILL_ATTENTION = "prefill_attention"
    """Rate of causal attention over prompts, as a share of what large products sustain."""
    DECODE_ATTENTION = "decode_attention"
    """Rate at which decode attention reads the KV cache, as a share of streaming reads."""
    FEW_ROWS = "few_rows"
    """Rate at which products of a few rows read their weights, as a share of streaming reads."""
    LINK = "link"
    """Share of a link's datasheet rate that large pinned copies reach."""
    STAGING = "staging"
    """Bytes per second that one thread copies from pageable to pinned memory (each is read and written)."""
    LAUNCH = "launch"
    """Seconds that starting an operator costs, its small kernels (norms, rotations, gathers) included."""
    LATENCY = "latency"
    """Seconds that a copy across a link takes beside its bytes, until the other side may start."""


@record
class Default:
    """A default: its value, the range `low` to `high` that holds in four of five cases, and what it rests on."""

    value: float
    low: float
    high: float
    evidence: str


_CPU_READ = Default(
    value=0.8,
    low=0.68,
    high=0.9,
    evidence="STREAM results (McCalpin, cs.virginia.edu/stream): 0.75 to 0.87 of the DIMMs' rate on two-socket Xeon "
    "and EPYC; 150 of 204.8 GB/s on one Xeon 8380 (MoE-Lens)",
)
_CPU_GEMM = Default(
    value=0.7,
    low=0.5,
    high=0.85,
    evidence="float32 torch.mm reached 0.79 to 0.84, bfloat16 0.84 to 0.90 of the instruction peak on a Zen 4 core "
    "measured with likwid; all-core clocks of a full socket fall below what two cores keep",
)
_CPU_MATRIX_UNIT = Default(
    value=0.28,
    low=0.1,
    high=0.5,
    evidence="AMX bfloat16 on Xeon Platinum 8452Y: 21.3 of 73.7 TFLOP/s a socket with KTransformers' own kernels, 5.4 "
    "with PyTorch's (KTransformers, SOSP 2025)",
)
_CPU_EXPERT_GEMM = Default(
    value=0.8,
    low=0.6,
    high=0.95,
    evidence="SwiGLU experts of 128 to 256 tokens reached 0.8 to 0.95 of a 2048-cubed product (Zen 4, bfloat16)",
)
_CPU_QUANTIZED_GEMM = Default(
    value=0.7,
    low=0.45,
    high=1.0,
    evidence="prompt processing of k-quants on a Ryzen 7950X at about half (llama.cpp) to nearly all (ik_llama.cpp, "
    "llamafile) of float16's speed, by the comparisons in ik_llama.cpp's documentation",
)
_CPU_PREFILL = Default(
    value=0.4,
    low=0.2,
    high=0.6,
    evidence="torch scaled_dot_product_attention over 512 to 2048 tokens, float32, Zen 3 and Zen 4",
)
_CPU_DECODE = Default(
    value=0.6,
    low=0.4,
    high=0.9,
    evidence="a compiled kernel reached 0.8 to 1.0 of the DRAM read rate on 2 Zen 4 cores with a slow mode at half; "
    "plain torch 0.2 to 0.4",
)
_CPU_FEW_ROWS = Default(
    value=0.5,
    low=0.33,
    high=0.75,
    evidence="F.linear of 1 to 8 rows read weights at 0.3 to 0.5 of the DRAM read rate, reordered by oneDNN at 0.6 to "
    "0.8 (Zen 4, bfloat16)",
)
_DESKTOP_FEW_ROWS = Default(
    value=0.6,
    low=0.4,
    high=0.85,
    evidence="as on servers for 16-bit rows; llama.cpp generating with dense 7B q4_0 models on dual-channel DDR5 "
    "desktops reads weights at 0.6 to 0.65 of the DIMMs' rate, 0.8 of streaming (llama.cpp's benchmark discussions)",
)
_CPU_LAUNCH = Default(
    value=1e-5,
    low=5e-6,
    high=2e-5,
    evidence="a fork and join of all cores takes about 5 to 10 us (EPCC OpenMP microbenchmarks, PARALLEL FOR)",
)
_GPU_EXPERT_GEMM = Default(
    value=0.6,
    low=0.45,
    high=0.9,
    evidence="MegaBlocks' block-sparse products reach 0.98 of cuBLAS (arXiv 2211.15841 §6.3); Triton fused-MoE kernels "
    "without tuning for the card about half of it",
)
_GPU_QUANTIZED_GEMM = Default(
    value=0.8,
    low=0.6,
    high=1.0,
    evidence="Marlin keeps close to the float16 peak at large batch (arXiv 2408.11743), k-quant kernels less",
)
_GPU_PREFILL = Default(
    value=0.6,
    low=0.4,
    high=0.8,
    evidence="FlashAttention-2 reaches 0.50 to 0.73 of the A100's peak (arXiv 2307.08691), cuBLAS 0.85 of it",
)
_GPU_DECODE = Default(
    value=0.8,
    low=0.6,
    high=0.95,
    evidence="FlashDecoding and FlashInfer batch decode: 0.7 to 0.9 of the memory rate (arXiv 2501.01005 §4)",
)
_GPU_FEW_ROWS = Default(
    value=0.85,
    low=0.65,
    high=0.97,
    evidence="gpt-fast, batch 1: 0.72 of the A100's datasheet rate end to end in bfloat16, 0.87 of STREAM's",
)
_GPU_LAUNCH = Default(
    value=1.2e-5,
    low=5e-6,
    high=2.5e-5,
    evidence="a CUDA kernel launch costs 3 to 5 us (Zhang et al., 'A Study of Single and Multi-device Synchronization "
    "Methods in Nvidia GPUs', IPDPS 2020); an operator brings two to three",
)

_INFERENCE_READ = Default(
    value=0.72,
    low=0.65,
    high=0.8,
    evidence="220 of 320 GB/s on the T4 (Jia et al., arXiv 1903.07486)",
)
_INFERENCE_GEMM = Default(
    value=0.38,
    low=0.28,
    high=0.55,
    evidence="the T4 reaches 41.6 of 65 TFLOP/s in half precision until its 70 W limit lowers the clock from 1,590 "
    "to below 1,000 MHz within seconds (Jia et al., arXiv 1903.07486)",
)

DEFAULTS: dict[tuple[Trait, DeviceClass], Default] = {
    (Trait.READ, DeviceClass.SERVER_CPU): _CPU_READ,
    (Trait.READ, DeviceClass.DESKTOP_CPU): _CPU_READ,
    (Trait.READ, DeviceClass.DISK): Default(
        value=0.8,
        low=0.5,
        high=1.0,
        evidence="fio, direct sequential reads of 16 MiB: 0.6 to 1.0 of the rated rate, by queue depth",
    ),
    (Trait.READ, DeviceClass.DATACENTER_GPU): Default(
        value=0.88,
        low=0.82,
        high=0.93,
        evidence="BabelStream on A100 and H100 (Deakin et al., IJCSE 2018, and its published results): 0.87 to 0.92",
    ),
    (Trait.READ, DeviceClass.INFERENCE_GPU): _INFERENCE_READ,
    (Trait.READ, DeviceClass.TURING_INFERENCE_GPU): _INFERENCE_READ,
    (Trait.READ, DeviceClass.CONSUMER_GPU): Default(
        value=0.9,
        low=0.82,
        high=0.95,
        evidence="device-to-device bandwidth tests of RTX 30 and 40 cards; 1,541 of 1,792 GB/s measured on an RTX 5090",
    ),
    (Trait.FEW_ROWS, DeviceClass.DESKTOP_CPU): _DESKTOP_FEW_ROWS,
    (Trait.GEMM, DeviceClass.SERVER_CPU): _CPU_GEMM,
    (Trait.GEMM, DeviceClass.DESKTOP_CPU): _CPU_GEMM,
    (Trait.GEMM, DeviceClass.DATACENTER_GPU): Default(
        value=0.78,
        low=0.65,
        high=0.87,
        evidence="maximum achievable matmul FLOPS (Bekman, ML Engineering): 0.87 on A100, 0.80 on H100; less in use",
    ),
    (Trait.GEMM, DeviceClass.INFERENCE_GPU): _INFERENCE_GEMM,
    (Trait.GEMM, DeviceClass.TURING_INFERENCE_GPU): _INFERENCE_GEMM,
    (Trait.EXPERT_GEMM, DeviceClass.TURING_INFERENCE_GPU): Default(
        value=0.25,
        low=0.12,
        high=0.7,
        evidence="no measurement found, hence the wide range: fused expert kernels are written in Triton, whose "
        "pipelining rests on asynchronous copies to shared memory, which begin with compute capability 8.0 (CUDA "
        "Programming Guide); without it loads and products alternate",
    ),
    (Trait.GEMM, DeviceClass.CONSUMER_GPU): Default(
        value=0.85,
        low=0.7,
        high=0.95,
        evidence="cuBLAS float16 with float32 accumulation on RTX 3090 and 4090: 0.85 to 0.95 of the datasheet rate",
    ),
    (Trait.LINK, DeviceClass.DATACENTER_GPU): Default(
        value=0.8,
        low=0.7,
        high=0.85,
        evidence="payload of PCI Express packets of 128 to 256 bytes is 0.84 to 0.91 of the wire's rate (Neugebauer et "
        "al., SIGCOMM 2018); pinned copies: 12.3 of 15.75, 25 of 31.5 GB/s",
    ),
    (Trait.STAGING, DeviceClass.SERVER_CPU): Default(
        value=1.1e10,
        low=7e9,
        high=1.7e10,
        evidence="memcpy of large blocks, one thread: 12.7 GB/s (mbw, Zen 4 guest), 18.7 GB/s (numpy, Zen 3 guest), "
        "7 to 10 GB/s on Xeons of 2.2 to 2.7 GHz, whose line-fill buffers bound a core's rate",
    ),
    (Trait.STAGING, DeviceClass.DESKTOP_CPU): Default(
        value=1.6e10,
        low=1.1e10,
        high=2.4e10,
        evidence="memcpy of large blocks, one thread, at desktop latencies of 65 to 80 ns: about half as fast again as "
        "on servers",
    ),
    (Trait.LATENCY, DeviceClass.DATACENTER_GPU): Default(
        value=2e-5,
        low=1e-5,
        high=4e-5,
        evidence="a small cudaMemcpyAsync and the event that follows it: about 10 us each (Zhang et al., IPDPS 2020)",
    ),
}

_CPU_TRAITS = {
    Trait.LINK: DEFAULTS[Trait.LINK, DeviceClass.DATACENTER_GPU],
    Trait.LATENCY: DEFAULTS[Trait.LATENCY, DeviceClass.DATACENTER_GPU],
    Trait.MATRIX_UNIT: _CPU_MATRIX_UNIT,
    Trait.EXPERT_GEMM: _CPU_EXPERT_GEMM,
    Trait.QUANTIZED_GEMM: _CPU_QUANTIZED_GEMM,
    Trait.PREFILL_ATTENTION: _CPU_PREFILL,
    Trait.DECODE_ATTENTION: _CPU_DECODE,
    Trait.FEW_ROWS: _CPU_FEW_ROWS,
    Trait.LAUNCH: _CPU_LAUNCH,
}
_GPU_TRAITS = {
    Trait.EXPERT_GEMM: _GPU_EXPERT_GEMM,
    Trait.QUANTIZED_GEMM: _GPU_QUANTIZED_GEMM,
    Trait.PREFILL_ATTENTION: _GPU_PREFILL,
    Trait.DECODE_ATTENTION: _GPU_DECODE,
    Trait.FEW_ROWS: _GPU_FEW_ROWS,
    Trait.LAUNCH: _GPU_LAUNCH,
    Trait.LINK: DEFAULTS[Trait.LINK, DeviceClass.DATACENTER_GPU],
    Trait.LATENCY: DEFAULTS[Trait.LATENCY, DeviceClass.DATACENTER_GPU],
}
_DISK_TRAITS = {trait: _GPU_TRAITS[trait] for trait in (Trait.LINK, Trait.LATENCY)}
"""A disk hangs on the same kind of link."""


ABSOLUTE = (Trait.STAGING, Trait.LAUNCH, Trait.LATENCY)
"""Traits that are rates or times; the others are shares, of 1 at most."""


def default(trait: Trait, device_class: DeviceClass) -> Default:
    """Return the default of a trait for a class of device.

    Raises
    ------
    KeyError
        When the class has no such trait: a disk multiplies no matrices.
    """
    exact = DEFAULTS.get((trait, device_class))
    if exact is not None:
        return exact
    if device_class is DeviceClass.DISK:
        return _DISK_TRAITS[trait]
    is_cpu = device_class in (DeviceClass.SERVER_CPU, DeviceClass.DESKTOP_CPU)
    return (_CPU_TRAITS if is_cpu else _GPU_TRAITS)[trait]
