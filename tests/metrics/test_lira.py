"""Likelihood-ratio membership inference, against SciPy's normal distribution, by hand, and the slow and obvious."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from firstline.benchmark.metrics.lira import (
    lira_offline,
    lira_offline_bank,
    lira_online,
    lira_online_bank,
)
from firstline.benchmark.metrics.roc import auc

VARIANTS = [(variance, centre) for variance in ("per-example", "fixed") for centre in ("median", "mean")]
each_variant = pytest.mark.parametrize(("variance", "centre"), VARIANTS)


@st.composite
def banks(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scaled logits (k, n) of pairs of systems, with ties or an outlier, and members with enough of each kind."""
    pairs, n = draw(st.integers(5, 8)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    phi = rng.normal(size=(2 * pairs, n))
    if draw(st.booleans()):
        phi = np.round(phi, 1)
    if draw(st.booleans()):
        phi[rng.integers(0, len(phi)), rng.integers(0, n)] = 1e6
    half = np.arange(2 * pairs) % 2 == 0
    if draw(st.booleans()):  # complementary pairs; else any half of the systems
        coins = rng.random((pairs, n)) < 0.5
        return phi, np.stack([coins, ~coins], axis=1).reshape(phi.shape)
    return phi, np.stack([rng.permutation(half) for _ in range(n)], axis=1)


def naive_fit(values: list[list[float]], variance: str, centre: str) -> list[tuple[float, float]]:
    """Centre and standard deviation of the values of each example."""
    centres = [np.median(v) if centre == "median" else np.mean(v) for v in values]
    squares = [sum((x - np.mean(v)) ** 2 for x in v) for v in values]
    if variance == "fixed":
        deviations = [np.sqrt(sum(squares) / sum(len(v) - 1 for v in values))] * len(values)
    else:
        deviations = [np.sqrt(s / (len(v) - 1)) for s, v in zip(squares, values, strict=True)]
    return list(zip(centres, np.maximum(deviations, 1e-30), strict=True))


def naive_scores(phi, refs, member, variance, centre) -> tuple[list[float], list[float]]:
    """Online and offline scores, online by SciPy's densities."""
    inside, outside = (
        naive_fit(
            [
                [r for r, m in zip(refs[:, i], member[:, i], strict=True) if m == kind]
                for i in range(len(phi))
            ],
            variance,
            centre,
        )
        for kind in (True, False)
    )
    online = [norm.logpdf(x, *a) - norm.logpdf(x, *b) for x, a, b in zip(phi, inside, outside, strict=True)]
    return online, [(x - mean) / sd for x, (mean, sd) in zip(phi, outside, strict=True)]


def without_pair(phi: np.ndarray, j: int) -> np.ndarray:
    return np.delete(phi, [j, j ^ 1], axis=0)


@each_variant
@given(banks())
@settings(deadline=None, max_examples=40)
def test_scores_are_the_naive_ones(variance, centre, bank):
    phi, member = bank
    online, offline = naive_scores(phi[0], phi[2:], member[2:], variance, centre)
    given_refs = {"refs": phi[2:], "member": member[2:], "variance": variance, "centre": centre}
    assert lira_online(phi[0], **given_refs).tolist() == pytest.approx(online, rel=1e-9, abs=1e-9)
    assert lira_offline(phi[0], **given_refs).tolist() == pytest.approx(offline, rel=1e-9, abs=1e-9)


@each_variant
@given(banks())
@settings(deadline=None, max_examples=40)
def test_a_bank_is_scored_as_each_system_without_its_pair(variance, centre, bank):
    phi, member = bank
    expected = [
        naive_scores(phi[j], without_pair(phi, j), without_pair(member, j), variance, centre)
        for j in range(len(phi))
    ]
    options = {"member": member, "variance": variance, "centre": centre}
    found = lira_online_bank(phi, **options), lira_offline_bank(phi, **options)
    for one, other in zip(found, zip(*expected, strict=True), strict=True):
        assert one == pytest.approx(np.array(other), rel=1e-9, abs=1e-9)


@each_variant
@pytest.mark.parametrize("outlier", [0, 1, 5, 11])
@pytest.mark.parametrize("size", [1e3, 1e12])
def test_an_outlier_that_is_left_out_leaves_no_trace(variance, centre, outlier, size):
    phi = np.random.default_rng(0).normal(size=(12, 3))
    member = np.arange(12)[:, None] % 2 == np.zeros((1, 3))
    phi[outlier] *= size
    found = lira_online_bank(phi, member=member, variance=variance, centre=centre)
    for j in (outlier, outlier ^ 1):  # the outlier is no reference of its own, nor of its partner
        options = {"refs": without_pair(phi, j), "member": without_pair(member, j)}
        expected = lira_online(phi[j], **options, variance=variance, centre=centre)
        assert found[j] == pytest.approx(expected, rel=1e-9)


@each_variant
def test_an_offset_of_all_scaled_logits_changes_nothing(variance, centre):
    rng = np.random.default_rng(0)
    phi = rng.integers(-1024, 1024, (10, 20)) / 1024  # exact beside the offset
    member = np.stack([rng.permutation(np.arange(10) % 2 == 0) for _ in range(20)], axis=1)
    options = {"variance": variance, "centre": centre}
    for score in (lira_online_bank, lira_offline_bank):
        plain = score(phi, member=member, **options)
        assert score(phi + 1e9, member=member, **options).tolist() == plain.tolist()
    for score in (lira_online, lira_offline):
        one = score(phi[0], refs=phi[2:], member=member[2:], **options)
        assert score(phi[0] + 1e9, refs=phi[2:] + 1e9, member=member[2:], **options).tolist() == one.tolist()


def test_two_references_of_each_kind_by_hand():
    refs = np.array([[4.0], [6.0], [0.0], [2.0]])
    member = np.array([[True], [True], [False], [False]])
    # IN has mean 5 and OUT mean 1, both variance 2: ((3 - 1)² - (3 - 5)²) / 4 = 0 in the middle.
    assert lira_online(np.array([3.0]), refs=refs, member=member) == pytest.approx([0])
    assert lira_online(np.array([5.0]), refs=refs, member=member) == pytest.approx([16 / 4])
    assert lira_offline(np.array([5.0]), refs=refs, member=member) == pytest.approx([4 / np.sqrt(2)])


def test_fixed_variance_is_the_mean_within_examples_and_not_that_of_all_values():
    refs = np.array([[0.0, 1000.0], [2.0, 1004.0], [0.0, 1000.0], [2.0, 1004.0]])
    member = np.zeros((4, 2), bool)
    # Squares around the means 1 and 1002 are 4 and 16, with 3 degrees of freedom each.
    found = lira_offline(np.array([2.0, 1003.0]), refs=refs, member=member, variance="fixed")
    assert found == pytest.approx([1 / np.sqrt(20 / 6)] * 2)


def test_known_normal_distributions_give_their_likelihood_ratio_and_its_auc():
    rng = np.random.default_rng(0)
    n, k, gap = 4000, 400, 1.5
    member = np.tile(np.arange(k) % 2 == 0, (n, 1)).T
    difficulty = 5 * rng.normal(size=n)
    refs = difficulty + rng.normal(size=(k, n)) + gap * member
    trained = rng.random(n) < 0.5
    phi = difficulty + rng.normal(size=n) + gap * trained
    found = lira_online(phi, refs=refs, member=member, variance="fixed", centre="mean")
    away = phi - difficulty
    assert found == pytest.approx(gap * away - gap**2 / 2, abs=0.8)  # centres are known to 1 / sqrt(200)
    for score in (found, lira_offline(phi, refs=refs, member=member)):
        assert auc(score, trained) == pytest.approx(norm.cdf(gap / np.sqrt(2)), abs=0.015)
    assert auc(phi, trained) < 0.6  # what is hard about an example drowns the plain scaled logit


def test_offline_scores_rank_as_the_papers_and_do_not_saturate():
    refs, member = np.array([[-1.0], [0.0], [1.0]]), np.zeros((3, 1), bool)
    asked = np.array([-50.0, -3.0, 0.0, 5.0, 40.0, 60.0])
    found = np.concatenate([lira_offline(np.array([x]), refs=refs, member=member) for x in asked])
    assert found == pytest.approx(asked)  # mean 0, standard deviation 1
    assert norm.logcdf(found)[:4] == pytest.approx(norm.logcdf(asked[:4]))
    assert norm.logcdf(found)[4] == norm.logcdf(found)[5] == 0


@pytest.mark.parametrize("variance", ["per-example", "fixed"])
def test_scores_are_finite_where_references_agree_or_lie_far_away(variance):
    refs, member = (
        np.repeat([[7.0], [7.0], [3.0], [3.0]], 3, axis=1),
        np.array([[True], [True], [False], [False]]),
    )
    refs[0, 2] = 7.5
    refs[2, 2] = 3.5
    member, phi = np.repeat(member, 3, axis=1), np.array([7.0, 1e200, -1e200])
    options = {"refs": refs, "member": member, "variance": variance}
    assert np.isfinite(lira_online(phi, **options)).all()
    assert np.isfinite(lira_offline(phi, **options)).all()
    assert lira_online(phi, **options)[0] > 0


def test_a_system_that_says_the_same_whatever_it_saw_gives_nothing_away():
    member = np.arange(8)[:, None] % 2 == np.zeros((1, 5))
    assert lira_online_bank(np.full((8, 5), 0.3), member=member).tolist() == np.zeros((8, 5)).tolist()
    assert lira_offline_bank(np.full((8, 5), 0.3), member=member).tolist() == np.zeros((8, 5)).tolist()


REFS, MEMBER = np.arange(8.0).reshape(4, 2), np.array([[True], [True], [False], [False]]).repeat(2, axis=1)


@pytest.mark.parametrize("score", [lira_online, lira_offline])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phi": np.zeros(3)}, "the target has 3 examples and refs 2"),
        ({"phi": np.zeros(0)}, r"values of the target must be \(n\) and not empty"),
        ({"phi": np.array([0.0, np.nan])}, "1 of 2 values of the target are NaN"),
        ({"refs": REFS[0]}, r"values of refs must be \(k, n\)"),
        ({"refs": np.full((4, 2), np.inf)}, "8 of 8 values of refs are NaN or infinite"),
        ({"member": MEMBER[1:]}, r"member must be \(4, 2\) of True and False"),
        ({"member": MEMBER.astype(int)}, r"member must be \(4, 2\) of True and False, got int64"),
        ({"member": MEMBER | True}, "refs must have at least 2 not trained on each example .* got 0"),
        ({"member": MEMBER | True, "variance": "fixed"}, "refs must have at least 1 not trained .* got 0"),
        ({"variance": "pooled"}, "variance must be 'per-example' or 'fixed', got 'pooled'"),
        ({"centre": "mode"}, "centre must be 'median' or 'mean', got 'mode'"),
    ],
)
def test_references_that_say_nothing_are_refused(score, change, said):
    options = {"phi": np.zeros(2), "refs": REFS, "member": MEMBER} | change
    with pytest.raises(ValueError, match=said):
        score(options.pop("phi"), **options)


