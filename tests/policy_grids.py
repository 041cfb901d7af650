"""Random grids of policies, for the tests that one policy and many take the same path."""

import numpy as np
from hypothesis import strategies as st

from hrm.policy import Processor, ScheduleName
from hrm.policy_grid import PolicyGrid
from tests.machines import any_policies


@st.composite
def grids(draw, num_experts=4, max_batch=9):
    """Grids of a few policies that may be executed, all numbers of which differ; one number may serve all entries.

    The CPU computes experts in all entries or in none, as `PolicyGrid` wants it.
    """
    template = draw(any_policies(num_experts))
    entries = draw(st.integers(1, 4))

    def drawn(low, highs):
        return np.array([float(draw(st.integers(low, int(high)))) for high in highs])

    batch = drawn(1, [max_batch] * entries)
    all_resident = template.resident_experts == num_experts
    if template.main_device is Processor.CPU or (template.ffn_device is Processor.CPU and all_resident):
        resident = np.full(entries, float(template.resident_experts))
    else:
        on_cpu = template.ffn_device is Processor.CPU or template.cpu_experts > 0
        resident = drawn(0, [num_experts - on_cpu] * entries)
    on_cpu = drawn(1, num_experts - resident) if template.cpu_experts else np.zeros(entries)
    on_gpu = template.main_device is Processor.GPU
    most_on_disk = num_experts - resident - on_cpu if on_gpu else np.full(entries, float(num_experts))
    shares = [draw(st.sampled_from([0.0, 0.25, 1.0])) for _ in range(entries)]
    return PolicyGrid(
        template=template,
        batch_size=batch,
        micro_batch_size=drawn(1, batch),
        resident_experts=resident,
        cpu_experts=on_cpu if template.cpu_experts else 0.0,
        disk_experts=drawn(0, most_on_disk) if template.disk_experts else 0.0,
        kv_on_gpu=np.array(shares) if template.schedule is ScheduleName.KV_TRANSFER else template.kv_on_gpu,
    )
