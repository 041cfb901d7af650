"""Reading off ceiling tables: exact where measured, sane between and beyond, the same for numbers and arrays."""

from dataclasses import replace

import numpy as np
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
SIZES, ROWS = st.floats(1, 1e6), st.floats(0.1, 1e4)


@st.composite
def tables(draw):
    """Tables of any shape whose times are noise: larger shapes may be measured faster."""
    sizes = draw(st.lists(st.integers(1, 100_000), min_size=1, max_size=4, unique=True))
    rows = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=4, unique=True))
    line = st.lists(st.floats(1e-6, 1e-2), min_size=len(rows), max_size=len(rows)).map(tuple)
    return replace(
        TABLE,
        kernel=draw(st.sampled_from(Kernel)),
        sizes=tuple(map(float, sorted(sizes))),
        rows=tuple(sorted(rows)),
        seconds=tuple(draw(line) for _ in sizes),
    )


def test_a_measured_shape_takes_what_was_measured():
    for size, line in zip(TABLE.sizes, TABLE.seconds, strict=True):
        for rows, seconds in zip(TABLE.rows, line, strict=True):
            assert TABLE.time_s(size, rows) == pytest.approx(seconds)


def test_between_row_counts_each_row_adds_its_own_and_between_sizes_time_grows_with_a_power():
    assert TABLE.time_s(100, 2) == pytest.approx(1e-5 + (2e-5 - 1e-5) / 3)
    assert TABLE.time_s(100, 18) == pytest.approx((2e-5 + 9e-5) / 2)
    assert TABLE.time_s(100 * 10**0.5, 1) == pytest.approx((1e-5 * 4e-5) ** 0.5)


@given(st.floats(1e-6, 1e-3), st.floats(1e-7, 1e-4), st.lists(st.integers(1, 2048), min_size=1, max_size=5), ROWS)
def test_a_start_and_a_rate_are_found_again_whatever_row_counts_were_measured(start_s, row_s, counts, rows):
    measured = tuple(sorted({1, 2048, *counts}))
    table = replace(TABLE, sizes=(10.0,), rows=measured, seconds=(tuple(start_s + row_s * at for at in measured),))

    inside = min(max(rows, 1.0), 2048.0)
    assert table.time_s(10, inside) == pytest.approx(start_s + row_s * inside)


@given(tables(), SIZES, ROWS, st.floats(1, 10), st.floats(1, 10))
def test_more_work_never_takes_less(table, size, rows, larger, longer):
    less = table.time_s(size, rows)

    assert table.time_s(size * larger, rows) >= less * (1 - 1e-9)
    assert table.time_s(size, rows * longer) >= less * (1 - 1e-9)


@given(tables(), st.floats(1, 100), st.floats(1, 100))
def test_no_rate_beyond_the_edge_beats_that_of_the_edge(table, larger, longer):
    size, rows = table.sizes[-1], table.rows[-1]
    work = longer * larger ** (2 if table.kernel is Kernel.ATTENTION_PREFILL else 1)

    assert table.time_s(size * larger, rows * longer) >= table.time_s(size, rows) * work * (1 - 1e-9)


@given(tables(), st.lists(st.tuples(SIZES, ROWS), min_size=1, max_size=8))
def test_an_array_is_read_as_its_entries_are(table, shapes):
    sizes, rows = np.array(shapes).T
    expected = [[table.time_s(size, count) for count in rows] for size in sizes]

    assert table.time_s(sizes, rows) == pytest.approx(np.diag(expected))
    assert table.time_s(sizes[:, None], rows) == pytest.approx(np.array(expected))
    assert table.time_s(float(sizes[0]), rows) == pytest.approx(expected[0])
    assert table.time_s(sizes, float(rows[0])) == pytest.approx([line[0] for line in expected])


def test_beyond_the_table_the_rate_stays():
    assert TABLE.time_s(8000, 320) == pytest.approx(10 * 5e-3)
    assert TABLE.time_s(80_000, 32) == pytest.approx(10 * 5e-3)


def test_a_longer_prompt_beyond_the_table_takes_the_square():
    table = replace(TABLE, kernel=Kernel.ATTENTION_PREFILL)

    assert table.time_s(80_000, 32) == pytest.approx(100 * 5e-3)
    assert table.time_s(8000, 320) == pytest.approx(10 * 5e-3)


def test_below_the_table_a_launch_costs_what_it_costs():
    assert TABLE.time_s(1, 1) == pytest.approx(1e-5)
    assert TABLE.time_s(100, 0.2) == pytest.approx(1e-5)
    assert TABLE.time_s(0, 0) == pytest.approx(1e-5)


def test_a_time_that_larger_shapes_beat_is_taken_for_a_disturbance():
    rows = replace(TABLE, sizes=(10.0,), rows=(1, 4), seconds=((2e-5, 1e-5),))
    sizes = replace(TABLE, sizes=(10.0, 40.0), rows=(1,), seconds=((2e-5,), (1e-5,)))

    assert rows.time_s(10, 2) == pytest.approx(1e-5)
    assert rows.time_s(10, 8) == pytest.approx(2e-5)
    assert sizes.time_s(20, 1) == pytest.approx(1e-5)
