"""Attacks that only ask: they break what mathematics says, keep to their budget, and favour no example."""

import pytest
import torch
from torch import Tensor

from firstline.attacks.evasion.hop_skip_jump import HopSkipJump
from firstline.attacks.evasion.nes import NES
from firstline.attacks.evasion.rays import RayS
from firstline.attacks.evasion.square import Square
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Evasion, MinimalNorm
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.geometry import Region, violation
from firstline.benchmark.core.norms import distance
from firstline.benchmark.core.random_search import square_search
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import INVALID, REFUSED, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

TASK = Blobs(train=256, test=512)
TEST = TASK.load(None).test
SOME = Data.of(TEST.x[:40], torch.cat([1 - TEST.y[:3], TEST.y[3:40]]))  # three are wrong when clean
EPS = {"linf": 0.05, "l2": 0.4}
SCORES = [(Square, "linf"), (Square, "l2"), (NES, "linf"), (NES, "l2")]
LABELS = [(HopSkipJump, "l2"), (HopSkipJump, "linf"), (RayS, "linf")]
ALL = SCORES + LABELS


def door(
    data: Data,
    goal: str,
    *,
    eps: float | None = None,
    system: System | None = None,
    space: InputSpace = TASK.space,
    more: str = "",
) -> tuple[Target, Region]:
    eps = EPS[goal] if eps is None else eps
    target = Target(
        system or TASK.best(),
        Threat.parse(f"evasion/black/{goal}:{eps}{more}"),
        space=space,
        classes=2,
        rng=Streams(0),
        examples=len(data),
        batch=4096,
    )
    return target, Region(data.x.clone(), space, goal, eps)


def run(attack: Evasion, data: Data, target: Target, region: Region) -> Tensor:
    act = attack.minimise if isinstance(attack, MinimalNorm) else attack.perturb
    return act(target, data.x.clone(), data.y.clone(), region, Streams(7))


def answers(x: Tensor, system: System | None = None) -> Tensor:
    return (system or TASK.best()).respond(x, torch.Generator()).labels


def margin(data: Data) -> Tensor:
    """Return the l2 distance to the boundary of the best classifier, negative where it is wrong."""
    return (data.x.flatten(1).mean(1) - 0.5) * 8 * (2 * data.y - 1)


class Edge(System):
    """Calls class 1 where the upper half of a square in the middle is brighter than the lower half."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        step = (x[:, :, 2:4, 2:6] - x[:, :, 4:6, 2:6]).flatten(1).sum(1) / 4
        return Response(torch.stack([-step, step], 1))


class Stubborn(System):
    """Always says the same."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True))


class Refusing(System):
    """Refuses what lies near the boundary."""

    def __init__(self) -> None:
        super().__init__(TASK.best())

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(self._inside().respond(x, rng).logits, (x.flatten(1).mean(1) - 0.5).abs() - 0.01)


@pytest.mark.parametrize(
    ("attack", "goal"),
    [(Square(queries=1500), "linf"), (NES(queries=1000), "linf"), (NES(queries=1000), "l2")],
    ids=str,
)
def test_scores_are_enough_to_break_what_can_be_broken(attack, goal):
    data = TEST.rows(torch.arange(128))
    target, region = door(data, goal)
    found = run(attack, data, target, region)
    possible, broken = TASK.broken(data.x, data.y, goal, EPS[goal]), answers(found) != data.y
    assert violation(found, data.x, TASK.space, goal, EPS[goal]) is None
    assert 20 < int(possible.sum()) < 100
    assert not (broken & ~possible).any()
    assert float((possible & ~broken).float().mean()) <= 0.025
    assert int(target.gradients.sum()) == 0


def test_square_spends_an_l2_radius_where_it_counts():
    x = TEST.x[:64]
    step = (x[:, :, 2:4, 2:6] - x[:, :, 4:6, 2:6]).flatten(1).sum(1) / 4
    data = Data.of(x, (step > 0).long())
    target, region = door(data, "l2", eps=0.5, system=Edge())
    broken = answers(run(Square(queries=1000), data, target, region), Edge()) != data.y
    assert not (broken & (step.abs() > 0.5)).any()
    assert broken[step.abs() < 0.4].all()


