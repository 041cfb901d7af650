"""Distinct experts under each law: against drawn routings, at their ends, and from recorded choices."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.errors import FileError, HrmError
from hrm.files import from_plain, to_plain
from hrm.routing import UNIFORM, Routing, RoutingLaw
from tests.machines import model

COUNTS = st.floats(1, 1e7)


def skewed(exponent):
    return Routing(law=RoutingLaw.SKEWED, exponent=exponent)


def trace(path, model, choices_by_layer):
    path.write_text(
        "\n".join(json.dumps({"layer": layer, "experts": chosen}) for layer, chosen in choices_by_layer) + "\n"
    )
    return Routing.from_trace(path, model)


def probabilities(num_experts, top_k, exponent):
    """Give out k by Zipf's law, holding at 1 whatever exceeds it, until nothing does."""
    weights = np.arange(1, num_experts + 1) ** -float(exponent)
    found = np.zeros(num_experts)
    for _ in range(num_experts):
        free = found < 1
        share = (top_k - np.sum(found[~free])) * weights / np.sum(weights[free])
        found[free] = np.minimum(share[free], 1)
        if found.sum() > top_k - 1e-9:
            break
        found[free & (found < 1)] = 0
    return found


@st.composite
def routed_models(draw, experts=64):
    num_experts = draw(st.integers(1, experts))
    return model(num_experts=num_experts, experts_per_token=draw(st.integers(1, num_experts)))


@st.composite
def laws(draw, spec):
    """Draw a law; a trace is one whose frequencies are drawn, which saves writing it to a file."""
    law = draw(st.sampled_from(["uniform", "skewed", "trace"]))
    if law == "uniform":
        return UNIFORM
    zipf = skewed(draw(st.floats(0.01, 4)))
    if law == "skewed":
        return zipf
    missed = tuple(1 - float(zipf.distinct_experts(spec, 2 ** (step / 4))) / spec.num_experts for step in range(81))
    return Routing(law=RoutingLaw.TRACE, source="drawn", missed=tuple(max(0.0, share) for share in missed))


@pytest.mark.parametrize(("num_experts", "top_k", "tokens"), [(8, 2, 1), (8, 2, 5), (16, 4, 3), (6, 1, 12), (5, 5, 2)])
def test_uniform_matches_the_mean_over_drawn_routings(num_experts, top_k, tokens):
    """4,000 draws: the mean's standard error is below 0.03 experts, and the bound is four of them."""
    rng = np.random.default_rng(7)
    hit = [len(np.unique([rng.choice(num_experts, top_k, replace=False) for _ in range(tokens)])) for _ in range(4000)]
    expected = UNIFORM.distinct_experts(model(num_experts=num_experts, experts_per_token=top_k), tokens)

    assert np.mean(hit) == pytest.approx(expected, abs=4 * max(float(np.std(hit)), 0.01) / 4000**0.5)


@given(st.data(), routed_models(), COUNTS, st.floats(1, 100))
def test_every_law_grows_from_k_to_at_most_all(data, spec, tokens, more):
    law = data.draw(laws(spec))
    hit = law.distinct_experts(spec, tokens)

    assert law.distinct_experts(spec, 1.0) == pytest.approx(spec.experts_per_token)
    assert spec.experts_per_token * (1 - 1e-9) <= hit
    assert hit <= min(spec.num_experts, spec.experts_per_token * tokens) * (1 + 1e-9)
    assert hit <= UNIFORM.distinct_experts(spec, tokens) * (1 + 1e-9)
    assert law.distinct_experts(spec, tokens * more) >= hit * (1 - 1e-9)
    assert law.distinct_experts(spec, 0.0) == 0


@given(st.data(), routed_models(), st.lists(COUNTS, min_size=1, max_size=5))
def test_an_array_of_counts_is_answered_entry_by_entry(data, spec, counts):
    law = data.draw(laws(spec))

    assert law.distinct_experts(spec, np.array(counts)) == pytest.approx(
        [law.distinct_experts(spec, count) for count in counts]
    )


@given(routed_models(), st.floats(0, 4), st.floats(1, 2000))
def test_skewed_is_the_sum_over_experts(spec, exponent, tokens):
    """The table between whose points it is read is off by 0.06 % at most in the worst shapes tried."""
    each = probabilities(spec.num_experts, spec.experts_per_token, exponent)

    assert each.sum() == pytest.approx(spec.experts_per_token)
    assert skewed(exponent).distinct_experts(spec, tokens) == pytest.approx(np.sum(1 - (1 - each) ** tokens), rel=2e-3)


def test_no_skew_is_uniform():
    spec = model(num_experts=16, experts_per_token=3)

    for tokens in (1.0, 2.5, 17.0, 300.0):
        assert skewed(0.0).distinct_experts(spec, tokens) == pytest.approx(
            UNIFORM.distinct_experts(spec, tokens), rel=1e-9
        )


