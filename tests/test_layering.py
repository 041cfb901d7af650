"""Imports point one way, and only what needs torch loads it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("executor", "hrm", "solver")
ALLOWED = {"executor": {"executor", "hrm"}, "hrm": {"hrm"}, "solver": {"solver", "hrm"}}
USES_TORCH = ("hrm/device/", "hrm/microbench/")


def modules(package):
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / package).rglob("*.py"))]


def imports(tree):
    """Yield (top-level package imported, whether it is imported when the module is)."""
    on_import = set(_run_on_import(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node in on_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield (node.module or "").split(".")[0], node in on_import


def _run_on_import(node):
    """Yield the nodes outside functions and outside `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _run_on_import(child)


def parsed(module):
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), module)


def test_import_finder_tells_inner_from_outer_imports():
    source = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\nclass D:\n    import d.e\n"

    assert set(imports(ast.parse(source))) == {("a", True), ("b", False), ("c", False), ("d", True)}


@pytest.mark.parametrize("module", [module for package in PACKAGES for module in modules(package)])
def test_imports_point_one_way(module):
    package = module.split("/")[0]
    allowed = ALLOWED[package]

    found = {(name, on_import) for name, on_import in imports(parsed(module)) if name in PACKAGES}

    if module.startswith("hrm/cli/"):
        assert {name for name, on_import in found if on_import} <= allowed
    else:
        assert {name for name, _ in found} <= allowed


@pytest.mark.parametrize("module", [module for module in modules("hrm") if not module.startswith(USES_TORCH)])
def test_torch_stays_behind_the_seam(module):
    assert "torch" not in {name for name, _ in imports(parsed(module))}


@pytest.mark.parametrize("name", [*PACKAGES, "hrm.cli.main"])
def test_import_loads_neither_torch_nor_matplotlib(name):
    code = f"import sys, {name}; print(sorted({{'torch', 'matplotlib', 'transformers'}} & set(sys.modules)))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert found.stdout.strip() == "[]"
