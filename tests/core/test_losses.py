"""Losses: values that one can work out by hand, and what they do not depend on."""

import math

import pytest
import torch
from torch import Tensor

from firstline.benchmark.core.losses import LOSSES, cross_entropies, dlr, margins, truth

LOGITS = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]])
RIGHT, WRONG = torch.tensor([0]), torch.tensor([4])


def pair(true: int, target: int) -> Tensor:
    return torch.tensor([[true, target]])


@pytest.mark.parametrize(
    ("y", "expected"),
    [(RIGHT, 3 - 4), (WRONG, 4 - 2), (pair(0, 1), 1 - 4), (pair(4, 2), 3 - 2), (pair(0, 3), 0 - 4)],
    ids=str,
)
def test_the_margin_is_a_logit_less_the_true_one(y, expected):
    assert margins(LOGITS, y).tolist() == [expected]


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (RIGHT, (3 - 4) / (4 - 2)),
        (WRONG, (4 - 2) / (4 - 2)),
        (pair(0, 1), (1 - 4) / (4 - 1.5)),
        (pair(4, 0), (4 - 2) / (4 - 1.5)),
    ],
    ids=str,
)
def test_the_dlr_loss_divides_the_margin_by_the_spread_of_the_largest_logits(y, expected):
    assert dlr(LOGITS, y).tolist() == pytest.approx([expected])


def test_with_three_classes_the_third_logit_is_the_measure_of_both_forms():
    logits = torch.tensor([[4.0, 1.0, 3.0]])
    assert dlr(logits, RIGHT).tolist() == pytest.approx([(3 - 4) / (4 - 1)])
    assert dlr(logits, pair(0, 1)).tolist() == pytest.approx([(1 - 4) / (4 - 1)])


def test_with_two_classes_the_dlr_loss_is_the_margin():
    logits = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    y = torch.tensor([0, 0])
    assert dlr(logits, y).tolist() == margins(logits, y).tolist() == [-3.0, 2.0]
    assert dlr(logits, torch.tensor([[0, 1], [1, 0]])).tolist() == [-3.0, -2.0]


@pytest.mark.parametrize("classes", [3, 4, 10])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_dlr_loss_does_not_change_when_logits_are_shifted_or_scaled(classes, targeted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, classes, generator=generator, dtype=torch.float64)
    y = torch.arange(50) % classes
    if targeted:
        y = torch.stack([y, (y + 1) % classes], 1)
    torch.testing.assert_close(dlr(logits * 100 - 7, y), dlr(logits, y))
    torch.testing.assert_close(dlr(logits * 0.01 + 3, y), dlr(logits, y))


@pytest.mark.parametrize(("loss", "classes"), [(margins, 2), (margins, 5), (dlr, 2), (dlr, 3), (dlr, 5)])
def test_the_loss_is_positive_exactly_where_the_answer_is_wrong(loss, classes):
    logits = torch.randn(200, classes, generator=torch.Generator().manual_seed(1))
    y = torch.arange(200) % classes
    assert torch.equal(loss(logits, y) > 0, logits.argmax(1) != y)


def test_equal_logits_have_no_margin():
    tied = torch.tensor([[2.0, 2.0, 1.0, 0.0], [2.0, 2.0, 1.0, 0.0], [1.0, 2.0, 2.0, 0.0]])
    y = torch.tensor([0, 1, 0])
    assert margins(tied, y).tolist() == [0.0, 0.0, 1.0]
    assert dlr(tied, y).tolist() == pytest.approx([0.0, 0.0, 1.0])  # over 2 - 1


@pytest.mark.parametrize("loss", [margins, dlr])
@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_logits_that_are_all_equal_give_a_number_and_a_gradient(loss, classes):
    logits = torch.zeros(1, classes, requires_grad=True)
    value = loss(logits, RIGHT)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(gradient).all()


def test_the_cross_entropy_is_that_of_the_true_class_or_minus_that_of_the_target():
    shares = LOGITS.exp()[0] / LOGITS.exp().sum()
    assert cross_entropies(LOGITS, RIGHT).item() == pytest.approx(-math.log(shares[0]))
    assert cross_entropies(LOGITS, pair(0, 3)).item() == pytest.approx(math.log(shares[3]))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
@pytest.mark.parametrize("targeted", [False, True])
def test_all_losses_rise_as_the_answer_turns_wrong(loss, targeted):
    y = torch.tensor([[0, 2]] if targeted else [0])
    way = torch.linspace(0, 1, 9)[:, None]
    logits = LOGITS + way * torch.tensor([[-2.0, 0.0, 1.0, 0.0, 0.0]])
    losses = loss(logits, y.expand(9, *y.shape[1:]))
    assert (losses.diff() > 0).all()
    assert truth(y).tolist() == [0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_each_example_has_a_loss_of_its_own(loss):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    alone = [loss(logits[i : i + 1], y[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(loss(logits, y), torch.cat(alone))
