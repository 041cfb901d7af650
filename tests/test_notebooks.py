"""Notebooks run from top to bottom, and leave computing to the library."""

import ast
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.py"))
LONGEST_DEF = 5


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs(path):
    """Its own checks are assertions in its cells; an error in any cell fails here."""
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent.parent)}}
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]

    assert any("image/png" in output.get("data", {}) for output in shown)
    assert "match True" in "".join(output.get("text", "") for output in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_outputs_belong_to_the_text(path):
    """Else: scripts/notebooks."""
    text, shown = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))

    assert [cell.source for cell in shown.cells] == [cell.source for cell in text.cells]
    assert any(cell.get("outputs") for cell in shown.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_explains_and_ends_with_a_takeaway(path):
    notebook = jupytext.read(path)
    last = notebook.cells[-1]
    functions = [
        node
        for cell in notebook.cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.FunctionDef)
    ]

    assert last.cell_type == "markdown"
    assert last.source.startswith("**Takeaway.**")
    assert all(len(ast.unparse(node).splitlines()) <= LONGEST_DEF for node in functions)
