"""A machine read at one fidelity: its peaks, or what was measured or, failing that, can be achieved.

Every rate that a prediction uses is read here: at `roof` the datasheet's, at `ceiling` the measured one, and where
nothing was measured the default of `hrm.achievable` for the device's class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from hrm.achievable import DeviceClass, Trait, default
from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.hardware import HardwareProfile, Level, Link, Rate, SharedRate
from hrm.policy import Policy, Processor, ScheduleName
from hrm.records import record
from hrm.roofline import computing_rates
from hrm.schedule.sharing import Burst, Shared
from hrm.schedule.task import Lane, Phase, TaskKind

__all__ = ["Rates", "class_of", "placement_of"]

_COMPUTE_TRAIT = {Kernel.EXPERT_FFN: Trait.EXPERT_GEMM, Kernel.ATTENTION_PREFILL: Trait.PREFILL_ATTENTION}
_MEMORY_TRAIT = {
    Kernel.PROJECTION: Trait.FEW_ROWS,
    Kernel.EXPERT_FFN: Trait.FEW_ROWS,
    Kernel.ATTENTION_DECODE: Trait.DECODE_ATTENTION,
}
_CLASS_BY_NAME = {"cpu": DeviceClass.SERVER_CPU, "disk": DeviceClass.DISK}
MATRIX_UNIT_FROM = 4.0
"""A 16-bit peak this many times float32's is a matrix unit's: vector units double it, AMX makes it sixteen times."""
_OF_SPLIT_EXPERTS = (
    TaskKind.POST_ATTENTION,
    TaskKind.EXPERT_OFFLOAD,
    TaskKind.CPU_EXPERTS,
    TaskKind.GPU_EXPERTS,
    TaskKind.EXPERT_UPLOAD,
)
HOST_MEMORY_LANES = {Lane.CPU: 1.0, Lane.H2D: 1.0, Lane.D2H: 1.0, Lane.PIN: 2.0, Lane.DISK: 1.0}
"""Lanes that move bytes of host memory, and bytes moved per byte of their work: a staging copy reads and writes."""


def class_of(name: str, level: Level) -> DeviceClass:
    """Return a level's class; one that states none is taken for a server's, by its name."""
    return level.device_class or _CLASS_BY_NAME.get(name, DeviceClass.DATACENTER_GPU)


def placement_of(policy: Policy, kind: TaskKind) -> str:
    """Name the ways of placing things in which tasks of a kind do different things.

    That is where attention and cache lie; of what split experts make of post-attention, that they are split.
    """
    if policy.main_device is Processor.CPU:
        return "all_on_cpu"
    if policy.cpu_experts and kind in _OF_SPLIT_EXPERTS:
        return "split_experts"
    if policy.attention_device is Processor.CPU:
        return "attention_on_cpu"
    return "kv_transfer" if policy.schedule is ScheduleName.KV_TRANSFER else "attention_on_gpu"


@record
class Rates:
    """Rates of a machine at one fidelity; `measured` False reads the peaks.

    What was read once is kept: a prediction asks for the same few rates hundreds of times.
    """

    hardware: HardwareProfile
    measured: bool
    _known: dict[tuple[str, ...], float] = field(default_factory=dict, repr=False, compare=False)
    _others: list[Rates] = field(default_factory=list, repr=False, compare=False)

    @property
    def peaks(self) -> Rates:
        """The same machine at its peaks."""
        if not self.measured:
            return self
        if not self._others:
            self._others.append(Rates(hardware=self.hardware, measured=False))
        return self._others[0]

    def _once(self, key: tuple[str, ...], read: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = read()
        return self._known[key]

    def trait(self, trait: Trait, level: str) -> float:
        """Return the machine's own assumption of a trait, or the default of the level's class."""
        place = self.hardware.level(level)
        own = place.assumed.get(trait)
        return default(trait, class_of(level, place)).value if own is None else own

    def flop_per_s(self, level: str, dtype: DType, kernel: Kernel | None = None) -> float:
        """Return the compute rate of a level's processors together for data stored as `dtype`, for a kernel or at best.

        Raises
        ------
        SchemaError
            When the level has no processor, or no figure for the format.
        """
        return self._once(("flop", level, dtype, kernel or ""), lambda: self._flop_per_s(level, dtype, kernel))

    def _flop_per_s(self, level: str, dtype: DType, kernel: Kernel | None) -> float:
        place = self.hardware.level(level)
        vector_peak = _peak(place, DType.FLOAT32)
        rate = place.count * max(
            self._of(rate, _product_trait(rate, vector_peak, class_of(level, place)), level)
            for rate in computing_rates(place, dtype)
        )
        if not self.measured:
            return rate
        if kernel in _COMPUTE_TRAIT:
            rate *= self.trait(_COMPUTE_TRAIT[kernel], level)
        return rate * self.trait(Trait.QUANTIZED_GEMM, level) if dtype.is_quantized else rate

    def read_bytes_per_s(self, level: str, kernel: Kernel | None = None) -> float:
        """Return the rate at which a level's processors together read its memory, for a kernel or at best."""
        return self._once(("read", level, kernel or ""), lambda: self._read_bytes_per_s(level, kernel))

    def _read_bytes_per_s(self, level: str, kernel: Kernel | None) -> float:
        place = self.hardware.level(level)
        rate = self._of(place.read_bytes_per_s, Trait.READ, level) * place.count
        if self.measured and kernel in _MEMORY_TRAIT:
            rate *= self.trait(_MEMORY_TRAIT[kernel], level)
        return rate

    def within_peaks(self, level: str, dtype: DType, kernel: Kernel) -> bool:
        """Say whether a kernel's rates are no higher than the level's peaks, so that its times are no shorter."""
        return bool(self._once(("within", level, dtype, kernel), lambda: self._within_peaks(level, dtype, kernel)))

    def _within_peaks(self, level: str, dtype: DType, kernel: Kernel) -> bool:
        computes = self.flop_per_s(level, dtype, kernel) <= self.peaks.flop_per_s(level, dtype, kernel)
        return computes and self.read_bytes_per_s(level, kernel) <= self.peaks.read_bytes_per_s(level, kernel)

    def link_bytes_per_s(self, name: str) -> float:
        """Return the rate of a link, all its paths together."""
        link = self.hardware.link(name)
        return self._of(link.bytes_per_s, Trait.LINK, _faster_end(link)) * link.paths

    def latency_s(self, name: str) -> float:
        """Return what a copy across a link takes beside its bytes (nothing at peaks)."""
        link = self.hardware.link(name)
        if not self.measured:
            return 0.0
        return self.trait(Trait.LATENCY, _faster_end(link)) if link.latency_s is None else link.latency_s

    def launch_s(self, level: str) -> float:
        """Return what starting an operator on a level's processor costs (nothing at peaks)."""
        return self._once(("launch", level), lambda: self._launch_s(level))

    def _launch_s(self, level: str) -> float:
        place = self.hardware.level(level)
        if not self.measured:
            return 0.0
        return self.trait(Trait.LAUNCH, level) if place.launch_s is None else place.launch_s

    def task_s(self, policy: Policy, kind: TaskKind, phase: Phase, decode_passes: int) -> float:
        """Return what a task takes beyond its kernels and bytes (nothing at peaks, or where it was not measured).

        In prefill attention is the main device's wherever it is in decode, where what a task takes was measured. Of a
        wave's decode passes, so many, it is the mean: the first takes longer than those which repeat its calls.
        """
        if not self.measured:
            return 0.0
        place = placement_of(policy, kind)
        if kind is TaskKind.ATTENTION and phase is Phase.PREFILL and policy.main_device is Processor.GPU:
            place = "attention_on_gpu"
        first_s = self.hardware.task_s.get(place, {}).get(kind, 0.0)
        if phase is Phase.PREFILL or decode_passes < 1:
            return first_s
        later_s = self.hardware.repeated_s.get(place, {}).get(kind, first_s)
        return (first_s + (decode_passes - 1) * later_s) / decode_passes

    def each_s(self, policy: Policy, kind: TaskKind, phase: Phase) -> float:
        """Return what a task takes for each thing that it goes through one by one (nothing at peaks, likewise)."""
        if not self.measured:
            return 0.0
        return self.hardware.sequence_s.get(placement_of(policy, kind), {}).get(phase, {}).get(kind, 0.0)

    @property
    def staging_bytes_per_s(self) -> float:
        """Bytes per second that the host copies from pageable into pinned memory.

        At peaks the memory's rate halved, for each byte is read and written; else, up to that, what one thread does for
        each GPU, whose own share of the weights it stages.
        """
        place = self.hardware.level("cpu")
        roof = place.read_bytes_per_s.roof * place.count / 2
        if not self.measured:
            return roof
        copies = (place.one_thread_copy_bytes_per_s, place.copy_bytes_per_s)
        measured = [
            copied.measured.median / 2 for copied in copies if copied is not None and copied.measured is not None
        ]
        one_thread = measured[0] if measured else self.trait(Trait.STAGING, "cpu")
        gpus = self.hardware.level("gpu").count if self.hardware.has_gpu else 1
        return min(one_thread * gpus, roof)

    @property
    def shared(self) -> tuple[Shared, ...]:
        """What lanes draw on together: as the profile says, else host memory at its streaming rate."""
        if self.hardware.shared:
            return tuple(
                Shared(
                    name=name,
                    bytes_per_s=self._of(one.bytes_per_s, Trait.READ, "cpu"),
                    drawn_by=_by_lane(one.drawn_by),
                    bursts=self._bursts(one),
                )
                for name, one in self.hardware.shared.items()
            )
        rate = self.read_bytes_per_s("cpu")
        return (Shared(name="host_memory", bytes_per_s=rate, drawn_by=HOST_MEMORY_LANES),)

    def _bursts(self, shared: SharedRate) -> dict[Lane, Burst]:
        """Return what the processors draw that read the shared memory: several, as where a device has none of its own.

        A slowed host works at its own speed and then sleeps.
        """
        lanes = [lane for lane in (Lane.CPU, Lane.GPU) if shared.drawn_by.get(lane)]
        slowdown = {Lane.CPU: self.hardware.emulated.host_slowdown} if self.hardware.emulated else {}
        bursts = {
            lane: Burst(self.read_bytes_per_s(str(lane)) * slowdown.get(lane, 1.0), 1.0 / slowdown.get(lane, 1.0))
            for lane in lanes
        }
        return bursts if len(bursts) > 1 else {}

    @property
    def kept(self) -> dict[Lane, float]:
        """The share of its own rate that each lane keeps beside busy ones, as far as that was measured."""
        return _by_lane(self.hardware.contention) if self.measured else {}

    def table(self, level: str, kernel: Kernel, dtype: DType) -> CeilingTable | None:
        """Return the measured table of a kernel, where there is one and the fidelity looks at it."""
        if not self.measured:
            return None
        for table in self.hardware.ceilings:
            if (table.kernel, table.level, table.dtype) == (kernel, level, dtype):
                return table
        return None

    def _of(self, rate: Rate, trait: Trait, level: str) -> float:
        if not self.measured:
            return rate.roof
        return rate.measured.median if rate.measured else rate.roof * self.trait(trait, level)


def _by_lane(drawn_by: dict[str, float]) -> dict[Lane, float]:
    return {Lane(name): share for name, share in drawn_by.items()}


def _peak(level: Level, dtype: DType) -> float:
    rate = level.compute_flop_per_s.get(dtype)
    return rate.roof if rate else float("inf")


def _product_trait(rate: Rate, vector_peak: float, device_class: DeviceClass) -> Trait:
    """Say which share of its peak a product sustains: a CPU that does 16-bit products much faster has a matrix unit."""
    is_cpu = device_class in (DeviceClass.SERVER_CPU, DeviceClass.DESKTOP_CPU)
    return Trait.MATRIX_UNIT if is_cpu and rate.roof > MATRIX_UNIT_FROM * vector_peak else Trait.GEMM


def _faster_end(link: Link) -> str:
    return link.target if link.target != "cpu" else link.source
