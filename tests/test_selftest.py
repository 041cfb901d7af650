"""`hrm selftest` passes where the device works, and says what does not."""

import json
import sys

import pytest
import torch

from executor import selftest as tried
from hrm.cli.main import main
from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.device.opening import open_backend
from hrm.device.streams import allowed_cores, current_lane
from hrm.schedule.task import Lane
from hrm.units import MIB
from tests.engines import emulated

two_cores = pytest.mark.skipif(len(allowed_cores()) < 2, reason="the emulated device needs a core of its own")


@pytest.fixture
def small_copies(monkeypatch):
    monkeypatch.setattr(tried, "COPY_BYTES", MIB)


def checks_on(backend):
    try:
        return {check.name: check for check in tried.selftest(backend)}
    finally:
        backend.close()


@two_cores
@pytest.mark.usefixtures("small_copies")
def test_everything_works_on_the_emulated_device():
    checks = checks_on(emulated(16 * MIB))

    assert [check for check in checks.values() if not check.passed] == []
    assert set(tried.DEVICE_POLICIES) < set(checks)


@two_cores
@pytest.mark.usefixtures("small_copies")
def test_more_device_memory_than_planned_is_found(monkeypatch):
    empty = EmulatedBackend.empty

    def twice(backend, shape, dtype):
        return empty(backend, (2, *shape), dtype)[0]

    monkeypatch.setattr(EmulatedBackend, "empty", twice)

    failed = {name: check.detail for name, check in checks_on(emulated(16 * MIB)).items() if not check.passed}

    assert set(failed) == set(tried.DEVICE_POLICIES)
    assert all("planned" in detail for detail in failed.values())


def test_without_a_device_the_cpu_is_tried():
    checks = checks_on(HostBackend(threads=1))

    assert set(checks) == {"device", "all on the CPU"}
    assert all(check.passed for check in checks.values())


@two_cores
@pytest.mark.usefixtures("small_copies")
def test_a_link_that_brings_up_something_else_is_found(monkeypatch):
    copy = EmulatedBackend.copy

    def spoil(backend, target, source):
        copy(backend, target, source)
        if current_lane() is Lane.H2D:
            target.view(-1)[-1] += 1

    monkeypatch.setattr(EmulatedBackend, "copy", spoil)

    failed = {name for name, check in checks_on(emulated(16 * MIB)).items() if not check.passed}

    assert {"streams and events", "h2d copies, pinned", "h2d copies, pageable"} <= failed
    assert "d2h copies, pinned" not in failed


def test_the_verb_prints_one_document(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hrm", "selftest", "--device", "none", "--json"])

    with pytest.raises(SystemExit) as exited:
        main()

    assert exited.value.code == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_everything_works_on_the_cuda_device():
    assert [check for check in checks_on(open_backend("cuda")).values() if not check.passed] == []