@pytest.mark.parametrize(("kind", "goal"), LABELS)
def test_labels_are_enough_to_come_close_to_the_boundary(kind, goal):
    target, region = door(SOME, goal)
    found = run(kind(queries=1500), SOME, target, region)
    least = margin(SOME) / {"linf": 8, "l2": 1}[goal]
    right = least > 0
    assert torch.equal(found[~right], SOME.x[~right])
    assert (target.queries[~right] == 1).all()
    assert (answers(found) != SOME.y).all()
    assert violation(found, SOME.x, TASK.space, goal, 1e9) is None
    assert float((distance(found, SOME.x, goal) / least)[right].max()) < 1.25


@pytest.mark.parametrize("granted", [0, 1, 2, 13, 50])
@pytest.mark.parametrize(("kind", "goal"), ALL)
def test_the_budget_is_spent_and_never_exceeded(kind, goal, granted):
    data = Data.of(SOME.x, torch.zeros(len(SOME), dtype=torch.int64))
    target, region = door(data, goal, system=Stubborn(), more=f",queries={granted}")
    found = run(kind(), data, target, region)
    spent = 1 if kind is NES and granted == 2 else granted  # probes come in pairs
    assert target.queries.tolist() == [spent] * len(data)
    if (kind, goal) in LABELS:
        assert torch.equal(found, data.x)


@pytest.mark.parametrize("queries", [20, 173])
@pytest.mark.parametrize(("kind", "goal"), ALL)
def test_the_setting_is_a_budget_too(kind, goal, queries):
    target, region = door(SOME, goal, more=",queries=200")
    run(kind(queries=queries), SOME, target, region)
    assert int(target.queries.max()) <= queries
    assert int(target.queries.max()) > queries - 30  # what is left would not pay for another estimate


@pytest.mark.parametrize(("kind", "goal"), ALL)
def test_an_example_meets_the_same_chance_whoever_else_is_attacked(kind, goal):
    target, region = door(SOME, goal)
    whole = run(kind(queries=150), SOME, target, region)
    for rows in (torch.tensor([5]), torch.arange(1, 40, 3)):
        alone, place = door(SOME, goal)
        part = run(kind(queries=150), SOME.rows(rows), alone.keep(rows), place.keep(rows))
        torch.testing.assert_close(part, whole[rows])
        assert torch.equal(alone.queries[rows], target.queries[rows])


@pytest.mark.parametrize(("kind", "goal"), ALL)
def test_being_refused_is_no_success(kind, goal):
    target, region = door(SOME, goal, system=Refusing())
    found = run(kind(queries=500), SOME, target, region)
    said = answers(found, Refusing())
    fooled = (said != SOME.y) & (said != REFUSED)
    moved = (found != SOME.x).flatten(1).any(1)
    if (kind, goal) in LABELS:
        assert (fooled | ~moved).all()
        assert (fooled & moved).any()
    else:
        assert (target.queries[~fooled] >= 499).all()  # it went on
        assert (~fooled).any()


