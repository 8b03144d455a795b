"""Scores of data against naive twins and closed forms."""

from collections import Counter

import numpy as np
import pytest

from firstline.benchmark.metrics.datasets import duplicates, neighbour_agreement, overlap, vendi

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5))
Y = (X[:, 0] > 0).astype(np.int64)


def test_diversity_is_the_effective_number_of_rows():
    assert vendi(np.eye(7)) == pytest.approx(7)
    assert vendi(np.ones((9, 3))) == pytest.approx(1)
    assert vendi(np.repeat(np.eye(4), 5, axis=0)) == pytest.approx(4)
    assert vendi(X) == pytest.approx(vendi(X * RNG.uniform(1, 9, size=(60, 1))))  # lengths don't matter


def test_diversity_is_that_of_the_kernels_eigenvalues():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / len(X))
    values = values[values > 1e-12]
    assert vendi(X) == pytest.approx(np.exp(-(values * np.log(values)).sum()))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_agreement_is_the_naive_vote(k):
    agree = 0
    for i in range(len(X)):
        near = sorted((((X[i] - X[j]) ** 2).sum(), j) for j in range(len(X)) if j != i)[:k]
        votes = Counter(int(Y[j]) for _, j in near)
        agree += min(votes, key=lambda label: (-votes[label], label)) == Y[i]
    assert neighbour_agreement(X, Y, k) == pytest.approx(agree / len(X))


def test_flipped_labels_are_what_disagrees():
    x = np.concatenate([RNG.normal(-5, 1, (300, 3)), RNG.normal(5, 1, (300, 3))])
    y = np.repeat([0, 1], 300)
    assert neighbour_agreement(x, y) == 1
    y[::10] = 1 - y[::10]
    assert neighbour_agreement(x, y) == pytest.approx(0.9)


def test_rows_that_occur_again_are_counted_and_those_that_contradict():
    x = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
    assert duplicates(x, np.array([1, 1, 0, 0])) == (0.5, 0.25)
    assert duplicates(X, Y) == (0.0, 0.0)


def test_overlap_is_the_share_that_was_seen():
    assert overlap(X[:10], X[5:]) == 0.5
    assert overlap(X[:10], X[10:]) == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: vendi(np.zeros((0, 2))), "need rows of features"),
        (lambda: vendi(np.array([[np.nan]])), "NaN"),
        (lambda: neighbour_agreement(X, Y, 60), "need 0 < k < n"),
        (lambda: neighbour_agreement(X, Y[:5]), "one label per row"),
    ],
)
def test_bad_input_is_told(call, said):
    with pytest.raises(ValueError, match=said):
        call()
