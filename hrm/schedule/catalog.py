"""The schedules by name."""

from __future__ import annotations

from collections.abc import Callable

from hrm.model import ModelSpec
from hrm.policy import Policy, ScheduleName
from hrm.schedule.baselines import kv_transfer, layerwise, serial, unpaged
from hrm.schedule.cgopipe import cgopipe
from hrm.schedule.host import host
from hrm.schedule.task import Schedule

__all__ = ["SCHEDULES", "build_schedule"]

SCHEDULES: dict[ScheduleName, Callable[[Policy, ModelSpec], Schedule]] = {
    ScheduleName.CGOPIPE: cgopipe,
    ScheduleName.UNPAGED: unpaged,
    ScheduleName.SERIAL: serial,
    ScheduleName.KV_TRANSFER: kv_transfer,
    ScheduleName.LAYERWISE: layerwise,
    ScheduleName.HOST: host,
}


def build_schedule(policy: Policy, model: ModelSpec) -> Schedule:
    """Order the tasks of a policy by the schedule that it names.

    Raises
    ------
    PolicyError
        When the policy cannot be run as written.
    """
    policy.check(model)
    return SCHEDULES[policy.schedule](policy, model)
