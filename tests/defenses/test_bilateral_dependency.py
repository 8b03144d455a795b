"""The dependence of kernels against its definition, and what its weights do to a network."""

import pytest
import torch

from firstline.defenses.bilateral_dependency import BilateralDependency, dependence, near

DRAW = torch.Generator().manual_seed(0)


def points(n=40, d=3):
    return torch.randn(n, d, generator=DRAW)


def test_dependence_is_the_normalised_hilbert_schmidt_norm():
    a, b = near(points()), near(points())
    centre = torch.eye(len(a)) - 1 / len(a)

    def norm(k, m):
        return torch.trace(k @ centre @ m @ centre)

    wanted = norm(a, b) / (norm(a, a) * norm(b, b)).sqrt()
    assert dependence(a, b).item() == pytest.approx(wanted.item(), abs=1e-5)


def test_equal_kernels_depend_entirely_and_independent_points_little():
    x = points(200)
    assert dependence(near(x), near(3 * x + 1)).item() == pytest.approx(1, abs=1e-4)
    assert dependence(near(x), near(points(200))).item() < 0.1


def test_points_that_are_all_the_same_depend_on_nothing():
    assert dependence(near(torch.zeros(5, 2)), near(points(5))).item() == 0


def test_the_loss_goes_up_with_inputs_that_are_told_and_down_with_labels():
    x, y = points(30, 4), torch.arange(30) % 4
    tells_inputs = BilateralDependency(forget=1.0, keep=0.0)
    plain = BilateralDependency(forget=0.0, keep=0.0)
    tells_labels = BilateralDependency(forget=0.0, keep=1.0)
    one_hot = torch.nn.functional.one_hot(y, 4).float()
    identity, labels = (lambda z: z), (lambda z: one_hot)
    assert tells_inputs.objective(identity, x, y) - plain.objective(identity, x, y) == pytest.approx(
        1, abs=1e-4
    )
    assert tells_labels.objective(labels, x, y) - plain.objective(labels, x, y) == pytest.approx(-1, abs=1e-4)
