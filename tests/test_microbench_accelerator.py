"""What a driver says of a device, through a stand-in for its tool."""

import os

import pytest
import torch

from hrm.microbench.accelerator import accelerator_facts, driver_facts, free_memory_bytes


@pytest.fixture
def tool(tmp_path, monkeypatch):
    path = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def answers(script):
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return answers


def test_driver_says_clocks_and_link_and_what_it_cannot_say_is_left_out(tool):
    tool('echo "NVIDIA L4, 550.54, 2040 MHz, 2040 MHz, 6251 MHz, [N/A], 4, 4, 16"')
    facts = driver_facts(0)

    assert facts["accelerator"] == "NVIDIA L4"
    assert (facts["PCIe generation"], facts["PCIe width"]) == ("4", "16")
    assert facts["clock, memory"] == "6251 MHz"
    assert "power limit" not in facts


def test_a_failing_tool_says_nothing(tool):
    tool("exit 9")
    assert driver_facts(0) == {}


def test_the_cpu_is_no_accelerator():
    assert accelerator_facts(torch.device("cpu")) == {}
    assert free_memory_bytes(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_its_free_memory():
    free = free_memory_bytes(torch.device("cuda", 0))
    assert free is not None
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
