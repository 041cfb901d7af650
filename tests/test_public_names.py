"""Public names are listed, sorted and there."""

import ast
import importlib
from pathlib import Path

import pytest

import executor
import hrm
import solver

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (executor, hrm, solver)


def listed_names():
    """Yield each module that has an `__all__`, and the names in it."""
    for package in PACKAGES:
        for path in sorted((ROOT / package.__name__).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    yield (
                        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."),
                        ast.literal_eval(node.value),
                    )


def isort_style(name):
    """Order constants first, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


LISTED = dict(listed_names())


def test_every_package_of_ours_is_looked_at():
    assert {module.split(".")[0] for module in LISTED} == {package.__name__ for package in PACKAGES}


@pytest.mark.parametrize("module", LISTED)
def test_listed_names_are_sorted_and_unique(module):
    names = LISTED[module]

    assert names == sorted(set(names), key=isort_style)


@pytest.mark.parametrize("module", LISTED)
def test_listed_names_exist(module):
    imported = importlib.import_module(module.removesuffix(".__init__"))

    assert [name for name in LISTED[module] if not hasattr(imported, name)] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_has_no_public_name_beside_those_listed(package):
    home = Path(package.__file__).parent
    submodules = {path.stem for path in home.iterdir() if path.suffix == ".py" or path.is_dir()}
    imported = {"TYPE_CHECKING", "annotations", "import_module"}

    public = {name for name in vars(package) if not name.startswith("_")}

    assert public - submodules - imported <= set(package.__all__)


def test_star_import_brings_exactly_the_listed_names():
    for package in PACKAGES:
        space: dict[str, object] = {}
        exec(f"from {package.__name__} import *", space)
        assert set(space) - {"__builtins__"} == set(package.__all__)


def test_predict_is_the_function_however_it_is_reached():
    from hrm.predict import predict

    assert hrm.predict is predict
    assert importlib.import_module("hrm.predict").predict is predict
    assert hrm.predict is predict


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'executor' has no attribute 'Motor'"):
        _ = executor.Motor


def test_loop_of_the_design_runs_on_public_names():
    problem = solver.Problem(
        model=hrm.load_model("mixtral-8x7b"),
        hardware=hrm.load_profile("l4-case-study"),
        workload=hrm.Workload(mean_prompt_len=77.0, max_prompt_len=77, gen_len=32, num_sequences=64),
        weight_dtype=hrm.DType.FLOAT16,
        kv_dtype=hrm.DType.FLOAT16,
    )

    plan = solver.solve(problem)
    again = hrm.predict(plan.policy, problem.model, problem.hardware, problem.workload)

    assert again.times == plan.prediction.times
