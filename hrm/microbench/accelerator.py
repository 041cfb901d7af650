"""What a real accelerator says of itself: free memory through torch, clocks and link through its driver."""

from __future__ import annotations

import shutil
import subprocess

import torch

__all__ = ["accelerator_facts", "driver_facts", "free_memory_bytes"]

_QUESTIONS = {
    "accelerator": "name",
    "driver": "driver_version",
    "clock, cores": "clocks.sm",
    "clock, cores at most": "clocks.max.sm",
    "clock, memory": "clocks.mem",
    "power limit": "power.limit",
    "PCIe generation": "pcie.link.gen.current",
    "PCIe generation at most": "pcie.link.gen.max",
    "PCIe width": "pcie.link.width.current",
}
_NO_ANSWER = ("", "[N/A]", "[Not Supported]", "N/A")
_TIMEOUT_S = 10


def free_memory_bytes(device: torch.device) -> int | None:
    """Return how much of a device's memory nobody uses; None where torch cannot say."""
    try:
        free, _ = torch.accelerator.get_memory_info(device)
    except (AttributeError, RuntimeError, NotImplementedError):
        if device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def accelerator_facts(device: torch.device) -> dict[str, str]:
    """Return, in words, how a real device is set and linked; empty for the CPU."""
    if device.type == "cpu":
        return {}
    free = free_memory_bytes(device)
    facts = {} if free is None else {"device memory free": f"{free} bytes"}
    if torch.version.cuda:
        facts["cuda of torch"] = torch.version.cuda
    return facts | driver_facts(device.index or 0)


def driver_facts(index: int) -> dict[str, str]:
    """Return what NVIDIA's tool says of a device; empty without the tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    asked = f"--query-gpu={','.join(_QUESTIONS.values())}"
    command = [tool, f"--id={index}", asked, "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    answers = [part.strip() for part in said.strip().split(",")]
    return {name: answer for name, answer in zip(_QUESTIONS, answers, strict=False) if answer not in _NO_ANSWER}
