"""What the benchmark of models larger than memory makes of its measurements."""

from pathlib import Path
from runpy import run_path

import pytest

crossing = run_path(str(Path(__file__).parents[1] / "benchmarks" / "bigger_than_ram_report.py"))["crossing"]


def test_the_disk_stops_binding_where_computing_takes_as_long_as_reading():
    """A pass takes 2 s of reading, or 62.5 ms a sequence: the same at 32 sequences."""
    points = [(count, count / max(2.0, 0.0625 * count)) for count in (8, 16, 32, 64, 128)]

    found = crossing(points, turn=30)

    assert found is not None
    assert tuple(found) == pytest.approx((32.0, 2.0, 16.0))


def test_one_point_on_a_side_fits_nothing():
    assert crossing([(8, 4.0), (64, 18.0), (128, 20.0)], turn=32) is None
