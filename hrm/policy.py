"""What to run: the policy the solver chooses, the schedule follows and the executor obeys to the letter."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

from annotated_types import Ge

from hrm.dtypes import DType
from hrm.errors import PolicyError
from hrm.model import ModelSpec
from hrm.records import record
from hrm.units import NonNegativeInt, PositiveInt, Share

__all__ = ["Policy", "Processor", "ScheduleName", "Staging"]

_LAYER_SHARE_IN_BUFFERS, _LEAST_DISK_BUFFERS = 4, 6


class Processor(StrEnum):
    """Where an operator runs."""

    CPU = "cpu"
    GPU = "gpu"


class ScheduleName(StrEnum):
    """The pipelines of `hrm.schedule`, as named on the command line."""

    CGOPIPE = "cgopipe"
    """Paged weights, look-ahead, CPU attention beside the GPU (paper §4.1)."""
    UNPAGED = "unpaged"
    """As CGOPipe, a layer's weights crossing in one piece (S2)."""
    SERIAL = "serial"
    """CPU attention in series with the GPU (S3, FlexGen with CPU compute)."""
    KV_TRANSFER = "kv-transfer"
    """GPU attention, the next micro-batch's KV cache fetched meanwhile (S4, FlexGen)."""
    LAYERWISE = "layerwise"
    """Everything on the GPU, weights streamed layer by layer (ZeRO-Inference)."""
    HOST = "host"
    """Everything on the CPU."""


class Staging(StrEnum):
    """Where streamed weights lie: in pinned memory at once, or in pageable memory and copied to pinned on the way."""

    PINNED = "pinned"
    PAGEABLE = "pageable"


