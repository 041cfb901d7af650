"""Costs of operators: roofs below ceilings, and tables read where they reach and carried on where they do not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm import operators
from hrm.ceilings import CeilingTable, Kernel
from hrm.cost import add_costs, operator_cost
from hrm.dtypes import DType
from hrm.rates import Rates
from hrm.roofline import Bound, attainable
from tests.machines import any_machines, any_models, level, machine, machines, model

PROPERTY = settings(max_examples=80, deadline=None)
PLACES = st.sampled_from(["cpu", "gpu"])


def roof(hardware):
    return Rates(hardware=hardware, measured=False)


def ceiling(hardware):
    return Rates(hardware=hardware, measured=True)


def table(kernel, sizes, rows, seconds, place="cpu"):
    return CeilingTable(kernel=kernel, level=place, dtype=DType.FLOAT32, sizes=sizes, rows=rows, seconds=seconds)


def projections(seconds):
    return table(Kernel.PROJECTION, (1.0,), (1,), ((seconds,),))


@st.composite
def operators_of_any_kind(draw):
    """An operator of a random model and micro-batch."""
    spec, tokens = draw(any_models()), draw(st.integers(1, 200))
    context = draw(st.integers(1, 300))
    dtype = draw(st.sampled_from(DType))
    made = [
        operators.qkv_proj(spec, tokens, dtype),
        operators.experts(spec, tokens, dtype),
        operators.elementwise(spec, tokens, dtype),
        operators.attention_decode(spec, tokens, context, dtype),
        operators.attention_prefill(spec, tokens, context, context * (context + 1) / 2, dtype),
    ]
    return draw(st.sampled_from(made))


@given(operators_of_any_kind(), any_machines(), PLACES)
@PROPERTY
def test_at_peaks_an_operator_runs_at_what_the_roofline_attains(operator, hardware, place):
    cost = operator_cost(operator, roof(hardware), place)
    reached = attainable(operator, hardware, place)

    if operator.flop:
        assert operator.flop / cost.seconds == pytest.approx(reached.flop_per_s)
        assert cost.bound(crossing=False) is reached.bound
    assert cost.latency_s == 0


@given(operators_of_any_kind(), any_machines(), PLACES)
@PROPERTY
def test_a_ceiling_is_never_below_its_roof(operator, hardware, place):
    peak, measured = (operator_cost(operator, rates, place) for rates in (roof(hardware), ceiling(hardware)))

    assert peak.seconds <= measured.seconds
    assert 0 <= measured.compute_s <= measured.seconds
    assert 0 <= measured.latency_s <= measured.seconds
    assert measured.bytes == peak.bytes == operator.bytes


@given(machines(), st.integers(1, 64), st.floats(1e-12, 1.0))
@PROPERTY
def test_no_table_beats_the_roof(hardware, tokens, table_s):
    operator = operators.qkv_proj(model(), tokens, DType.FLOAT32)
    measured = replace(hardware, ceilings=(projections(table_s),))

    assert (
        operator_cost(operator, roof(measured), "cpu").seconds
        <= operator_cost(operator, ceiling(measured), "cpu").seconds
    )


def test_a_ceiling_table_is_believed_over_rates():
    operator = operators.qkv_proj(model(), 1, DType.FLOAT32)
    edge = replace(projections(1.0), sizes=(float(operator.size),))
    measured = ceiling(replace(machine(), ceilings=(edge,)))

    assert operator_cost(operator, measured, "cpu").seconds == pytest.approx(1.0)
    assert operator_cost(operator, measured, "gpu").seconds < 1e-3
    assert operator_cost(replace(operator, dtype=DType.BFLOAT16), measured, "cpu").seconds < 1e-3


@st.composite
def tables_and_operators(draw):
    """A small table of a kernel, and operators at its edge and `more` beyond it, one way or the other."""
    kernel = draw(st.sampled_from([Kernel.PROJECTION, Kernel.ATTENTION_DECODE, Kernel.ATTENTION_PREFILL]))
    spec = model()

    def at(rows, length):
        if kernel is Kernel.PROJECTION:
            return operators.qkv_proj(replace(spec, num_query_heads=2 * length), rows, DType.FLOAT32)
        if kernel is Kernel.ATTENTION_DECODE:
            return operators.attention_decode(spec, rows, length, DType.FLOAT32)
        return operators.attention_prefill(spec, rows, length, length * (length + 1) / 2, DType.FLOAT32)

    rows, length = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    edge = at(rows, length)
    seconds = draw(st.floats(1e-8, 1e-2))
    sizes, counts = (edge.size / 2, edge.size), (rows,)
    measured = table(kernel, sizes, counts, ((seconds / 2,), (seconds,)))
    return measured, at, rows, length


@given(tables_and_operators(), machines())
@PROPERTY
def test_beyond_its_table_a_kernel_goes_on_from_the_edge(case, hardware):
    """Continuous there, growing on, never faster than at peaks."""
    measured, at, rows, length = case
    rates = ceiling(replace(hardware, ceilings=(measured,)))

    def seconds(rows, length=length):
        return float(operator_cost(at(rows, length), rates, "cpu").seconds)

    assert seconds(rows * (1 + 1e-9)) == pytest.approx(seconds(rows), rel=1e-6)
    for more in (2, 10, 1000):
        beyond = seconds(rows * more), seconds(rows, length * more)

        assert min(beyond) >= seconds(rows) * (1 - 1e-9)
        for rows_, length_ in ((rows * more, length), (rows, length * more)):
            least = operator_cost(at(rows_, length_), roof(hardware), "cpu").seconds
            assert seconds(rows_, length_) >= least


@pytest.mark.parametrize(
    ("kernel", "longer"), [(Kernel.ATTENTION_DECODE, 8.0), (Kernel.ATTENTION_PREFILL, 64.0)], ids=str
)
def test_beyond_its_table_a_kernel_takes_what_its_flop_grow_by(kernel, longer):
    """Where compute binds. A prompt eight times as long has 64 times the pairs."""
    spec, length = model(), 1000

    def at(rows, length):
        if kernel is Kernel.ATTENTION_DECODE:
            return operators.attention_decode(spec, rows, length, DType.FLOAT32)
        return operators.attention_prefill(spec, rows, length, length * (length + 1) / 2, DType.FLOAT32)

    bound_by_compute = machine(cpu=level(1e9, 1e15))
    edge = table(kernel, (float(at(4, length).size),), (4,), ((1.0,),))
    rates = ceiling(replace(bound_by_compute, ceilings=(edge,)))

    assert operator_cost(at(4, 8 * length), rates, "cpu").seconds == pytest.approx(longer, rel=2e-3)
    assert operator_cost(at(4 * 8, length), rates, "cpu").seconds == pytest.approx(8.0)


def test_beyond_its_table_a_kernel_that_reads_weights_needs_no_more_for_more_rows():
    """Until compute takes over: reading the weights takes what it takes."""
    spec = model()
    edge = table(Kernel.PROJECTION, (float(operators.o_proj(spec, 1, DType.FLOAT32).size),), (1,), ((10.0,),))
    rates = ceiling(replace(machine(cpu=level(1e9, 1e3)), ceilings=(edge,)))
    one, two = (operator_cost(operators.o_proj(spec, rows, DType.FLOAT32), rates, "cpu").seconds for rows in (1, 2))

    assert one == pytest.approx(10.0)
    assert one < two < 1.5 * one


def test_experts_that_are_not_there_take_nothing_whatever_the_table_says():
    edge = table(Kernel.EXPERT_FFN, (1.0,), (1,), ((1.0,),), place="gpu")
    rates = ceiling(replace(machine(), ceilings=(edge,)))
    none = operators.experts(model(), 24.0, DType.FLOAT32, share=np.array([0.0, 0.5]))

    kept = np.asarray(operator_cost(none, rates, "gpu").seconds) > 0

    assert kept.tolist() == [False, True]


def test_an_operator_is_started_once_and_one_without_work_not_at_all():
    operator = operators.experts(model(), 1000, DType.FLOAT32)
    quick, slow = (machine(gpu=level(1e10, 1e10, launch_s=launch_s)) for launch_s in (0.0, 0.5))

    def seconds(hardware, one):
        return operator_cost(one, ceiling(hardware), "gpu").seconds

    assert seconds(slow, operator) - seconds(quick, operator) == pytest.approx(0.5)
    assert seconds(slow, operators.router(model(num_experts=1, experts_per_token=1), 8, DType.FLOAT32)) == 0
    assert operator_cost(operator, ceiling(slow), "gpu").latency_s == 0.5


def test_added_costs_keep_what_bound_them():
    slow = operator_cost(operators.elementwise(model(), 8, DType.FLOAT32), roof(machine()), "cpu")
    hard = operator_cost(operators.experts(model(), 4000, DType.FLOAT32), roof(machine()), "cpu")
    total = add_costs([slow, hard])

    assert (slow.bound(crossing=False), hard.bound(crossing=False)) == (Bound.MEMORY, Bound.COMPUTE)
    assert total.seconds == pytest.approx(slow.seconds + hard.seconds)
    assert total.compute_s == pytest.approx(hard.seconds)
    assert total.bytes == slow.bytes + hard.bytes
    assert total.bound(crossing=False) is Bound.COMPUTE
    assert total.bound(crossing=True) is Bound.CROSS_LEVEL
