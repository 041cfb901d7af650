"""The tools that `bigger_than_ram.py` puts side by side, each in a process of its own that prints one line of JSON.

    python benchmarks/bigger_than_ram_tools.py TOOL '{"checkpoint": ..., ...}'

Tools: `ours`, `accelerate` (transformers with accelerate's disk offload), `llama` (llama.cpp, memory-mapped), `roof`
(the disk alone, on our file, at our size of request and depth), `libraries` (what our process holds before it loads
anything). All do the same job: `sequences` prompts of `prompt_len` random tokens, `gen_len` greedy tokens each.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

MIB = 1 << 20


def main() -> None:
    """Run one tool."""
    job = json.loads(sys.argv[2])
    print(json.dumps(TOOLS[sys.argv[1]](job)), flush=True)


def prompts_of(job: dict[str, Any]) -> list[list[int]]:
    """Return the job's prompts, the same for every tool."""
    drawn = random.Random(0)
    return [[drawn.randrange(3, job["vocab_size"]) for _ in range(job["prompt_len"])] for _ in range(job["sequences"])]


class Planned(NamedTuple):
    """What the engine needs of a plan: the policy may be another than the best."""

    policy: Any
    model: Any
    workload: Any


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Run a policy."""
    from executor import Engine, Prompt
    from hrm.device.host import HostBackend
    from hrm.files import from_plain
    from hrm.model_config import load_model
    from hrm.policy import Policy
    from hrm.workload import Workload

    prompts = [Prompt(id=str(at), tokens=tuple(tokens)) for at, tokens in enumerate(prompts_of(job))]
    workload = Workload.from_prompt_lens((job["prompt_len"],) * len(prompts), job["gen_len"])
    plan = Planned(from_plain(Policy, job["policy"], where="policy"), load_model(job["checkpoint"]), workload)
    backend = HostBackend()
    engine = Engine(plan, job["checkpoint"], backend, ram_limit_bytes=job["limit_bytes"])
    generation = engine.generate(prompts)
    backend.close()
    measured = generation.measured
    return {
        "tokens_per_s": measured.throughput_tokens_per_s,
        "decode_tokens_per_s": measured.decode_throughput_tokens_per_s,
        "prefill_s": measured.prefill_s,
        "decode_s": measured.decode_s,
        "busy": {phase: dict(lanes) for phase, lanes in measured.busy.items()},
        "task_s": {
            phase: {kind: took.seconds for kind, took in tasks.items()} for phase, tasks in measured.task_s.items()
        },
        "first_tokens": [completion.tokens[0] for completion in generation.completions[:8]],
    }


def accelerate(job: dict[str, Any]) -> dict[str, Any]:
    """Generate with transformers, what exceeds `weights_bytes` offloaded to disk."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        job["checkpoint"],
        dtype=torch.bfloat16,
        device_map="auto",
        max_memory={"cpu": job["weights_bytes"]},
        offload_folder=job["offload_folder"],
    )
    tokens = torch.tensor(prompts_of(job))
    begun_s = time.perf_counter()
    with torch.inference_mode():
        made = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=job["gen_len"],
            min_new_tokens=job["gen_len"],
            do_sample=False,
            pad_token_id=0,
        )
    return _result(job, time.perf_counter() - begun_s, made[:8, job["prompt_len"]].tolist())


def llama(job: dict[str, Any]) -> dict[str, Any]:
    """Generate with llama.cpp: all sequences in one batch."""
    from llama_cpp_batch import Llama

    prompts, gen_len = prompts_of(job), job["gen_len"]
    llama_cpp = Llama(job["gguf"], job["threads"], len(prompts) * (job["prompt_len"] + gen_len))
    begun_s = time.perf_counter()
    made = llama_cpp.generate(prompts, gen_len)
    return _result(job, time.perf_counter() - begun_s, [tokens[0] for tokens in made[:8]])


def roof(job: dict[str, Any]) -> dict[str, Any]:
    """Read all of our file past the page cache, in three parts, at our size of request and depth; bytes/s.

    All of it, as the engine does: what the host keeps of a part would make that part look faster.
    """
    from executor.direct import REQUESTS, request_bounds
    from hrm.device.direct_memory import direct_buffers
    from hrm.microbench.disk import DirectReader

    path = Path(job["expert_file"])
    size = request_bounds(job["expert_bytes"])[1]
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    reader = DirectReader(handle, path.stat().st_size // size * size)
    buffers = direct_buffers(size, REQUESTS)
    count = max(REQUESTS, path.stat().st_size // size // 3)
    rates = [count * size / reader.read(buffers, count) for _ in range(3)]
    os.close(handle)
    return {"bytes_per_s": statistics.median(rates), "all": rates}


def libraries(job: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Return what our process holds before it loads anything."""
    import psutil

    import executor.engine  # noqa: F401
    from hrm.device.host import HostBackend

    HostBackend()
    return {"bytes": psutil.Process().memory_info().rss}


def _result(job: dict[str, Any], seconds: float, first_tokens: list[int]) -> dict[str, Any]:
    tokens = job["sequences"] * job["gen_len"]
    return {"tokens_per_s": tokens / seconds, "seconds": seconds, "first_tokens": first_tokens}


TOOLS = {"ours": ours, "accelerate": accelerate, "llama": llama, "roof": roof, "libraries": libraries}

if __name__ == "__main__":
    main()
