"""How long `hrm --help` takes: median and range of seven runs, after one that fills the caches.

Run as `python benchmarks/startup.py`; exits with 1 when the median is 0.4 s or more.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 7
LIMIT_S = 0.4


def main() -> int:
    """Time the command and print one line."""
    times_s = [_run_s() for _ in range(RUNS + 1)][1:]
    median_s = statistics.median(times_s)
    spread = f"{min(times_s):.3f} to {max(times_s):.3f} s"
    print(f"hrm --help: median {median_s:.3f} s of {RUNS} runs, {spread} (limit {LIMIT_S} s)")
    return int(median_s >= LIMIT_S)


def _run_s() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-m", "hrm", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
