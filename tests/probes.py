"""Probes of kernels that take as long as a test wants."""

import time

import torch

from hrm.ceilings import Kernel
from hrm.dtypes import DType
from hrm.microbench.kernels import KernelProbe
from hrm.schedule.task import Lane


def sleeping_probe(seconds_per_cell):
    """A probe whose call sleeps so long for each element and row."""

    def make(size, rows, lane, device):
        assert lane in (Lane.CPU, Lane.GPU)
        assert device == torch.device("cpu")
        return lambda: time.sleep(size * rows * seconds_per_cell)

    return KernelProbe(
        kernel=Kernel.PROJECTION, dtype=DType.FLOAT32, sizes=(1, 2, 4), rows=(1, 2, 4, 8, 16, 32), make=make
    )
