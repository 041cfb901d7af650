"""The report of a validation: one file that needs nothing else, and that shows what was judged."""

import html
import re

import pytest

from hrm.schedule.task import Lane, TaskKind
from hrm.validation.cases import Bar, Run
from hrm.validation.judgement import judge
from hrm.validation.report_page import Validation, write_report_page
from tests.test_roofline_page import needs_browser, opened, table
from tests.test_validation_judgement import MACHINE, MODEL, as_predicted, case


@pytest.fixture(scope="module")
def shown():
    cases = [case("one"), case("<two>", micro_batch_size=1), case("three", batch_size=2, micro_batch_size=1)]
    factors = {"one": (1.0, 1.04), "<two>": (1.1,), "three": (0.8, 0.82)}
    bars = (
        Bar(lane=Lane.GPU, kind=TaskKind.POST_ATTENTION, part=0, start_s=0.0, end_s=1.0),
        Bar(lane=Lane.H2D, kind=TaskKind.PAGE_COPY, part=1, start_s=0.2, end_s=1.5),
    )
    runs = tuple(
        Run(case=of.name, round=index, took_s=1.0, measured=as_predicted(of, slower=factor), timeline=bars)
        for of in cases
        for index, factor in enumerate(factors[of.name])
    )
    machines, models = {"m": MACHINE}, {"n": MODEL}
    return Validation(judgement=judge(cases, runs, machines, models), runs=runs, machines=machines, models=models)


@pytest.fixture(scope="module")
def page(shown, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report_page(path, shown)
    return path


def test_needs_no_other_file(page):
    text = page.read_text()

    assert not re.search(r"\b(src|href)=|@import|url\((?!#)|fetch\(|<script", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"@[A-Z]+@", text)
    assert "nan" not in text.lower().split("<body>")[1]


def test_has_a_mark_for_every_case_with_its_numbers(page, shown):
    text = page.read_text()

    for one in shown.judgement.cases:
        words = f"{one.case.name}: predicted {one.throughput.predicted:.4g}, measured {one.throughput.measured:.4g}"
        assert f"<title>{html.escape(words)}" in text


@needs_browser
def test_a_browser_shows_tables_and_pictures(page, shown, tmp_path):
    document = opened(page, tmp_path)

    assert len(table(document, "cases")) == 3
    assert table(document, "targets")[0][:2] == ["cases", "3"]
    assert {row[0] for row in table(document, "errors")} == set(shown.judgement.errors)
    assert document.count('role="img"') >= 3
    assert "&lt;two&gt;" in document
    assert "<two>" not in document
