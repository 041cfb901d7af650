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
# # Bring your own: a `config.json` and a machine, from nothing to a plan
#
# All that planning needs is what the model's publisher put into `config.json`, and some dozen numbers on the machine.

# %%
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from IPython.display import Image

import hrm
import solver
from hrm.schedule.task import Phase
from hrm.units import GIB
from hrm.what_if import parse_changes, scaled
from solver.drawing import draw_front
from solver.pareto import pareto_front

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The model
#
# A `config.json` as Hugging Face publishes it; here Qwen3-30B-A3B's. No weights are needed.

# %%
config = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
(folder / "config.json").write_text(json.dumps(config))
model = hrm.load_model(folder / "config.json")
print(f"{model.total_parameters / 1e9:.2f} G parameters, {model.total_parameters * 2 / GIB:.1f} GiB in bfloat16")

# %% [markdown]
# ## The machine
#
# `hrm profile -o machine.yaml` measures yours. For one that you do not have, write its datasheet down: peaks, memories,
# the link, and where each number comes from. What software reaches of a peak is a default with a range, by the class of
# the device; the prediction's interval carries it.

# %%
described = """
schema_version: 1
name: my-desktop
description: 16 cores, two channels of DDR5-5600, one 16 GB GPU on PCIe 4.0 x16
levels:
  cpu:
    description: 16-core desktop CPU
    device_class: desktop-cpu
    capacity_bytes: 103079215104
    usable_bytes: 97925254348
    cores: 16
    compute_flop_per_s:
      float32: {peak: 2.304e+12}
    read_bytes_per_s: {peak: 8.96e+10}
  gpu:
    description: 16 GB consumer GPU
    device_class: consumer-gpu
    capacity_bytes: 17179869184
    usable_bytes: 15461882265
    compute_flop_per_s:
      float16: {peak: 9.75e+13}
    read_bytes_per_s: {peak: 7.168e+11}
links:
  h2d: {source: cpu, target: gpu, bytes_per_s: {peak: 3.15e+10}}
  d2h: {source: gpu, target: cpu, bytes_per_s: {peak: 3.15e+10}}
provenance:
  levels.cpu.capacity_bytes: datasheet what is in the slots
  levels.cpu.usable_bytes: inferred 0.95 of capacity, the rest for the operating system
  levels.cpu.cores: datasheet vendor's product page
  levels.cpu.compute_flop_per_s.float32.peak: inferred 16 cores x 4.5 GHz x 32 FLOP per cycle
  levels.cpu.read_bytes_per_s.peak: inferred 2 channels x 8 bytes x 5.6 GT/s
  levels.gpu.capacity_bytes: datasheet vendor's product page
  levels.gpu.usable_bytes: inferred 0.9 of capacity
  levels.gpu.compute_flop_per_s.float16.peak: datasheet dense tensor rate, float32 accumulation
  levels.gpu.read_bytes_per_s.peak: datasheet vendor's product page
  links.h2d.bytes_per_s.peak: datasheet PCI Express 4.0 x16, one direction
  links.d2h.bytes_per_s.peak: datasheet PCI Express 4.0 x16, one direction
"""
(folder / "machine.yaml").write_text(described.lstrip())
machine = hrm.load_profile(folder / "machine.yaml")
print(f"{machine.name}: levels {', '.join(machine.levels)}, links {', '.join(machine.links)}")

# %% [markdown]
# ## The plan
#
# A thousand documents of 1,024 tokens, 256 tokens of answer each, weights in 16 bits.

# %%
job = hrm.Workload(mean_prompt_len=1024, max_prompt_len=2048, gen_len=256, num_sequences=1000)
half = hrm.DType.FLOAT16
problem = solver.Problem(model=model, hardware=machine, workload=job, weight_dtype=half, kv_dtype=half)
plan = solver.solve(problem)
policy, made = plan.policy, plan.prediction
print(f"N {policy.batch_size}, mu {policy.micro_batch_size}, {policy.resident_experts} of 128 experts on the GPU")
print(f"attention on the {policy.attention_device}, schedule {policy.schedule}")
job_s = made.times.prefill_s + made.times.decode_s
print(f"{made.times.throughput_tokens_per_s:.0f} tokens/s, the whole job in {job_s:.0f} s")
for phase in Phase:
    print(f"{phase}: {made.bottleneck[phase].lane} binds ({made.bottleneck[phase].bound})")

# %% [markdown]
# ## What if someone waits for the answers?

# %%
picture = folder / "front.png"
draw_front(pareto_front(problem), model, "Qwen3-30B-A3B on my desktop", picture)
Image(picture)

# %% [markdown]
# ## What to buy next
#
# The same job with twice the link, or with twice the GPU.

# %%
for change in ("link=2x", "gpu_compute=2x", "cpu_bandwidth=2x", "gpu_memory=2x"):
    better = solver.solve(replace(problem, hardware=scaled(machine, parse_changes(change, machine))), simulate=False)
    print(f"{change:18s} {better.prediction.times.throughput_tokens_per_s:6.0f} tokens/s")

# %% [markdown]
# ## Check against outside numbers
#
# The model card says 30.5 billion parameters, 3.3 billion of them active per token. (Active: all but the experts that a
# token does not visit.)

# %%
idle = (model.num_experts - model.experts_per_token) * model.expert_parameters * model.num_layers
for name, ours, card in (("total", model.total_parameters, 30.5e9), ("active", model.total_parameters - idle, 3.3e9)):
    print(f"{name}: {ours / 1e9:.2f} G parameters, the card says {card / 1e9} G, match {abs(ours / card - 1) < 0.02}")
    assert abs(ours / card - 1) < 0.02

# %% [markdown]
# **Takeaway.** A `config.json` and a page of datasheet are enough for a plan with reasons and an interval; a measured
# profile narrows the interval. `hrm solve -o plan.yaml` writes it down, `hrm run plan.yaml` runs it.
