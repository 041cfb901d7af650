"""Reading off ceiling tables: exact where measured, sane between and beyond."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType

TABLE = CeilingTable(
    kernel=Kernel.PROJECTION,
    level="cpu",
    dtype=DType.FLOAT32,
    sizes=(100.0, 1000.0, 8000.0),
    rows=(1, 4, 32),
    seconds=((1e-5, 2e-5, 9e-5), (4e-5, 8e-5, 7e-4), (3e-4, 6e-4, 5e-3)),
)


def test_a_measured_shape_takes_what_was_measured():
    for size, line in zip(TABLE.sizes, TABLE.seconds, strict=True):
        for rows, seconds in zip(TABLE.rows, line, strict=True):
            assert TABLE.time_s(size, rows) == pytest.approx(seconds)


@given(st.floats(1, 1e6), st.floats(0.1, 1e4), st.floats(1, 10), st.floats(1, 10))
def test_more_work_never_takes_less(size, rows, larger, longer):
    less = TABLE.time_s(size, rows)

    assert TABLE.time_s(size * larger, rows) >= less * (1 - 1e-9)
    assert TABLE.time_s(size, rows * longer) >= less * (1 - 1e-9)


def test_beyond_the_table_the_rate_stays():
    assert TABLE.time_s(8000, 320) == pytest.approx(10 * 5e-3)
    assert TABLE.time_s(80_000, 32) == pytest.approx(10 * 5e-3)


def test_below_the_table_a_launch_costs_what_it_costs():
    assert TABLE.time_s(1, 1) == 1e-5
    assert TABLE.time_s(100, 0.2) == 1e-5


def test_noise_that_makes_more_rows_look_faster_is_not_believed():
    noisy = CeilingTable(
        kernel=Kernel.PROJECTION, level="cpu", dtype=DType.FLOAT32, sizes=(10.0,), rows=(1, 4), seconds=((2e-5, 1e-5),)
    )

    assert noisy.time_s(10, 2) == pytest.approx(2e-5)
