"""Pictures: they appear whole, in the format asked for, and say what the view says."""

import subprocess
import sys
from pathlib import Path

import pytest

from hrm.errors import FileError, HrmError
from hrm.plot import draw_roofline
from hrm.schedule.task import Phase
from tests.machines import cpu_only, level, machine
from tests.test_placement import place


def test_png(tmp_path):
    draw_roofline(place(machine()), tmp_path / "roofs.png")

    assert (tmp_path / "roofs.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["roofs.png"]


def test_svg_is_the_same_each_time(tmp_path):
    for name in ("one.svg", "two.svg"):
        draw_roofline(place(machine()), tmp_path / name)

    assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()
    assert "<svg" in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize(
    ("hardware", "phase"),
    [
        (cpu_only(), Phase.DECODE),
        (machine(), Phase.PREFILL),
        (machine(cpu=level(1e9, 1e6), link_bytes_per_s=1e8), Phase.DECODE),
        (machine(gpu=level(1e9, 1e12)), Phase.DECODE),
    ],
    ids=["no gpu", "prefill", "link faster than host memory", "device bound by compute"],
)
def test_draws_machines_whose_points_are_missing_or_coincide(tmp_path, hardware, phase):
    draw_roofline(place(hardware, phase=phase), tmp_path / "roofs.png")

    assert (tmp_path / "roofs.png").stat().st_size > 10_000


def test_refuses_other_formats_and_missing_folders(tmp_path):
    with pytest.raises(HrmError, match=r"\.png or \.svg, not '\.gif'"):
        draw_roofline(place(machine()), tmp_path / "roofs.gif")
    with pytest.raises(FileError, match="does not exist"):
        draw_roofline(place(machine()), tmp_path / "no" / "roofs.png")

    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_pyplot_alone(tmp_path):
    """Its global state would belong to the notebook or program that draws."""
    code = (
        "import sys; from tests.machines import machine; from tests.test_placement import place; "
        "from hrm.plot import draw_roofline; assert 'matplotlib' not in sys.modules; "
        "draw_roofline(place(machine()), sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).resolve().parent.parent

    subprocess.run([sys.executable, "-c", code, tmp_path / "roofs.png"], check=True, cwd=root)