@pytest.mark.parametrize(("kind", "goal"), ALL)
def test_an_answer_that_is_no_number_is_a_success(kind, goal):
    class Fragile(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            logits = TASK.best().respond(x, rng).logits
            return Response(torch.where((logits.abs() < 1).any(1, keepdim=True), torch.nan, logits))

    target, region = door(SOME, goal, system=Fragile())
    found = run(kind(queries=300), SOME, target, region)
    said = answers(found, Fragile())
    assert (said == INVALID).any()
    assert (target.queries[said == INVALID] < 300).any() or (kind, goal) in LABELS


SPACES = {
    "row": InputSpace((20,)),
    "colour": InputSpace((3, 8, 8), grid=1 / 255),
    "wide": InputSpace((1, 2, 9), low=-1.0, high=2.0),
    "pixel": InputSpace((1, 1, 1)),
    "table": InputSpace(
        (4,),
        low=(0.0, 0.0, -1.0, 0.0),
        high=(1.0, 9.0, 1.0, 3.0),
        grid=(0.0, 1.0, 0.0, 1.0),
        mutable=(True, True, False, True),
        categorical=(False, False, False, True),
    ),
    "fixed": InputSpace((5,), mutable=(False,) * 5),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("n", [0, 1, 6])
@pytest.mark.parametrize(("kind", "goal"), ALL)
def test_any_shape_of_input_will_do(kind, goal, n, name):
    class Mean(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            mean = x.flatten(1).mean(1) - 0.6
            return Response(torch.stack([-mean, mean], 1))

    space = SPACES[name]
    low, high = space.box(torch.zeros(1))
    noise = torch.rand(n, *space.shape, generator=torch.Generator().manual_seed(0))
    data = Data.of(space.round(low + noise * (high - low)), torch.zeros(n, dtype=torch.int64))
    target, region = door(data, goal, eps=0.3, system=Mean(), space=space)
    found = run(kind(queries=60), data, target, region)
    assert violation(found, data.x, space, goal, 1e9 if (kind, goal) in LABELS else 0.3) is None
    torch.testing.assert_close(found, space.round(found), rtol=0, atol=1e-6)
    if name == "fixed":
        assert torch.equal(found, data.x)


def test_square_goes_on_from_where_it_is_told():
    data = SOME.rows(torch.arange(3, 40))
    target, region = door(data, "linf")
    start = region.project(data.x - 0.05 * (2 * data.y - 1).reshape(-1, 1, 1, 1))  # the best there is
    found, reached = square_search(target, data.x, data.y, region, Streams(0), queries=40, start=start)
    possible = TASK.broken(data.x, data.y, "linf", 0.05)
    assert torch.equal(reached > 0, possible)
    assert torch.equal(found, start)
    assert (target.queries == torch.where(possible, 1, 40)).all()
    scores = TASK.best().respond(found, torch.Generator()).logits
    torch.testing.assert_close(
        reached, (scores[:, 1] - scores[:, 0]) * (1 - 2 * data.y), rtol=1e-4, atol=1e-4
    )


def test_square_never_asks_again_about_the_point_that_it_holds():
    asked: list[Tensor] = []

    class Spy(Stubborn):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            asked.append(x.clone())
            return super().respond(x, rng)

    data = Data.of(SOME.x, torch.zeros(len(SOME), dtype=torch.int64))
    target, region = door(data, "linf", system=Spy())
    run(Square(queries=200), data, target, region)
    for points in asked[1:]:  # nothing is better than the first point, so every later one is compared with it
        assert (points != asked[0]).flatten(1).any(1).all()
    assert not torch.equal(asked[1] - asked[0], asked[2] - asked[0])


def test_examples_do_not_share_their_squares():
    data = Data.of(torch.full((8, 1, 8, 8), 0.5), torch.zeros(8, dtype=torch.int64))
    target, region = door(data, "linf", system=Stubborn())
    found = run(Square(queries=1), data, target, region)
    assert len({tuple(point.flatten().tolist()) for point in found}) > 1


def test_probes_see_through_the_grid():
    """A system that rounds its inputs shows nothing to probes that are shorter than a step of the grid."""
    space = InputSpace((1, 8, 8), grid=1 / 16)
    data = Data.of(space.round(TEST.x[:24]), TEST.y[:24])
    for kind, goal in LABELS:
        target, region = door(data, goal, space=space)
        found = run(kind(queries=1500), data, target, region)
        right = margin(data) > 0
        assert (answers(found) != data.y)[right].all()
        torch.testing.assert_close(found, space.round(found))
        far = distance(found, data.x, goal)[right]
        assert float(far.max()) < 2.5 if goal == "l2" else 0.26
