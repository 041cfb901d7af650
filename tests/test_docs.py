"""Documents hold together: links lead somewhere, commands exist as written, Python runs, references are fresh."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from hrm.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "hardware_profiles/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(text: str) -> list[str]:
    """Return the indented blocks of a document, dedented."""
    found: list[str] = []
    block: list[str] = []
    for line in [*text.splitlines(), "end"]:
        if line.startswith("    ") or (block and not line):
            block.append(line[4:])
        elif block:
            found.append("\n".join(block).strip("\n"))
            block = []
    return found


def commands(text: str) -> list[list[str]]:
    """Return the words of each `hrm` command in the indented blocks."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("hrm ")]


def anchors(path: Path) -> set[str]:
    """Return what a link into a document may name, as GitHub makes it from headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(path.read_text())}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in LINK.findall(path.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = (path.parent / target) if target else path
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_the_options_that_documents_give_them(path):
    for words in commands(path.read_text()):
        command: Any = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        assert not hasattr(command, "commands") or not words or words == ["--help"], words
        assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, words


def test_the_readme_python_runs(capsys):
    python = [block for block in blocks((ROOT / "README.md").read_text()) if block.startswith("import hrm")]

    assert python
    for block in python:
        exec(block, {})
    assert "batch_size" in capsys.readouterr().out


def test_generated_references_say_what_the_code_says():
    generated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["generated"]()
    stale = [path.name for path, text in generated.items() if not path.is_file() or path.read_text() != text]

    assert not stale, "run: python docs/generate.py"
