"""What tests of several files share."""

import sys

import pytest

from hrm.cli.main import main
from hrm.device.host import HostBackend
from hrm.microbench.bench import Bench


@pytest.fixture
def hrm(monkeypatch, capsys):
    """Run a command line; return exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hrm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


@pytest.fixture
def host():
    """Profile the host with one thread, quickly."""
    backend = HostBackend(threads=1)
    yield Bench(backend, quick=True)
    backend.close()