@record
class Policy:
    """A policy (N, mu, A_g, F_g, r_w, r_c) that can be executed as it stands.

    `resident_experts` counts, per MoE layer, the experts whose weights stay on the GPU, the first ones. The others lie
    in host memory: with `ffn_device` cpu they are computed there; with gpu the last `cpu_experts` of them are, and
    those between cross the link in `num_pages` equal pages, once per pass. All other operators run on the GPU unless
    both devices are the CPU. Of the KV cache, whole sequences stay on the GPU, up to the share `kv_on_gpu`.

    The last `disk_experts` of each MoE layer, where a GPU computes of those that cross the link, lie on disk and are
    read once per pass, one after the other, into a ring of `disk_buffers` buffers in host memory. The CPU computes with
    them there; to a GPU they cross from there, and then every streamed expert is a page of its own. Where everything
    runs on the CPU, the first `fuller_layers` of these layers keep one expert more in memory.
    """

    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    attention_device: Processor
    ffn_device: Processor
    resident_experts: NonNegativeInt
    cpu_experts: NonNegativeInt = 0
    disk_experts: NonNegativeInt = 0
    fuller_layers: NonNegativeInt = 0
    kv_on_gpu: Share
    schedule: ScheduleName
    weight_dtype: DType
    kv_dtype: DType
    expert_dtype: DType | None = None
    """Format of the routed experts where it differs from `weight_dtype`."""
    staging: Staging = Staging.PINNED
    pages_per_layer: PositiveInt | None = None
    disk_buffers: Annotated[int, Ge(2)] | None = None

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches in one pass; the last may be smaller."""
        return math.ceil(self.batch_size / self.micro_batch_size)

    def num_pages(self, model: ModelSpec) -> int:
        """Pages in which a layer's streamed weights cross: one for each micro-batch where the schedule pages at all.

        With some on disk, each expert is a page: a reading is a copy.
        """
        if self.main_device is Processor.GPU and self.disk_experts:
            return self.streamed_experts(model)
        if self.schedule is ScheduleName.CGOPIPE:
            return self.pages_per_layer or self.num_micro_batches
        return 1

    def pages_in_memory(self, model: ModelSpec) -> int:
        """Return how many of a layer's pages, the first ones, cross from host memory; the others lie on disk."""
        return self.num_pages(model) - self.disk_experts

    @property
    def computes_from_disk(self) -> bool:
        """Whether experts are computed with where they are read to from disk: by the CPU."""
        return self.main_device is Processor.CPU and self.disk_experts > 0

    @property
    def main_device(self) -> Processor:
        """Where everything but attention over the cache and the experts runs."""
        on_gpu = Processor.GPU in (self.attention_device, self.ffn_device)
        return Processor.GPU if on_gpu else Processor.CPU

    def micro_batch_bounds(self, index: int) -> tuple[int, int]:
        """First sequence of micro-batch `index`, and one past its last."""
        first = index * self.micro_batch_size
        return first, min(first + self.micro_batch_size, self.batch_size)

    def experts_on_cpu(self, model: ModelSpec) -> int:
        """Experts per MoE layer that the CPU computes."""
        if self.ffn_device is Processor.CPU:
            return model.num_experts - self.resident_experts
        return self.cpu_experts

    def streamed_experts(self, model: ModelSpec) -> int:
        """Experts per MoE layer whose weights cross the link in each pass."""
        return model.num_experts - self.resident_experts - self.experts_on_cpu(model)

    def disk_experts_of(self, model: ModelSpec) -> dict[int, int]:
        """Experts that lie on disk, by layer: of those that have routed experts."""
        return {layer: self.disk_experts - (place < self.fuller_layers) for place, layer in enumerate(model.moe_layers)}

    def experts_on_disk(self, model: ModelSpec) -> dict[int, range]:
        """Say which experts those are: the last ones, but for those that the CPU computes beside a GPU."""
        end = model.num_experts - (0 if self.main_device is Processor.CPU else self.experts_on_cpu(model))
        return {layer: range(end - count, end) for layer, count in self.disk_experts_of(model).items()}

    def share_on_disk(self, model: ModelSpec) -> float:
        """Share of all routed experts that lies on disk."""
        return sum(self.disk_experts_of(model).values()) / max(1, model.num_moe_layers * model.num_experts)

    def num_disk_buffers(self, model: ModelSpec) -> int:
        """Experts that the ring behind the disk has room for, unless stated.

        A quarter of a layer's, at least six, at most all of them.

        What is read ahead keeps the disk busy while the CPU attends and computes with experts in memory, and while
        those in memory cross the link.
        """
        wanted = max(_LEAST_DISK_BUFFERS, model.num_experts // _LAYER_SHARE_IN_BUFFERS)
        return self.disk_buffers or min(wanted, model.num_experts)

    def weights_on_gpu(self, model: ModelSpec) -> float:
        """r_w: fraction of expert weight bytes resident on the GPU."""
        return self.resident_experts / model.num_experts

    def check(self, model: ModelSpec) -> None:
        """Refuse a policy that contradicts itself or the model.

        Raises
        ------
        PolicyError
            With the field at fault and what it may be.
        """
        if self.micro_batch_size > self.batch_size:
            raise PolicyError(
                f"micro_batch_size {self.micro_batch_size} exceeds batch_size {self.batch_size} (lower it)"
            )
        self._check_experts(model)
        self._check_schedule()
        self._check_kv()

    def _check_experts(self, model: ModelSpec) -> None:
        limit = 0 if self.main_device is Processor.CPU else model.num_experts
        if self.resident_experts > limit:
            raise PolicyError(f"resident_experts {self.resident_experts}: must be at most {limit} (lower it)")
        limit = 0 if self.ffn_device is Processor.CPU else model.num_experts - self.resident_experts
        if self.cpu_experts > limit:
            raise PolicyError(
                f"cpu_experts {self.cpu_experts}: must be at most {limit} with ffn_device {self.ffn_device} and "
                f"{self.resident_experts} experts resident (lower it)"
            )
        self._check_disk(model)

    def _check_disk(self, model: ModelSpec) -> None:
        on_cpu = self.main_device is Processor.CPU
        limit = model.num_experts if on_cpu else self.streamed_experts(model)
        if self.disk_experts > limit:
            raise PolicyError(
                f"disk_experts {self.disk_experts}: must be at most {limit}"
                + (" (lower it)" if on_cpu else ", the experts that cross the link (lower it)")
            )
        limit = max(0, model.num_moe_layers - 1) if on_cpu and self.disk_experts > 1 else 0
        if self.fuller_layers > limit:
            raise PolicyError(
                f"fuller_layers {self.fuller_layers}: must be at most {limit} with disk_experts {self.disk_experts} "
                f"and {model.num_moe_layers} layers of experts (each layer reads one at least, where all are the CPU's)"
            )

    def _check_schedule(self) -> None:
        devices = (self.attention_device, self.ffn_device)
        if (self.schedule is ScheduleName.HOST) != (self.main_device is Processor.CPU):
            wanted = ScheduleName.HOST if self.main_device is Processor.CPU else "one of the others"
            raise PolicyError(f"schedule {self.schedule}: attention {devices[0]} and experts {devices[1]} run {wanted}")
        required = _ATTENTION_OF.get(self.schedule)
        if required is not None and self.attention_device is not required:
            raise PolicyError(
                f"schedule {self.schedule}: needs attention_device {required} (choose that, or another schedule)"
            )

    def _check_kv(self) -> None:
        if self.schedule is ScheduleName.KV_TRANSFER:
            return
        expected = 1.0 if self.attention_device is Processor.GPU else 0.0
        if self.kv_on_gpu != expected:
            raise PolicyError(
                f"kv_on_gpu {self.kv_on_gpu}: must be {expected} with attention_device {self.attention_device} and "
                f"schedule {self.schedule} (only {ScheduleName.KV_TRANSFER} divides the cache)"
            )


_ATTENTION_OF = {
    ScheduleName.SERIAL: Processor.CPU,
    ScheduleName.KV_TRANSFER: Processor.GPU,
    ScheduleName.LAYERWISE: Processor.GPU,
}
