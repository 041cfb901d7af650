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
# # Choosing a policy: N, the micro-batch, and what stays on the GPU
#
# A policy says how many sequences run at once (N), how many a kernel works on (mu), where attention and experts are
# computed, and how many experts of each layer stay on the GPU. This notebook looks at what each does to throughput,
# where memory ends the choice, and what latency costs. Mixtral 8x7B on an L4, prompts of 418 tokens, 64 generated.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

import hrm
import solver
from hrm.memory import ledger
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict_grid
from hrm.schedule.task import Phase
from hrm.shortage import shortage
from solver.drawing import draw_front
from solver.pareto import pareto_front

model, machine = hrm.load_model("mixtral-8x7b"), hrm.load_profile("gcp-g2-l4")
job = hrm.Workload(mean_prompt_len=418, max_prompt_len=418, gen_len=64, num_sequences=4096)
half, CEILING = hrm.DType.FLOAT16, hrm.Fidelity.CEILING
problem = solver.Problem(model=model, hardware=machine, workload=job, weight_dtype=half, kv_dtype=half)
pictures = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The best plan first

# %%
plan = solver.solve(problem)
best = plan.policy
print(f"N {best.batch_size}, mu {best.micro_batch_size}, resident experts {best.resident_experts}, {best.schedule}")
made, lane = plan.prediction.times, plan.prediction.bottleneck[Phase.DECODE].lane
print(f"{made.throughput_tokens_per_s:.1f} tokens/s, decode waits for {lane}")

# %% [markdown]
# ## Throughput over N and mu
#
# The other choices as in the plan. White is what memory refuses: the KV cache of N sequences in host memory, the
# workspace of mu tokens on the GPU.

# %%
sizes, micros = np.unique(np.geomspace(16, 4096, 33).astype(int)), np.unique(np.geomspace(4, 1024, 33).astype(int))


def rate(**changes):
    policy = replace(best, **{name: int(value) for name, value in changes.items()})
    if policy.micro_batch_size > policy.batch_size or shortage(ledger(policy, model, job), machine):
        return float("nan")
    return float(predict_grid(PolicyGrid.of(policy), model, machine, job, CEILING).throughput_tokens_per_s)


tokens_per_s = np.array([[rate(batch_size=n, micro_batch_size=mu) for n in sizes] for mu in micros])

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
mesh = axes.pcolormesh(sizes, micros, tokens_per_s, cmap="cividis")
axes.plot(best.batch_size, best.micro_batch_size, "o", color="white", markeredgecolor="black", label="the plan")
axes.set(xscale="log", yscale="log", xlabel="N, sequences in flight", ylabel="mu, sequences per kernel")
figure.colorbar(mesh, label="generated tokens/s at ceiling")
axes.legend(loc="upper left")
figure.savefig(pictures / "throughput.png", dpi=110)
plt.close(figure)
Image(pictures / "throughput.png")

# %% [markdown]
# To the right the experts' weights, which cross the link once per pass, serve more sequences: throughput grows with N
# until memory ends it. A small mu makes kernels read weights for few tokens each, over and over.
#
# ## How many experts should stay?
#
# With N as large as memory allows beside them.

# %%
for resident in range(4):
    rates = [rate(batch_size=n, micro_batch_size=min(n, 64), resident_experts=resident) for n in sizes]
    fitting = [found for found in rates if found == found]
    print(f"{resident} of 8 experts of each layer: " + (f"{max(fitting):6.1f} tokens/s" if fitting else "does not fit"))

# %% [markdown]
# ## What latency costs
#
# Throughput and latency pull N in opposite directions. The front holds the policies that nothing beats in both.

# %%
front = pareto_front(problem)
draw_front(front, model, "Mixtral 8x7B on an L4", pictures / "front.png")
Image(pictures / "front.png")

# %%
for point in front[:: max(1, len(front) // 6)]:
    rates = f"{point.throughput_tokens_per_s:6.1f} tokens/s, {point.latency_s:7.2f} s a token"
    print(f"N {point.policy.batch_size:5d}: {rates}")

# %% [markdown]
# ## Check against outside numbers
#
# MoE-Lightning's own runs on an L4 (its artifact, 64 tokens of MT-Bench prompts, mean 76, longest 418) kept 3,648
# sequences in flight in micro-batches of 228 and made 294.5 tokens/s. Our plan for that job should find at least what
# was measured, and the same kind of policy: attention on the CPU, experts streamed to the GPU.

# %%
theirs = hrm.Workload(mean_prompt_len=76.1, max_prompt_len=418, gen_len=64, num_sequences=3648)
ours = solver.solve(replace(problem, workload=theirs))
found = ours.prediction.times.throughput_tokens_per_s
match = found > 0.9 * 294.5 and ours.policy.attention_device is hrm.Processor.CPU
print(f"measured 294.5 tokens/s, our plan {found:.1f}, attention on the {ours.policy.attention_device}, match {match}")
assert match

# %% [markdown]
# **Takeaway.** N carries the weights' way over the link, mu carries the kernel, memory holds both back. The best plan
# lies on the edge of what fits, and latency is bought with throughput along the front.
