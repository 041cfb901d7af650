"""A machine as a ladder of levels: which is at the top, which compute, and which links lead upwards."""

from __future__ import annotations

from hrm.hardware import HardwareProfile, Link

__all__ = ["computing_levels", "fastest_level", "upward_links"]


def fastest_level(hardware: HardwareProfile) -> str:
    """Return the level at the top: the GPU's memory, or the host's where there is none."""
    return "gpu" if hardware.has_gpu else "cpu"


def computing_levels(hardware: HardwareProfile) -> tuple[str, ...]:
    """Return the levels that own a processor."""
    return tuple(name for name, level in hardware.levels.items() if level.compute_flop_per_s)


def upward_links(hardware: HardwareProfile) -> dict[str, Link]:
    """Return the links over which a level fetches from a slower one, from the top of the ladder down."""
    found: dict[str, Link] = {}
    reached = [fastest_level(hardware)]
    for level in reached:
        for name, link in hardware.links.items():
            if link.target == level and link.source not in reached:
                found[name] = link
                reached.append(link.source)
    return found
