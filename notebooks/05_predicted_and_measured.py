# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Predicted against measured
#
# A model of performance is worth what it predicts. Three tests: the whole loop on this machine, with a device that is
# *emulated* (a second core with memory and a link of its own; its compute and copies are real, its pace is imposed),
# a model larger than memory, read from a real disk, and eleven runs that others published.

# %%
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Image

import hrm
from benchmarks.bigger_than_ram_report import draw, show_pairs, show_rounds
from benchmarks.published_runs import RUNS, read_runs
from hrm.schedule.task import Phase

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The loop, here
#
# `hrm demo` makes a model that does not fit its emulated device, profiles, solves, runs the plan and compares.

# %%
# -P: what is installed, with its compiled kernels, and not the sources in this folder.
demo = [sys.executable, "-P", "-m", "hrm", "demo", "--folder", folder, "--gen-len", "8"]
done = subprocess.run(demo, check=False, capture_output=True, text=True)
assert done.returncode == 0, done.stderr
report = hrm.load_run_report(folder / "run.json")
for name in ("prefill_s", "decode_s", "throughput_tokens_per_s"):
    said, found = report.predicted[name], getattr(report.measured, name)
    print(f"{name:28s} predicted {said:8.2f}, measured {found:8.2f} (emulated), ratio {found / said:.2f}")

# %% [markdown]
# Where the time went, per lane: the lane that was predicted to bind should be the one that hardly rested.

# %%
bottleneck = report.predicted["bottleneck"]["decode"]
measured = report.measured.busy[Phase.DECODE]
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
lanes = sorted(measured, key=lambda lane: measured[lane])
axes.barh([f"{lane}" for lane in lanes], [100 * measured[lane] for lane in lanes], color="#0072B2", height=0.5)
axes.set(xlabel="busy in decode, % of the time (measured, emulated device)", xlim=(0, 100))
axes.set_title(f"predicted to bind: {bottleneck['lane']}", loc="left", fontsize=10)
figure.savefig(folder / "lanes.png", dpi=110)
plt.close(figure)
Image(folder / "lanes.png")

# %% [markdown]
# ## A model larger than memory
#
# Here nothing is emulated: four layers of Qwen3-30B-A3B, 4.8 GB of experts, in a process that may hold 1.6 GiB. Most
# experts are read from the disk in each pass, and an expert that is read serves every token that chose it: up to P2
# twice the sequences are twice the tokens/s, beyond it the CPU is busier than the disk. `benchmarks/bigger_than_ram.py`
# measured it, and the disk's own rate around each run; from that rate and the machine's profile follow the lines.

# %%
disk = json.loads(Path("benchmarks/data/bigger_than_ram.json").read_text())
draw("Qwen3-30B-A3B's layers", disk["qwen3"], folder / "disk.png")
Image(folder / "disk.png")

# %%
for name, found in disk.items():
    show_rounds(name, found)
    show_pairs(name, found)

# %% [markdown]
# ## Runs of others
#
# Predicted from datasheets, published bandwidths and kernel times; nothing is adjusted per run.

# %%
runs = [(run.name, run.measured, run.predicted(run.hardware)) for run in read_runs(RUNS)]
figure, axes = plt.subplots(figsize=(5, 4.5), layout="constrained")
axes.loglog([found for _, found, _ in runs], [said for _, _, said in runs], "o", color="#0072B2")
axes.loglog([8, 500], [8, 500], color="black", linewidth=1, label="predicted = measured")
axes.fill_between(
    [8, 500], [8 / 1.3, 500 / 1.3], [8 * 1.3, 500 * 1.3], color="#0072B2", alpha=0.12, label="within a factor of 1.3"
)
axes.set(xlabel="measured by others, tokens/s", ylabel="predicted, tokens/s")
axes.legend(loc="upper left")
figure.savefig(folder / "published.png", dpi=110)
plt.close(figure)
Image(folder / "published.png")

# %%
for name, found, said in runs:
    print(f"{name:24s} measured {found:7.1f}, predicted {said:7.1f}, ratio {said / found:.2f}")

# %% [markdown]
# ## Check against outside numbers

# %%
factors = [abs(math.log(said / found)) for _, found, said in runs]
typical, largest = math.exp(sum(factors) / len(factors)), math.exp(max(factors))
match = typical < 1.2 and largest < 1.5
print(f"{len(runs)} published runs: typical factor {typical:.3f}, largest {largest:.3f}, match {match}")
assert match

# %% [markdown]
# **Takeaway.** Roofs measured beforehand, counted bytes and a simulated schedule predict real runs to some ten per
# cent, across machines, models and engines. Where they miss, the lane that was busier than predicted says which number
# to doubt.
