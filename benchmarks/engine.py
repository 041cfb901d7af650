"""The engine beside its roofs, in one run: attention, experts' FFNs, and the pipeline of every schedule.

    python benchmarks/engine.py [--work FOLDER] [--quick]

Runs attention_kernel.py, expert_ffn.py and pipeline.py one after the other on this machine as it is now; each prints
medians with their spread beside roofs measured in the same minute. `--quick` takes fewer rounds and shapes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "attention_kernel.py": (["--cache-mb", "256", "512"], ["--cache-mb", "256", "--rounds", "3"]),
    "expert_ffn.py": ([], ["--tokens", "1", "8", "64", "128", "--rounds", "3"]),
    "pipeline.py": ([], ["--rounds", "1"]),
}
"""Each part with its options, whole and quick."""


def main() -> None:
    """Run all parts; the exit code is that of the first that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("pipeline"), help="folder for what the pipeline's part makes")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for script, (whole, quick) in PARTS.items():
        arguments = quick if options.quick else whole
        if script == "pipeline.py":
            arguments = [*arguments, "--work", str(options.work)]
        print(f"\n== {script} {' '.join(arguments)}, {time.strftime('%Y-%m-%d %H:%M')} ==", flush=True)
        if code := subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
