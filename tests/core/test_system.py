"""What a deployed system answers, and the stand-in that gradients go through."""

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.core.system import INVALID, REFUSED, Bare, Response, System

RNG = torch.Generator()
LOGITS = torch.tensor([[0.0, 1.0], [3.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0], [float("nan"), 0.0]])


def test_the_label_is_the_largest_logit_unless_it_is_no_number():
    assert Response(LOGITS).labels.tolist() == [1, 0, INVALID, INVALID, INVALID]
    assert Response(LOGITS).accepted.tolist() == [True] * 5


def test_refusing_goes_before_everything_else():
    response = Response(LOGITS, acceptance=torch.tensor([0.0, -1e-9, 1.0, -1.0, float("nan")]))
    assert response.accepted.tolist() == [True, False, True, False, False]
    assert response.labels.tolist() == [1, REFUSED, INVALID, REFUSED, REFUSED]


class Rounding(System):
    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return self._inside().respond(x.round(), rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        return self._inside().surrogate(x, rng)


class Halving(System):
    """Wraps without a word about gradients, by the inner system's attribute."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        assert self.inner is not None
        return Response(self.inner.respond(x, rng).logits / 2)


class Watching(System):
    """Sees queries, and leaves the answers as they are."""

    def observe(self, queries: Tensor) -> Tensor:
        return queries.flatten(1).sum(1) > 1


def twice() -> System:
    return Bare(nn.Linear(1, 2, bias=False))


def slope(system: System, x: float) -> float:
    leaf = torch.tensor([[x]], requires_grad=True)
    logits = system.surrogate(leaf, RNG).logits
    return float(torch.autograd.grad(logits[0, 0], leaf)[0])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: Rounding(s),
        lambda s: Halving(Rounding(s)),
        lambda s: Watching(Rounding(s)),
        lambda s: Watching(Halving(Halving(Rounding(s)))),
        lambda s: Rounding(Halving(Rounding(s))),
    ],
    ids=["alone", "wrapped", "watched", "deep", "twice"],
)
def test_a_stand_in_serves_gradients_from_below_any_other_layer(wrap):
    inner = twice()
    system = wrap(inner)
    assert system.stands_in
    assert slope(system, 0.3) != 0
    x = torch.tensor([[0.3]])
    leaf = x.clone().requires_grad_()
    assert not (
        torch.autograd.grad(system.respond(leaf, RNG).logits.sum(), leaf)[0]
    ).any()  # as deployed: none
    torch.testing.assert_close(system.surrogate(x, RNG).logits, system.respond(x + 0.7, RNG).logits * 0.3)


@pytest.mark.parametrize("wrap", [lambda s: s, Halving, Watching, lambda s: Halving(Watching(s))])
def test_without_a_stand_in_the_surrogate_is_the_answer_itself(wrap):
    system = wrap(twice())
    x = torch.tensor([[0.3], [0.6]])
    assert not system.stands_in
    assert torch.equal(system.surrogate(x, RNG).logits, system.respond(x, RNG).logits)


def test_using_a_stand_in_leaves_the_system_as_it_was():
    system = Halving(Rounding(twice()))
    inner, before = system.inner, list(system.state_dict())
    slope(system, 0.3)
    assert system.inner is inner
    assert list(system.state_dict()) == before


def test_a_wrapper_is_as_stochastic_as_what_it_wraps():
    inner = twice()
    assert not Halving(inner).stochastic
    inner.stochastic = True
    assert Halving(Watching(inner)).stochastic


def test_a_monitor_is_asked_through_other_layers_and_flags_nothing_by_default():
    queries = torch.tensor([[0.5], [1.5]])
    assert Halving(Watching(twice())).observe(queries).tolist() == [False, True]
    assert twice().observe(queries).tolist() == [False, False]


def test_a_system_that_wraps_nothing_must_answer_itself():
    with pytest.raises(NotImplementedError, match="Watching wraps nothing: implement respond"):
        Watching().respond(torch.zeros(1, 1), RNG)


def test_calling_a_system_gives_its_logits():
    system = twice()
    assert torch.equal(system(torch.ones(2, 1), RNG), system.respond(torch.ones(2, 1), RNG).logits)
