"""Whether a ledger fits a machine: what each device has to give, and which one is short of how much."""

from __future__ import annotations

from hrm.hardware import HardwareProfile
from hrm.memory import Ledger
from hrm.records import record
from hrm.units import format_bytes

__all__ = ["Shortage", "shortage", "usable_bytes"]


@record
class Shortage:
    """A device that a policy does not fit, and by how much."""

    device: str
    needed_bytes: int
    usable_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Bytes that the device is short of."""
        return self.needed_bytes - self.usable_bytes

    def __str__(self) -> str:
        """Say which device is short of how much."""
        return (
            f"{self.device} memory is short by {format_bytes(self.missing_bytes)} "
            f"(needs {format_bytes(self.needed_bytes)} of {format_bytes(self.usable_bytes)})"
        )


def usable_bytes(hardware: HardwareProfile, device: str, ram_limit_bytes: int | None = None) -> int:
    """Return the bytes that a policy may hold on a device; a limit on host memory goes before its size.

    The limit is the whole process's: interpreter and libraries are taken off.
    """
    level = hardware.level(device)
    usable = level.usable_bytes * level.count
    if ram_limit_bytes is None or device != "cpu":
        return usable
    return min(usable, max(0, ram_limit_bytes - level.runtime_bytes))


def shortage(demand: Ledger, hardware: HardwareProfile, ram_limit_bytes: int | None = None) -> Shortage | None:
    """Return the device that the ledger does not fit, or None where it fits."""
    needs = {"gpu": demand.gpu.total_bytes, "cpu": demand.cpu.total_bytes}
    for device, needed in needs.items():
        if needed == 0:
            continue
        usable = usable_bytes(hardware, device, ram_limit_bytes)
        if needed > usable:
            return Shortage(device=device, needed_bytes=needed, usable_bytes=usable)
    return None
