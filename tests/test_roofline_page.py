"""The page: one file that needs nothing else, and whose script shows the numbers that Python computed."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from hrm.cli.main import app
from hrm.errors import FileError
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.views.roofline_page import write_roofline_page
from tests.machines import cpu_only, machine, model
from tests.test_placement import CASE_STUDY, place, rows, shape_of, with_disk

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="needs Chromium (Debian package chromium)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "case.html"
    write_roofline_page(load_model("mixtral-8x7b"), load_profile("l4-case-study"), shape_of(**CASE_STUDY), path)
    return path


def opened(path, profile, fragment=""):
    """Return the document as it is once its script has run."""
    assert BROWSER is not None, "CI needs Chromium"
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{path}{fragment}"], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def table(document, name):
    """Return the cells of a table's rows."""
    (body,) = re.findall(rf'<table id="{name}".*?<tbody>(.*?)</tbody>', document, re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]
    return [[html.unescape(cell) for cell in row] for row in found]


def data_of(path):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found)


def test_needs_no_other_file(page):
    text = page.read_text()

    assert not re.search(r"\b(src|href)=|@import|url\(|fetch\(|XMLHttpRequest", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert [path.name for path in page.parent.iterdir()] == ["case.html"]
    assert page.stat().st_size < 2**20


def test_holds_the_numbers_of_every_cell(page):
    data = data_of(page)

    assert data["batch_sizes"][data["start"][0]] == 2400
    assert data["micro_batch_sizes"][data["start"][1]] == 128
    for i, j in ((0, 0), (7, 3), (15, 6)):
        batch, micro = data["batch_sizes"][i], min(data["batch_sizes"][i], data["micro_batch_sizes"][j])
        sizes = {"batch_size": batch, "micro_batch_size": micro}
        view = place(load_profile("l4-case-study"), load_model("mixtral-8x7b"), **CASE_STUDY | sizes)
        shown = {(row[0], row[1]): row for panel in data["cells"][i][j]["operators"] for row in panel}
        fetched = rows(view)["experts", "gpu", "cpu"]

        assert shown["experts", "on the GPU, data from the CPU"][2:] == [
            "h2d",
            pytest.approx(fetched.operational_intensity_flop_per_byte["h2d"], rel=1e-4),
            pytest.approx(fetched.attainable_flop_per_s, rel=1e-4),
            fetched.bound,
        ]
        assert len(shown) == len(view.operators)


@needs_browser
def test_shows_the_case_study_first(page, tmp_path):
    """Of arXiv 2411.11217, section 3.3."""
    document = opened(page, tmp_path)

    assert table(document, "points") == [
        ["P1", "81.25", "1.30 TFLOP/s", "325"],
        ["P2 = balance point", "599.1", "9.59 TFLOP/s", "2,396"],
        ["experts at μ = 128", "31.95", "9.59 TFLOP/s", "—"],
    ]
    assert ["attention", "on the GPU, data from the CPU", "3.992", "63.9 GFLOP/s", "cross-level"] in table(
        document, "operators"
    )
    assert ["experts", "on the GPU, data from the CPU", "600", "9.59 TFLOP/s", "memory"] in table(document, "operators")
    for words in ("float16, 3.99", "int4, 14.2", "CPU to GPU link 16 GB/s", "N = 2,400"):
        assert f">{words}</tspan>" in document


@needs_browser
def test_the_address_sets_the_sliders(page, tmp_path):
    document = opened(page, tmp_path, "#N=70&mu=300")

    assert '<output id="batch-value" for="batch">64</output>' in document
    assert '<output id="micro-value" for="micro">64 (at most N)</output>' in document
    assert ["experts", "on the GPU, data from the CPU", "16", "256 GFLOP/s", "cross-level"] in table(
        document, "operators"
    )


@needs_browser
def test_moving_a_slider_moves_everything(page, tmp_path):
    """As a key on the slider does: its value changes and it says so."""
    step = """<script>
      const slider = document.getElementById("batch");
      slider.stepUp();
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    </script></body>"""
    moved = tmp_path / "moved.html"
    moved.write_text(page.read_text().replace("</body>", step))

    document = opened(moved, tmp_path / "profile", "#N=1024&mu=128")

    assert '<output id="batch-value" for="batch">2,048</output>' in document
    assert 'aria-valuetext="N = 2048"' in document
    assert ["experts", "on the GPU, data from the CPU", "512", "8.19 TFLOP/s", "cross-level"] in table(
        document, "operators"
    )
    for slider, meaning in (("batch", "N, sequences in the batch"), ("micro", "μ, sequences in a micro-batch")):
        assert f'<label for="{slider}">{meaning}</label>' in document


@needs_browser
@pytest.mark.parametrize("hardware", [cpu_only(), with_disk(machine())], ids=["no gpu", "three levels"])
def test_draws_other_machines_and_odd_names(hardware, tmp_path):
    odd = model(name='</script><b>"&')
    path = tmp_path / "odd.html"
    write_roofline_page(odd, hardware, shape_of(), path)

    document = opened(path, tmp_path / "profile")

    assert "<b>" not in document
    assert len(table(document, "operators")) == len(place(hardware, odd).operators)
    assert (table(document, "points") == []) is (not hardware.links)
    assert "NaN" not in document.split('id="data"')[0]


def test_the_verb_writes_pages_and_json_has_what_is_drawn(tmp_path):
    path = tmp_path / "page.html"
    options = ["--model", "gpt-oss-20b", "--hardware", "l4-case-study", "--kv-dtype", "int8", "-o", str(path), "--json"]

    done = CliRunner().invoke(app, ["roofline", *options])

    view = json.loads(done.stdout)
    assert done.exit_code == 0
    assert data_of(path)["title"] == "gpt-oss-20b on l4-case-study, decode"
    assert {"operators", "kernel_ceilings", "lines", "levels", "links", "balance_point"} <= view.keys()
    assert view["turning_points"].keys() == {"p1", "p2"}
    assert view["shape"]["expert_dtype"] == "mxfp4"
    assert {line["dtype"] for line in view["lines"]} == {"int8", "bfloat16", "int4", "mxfp4"}
    assert view["links"]["h2d"]["turning_points"] == view["turning_points"]


def test_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        write_roofline_page(model(), machine(), shape_of(), tmp_path / "no" / "page.html")
