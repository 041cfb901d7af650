"""The number type of formulas that serve one policy or an array of them alike."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reals"]

Reals: TypeAlias = float | NDArray[np.float64]
"""A number, or an array of them with one entry per policy: formulas written for it broadcast."""
