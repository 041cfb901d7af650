"""Intervals: what a prediction's own numbers leave open, no more and no less."""

import math
from dataclasses import replace

import pytest

from hrm.achievable import Trait
from hrm.estimate import Fidelity
from hrm.hardware import Measurement, Rate
from hrm.interval import (
    MODEL_ERROR,
    PHASE_ERRORS,
    TO_80_PERCENT,
    interval_around,
    intervals_around,
    uncertainties,
    with_assumed,
)
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict_grid
from tests.machines import machine, model, policy, with_link, workload


def throughput(hardware):
    found = predict_grid(PolicyGrid.of(policy()), model(), hardware, workload(), Fidelity.CEILING)
    return float(found.throughput_tokens_per_s)


def measured_link(iqr):
    spread = Measurement(median=1e4, iqr=iqr, count=5)
    return with_link(machine(link_bytes_per_s=1e4), "h2d", bytes_per_s=Rate(peak=2e4, measured=spread))


def with_all_assumed(hardware):
    """The machine with every default made an assumption of its own: nothing is left to doubt but measurements."""
    for name in hardware.levels:
        for trait in Trait:
            hardware = with_assumed(hardware, name, trait, 0.5)
    return hardware


def test_the_prediction_lies_inside():
    around = interval_around(throughput(machine()), machine(), throughput)

    assert around.low < throughput(machine()) < around.high


def test_what_a_profile_assumes_itself_is_not_doubted():
    """What is left is the model's own error, of which four in five are this small."""
    sure = with_all_assumed(machine())

    around = interval_around(throughput(sure), sure, throughput)

    assert list(uncertainties(sure)) == []
    factor = math.exp(TO_80_PERCENT * MODEL_ERROR)
    assert around.high == pytest.approx(throughput(sure) * factor)
    assert around.low == pytest.approx(throughput(sure) / factor)


@pytest.mark.parametrize(
    ("name", "error"),
    [("end_to_end", MODEL_ERROR), ("prefill", PHASE_ERRORS["prefill"]), ("decode.gpu", PHASE_ERRORS["decode"])],
)
def test_a_phase_and_its_parts_have_a_model_error_of_their_own(name, error):
    sure = with_all_assumed(machine())

    around = intervals_around({name: 2.0}, sure, lambda _: {name: 2.0})[name]

    assert (around.low, around.high) == pytest.approx(
        (2.0 / math.exp(TO_80_PERCENT * error), 2.0 * math.exp(TO_80_PERCENT * error))
    )


@pytest.mark.parametrize("iqr", [0.0, 1e3, 4e3])
def test_measured_spread_widens_it(iqr):
    """The link binds here: the interval is as wide as the link's own."""
    sure, wider = (with_all_assumed(measured_link(spread)) for spread in (iqr, iqr + 1e3))
    widths = [interval_around(throughput(one), one, throughput) for one in (sure, wider)]

    assert widths[1].high / widths[1].low > widths[0].high / widths[0].low


def test_each_uncertainty_moves_one_number():
    hardware = measured_link(1e3)

    for one in uncertainties(hardware):
        assert one.low != one.high
        changed = [name for name in hardware.levels if one.low.levels[name] != one.high.levels[name]]
        changed += [name for name in hardware.links if one.low.links[name] != one.high.links[name]]
        assert len(changed) == 1, one.name


def test_a_kernel_table_moves_by_its_spread():
    from hrm.ceilings import CeilingTable, Kernel
    from hrm.dtypes import DType

    table = CeilingTable(
        kernel=Kernel.EXPERT_FFN,
        level="gpu",
        dtype=DType.FLOAT32,
        sizes=(384.0,),
        rows=(1,),
        seconds=((1.0,),),
        iqr_s=0.1,
    )
    hardware = with_all_assumed(replace(machine(), ceilings=(table,)))
    (only,) = uncertainties(hardware)

    assert only.name == "ceilings.0"
    assert throughput(only.low) > throughput(hardware) > throughput(only.high)
