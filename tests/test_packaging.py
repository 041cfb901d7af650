"""The wheel: what is in it, and that it plans outside the checkout, in an environment of its own."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = ("executor", "hardware_profiles", "hrm", "solver", "LICENSE", "README.md", "pyproject.toml", "setup.py")


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that nothing left by earlier builds gets in, on a machine without a compiler."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    for built in (*source.rglob("*.so"), *source.rglob("*.pyc")):
        built.unlink()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    environment = os.environ | {"CC": "no-compiler-here", "CXX": "no-compiler-here"}
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", target, source, env=environment)
    (built,) = target.glob("hrm_roofline-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into a fresh venv that borrows only its dependencies from this one; return its Python."""
    home = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = home.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", encoding="utf-8")
    return python


def test_wheel_holds_code_data_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())

    for profile in (ROOT / "hardware_profiles").glob("*.yaml"):
        assert f"hrm/hardware_profiles/{profile.name}" in names
    for folder, pattern in (("hrm/views", "*.html"), ("hrm/model_configs", "*.json"), ("hrm/device/specs", "*.yaml")):
        found = [path.name for path in (ROOT / folder).glob(pattern)]
        assert found
        assert {f"{folder}/{name}" for name in found} <= names
    for package in ("executor", "hrm", "solver"):
        assert f"{package}/py.typed" in names
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert modules <= names
    assert any(name.endswith("/LICENSE") for name in names)


def test_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"executor", "hrm", "solver"}


def test_hrm_plans_outside_the_checkout(installed, tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    hrm = installed.with_name("hrm")
    job = ("--model", "mixtral-8x7b", "--hardware", "l4-case-study", "--prompt-len", "77", "--gen-len", "32")

    home = run(installed, "-c", "import hrm; print(hrm.__file__)", cwd=tmp_path, env=environment).strip()
    profiles = json.loads(run(hrm, "hardware", "list", "--json", cwd=tmp_path, env=environment))
    plan = json.loads(run(hrm, "solve", *job, "--num-sequences", "512", "--json", cwd=tmp_path, env=environment))

    assert Path(home).is_relative_to(installed.parent.parent)
    assert "l4-case-study" in {profile["name"] for profile in profiles["profiles"]}
    assert plan["status"] == "optimal"
    assert plan["throughput_tokens_per_s"] > 0


def test_python_m_hrm_is_the_same_command(installed, tmp_path):
    assert run(installed, "-m", "hrm", "--help", cwd=tmp_path) == run(
        installed.with_name("hrm"), "--help", cwd=tmp_path
    )


def test_wheel_of_a_machine_without_a_compiler_says_so(installed, tmp_path):
    code = "from executor.native import available, status_line; print(available(), status_line())"

    assert run(installed, "-c", code, cwd=tmp_path).startswith("False compiled kernels: none, using torch")


def test_help_loads_neither_torch_nor_matplotlib():
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hrm", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )

    loaded = {line.rsplit("|", 1)[-1].strip() for line in listing.stderr.splitlines()}
    assert "hrm.cli.main" in loaded
    assert loaded.isdisjoint({"torch", "matplotlib", "transformers"})


def test_every_package_on_disk_is_listed():
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in ("executor", "hrm", "solver")
        for path in (ROOT / package).rglob("__init__.py")
    }

    assert found <= set(PROJECT["tool"]["setuptools"]["packages"])


def _names(requirements):
    return {re.split(r"[^A-Za-z0-9._-]", name)[0].lower().replace("_", "-") for name in requirements}


def test_constraints_pin_every_requirement():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = _names(PROJECT["project"]["dependencies"]).union(*map(_names, extras.values()))

    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in pinned)
    assert wanted - {"hrm-roofline"} <= _names(pinned)
    assert "torch==2.13.0" in pinned


def test_what_is_imported_on_import_is_required():
    required = _names(PROJECT["project"]["dependencies"])
    own = {"executor", "hrm", "solver"}
    distribution = {"yaml": "pyyaml", "annotated_types": "annotated-types"}
    for package in sorted(own):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                tops = {module.split(".")[0] for module in modules} - own - sys.stdlib_module_names
                assert {distribution.get(top, top) for top in tops} <= required, path
