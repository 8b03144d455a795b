"""How strange a point is, against scikit-learn, SciPy and figures known in advance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import zscore
from sklearn.covariance import ShrunkCovariance

from firstline.benchmark.metrics.density import (
    BLOCK,
    fit_gaussians,
    knn_distance,
    lid,
    mahalanobis,
    neighbour_distances,
    z_scores,
)


def cloud(n: int = 200, d: int = 5, seed: int = 0) -> np.ndarray:
    """Correlated points; multiples of 1/1024, so that they are exact beside 1e9."""
    rng = np.random.default_rng(seed)
    return np.round(1024 * rng.normal(size=(n, d)) @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)))) / 1024


def test_z_scores_of_the_reference_itself_are_those_of_scipy():
    points = cloud()
    assert z_scores(points, reference=points) == pytest.approx(zscore(points, axis=0), abs=1e-12)


@pytest.mark.parametrize("offset", [1e9, -1e9])
def test_an_offset_changes_no_score(offset):
    points, new = cloud(), cloud(50, seed=1)
    labels = np.arange(200) % 3
    plain, moved = fit_gaussians(points, labels), fit_gaussians(points + offset, labels)
    assert moved.precision == pytest.approx(plain.precision, rel=1e-6)
    for measure in (
        lambda x, known, _: z_scores(x, reference=known),
        lambda x, known, _: neighbour_distances(x, reference=known, k=4),
        lambda x, _, fitted: mahalanobis(x, means=fitted.means, precision=fitted.precision),
    ):
        found = measure(new + offset, points + offset, moved)
        assert found == pytest.approx(measure(new, points, plain), abs=1e-6)


def test_a_constant_feature_tells_only_what_is_not_it():
    reference = np.full((4, 1), 0.1)
    found = z_scores(np.array([[0.1], [0.2], [0.0]]), reference=reference)
    assert found.tolist() == [[0], [np.inf], [-np.inf]]


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_the_distance_to_one_class_is_that_of_scikit_learn(shrinkage):
    points, new = cloud(), 3 * cloud(50, seed=1)
    peer = ShrunkCovariance(shrinkage=shrinkage).fit(points)
    fitted = fit_gaussians(points, np.zeros(200), shrinkage=shrinkage)
    assert fitted.means == pytest.approx(peer.location_[None], abs=1e-12)
    assert fitted.precision == pytest.approx(peer.precision_, rel=1e-9)
    found = mahalanobis(new, means=fitted.means, precision=fitted.precision)
    assert found == pytest.approx(np.sqrt(peer.mahalanobis(new)), rel=1e-9)


def test_the_nearest_of_several_classes_counts():
    points, labels = cloud(300), np.repeat(["a", "b", "c"], 100)
    points[labels == "b"] += 8
    fitted = fit_gaussians(points, labels)
    around = points - np.array([points[labels == label].mean(axis=0) for label in labels])
    precision = np.linalg.inv(np.cov(around.T, bias=True))
    expected = cdist(points, fitted.means, "mahalanobis", VI=precision).min(axis=1)
    assert mahalanobis(points, means=fitted.means, precision=fitted.precision) == pytest.approx(
        expected, rel=1e-9
    )
    assert mahalanobis(fitted.means, means=fitted.means, precision=fitted.precision).tolist() == [0, 0, 0]


def test_a_covariance_without_an_inverse_is_refused_and_shrinkage_helps():
    points = np.c_[cloud(), np.ones(200)]
    with pytest.raises(ValueError, match=r"200 points in 6 dimensions has no inverse: give a shrinkage"):
        fit_gaussians(points, np.zeros(200))
    fitted = fit_gaussians(points, np.zeros(200), shrinkage=0.01)
    assert np.isfinite(mahalanobis(points, means=fitted.means, precision=fitted.precision)).all()


@given(st.integers(1, 30), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=60)
def test_neighbours_are_the_naive_ones_with_ties(m, d, data):
    k = data.draw(st.integers(1, m))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    points, reference = rng.integers(0, 4, (7, d)).astype(float), rng.integers(0, 4, (m, d)).astype(float)
    expected = np.sort(cdist(points, reference), axis=1)[:, :k]
    assert neighbour_distances(points, reference=reference, k=k) == pytest.approx(expected, abs=1e-12)
    assert knn_distance(points, reference=reference, k=k).tolist() == pytest.approx(
        expected[:, -1], abs=1e-12
    )


def test_neighbours_are_the_same_over_many_blocks():
    reference = cloud(3000, 4)
    points = cloud(2 * (BLOCK // 3000) + 5, 4, seed=1)
    found = neighbour_distances(points, reference=reference, k=3)
    chosen = [0, BLOCK // 3000 - 1, BLOCK // 3000, len(points) - 1]
    expected = np.sort(cdist(points[chosen], reference), axis=1)[:, :3]
    assert found[chosen] == pytest.approx(expected, rel=1e-12)


def test_a_point_of_the_reference_finds_itself_at_exactly_0():
    points = cloud() + 1e9
    assert knn_distance(points, reference=points, k=1).tolist() == [0] * 200


def naive_lid(distances: list[float]) -> float:
    return -1 / np.mean([np.log(r / max(distances)) for r in distances])


def test_lid_is_the_naive_one_in_any_order_and_unit():
    distances = np.random.default_rng(0).random((20, 8)) + 0.1
    found = lid(distances)
    assert found == pytest.approx([naive_lid(row.tolist()) for row in distances], rel=1e-12)
    assert lid(1e-3 * distances[:, ::-1]) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_lid_finds_the_dimension_that_distances_grow_by(d):
    k = 2000
    quantiles = (np.arange(1, k + 1) / k) ** (1 / d)  # how far the i-th of k neighbours is in d dimensions
    assert lid(quantiles[None]) == pytest.approx([d], rel=0.01)


def test_lid_of_a_duplicate_is_0_and_of_a_sphere_infinite():
    assert lid(np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [3.0, 3.0, 3.0]])).tolist() == [0, 0, np.inf]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda x: z_scores(x, reference=x[:, :2]), "points have 5 features and reference 2"),
        (lambda x: z_scores(x[0], reference=x), r"points must be \(n, d\) and not empty"),
        (lambda x: z_scores(x, reference=x[:0]), r"values of reference must be \(m, d\) and not empty"),
        (lambda x: knn_distance(x * np.nan, reference=x, k=1), "1000 of 1000 points are NaN or infinite"),
        (lambda x: knn_distance(x, reference=x, k=0), "k must lie between 1 and the 200 points"),
        (lambda x: knn_distance(x, reference=x, k=201), "k must lie between 1 and the 200 points"),
        (lambda x: fit_gaussians(x, np.zeros(3)), r"one label per point, got shape \(3,\) for 200 points"),
        (
            lambda x: fit_gaussians(x, np.zeros(200), shrinkage=1.5),
            r"shrinkage must lie in \[0, 1\], got 1.5",
        ),
        (lambda x: mahalanobis(x, means=x, precision=np.eye(4)), r"precision must be \(5, 5\), got \(4, 4\)"),
        (lambda x: mahalanobis(x, means=x[:, :4], precision=np.eye(4)), "points have 5 features and means 4"),
        (lambda x: mahalanobis(x, means=x, precision=-np.eye(5)), "not positive definite"),
        (lambda x: lid(np.ones((3, 1))), "at least 2 neighbours, got 1"),
        (lambda x: lid(np.array([[-1.0, 2.0]])), "must be at least 0, got -1"),
        (lambda x: lid(np.array([[np.inf, 2.0]])), "1 of 2 distances are NaN or infinite"),
    ],
)
def test_what_can_not_be_measured_is_refused(ask, said):
    with pytest.raises(ValueError, match=said):
        ask(cloud())


def test_lid_survives_distances_of_very_different_size():
    distances = np.array([[1e-200, 1e-190, 1e-3, 1.0, 1.0], [1e-100, 1e-100, 1e-100, 1e-100, 1.0]])
    assert lid(distances) == pytest.approx([naive_lid(row.tolist()) for row in distances], rel=1e-12)
