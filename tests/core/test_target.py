"""The door that an attack gets: what is granted, what is counted, and what is said when it is not."""

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import AccessDenied, BudgetExhausted, FirstlineError, SystemFailed
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import DRAWS, Target
from firstline.benchmark.core.threat import Threat

SPACE = InputSpace((2,), low=-9.0, high=9.0)
WHITE, GRAY, BLACK = (f"evasion/{knowledge}/linf:0.1" for knowledge in ("white", "gray", "black"))


class Linear(System):
    """Logits (0, w · x): class 1 where w · x > 0. What is asked is remembered."""

    def __init__(self, inner: System | None = None) -> None:
        super().__init__(inner)
        self.register_buffer("w", torch.tensor([1.0, -2.0]))
        self.asked: list[int] = []

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        self.asked.append(len(x))
        score = x @ self.get_buffer("w")
        return Response(torch.stack([torch.zeros_like(score), score], 1))


class Shaky(Linear):
    """Adds noise to the score, and gradients of its own to each draw."""

    stochastic = True

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        w = self.get_buffer("w") + torch.randn(len(x), 2, generator=rng)
        score = (x * w).sum(1)
        return Response(torch.stack([torch.zeros_like(score), score], 1))


class Stepped(Linear):
    """Answers without a usable gradient; its stand-in answers everything wrongly, but climbs well."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return super().respond(x.round(), rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(-super().respond(x, rng).logits)


class Broken(Linear):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(x) if callable(self.answer) else self.answer


def linear(x: Tensor) -> Tensor:
    score = x @ torch.tensor([1.0, -2.0])
    return torch.stack([torch.zeros_like(score), score], 1)


def door(system: System, threat: str = WHITE, examples: int | None = 4, **more: object) -> Target:
    data = Data.of(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    given = {
        "rng": Streams(0),
        "build": lambda: nn.Linear(2, 2),
        "train": data,
        "aux": data,
        "defense": "none",
    }
    return Target(
        system,
        Threat.parse(threat),
        space=SPACE,
        classes=2,
        examples=examples,
        **{**given, **more},
    )


X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.5], [0.5, 2.0]])
Y = torch.tensor([1, 0, 0, 1])  # the last two are answered wrongly

DOORS = {
    "labels": lambda t: t.labels(X),
    "scores": lambda t: t.scores(X),
    "slope": lambda t: t.slope(X, Y),
    "logits": lambda t: t.logits(X),
    "system": lambda t: t.system,
    "architecture": lambda t: t.architecture(),
    "train": lambda t: t.train,
    "aux": lambda t: t.aux,
    "defense": lambda t: t.defense,
}
OPEN = {
    WHITE: "labels scores slope logits system architecture train aux defense",
    WHITE + ",answers=labels": "labels slope logits system architecture train aux defense",
    GRAY: "labels scores architecture train aux",
    GRAY + ",defense=known,train=0": "labels scores architecture aux defense",
    BLACK: "labels scores",
    BLACK + ",answers=labels": "labels",
    BLACK + ",aux=yes,train=1%": "labels scores train aux",
}


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("threat", OPEN)
def test_an_attack_gets_what_its_threat_model_grants_and_nothing_else(threat, name):
    target = door(Linear(), threat)
    if name in OPEN[threat].split():
        assert DOORS[name](target) is not None
        return
    asked = "gradients" if name in ("slope", "logits", "system") else name
    with pytest.raises(AccessDenied) as caught:
        DOORS[name](target)
    said = str(caught.value)
    assert f"asked for {asked}, which {target.threat} does not grant" in said
    assert f"list {asked!r} in the attack's needs, or attack under a threat model that grants it" in said
    assert int(target.queries.sum() + target.gradients.sum()) == 0


def test_denied_questions_never_reach_the_system():
    system = Linear()
    with pytest.raises(AccessDenied):
        door(system, BLACK).slope(X, Y)
    assert system.asked == []


@pytest.mark.parametrize("batch", [1, 3, 512])
def test_queries_and_gradients_are_counted_per_example_whatever_the_batch_size(batch):
    target = door(Linear(), batch=batch)
    target.scores(X)
    target.labels(X[[1, 3]], torch.tensor([1, 3]))
    target.labels(X[[3, 3, 0]], torch.tensor([3, 3, 0]))
    target.slope(X[[2]], Y[[2]], torch.tensor([2]))
    target.slope(X, Y)
    assert target.queries.tolist() == [2, 2, 1, 4]
    assert target.gradients.tolist() == [1, 1, 2, 1]


def test_logits_cost_a_query_without_a_gradient_and_a_gradient_for_every_way_back():
    target, x = door(Linear()), X.clone().requires_grad_()
    assert torch.equal(target.logits(X), linear(X))
    with torch.no_grad():
        target.logits(x)
    assert (target.queries.tolist(), target.gradients.tolist()) == ([2] * 4, [0] * 4)
    logits = target.logits(x[:2], torch.tensor([0, 2]))
    assert target.gradients.tolist() == [1, 0, 1, 0]
    for paid in (1, 2, 3):
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x, retain_graph=True)
        assert gradient.any()
        assert target.gradients.tolist() == [paid, 0, paid, 0]


def test_without_examples_there_is_one_counter_for_all():
    target = door(Linear(), "extraction/black/scores:10", examples=None)
    target.scores(X)
    target.labels(X[:3])
    assert target.queries.tolist() == [7]
    assert target.left() == 3


def test_answers_do_not_depend_on_the_batch_size():
    whole, small = door(Linear()), door(Linear(), batch=1)
    assert torch.equal(whole.scores(X).logits, small.scores(X).logits)
    assert torch.equal(whole.slope(X, Y).gradient, small.slope(X, Y).gradient)
    assert torch.equal(whole.slope(X, Y).broken, small.slope(X, Y).broken)


def test_a_budget_per_example_lasts_exactly_to_its_limit():
    target = door(Linear(), BLACK + ",queries=3")
    for _ in range(3):
        target.labels(X[[2]], torch.tensor([2]))
    assert [target.left(row) for row in range(4)] == [3, 3, 0, 3]
    target.labels(X[[0]], torch.tensor([0]))  # others have theirs
    with pytest.raises(BudgetExhausted, match="grants 3 queries per example; the attack asked for 4"):
        target.labels(X)
    assert target.queries.tolist() == [1, 0, 3, 0]  # a refused question costs nothing


def test_a_budget_in_all_lasts_exactly_to_its_limit():
    system = Linear()
    target = door(system, "extraction/black/labels:8", examples=None)
    target.labels(X)
    target.labels(X)
    with pytest.raises(BudgetExhausted, match="grants 8 queries in all; the attack asked for 9"):
        target.labels(X[:1])
    assert system.asked == [4, 4]


def test_without_a_limit_there_is_always_something_left():
    assert door(Linear()).left() == float("inf")


def test_questions_about_fewer_examples_must_say_whose_they_are():
    with pytest.raises(ValueError, match="2 inputs for 4 examples: pass rows"):
        door(Linear()).labels(X[:2])


def test_the_slope_is_the_gradient_of_the_loss_and_says_what_is_broken():
    slope = door(Linear()).slope(X, Y)
    leaf = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropies(linear(leaf), Y).sum(), leaf)
    torch.testing.assert_close(slope.gradient, expected)
    assert slope.broken.tolist() == [False, False, True, True]


def test_the_loss_can_be_chosen():
    slope = door(Linear()).slope(X, Y, loss=lambda logits, y: logits[:, 1] - logits[:, 0])
    assert torch.equal(slope.gradient, torch.tensor([1.0, -2.0]).expand(4, 2))


def test_the_slope_of_a_stochastic_system_is_near_that_of_its_mean():
    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)  # here the loss is linear in the weights
    draws = torch.cat([door(Shaky(), examples=1, rng=Streams(s)).slope(x, y).gradient for s in range(200)])
    true = 0.5 * torch.tensor([1.0, -2.0])
    torch.testing.assert_close(draws.mean(0), true, atol=0.06, rtol=0)
    assert draws.std(0).tolist() == pytest.approx([0.5 / 8**0.5] * 2, rel=0.2)  # of 8 draws each, not 1


def test_a_stochastic_system_is_never_called_broken():
    assert door(Shaky()).slope(X, Y).broken is None


def test_every_draw_that_a_gradient_averages_is_counted():
    target = door(Shaky())
    target.slope(X, Y)
    assert target.gradients.tolist() == [DRAWS] * 4


def test_gradients_go_through_the_stand_in_but_the_system_says_what_is_broken():
    slope = door(Stepped()).slope(X, Y)
    leaf = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropies(-linear(leaf), Y).sum(), leaf)
    torch.testing.assert_close(slope.gradient, expected)
    # The stand-in would call the first two broken, and the ascent would stop before it began.
    assert slope.broken.tolist() == [False, False, True, True]


def test_a_system_without_a_gradient_is_told_to_have_a_stand_in():
    flat = Broken(lambda x: Response(torch.ones(len(x), 2)))
    with pytest.raises(SystemFailed, match=r"no gradient; give it a differentiable surrogate \(BPDA\)"):
        door(flat).slope(X, Y)


def test_refused_inputs_are_answered_with_minus_one_and_not_broken():
    def picky(x: Tensor) -> Response:
        return Response(linear(x), acceptance=0.6 - x[:, 1])  # refuses the second and the fourth

    assert door(Broken(picky)).labels(X).tolist() == [1, -1, 1, -1]
    assert door(Broken(picky)).slope(X, Y).broken.tolist() == [False, False, True, False]
    assert door(Broken(picky), batch=1).scores(X).accepted.tolist() == [True, False, True, False]


def test_answers_that_are_no_numbers_are_minus_two_and_broken():
    def lost(x: Tensor) -> Response:
        return Response(torch.where(x[:, :1] < 1, torch.nan, linear(x)))

    assert door(Broken(lost)).labels(X).tolist() == [1, -2, 1, -2]
    assert door(Broken(lost)).slope(X, Y).broken.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError("out of order"), "the system raised RuntimeError: out of order"),
        (SystemExit(3), "the system raised SystemExit: 3"),
        (linear, "answered with a Tensor; respond must return a Response"),
        (None, "answered with a NoneType"),
        (lambda x: Response(linear(x)[:1]), r"4 inputs with logits of shape \(1, 2\); it must be \(4, 2\)"),
        (lambda x: Response(x @ torch.zeros(2, 3)), r"4 inputs with logits of shape \(4, 3\)"),
        (lambda x: Response(linear(x), linear(x)), r"acceptance has shape \(4, 2\); it must be \(4,\)"),
    ],
)
@pytest.mark.parametrize("ask", [DOORS["labels"], DOORS["scores"], DOORS["slope"]])
def test_a_system_that_raises_or_answers_in_a_wrong_shape_has_failed(answer, said, ask):
    with pytest.raises(SystemFailed, match=said) as caught:
        ask(door(Broken(answer)))
    if isinstance(answer, Exception):
        assert caught.value.__cause__ is answer


@pytest.mark.parametrize("ask", [DOORS["labels"], DOORS["scores"]])
def test_a_system_that_writes_to_its_inputs_has_failed(ask):
    with pytest.raises(SystemFailed, match="the system wrote to its inputs"):
        ask(door(Broken(lambda x: Response(linear(x.mul_(1.0))))))


@pytest.mark.parametrize("error", [MemoryError("full"), FirstlineError("no such weights")])
def test_a_full_memory_or_an_error_that_explains_itself_is_not_the_systems_failure(error):
    with pytest.raises(type(error)) as caught:
        door(Broken(error)).labels(X)
    assert caught.value is error


def test_answering_a_query_builds_no_graph():
    assert not door(Bare(nn.Linear(2, 2))).scores(X).logits.requires_grad


class Watching(Linear):
    """Flags inputs whose first feature is above 0.9, and remembers what it saw."""

    def observe(self, queries: Tensor) -> Tensor:
        self.asked.append(-len(queries))
        return queries[:, 0] > 0.9


def test_a_flagged_query_gets_no_answer_and_is_charged():
    target = door(Watching(), BLACK)
    answer = target.scores(X)
    assert answer.labels.tolist() == [-1, 0, -1, 0]
    assert answer.logits[[0, 2]].eq(0).all()
    torch.testing.assert_close(answer.logits[[1, 3]], linear(X[[1, 3]]))
    assert target.queries.tolist() == [1] * 4
    assert target.flagged_at.tolist() == [1, 0, 1, 0]


def test_the_first_flag_is_counted_in_the_queries_of_its_example():
    target = door(Watching(), BLACK)
    target.labels(X[[1, 1, 0, 0]], torch.tensor([2, 2, 2, 2]))
    target.keep(torch.tensor([3])).labels(X[[1]])
    target.keep(torch.tensor([3, 1])).labels(X[[0, 1]])
    target.labels(X[[0, 0]], torch.tensor([3, 2]))
    assert target.flagged_at.tolist() == [0, 0, 3, 2]
    assert door(Watching(), BLACK, None).flagged_at.tolist() == [0]


def test_an_attacker_with_gradients_meets_no_monitor():
    system = Watching()
    target = door(system, WHITE)
    assert not target.watched
    assert (target.scores(X).logits != 0).any(1).all()
    assert door(system, GRAY).watched


def test_the_attacked_system_itself_has_seen_nothing():
    system = Watching()
    door(system, BLACK).labels(X)
    assert all(count > 0 for count in system.asked)
