"""`hrm explain` on the command line: what it prints, its JSON, its pictures, and one line for bad input."""

import json
from dataclasses import replace

import pytest

from hrm.estimate import Fidelity
from hrm.hardware import load_profile
from hrm.plan import PlanStatus, save_plan
from solver.grid import make_plan
from tests.test_explain import best_of, case_study


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Return the file of a plan for the case study's machine."""
    asked = case_study(num_sequences=64)
    path = tmp_path_factory.mktemp("plans") / "plan.yaml"
    save_plan(path, make_plan(asked, best_of(asked).policy, PlanStatus.GIVEN, Fidelity.CEILING))
    return path


def test_explain_prints_what_binds_prices_and_baselines(hrm, plan):
    code, out, _ = hrm("explain", plan)

    assert code == 0
    for word in ("what binds", "what stops it", "per GB/s", "per GiB", "per TFLOP/s", "published planner", "decode"):
        assert word in out


def test_explain_json_holds_it_all(hrm, plan):
    code, out, _ = hrm("explain", plan, "--json")
    document = json.loads(out)

    assert code == 0
    assert {one["phase"] for one in document["phases"]} == {"prefill", "decode"}
    assert {"link", "cpu_memory", "gpu_memory", "cpu_bandwidth"} <= {one["resource"] for one in document["prices"]}
    assert all(one["solved_tokens_per_s"] >= 0 for one in document["prices"])
    assert len(document["baselines"]) == 5
    assert document["throughput_tokens_per_s"] <= document["best"]["throughput_tokens_per_s"]


def test_what_if_once_as_much_changes_nothing(hrm, plan):
    _, out, _ = hrm("explain", plan, "--what-if", "link=1x", "--what-if", "link=2x,cpu_memory=+64GiB", "--json")
    document = json.loads(out)
    same, more = document["what_if"]

    assert same["kept_tokens_per_s"] == document["throughput_tokens_per_s"]
    assert more["factors"] == {"link": 2.0, "cpu_memory": pytest.approx(1 + 64 / 192)}
    assert more["gain_tokens_per_s"] > 0
    assert "prices" not in document


def test_pareto_draws_and_lists(hrm, plan, tmp_path):
    code, out, _ = hrm("explain", plan, "--pareto", tmp_path / "front.png")

    assert code == 0
    assert "throughput against latency" in out
    assert (tmp_path / "front.png").exists()


def test_map_json_has_a_cell_for_each_pair_and_the_plan_in_the_middle(hrm, plan, tmp_path):
    code, out, _ = hrm("explain", plan, "--map", "link,cpu=1x..2x", "-o", tmp_path / "map.svg", "--json")
    found = json.loads(out)["map"]
    (here,) = (cell for cell in found["cells"] if (cell["x"], cell["y"]) == (1.0, 1.0))

    assert code == 0
    assert len(found["cells"]) == len(found["x"]["factors"]) * len(found["y"]["factors"])
    assert here["policy"]["batch_size"] == best_of(case_study(num_sequences=64)).policy.batch_size
    assert (tmp_path / "map.svg").exists()


def test_map_prints_its_letters(hrm, plan):
    code, out, _ = hrm("explain", plan, "--map", "link=1x..2x,gpu_memory=1x..2x", "--fidelity", "roof")

    assert code == 0
    assert "\nA: " in out
    assert "at roof" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--what-if", "lynk=2x"], "no such resource"),
        (["--map", "link"], "two different resources"),
        (["--map", "link,cpu", "-o", "map.gif"], "-o map.gif: drawn as .png or .svg"),
        (["--map", "link,cpu", "-o", "nowhere/map.png"], "nowhere"),
        (["-o", "map.png"], "-o: is for the picture of a --map"),
        (["--pareto", "front.pdf"], "--pareto front.pdf: drawn as"),
        (["--map", "link,cpu", "--fidelity", "simulated"], "too slow for a map"),
        (["--hardware", "no-such"], "--hardware no-such"),
        (["--hardware", "i9-14900k", "--map", "link,cpu"], "i9-14900k has no gpu"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(hrm, plan, arguments, said):
    code, _, err = hrm("explain", plan, *arguments)

    assert code in (1, 2)
    assert said in err
    assert err.count("\n") == 1


def test_a_machine_of_ones_own_is_named_by_its_file(hrm, tmp_path):
    asked = case_study(num_sequences=8)
    own = replace(load_profile("l4-case-study"), name="my machine")
    made = make_plan(replace(asked, hardware=own), best_of(asked).policy, PlanStatus.GIVEN, Fidelity.CEILING)
    save_plan(tmp_path / "plan.yaml", made)

    code, _, err = hrm("explain", tmp_path / "plan.yaml")
    named, _, _ = hrm("explain", tmp_path / "plan.yaml", "--hardware", "l4-case-study")

    assert (code, named) == (2, 0)
    assert "--hardware: the plan is for my machine, which is no bundled profile (give its file)" in err
