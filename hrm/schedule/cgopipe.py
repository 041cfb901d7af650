"""CGOPipe: CPU attention, GPU and link at work at once, weights paged so that nothing waits long (paper §4.1, Alg. 1).

At each position the attention output comes up (D2), the next layer's pages cross the link (D3), the GPU does
post-attention; two positions ahead it has done pre-attention, whose queries, keys and values went down (D1) and were
attended to on the CPU meanwhile.
"""

from __future__ import annotations

from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.schedule.pipeline import pipeline
from hrm.schedule.task import IN_FLIGHT, Schedule

__all__ = ["cgopipe"]


def cgopipe(policy: Policy, model: ModelSpec) -> Schedule:
    """Order the tasks of a policy: look-ahead, and a page of weights for each micro-batch.

    With attention on the GPU there is no D1, D2 and CPU task; with no experts streamed there are no pages.
    """
    return pipeline(policy, model, look_ahead=IN_FLIGHT)
