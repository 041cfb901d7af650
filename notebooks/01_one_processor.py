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
# # One processor's roofline, measured here
#
# A processor does FLOP at a rate and its memory delivers bytes at a rate. An operator that does $I$ FLOP per byte
# attains at most
#
# $$P = \min(P_\text{peak},\; B_\text{memory} \cdot I)$$
#
# and the *ridge point*, where the two meet, says what kind of work the machine is made for. This notebook measures the
# two roofs of the machine it runs on and puts the operators of a real model under them.

# %%
import tempfile
import time
from pathlib import Path

import numpy as np
from IPython.display import Image

from hrm import DType, load_model, ridge_point
from hrm.device.opening import open_backend
from hrm.microbench.profile import Request, profile_machine
from hrm.schedule.task import Phase
from hrm.units import format_bytes_per_s, format_flop_per_s
from hrm.views.layer_operators import Shape
from hrm.views.placement import place_operators
from hrm.views.plot import draw_roofline

olmoe = load_model("olmoe-1b-7b")
FLOAT32 = DType.FLOAT32

# %% [markdown]
# ## Measure
#
# In some ten seconds: the rate of large matrix products in each format, and of reading memory far larger than the
# caches, by one thread and by all. A dtype whose products are some twenty times slower than float32's has no
# instructions here; engines widen it to float32 piece by piece.

# %%
here = profile_machine(open_backend("none"), request=Request(quick=True))
cpu = here.levels["cpu"]
for dtype, rate in cpu.compute_flop_per_s.items():
    print(f"matrix products in {dtype}: {format_flop_per_s(rate.roof)}")
print(f"reading memory: {format_bytes_per_s(cpu.read_bytes_per_s.roof)}")
print(f"ridge point in float32: {ridge_point(cpu, FLOAT32):.1f} FLOP/byte")

# %% [markdown]
# ## Place the operators of a model
#
# OLMoE (64 experts, 8 per token), decoding 64 sequences with a context of 512 tokens.


# %%
def place(batch_size):
    sizes = {"batch_size": batch_size, "micro_batch_size": batch_size, "context_len": 512}
    shape = Shape(phase=Phase.DECODE, **sizes, weight_dtype=FLOAT32, kv_dtype=FLOAT32)
    return place_operators(olmoe, here, shape)


picture = Path(tempfile.mkdtemp()) / "here.png"
draw_roofline(place(64), picture)
Image(picture)

# %% [markdown]
# Left of the ridge the memory binds, right of it the cores. How far each operator moves when the batch grows:

# %%
print("sequences   " + "".join(f"{one.name:>14s}" for one in place(1).operators if one.source is None))
for batch_size in (1, 8, 64, 512):
    placed = [one for one in place(batch_size).operators if one.source is None]
    print(f"{batch_size:9d}   " + "".join(f"{one.operational_intensity_flop_per_byte['cpu']:14.2f}" for one in placed))

# %% [markdown]
# Projections and experts move right, for all sequences share their weights. Attention stays where it is: it reads a KV
# cache of its own for each sequence. Experts move slower than projections: each sees only 8 of 64 tokens.
#
# ## Check against an outside number
#
# numpy brings its own linear algebra library. Its product should not lie far below the measured roof, nor beat it
# by more than noise and one known reason: the roof is that of torch's products, which the engine calls, and on AMD's
# processors with 512-bit vectors torch's library uses vectors half as wide. There numpy reaches twice this roof.


# %%
def seconds(work):
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


left, out = np.ones((1024, 1024), np.float32), np.empty((1024, 1024), np.float32)
by_numpy = 2 * 1024**3 / min(seconds(lambda: np.matmul(left, left, out=out)) for _ in range(20))
roof = cpu.compute_flop_per_s[FLOAT32].roof
matches = 0.35 < roof / by_numpy < 3.0
print(f"our roof {format_flop_per_s(roof)}, numpy's product {format_flop_per_s(by_numpy)}, match {matches}")
assert matches

# %% [markdown]
# **Takeaway.** Two numbers describe a processor well enough to say what it is good at: FLOP/s and bytes/s. Count an
# operator's FLOP per byte, compare with the ridge point, and you know which of the two it waits for.
