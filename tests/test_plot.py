"""Pictures: they appear whole, in the format asked for, and no words stand on others."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hrm.dtypes import DType
from hrm.errors import FileError, HrmError
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.schedule.task import Phase
from hrm.views import roofline_scene as scene
from hrm.views.plot import draw_roofline
from hrm.views.roofline_words import AXES_INCHES, changing_words, roof_words, to_inches
from tests.machines import cpu_only, level, machine
from tests.test_placement import CASE_STUDY, place, with_disk


def case_study(spec="mixtral-8x7b", hardware="l4-case-study", **changes):
    machine = load_profile(hardware) if isinstance(hardware, str) else hardware
    return place(machine, load_model(spec), **CASE_STUDY | changes)


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
        (with_disk(cpu_only()), Phase.DECODE),
        (with_disk(machine()), Phase.DECODE),
        (machine(), Phase.PREFILL),
        (machine(cpu=level(1e9, 1e6), link_bytes_per_s=1e8), Phase.DECODE),
        (machine(link_bytes_per_s=1e13), Phase.DECODE),
        (machine(gpu=level(1e9, 1e12)), Phase.DECODE),
    ],
    ids=[
        "no gpu",
        "cpu and disk",
        "three levels",
        "prefill",
        "link faster than host memory",
        "link faster than all",
        "device bound by compute",
    ],
)
def test_draws_machines_whose_points_are_missing_or_coincide(tmp_path, hardware, phase):
    draw_roofline(place(hardware, phase=phase), tmp_path / "roofs.png")

    assert (tmp_path / "roofs.png").stat().st_size > 10_000


def corners(words):
    """Return the outline of the box of words, drawn in by what letters leave free of it."""
    (width, height), angle = words.size_inches, np.radians(words.angle_deg)
    across = np.array(
        [(x, y) for x in np.linspace(0.03, width - 0.03, 40) for y in np.linspace(0.03, height - 0.03, 5)]
    )
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return across @ turn + words.at_inches


def covers(words, points):
    """Say whether any point lies on words."""
    angle = np.radians(words.angle_deg)
    back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inside = (np.asarray(points) - words.at_inches) @ back
    return bool(np.any(np.all((inside > 0.03) & (inside < np.array(words.size_inches) - 0.03), axis=1)))


@pytest.mark.parametrize(
    ("model", "hardware", "changes"),
    [
        ("mixtral-8x7b", "l4-case-study", {}),
        ("mixtral-8x7b", "l4-case-study", {"batch_size": 64, "micro_batch_size": 64}),
        ("mixtral-8x7b", "l4-case-study", {"phase": Phase.PREFILL, "batch_size": 16, "micro_batch_size": 4}),
        ("mixtral-8x7b", with_disk(load_profile("l4-case-study"), 7e9), {}),
        ("mixtral-8x7b", replace(load_profile("l4-case-study"), links={}), {}),
        ("mixtral-8x7b", "epyc-9355-2xrtx5090", {"batch_size": 1, "micro_batch_size": 1, "kv_dtype": DType.INT8}),
        ("deepseek-v3", "xeon-6454s-rtx4090", {"context_len": 2048}),
        ("gpt-oss-120b", "gcp-n1-4xt4", {"expert_dtype": DType.MXFP4}),
        ("llama-3.1-8b", "ryzen-9950x-rtx5080", {"weight_dtype": DType.Q4_K_M}),
    ],
    ids=["case study", "small", "prefill", "disk", "no links", "latency", "latent", "windows", "dense"],
)
@pytest.mark.parametrize("panel", scene.PANELS)
def test_words_cover_neither_words_nor_rings_and_stay_in_sight(model, hardware, changes, panel):
    view = case_study(model, hardware, **changes)
    axes = scene.span([view])
    roofs = roof_words(view, axes, panel)
    words = (*roofs, *changing_words(view, axes, panel, roofs))
    rings = [
        to_inches(axes, mark.at.operational_intensity_flop_per_byte, mark.at.attainable_flop_per_s)
        for mark in scene.marks(view, panel)
    ]

    for one, other in itertools.combinations(words, 2):
        assert not covers(one, corners(other)), (one.text, other.text)
    for each in words:
        assert not rings or not covers(each, rings), each.text
        assert -0.2 < each.at_inches[0] < AXES_INCHES[0] + 0.1
        assert -0.2 < each.at_inches[1] < AXES_INCHES[1] + 0.1


def test_words_say_the_numbers_of_the_case_study():
    """Of arXiv 2411.11217, section 3.3, as far as the picture's digits go."""
    view = case_study()
    axes = scene.span([view])
    said = [words.text for panel in scene.PANELS for words in changing_words(view, axes, panel, ())]

    assert {"float16, 3.99", "int4, 14.2", "N = 2,400", "μ = 128: 9.59 TFLOP/s"} <= set(said)
    assert "P1\n81.25 FLOP/byte\nN = 325" in said
    assert "P2 = balance point\n599.1 FLOP/byte\nN = 2,396" in said


def test_refuses_other_formats_and_missing_folders(tmp_path):
    with pytest.raises(HrmError, match=r"\.svg or \.html, not '\.gif'"):
        draw_roofline(place(machine()), tmp_path / "roofs.gif")
    with pytest.raises(FileError, match="does not exist"):
        draw_roofline(place(machine()), tmp_path / "no" / "roofs.png")

    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_pyplot_alone(tmp_path):
    """Its global state would belong to the notebook or program that draws."""
    code = (
        "import sys; from tests.machines import machine; from tests.test_placement import CASE_STUDY, place; "
        "from hrm.views.plot import draw_roofline; assert 'matplotlib' not in sys.modules; "
        "draw_roofline(place(machine()), sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).resolve().parent.parent

    subprocess.run([sys.executable, "-c", code, tmp_path / "roofs.png"], check=True, cwd=root)
