"""What to run: the policy the solver chooses, the schedule follows and the executor obeys to the letter."""

from __future__ import annotations

import math
from enum import StrEnum

from hrm.dtypes import DType
from hrm.errors import PolicyError
from hrm.model import ModelSpec
from hrm.records import record
from hrm.units import NonNegativeInt, PositiveInt, Share

__all__ = ["Policy", "Processor", "ScheduleName", "Staging"]


class Processor(StrEnum):
    """Where an operator runs."""

    CPU = "cpu"
    GPU = "gpu"


class ScheduleName(StrEnum):
    """The pipelines of `hrm.schedule`, as named on the command line."""

    CGOPIPE = "cgopipe"
    HOST = "host"


class Staging(StrEnum):
    """Where streamed weights lie: in pinned memory at once, or in pageable memory and copied to pinned on the way."""

    PINNED = "pinned"
    PAGEABLE = "pageable"


@record
class Policy:
    """A policy (N, mu, A_g, F_g, r_w, r_c) that can be executed as it stands.

    `resident_experts` counts, per layer, the experts whose weights stay on the GPU; the others lie in host memory and
    cross the link in `pages_per_layer` equal pages, once per pass, when the FFN runs on the GPU.
    """

    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    attention_device: Processor
    ffn_device: Processor
    resident_experts: NonNegativeInt
    kv_on_gpu: Share
    schedule: ScheduleName
    weight_dtype: DType
    kv_dtype: DType
    staging: Staging = Staging.PINNED
    pages_per_layer: PositiveInt | None = None

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches in one pass; the last may be smaller."""
        return math.ceil(self.batch_size / self.micro_batch_size)

    @property
    def num_pages(self) -> int:
        """Pages in which a layer's streamed weights cross the link: as many as micro-batches unless told otherwise."""
        return self.pages_per_layer or self.num_micro_batches

    def micro_batch_bounds(self, index: int) -> tuple[int, int]:
        """First sequence of micro-batch `index`, and one past its last."""
        first = index * self.micro_batch_size
        return first, min(first + self.micro_batch_size, self.batch_size)

    def check(self, model: ModelSpec) -> None:
        """Refuse a policy that the executor could not run as written.

        Raises
        ------
        PolicyError
            With the field at fault and what it may be.
        """
        on_cpu = self.ffn_device is Processor.CPU
        if self.micro_batch_size > self.batch_size:
            raise PolicyError(
                f"micro_batch_size {self.micro_batch_size} exceeds batch_size {self.batch_size} (lower it)"
            )
        if on_cpu and self.attention_device is Processor.GPU:
            raise PolicyError("attention_device gpu with ffn_device cpu is not executed (set attention_device to cpu)")
        if self.resident_experts > (0 if on_cpu else model.num_experts):
            limit = 0 if on_cpu else model.num_experts
            raise PolicyError(f"resident_experts {self.resident_experts}: must be at most {limit} (lower it)")
        expected_kv = 1.0 if self.attention_device is Processor.GPU else 0.0
        if self.kv_on_gpu != expected_kv:
            raise PolicyError(
                f"kv_on_gpu {self.kv_on_gpu}: must be {expected_kv} with attention_device {self.attention_device}"
            )
        wanted = ScheduleName.HOST if on_cpu else ScheduleName.CGOPIPE
        if self.schedule is not wanted:
            raise PolicyError(f"schedule {self.schedule}: ffn_device {self.ffn_device} runs {wanted}")

    def weights_on_gpu(self, model: ModelSpec) -> float:
        """r_w: fraction of expert weight bytes resident on the GPU."""
        return self.resident_experts / model.num_experts