def test_online_scores_need_references_that_were_trained_on_the_example():
    with pytest.raises(ValueError, match=r"refs must have at least 2 trained on each example .* got 0"):
        lira_online(np.zeros(2), refs=REFS, member=MEMBER & False)
    with pytest.raises(ValueError, match="refs must have at least 2 trained on some example, got 1 on each"):
        lira_online(np.zeros(2), refs=REFS[1:], member=MEMBER[1:], variance="fixed")
    assert np.isfinite(lira_offline(np.zeros(2), refs=REFS, member=MEMBER & False)).all()


@pytest.mark.parametrize("score", [lira_online_bank, lira_offline_bank])
@pytest.mark.parametrize(
    ("phi", "member", "said"),
    [
        (np.zeros((3, 2)), np.zeros((3, 2), bool), "phi must be of pairs of systems, got 3"),
        (np.zeros(4), np.zeros(4, bool), r"values of phi must be \(k, n\)"),
        (np.full((4, 1), np.nan), np.zeros((4, 1), bool), "4 of 4 values of phi are NaN"),
        (np.zeros((4, 1)), np.zeros((1, 4), bool), r"member must be \(4, 1\) of True and False"),
        (REFS, MEMBER, "refs must have at least 2 .*trained on each example .* got 0"),
    ],
)
def test_a_bank_without_enough_systems_is_refused(score, phi, member, said):
    with pytest.raises(ValueError, match=said):
        score(phi, member=member)