def test_more_skew_hits_fewer():
    spec = model(num_experts=64, experts_per_token=4)
    hit = [skewed(exponent).distinct_experts(spec, 50.0) for exponent in (0, 0.5, 1, 2)]

    assert hit == sorted(hit, reverse=True)
    assert hit[-1] < hit[0]


def test_a_trace_gives_the_mean_over_layers_of_what_its_frequencies_say(tmp_path):
    spec = model(num_layers=3, num_experts=4, experts_per_token=2)
    rng = np.random.default_rng(3)
    favourites = {0: [0.7, 0.1, 0.1, 0.1], 2: [0.25, 0.25, 0.4, 0.1]}
    lines = [
        (layer, [rng.choice(4, 2, replace=False, p=p).tolist() for _ in range(50)])
        for _ in range(2)
        for layer, p in favourites.items()
    ]
    law = trace(tmp_path / "trace.jsonl", spec, lines)
    expected = 0.0
    for layer in favourites:
        chosen = np.concatenate([np.ravel(tokens) for at, tokens in lines if at == layer])
        frequencies = np.bincount(chosen, minlength=4) / 100
        expected += np.sum(1 - (1 - frequencies) ** 6) / 2

    assert law.distinct_experts(spec, 6.0) == pytest.approx(expected, rel=1e-3)
    assert law.describe() == "trace (trace.jsonl: 2 layers, 100 tokens or more in each)"


def test_a_trace_in_which_an_expert_is_never_chosen_never_hits_it(tmp_path):
    spec = model(num_layers=1, num_experts=4, experts_per_token=1)
    law = trace(tmp_path / "t", spec, [(0, [[0], [1], [2]])])

    assert law.distinct_experts(spec, 1e5) == pytest.approx(3)


def test_a_law_is_saved_and_read_back(tmp_path):
    spec = model()
    for law in (UNIFORM, skewed(0.5), trace(tmp_path / "t", spec, [(0, [[0, 1], [2, 0]])])):
        assert from_plain(Routing, json.loads(json.dumps(to_plain(law))), where="a plan") == law


def test_a_law_says_what_it_is():
    assert UNIFORM.describe() == "uniform"
    assert skewed(0.5).describe() == "skewed (Zipf exponent 0.5)"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"layer": 0, "tokens": 0, "chosen": []}', "line 1: tokens: expected a positive integer"),
        ('{"layer": 0, "tokens": 2, "chosen": [1, 3, 0, 0]}', "line 1: chosen: expected 4 counts from 0 to 2"),
        ('{"layer": 0, "tokens": 2, "chosen": [1, 1, 1]}', "line 1: chosen: expected 4 counts from 0 to 2"),
        ('{"layer": 0, "tokens": 2, "chosen": [1, 1, 1, 0]}', "add up to 4"),
        ("[]", "line 1: expected an object with the keys layer, tokens and chosen, or layer and experts"),
        (
            '{"layer": 0, "experts": [[0, 1]], "more": 1}',
            "line 1: expected an object with the keys layer, tokens and chosen, or layer and experts",
        ),
        ('{"layer": 2, "experts": [[0, 1]]}', "layer: expected 0 to 1, got 2"),
        ('{"layer": true, "experts": [[0, 1]]}', "layer: expected 0 to 1, got True"),
        ('{"layer": 0, "experts": []}', "a list of 2 different experts from 0 to 3"),
        ('{"layer": 0, "experts": [[0]]}', "a list of 2 different experts from 0 to 3"),
        ('{"layer": 0, "experts": [[0, 0]]}', "a list of 2 different experts from 0 to 3"),
        ('{"layer": 0, "experts": [[0, 4]]}', "a list of 2 different experts from 0 to 3"),
        ('{"layer": 0, "experts": [[0, "1"]]}', "a list of 2 different experts from 0 to 3"),
        ("", "holds no choices"),
    ],
)
def test_a_broken_trace_is_refused_by_line(tmp_path, line, said):
    path = tmp_path / "trace.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(FileError) as caught:
        Routing.from_trace(path, model())

    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(FileError, match="cannot be read: No such file"):
        Routing.from_trace(tmp_path / "none.jsonl", model())


def test_a_trace_of_another_model_is_refused(tmp_path):
    law = trace(tmp_path / "t", model(), [(0, [[0, 1]])])
    with pytest.raises(HrmError, match=r"uses 0.5 of its experts per token, tiny uses 2 of 8 \(record a trace"):
        law.distinct_experts(model(num_experts=8), 3.0)


def test_fields_of_another_law_are_refused():
    with pytest.raises(HrmError, match=r"exponent 1 belongs to law skewed"):
        Routing(exponent=1.0)
    with pytest.raises(HrmError, match="`missed` belongs to a trace"):
        Routing(law=RoutingLaw.TRACE)
    with pytest.raises(HrmError, match="`missed` belongs to a trace"):
        replace(skewed(1.0), missed=(0.5,))
