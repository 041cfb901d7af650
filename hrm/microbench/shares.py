"""How a profile's time is dealt out: the share of each part, so that the end comes when it should.

Whatever a part leaves over, and all that no part was given, goes to the kernels' tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["SMALL_JOB", "kept_back_s", "share_s"]

SMALL_JOB = "tasks of a small job"

_SHARES_S = {
    "host memory": (0.9, 6.0),
    "host caches": (0.0, 3.0),
    "host product shapes": (0.5, 12.0),
    "host products": (0.6, 6.0),
    "host launch": (0.1, 0.3),
    "device memory": (0.6, 2.0),
    "device product shapes": (0.4, 3.0),
    "device products": (0.5, 3.0),
    "device launch": (0.1, 0.3),
    "links, both ways at once": (0.4, 1.5),
    "link h2d": (0.4, 1.5),
    "link d2h": (0.4, 1.5),
    "contention between the lanes": (0.6, 4.0),
    "host memory, all lanes at once": (0.4, 2.0),
    "disk": (2.0, 8.0),
    SMALL_JOB: (1.2, 3.0),
}
"""Seconds of a quick profile and of a thorough one, by part; both visits to a part take as long."""


def share_s(part: str, *, quick: bool) -> float:
    """Return the seconds that a part is given; unlimited for one that shares out its own time.

    >>> share_s("host memory again", quick=False) == share_s("host memory", quick=False)
    True
    >>> share_s("link h2d, pinned", quick=False) == share_s("link h2d", quick=False)
    True
    """
    first = part.removesuffix(" again")
    name = first if first in _SHARES_S else first.partition(",")[0]
    return _SHARES_S.get(name, (math.inf, math.inf))[0 if quick else 1]


def kept_back_s(parts: Iterable[str], *, quick: bool) -> float:
    """Return what parts that come later are given together."""
    return sum(share_s(part, quick=quick) for part in parts)
