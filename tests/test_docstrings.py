"""The examples in docstrings run, and the functions that users call first have one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import hrm
import solver

ROOT = Path(__file__).resolve().parent.parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("hrm", "solver", "executor")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
ON_FILES = {"compare_runs", "load_plan", "load_run_report", "make_plan", "save_plan"}
"""Read or write files that an example would have to make first."""


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module):
    result = doctest.testmod(importlib.import_module(module))

    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("package", [hrm, solver], ids=lambda package: package.__name__)
def test_functions_that_users_call_first_have_an_example(package):
    functions = {name for name in package.__all__ if inspect.isfunction(getattr(package, name))}

    assert [name for name in functions - ON_FILES if ">>> " not in (getattr(package, name).__doc__ or "")] == []
