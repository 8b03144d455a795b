"""Relative membership inference, against the definitions in probabilities and the slow and obvious."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.metrics.rmia import (
    offline_log_ratios,
    online_log_ratios,
    population_shares,
    rmia_scores,
)

RATIOS = st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, 1e4]) | st.floats(-50, 50), min_size=1, max_size=30)


def answers(k: int = 5, n: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a target (n,) and of references (k, n), and who was trained on what, someone always not."""
    rng = np.random.default_rng(0)
    member = rng.random((k, n)) < 0.5
    member[0] = False
    return rng.random(n), rng.random((k, n)), member


def test_online_ratios_are_those_of_probabilities():
    p, refs, _ = answers()
    expected = [np.log(p[i] / (sum(refs[:, i]) / len(refs))) for i in range(len(p))]
    assert online_log_ratios(np.log(p), refs=np.log(refs)).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_offline_ratios_are_those_of_probabilities(a):
    p, refs, member = answers()
    out = [
        np.mean([r for r, m in zip(refs[:, i], member[:, i], strict=True) if not m]) for i in range(len(p))
    ]
    expected = [np.log(p[i] / (((1 + a) * out[i] + (1 - a)) / 2)) for i in range(len(p))]
    found = offline_log_ratios(np.log(p), refs=np.log(refs), member=member, a=a)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_online_and_offline_agree_on_what_nobody_was_trained_on_if_training_changes_nothing():
    p, refs, member = answers()
    online = online_log_ratios(np.log(p), refs=np.log(refs))
    offline = offline_log_ratios(np.log(p), refs=np.log(refs), member=member & False, a=1)
    assert offline.tolist() == online.tolist()


def test_probabilities_far_below_the_smallest_float_have_ratios():
    log_p, refs = np.array([-2000.0, -1e6]), np.array([[-2001.0, -1e6], [-5000.0, -1e9]])
    # The second reference is negligible beside the first: the mean is half of that.
    assert online_log_ratios(log_p, refs=refs).tolist() == pytest.approx([1 + np.log(2), np.log(2)])
    off = offline_log_ratios(log_p, refs=refs, member=np.zeros((2, 2), bool), a=0.3)
    assert off == pytest.approx(log_p - np.log(0.35))


def naive_share(ratio: float, population: list[float], gamma: float) -> float:
    return sum(ratio - z > np.log(gamma) for z in population) / len(population)


@given(RATIOS, RATIOS)
@settings(deadline=None)
def test_shares_are_the_naive_ones_with_ties(ratios, population):
    found = population_shares(np.array(ratios), population=np.array(population))
    assert found.tolist() == [naive_share(x, population, 1) for x in ratios]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gamma_is_how_many_times_the_ratio_must_be_exceeded(gamma):
    population, ratios = np.log([0.5, 1.5, 2.5]), np.log([0.9, 1.1, 3.1, 5.2])
    expected = [naive_share(x, list(population), gamma) for x in ratios]
    assert population_shares(ratios, population=population, gamma=gamma).tolist() == expected
    assert {0.5: 1, 1.0: 1, 2.0: 2 / 3}[gamma] == expected[2]


@given(RATIOS, RATIOS, st.sampled_from([0.5, 1.0, 2.0]))
@settings(deadline=None)
def test_scores_break_ties_by_the_ratio_and_never_overturn_a_share(ratios, population, gamma):
    asked = np.array(sorted(ratios))
    share = population_shares(asked, population=np.array(population), gamma=gamma)
    score = rmia_scores(asked, population=np.array(population), gamma=gamma)
    assert ((score > 0) & (score < 1)).all()
    assert (np.abs(score - share) <= 1 / (len(population) + 1)).all()
    assert (np.diff(score)[np.diff(share) > 0] > 0).all()
    assert (np.diff(score)[np.diff(asked) > 1e-6] > 0).all()
    assert (np.diff(score) >= 0).all()


def test_scores_of_different_targets_never_overturn_their_shares():
    easy, hard = (
        np.linspace(-3, -2, 11),
        np.linspace(2, 3, 11),
    )  # ratios of a target, and populations around them
    low = rmia_scores(hard[:6], population=hard)  # at most 5 of 11 beaten, with high ratios
    high = rmia_scores(easy[6:], population=easy)  # at least 6 beaten, with low ones
    assert low.max() < high.min()


def test_what_beats_the_whole_population_is_still_ranked():
    ratios, population = np.array([5.0, 6.0, 40.0]), np.zeros(1000)
    assert population_shares(ratios, population=population).tolist() == [1, 1, 1]
    assert (np.diff(rmia_scores(ratios, population=population)) > 0).all()


P, REFS, MEMBER = np.log([0.5, 0.2]), np.log([[0.5, 0.1], [0.3, 0.2], [0.4, 0.9]]), np.zeros((3, 2), bool)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"log_p": P[:1]}, "the target has 1 examples and refs 2"),
        ({"log_p": np.zeros(0)}, "values of the target must be .* not empty"),
        ({"log_p": np.array([0.0, -np.inf])}, "1 of 2 values of the target are NaN or infinite"),
        ({"log_p": np.exp(P)}, "log_p and refs must be logs of probabilities, at most 0, got 0.5"),
        ({"refs": np.exp(REFS)}, "log_p and refs must be logs of probabilities, at most 0, got 0.9"),
        ({"refs": REFS[0]}, r"values of refs must be \(k, n\)"),
    ],
)
def test_what_are_no_probabilities_is_refused(change, said):
    options = {"log_p": P, "refs": REFS} | change
    log_p = options.pop("log_p")
    with pytest.raises(ValueError, match=said):
        online_log_ratios(log_p, **options)
    with pytest.raises(ValueError, match=said):
        offline_log_ratios(log_p, **options, member=MEMBER)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"member": MEMBER | True}, "all references were trained on 2 of 2 examples"),
        ({"member": MEMBER[0]}, r"member must be \(3, 2\) of True and False"),
        ({"a": 1.5}, r"a must lie in \[0, 1\], got 1.5"),
        ({"a": np.nan}, r"a must lie in \[0, 1\], got nan"),
    ],
)
def test_what_offline_ratios_can_not_do_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        offline_log_ratios(P, **({"refs": REFS, "member": MEMBER} | change))


@pytest.mark.parametrize("ask", [population_shares, rmia_scores])
@pytest.mark.parametrize(
    ("ratios", "population", "gamma", "said"),
    [
        ([], [0.0], 1, r"ratios must be \(n\) and not empty"),
        ([0.0], [], 1, r"ratios of the population must be \(m\) and not empty"),
        ([np.nan], [0.0], 1, "1 of 1 ratios are NaN"),
        ([0.0], [np.inf], 1, "1 of 1 ratios of the population are NaN or infinite"),
        ([0.0], [0.0], 0, "gamma must be positive, got 0"),
    ],
)
def test_ratios_that_can_not_be_compared_are_refused(ask, ratios, population, gamma, said):
    with pytest.raises(ValueError, match=said):
        ask(np.array(ratios), population=np.array(population), gamma=gamma)
