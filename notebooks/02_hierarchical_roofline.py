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
# # Two levels and a link: the hierarchical roofline
#
# A GPU computes, but the model lies in CPU memory. A link brings bytes from that slower memory, at a lower rate still.
# An operator that does $I$ FLOP per byte can be no faster than the lowest of three roofs:
#
# $$P = \min(P_\text{peak},\; B_\text{memory} \cdot I_\text{memory},\; B_\text{link} \cdot I_\text{link})$$
#
# This notebook walks through the case study of MoE-Lightning (arXiv 2411.11217, section 3.3): Mixtral 8x7B on a server
# with an L4-class GPU.

# %%
import tempfile
from pathlib import Path

from IPython.display import Image

from hrm import DType, load_model, load_profile
from hrm.operators import experts as count_experts
from hrm.roofline import balance_point
from hrm.schedule.task import Phase
from hrm.units import format_flop_per_s
from hrm.views.layer_operators import Shape
from hrm.views.placement import place_operators
from hrm.views.plot import draw_roofline

mixtral = load_model("mixtral-8x7b")
pictures = Path(tempfile.mkdtemp())


def place(hardware, batch_size, micro_batch_size, dtype=DType.FLOAT16, kv_dtype=None, context_len=512):
    sizes = {"batch_size": batch_size, "micro_batch_size": micro_batch_size, "context_len": context_len}
    shape = Shape(phase=Phase.DECODE, **sizes, weight_dtype=dtype, kv_dtype=kv_dtype or dtype)
    return place_operators(mixtral, hardware, shape)


def rows_of(view):
    return {(placed.name, placed.device, placed.source): placed for placed in view.operators}


def picture(view, name):
    draw_roofline(view, pictures / name)
    return Image(pictures / name)


# %% [markdown]
# ## The case study
#
# The GPU is 186 times faster than the CPU at arithmetic, and reads its memory three times faster. But the weights do
# not fit into it: they cross a link of 16 GB/s.

# %%
server = load_profile("l4-case-study")
study = place(server, batch_size=2400, micro_batch_size=128)
picture(study, "study.png")

# %% [markdown]
# Two points on the link's roof decide everything:
#
# - **P1**: left of it, what the link delivers feeds the GPU less than the CPU computes by itself. Compute there.
# - **P2**: from it on, the GPU's kernel at this micro-batch is the limit. A larger batch buys nothing more.

# %%
for name, point in (("P1", study.turning_points.p1), ("P2", study.turning_points.p2)):
    height = format_flop_per_s(point.attainable_flop_per_s)
    print(f"{name}: {point.operational_intensity_flop_per_byte:.2f} FLOP/byte, {height}, N = {point.batch_size:.0f}")

# %% [markdown]
# ## Why does the FFN's intensity grow with the batch, and attention's not?
#
# Count FLOP per byte that crosses the link, for batches of growing size.

# %%
print("    N   experts   attention")
for batch_size in (1, 8, 32, 128, 325, 2400):
    rows = rows_of(place(server, batch_size, min(batch_size, 128)))
    counts = [rows[name, "gpu", "cpu"].operational_intensity_flop_per_byte["h2d"] for name in ("experts", "attention")]
    print(f"{batch_size:5d} {counts[0]:9.2f} {counts[1]:11.2f}")

# %% [markdown]
# An expert's weights are fetched once and serve every token of the batch that is routed to it: N tokens, 2 of 8 experts
# each, 2 bytes per weight, give N/4. (Below some 16 sequences not all experts are hit, and less is fetched.) The keys
# and values of a sequence serve its own token only: 4 FLOP/byte for ever, in Mixtral's grouping of 32 query heads over
# 8 KV heads. Storing them in fewer bits helps, but not past P1: in int4 with a scale per 32 elements it is

# %%
narrow = rows_of(place(server, 2400, 128, kv_dtype=DType.INT4, context_len=4096))["attention", "gpu", "cpu"]
print(f"{narrow.operational_intensity_flop_per_byte['h2d']:.1f} FLOP/byte, against P1 at 81.25")

# %% [markdown]
# So attention belongs on the CPU, where the cache lies, and the experts on the GPU, if the batch is large enough.
#
# ## Why should a latency job split layers statically instead of streaming?
#
# With one sequence everything stands left of P1, at about one FLOP per byte. What each place attains for the experts:

# %%
alone = rows_of(place(server, batch_size=1, micro_batch_size=1))
rates = {
    place: alone["experts", *place].attainable_flop_per_s for place in (("cpu", None), ("gpu", None), ("gpu", "cpu"))
}
for (device, source), flop_per_s in rates.items():
    print(f"computed on {device}, data from {source or device}: {format_flop_per_s(flop_per_s)}")

# %% [markdown]
# A weight already on the GPU is used three times as fast as on the CPU; a weight that must first cross the link, six
# times slower. Fill the GPU with whole layers, leave the rest on the CPU, and move only hidden states. Per token, over
# the experts of all layers, by the share of layers that fits on the GPU:

# %%
flop = alone["experts", "cpu", None].flop * mixtral.num_layers
on_cpu, on_gpu, streamed = (flop / rate for rate in rates.values())
print("on the GPU   split   streamed")
for share in (0.0, 0.25, 0.5):
    split_s, stream_s = (share * on_gpu + (1 - share) * rest for rest in (on_cpu, streamed))
    print(f"{share:10.0%} {split_s:6.3f} s {stream_s:8.3f} s")

# %% [markdown]
# ## The balance point: what resident weights buy
#
# Where the GPU's own memory and the link deliver equally fast (Eq. 11) both are used to the full. Weights that stay on
# the GPU do not cross the link: the same work then fetches fewer bytes, and P2 is reached by a smaller batch.

# %%
kernel = count_experts(mixtral, 128.0, DType.FLOAT16)
balance = balance_point(kernel, server)
print(f"balance point at mu = 128: {balance.operational_intensity_flop_per_byte:.0f} FLOP per byte over the link")
for resident in (0, 1, 2, 4):
    print(f"{resident} of 8 experts resident: P2 at N = {study.turning_points.p2.batch_size * (1 - resident / 8):,.0f}")

# %% [markdown]
# But what stays takes room from the micro-batch: a smaller mu lowers the kernel, hence P2. That trade is the solver's.
#
# ## Check against outside numbers
#
# The paper's figures for its case study, read from its text, within the two digits that it gives.

# %%
experts = rows_of(study)["experts", "gpu", "cpu"]
attention = rows_of(study)["attention", "gpu", "cpu"]
p2 = study.turning_points.p2
checks = {
    "P1, FLOP/byte": (study.turning_points.p1.operational_intensity_flop_per_byte, 81.25),
    "attention, FLOP/byte": (attention.operational_intensity_flop_per_byte["h2d"], 4),
    "experts at mu = 128, FLOP/s": (experts.attainable_flop_per_s, 9.6e12),
    "P2, FLOP/byte": (p2.operational_intensity_flop_per_byte, 600),
    "P2, batch size": (p2.batch_size, 2400),
    "parameters (published safetensors)": (mixtral.total_parameters, 46_702_792_704),
}
for name, (ours, expected) in checks.items():
    print(f"{name}: we see {ours:.6g}, expected {expected:.6g}, match {abs(ours / expected - 1) < 0.01}")
assert all(abs(ours / expected - 1) < 0.01 for ours, expected in checks.values())

# %% [markdown]
# **Takeaway.** Compare each operator's FLOP per fetched byte with P1: left of it compute where the data lies, right of
# it fetch. Throughput comes from a batch large enough to carry the experts to P2; latency from not using the link.
