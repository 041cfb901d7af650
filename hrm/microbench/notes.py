"""The provenance of a measured profile: for each number how, when and by what command it came about."""

from __future__ import annotations

import datetime as dt

from hrm.hardware import Measurement, Rate
from hrm.microbench.bench import Samples
from hrm.microbench.machine import setting
from hrm.microbench.measure import summary

__all__ = ["Notes", "joined"]


def joined(*details: str) -> str:
    """Join what there is of details."""
    return ", ".join(detail for detail in details if detail)


class Notes:
    """Collects the provenance of what is measured, by dotted path."""

    def __init__(self, command: str) -> None:
        self._how = f"measured {dt.date.today().isoformat()}, {command}"
        self._where = setting()
        self.by_path: dict[str, str] = {}

    def rate(self, path: str, samples: Samples, detail: str = "") -> Rate:
        """Make a rate of samples, and note it."""
        return Rate(measured=self.measured(path, summary(samples), detail))

    def measured(self, path: str, measurement: Measurement, detail: str = "") -> Measurement:
        """Note a measurement with its spread; returns it."""
        share = measurement.iqr / measurement.median
        spread = f"n={measurement.count}, iqr={share:.1%}{' (noisy)' if measurement.noisy else ''}"
        self.by_path[path] = joined(self._how, spread, detail, self._where)
        return measurement

    def other(self, path: str, detail: str) -> None:
        """Note any other number."""
        self.by_path[path] = f"{self._how}, {detail}"
