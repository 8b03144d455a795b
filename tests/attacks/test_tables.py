"""Attacks on tables under a cost budget: knapsacks, exhaustive searches, and rules that nothing may break."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from firstline.attacks.evasion.constrained import ConstrainedPGD
from firstline.attacks.evasion.feature_search import FeatureSearch
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import ContractBroken, FirstlineError
from firstline.benchmark.core.geometry import Region, violation
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.random_forest import Forest

ATTACKS = [ConstrainedPGD(), FeatureSearch(queries=150)]
NEVER = 1e3  # a score so far below the boundary that nothing is broken, and all of the budget is used


class Scorecard(System):
    """Adds up a weight times each number, and points for each category; class 1 from `needed` on."""

    def __init__(self, weights: Tensor, points: list[Tensor], needed: float = NEVER) -> None:
        super().__init__()
        self.weights, self.points, self.needed = weights, points, needed

    def score(self, x: Tensor) -> Tensor:
        numbers = len(self.weights)
        total = x[:, :numbers] @ self.weights
        for place, points in enumerate(self.points):
            total = total + points[x[:, numbers + place].round().long()]
        return total

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        score = self.score(x) - self.needed
        return Response(torch.stack([-score / 2, score / 2], 1))


def scorecard(
    seed: int, counts: tuple[int, ...] = (4, 3, 5), numbers: int = 6, grid: float = 0.0, movable: float = 0.85
) -> tuple[InputSpace, Scorecard, Tensor]:
    """A random scorecard, its space, and 20 rows."""
    generator = torch.Generator().manual_seed(seed)
    width = numbers + len(counts)
    space = InputSpace(
        shape=(width,),
        high=(1.0,) * numbers + tuple(count - 1.0 for count in counts),
        grid=(grid,) * numbers + (1.0,) * len(counts),
        mutable=tuple((torch.rand(width, generator=generator) < movable).tolist()),
        categorical=(False,) * numbers + (True,) * len(counts),
        costs=tuple((torch.rand(width, generator=generator) * 3 + 0.2).tolist()),
    )
    system = Scorecard(
        torch.randn(numbers, generator=generator),
        [torch.randn(count, generator=generator) for count in counts],
    )
    x = torch.rand(20, width, generator=generator)
    for place, count in enumerate(counts):
        x[:, numbers + place] = torch.randint(count, (20,), generator=generator)
    return space, system, space.round(x)


def best_rise(space: InputSpace, system: Scorecard, row: Tensor, budget: float) -> float:
    """How far the score of a row can be raised: every choice of categories, and a fractional knapsack of numbers."""
    numbers = len(system.weights)
    choices = []
    for place, points in enumerate(system.points, start=numbers):
        own = int(row[place])
        others = [code for code in range(len(points)) if code != own] if space.mutable[place] else []
        rises = [(space.costs[place], float(points[code] - points[own])) for code in others]
        choices.append([(0.0, 0.0), *rises])
    items = []
    for place, weight in enumerate(system.weights.tolist()):
        if space.mutable[place]:
            room = float(1 - row[place] if weight > 0 else row[place])
            items.append((abs(weight) / space.costs[place], room * space.costs[place]))
    items.sort(reverse=True)
    best = 0.0
    for choice in itertools.product(*choices):
        left = budget - sum(cost for cost, _ in choice)
        if left < 0:
            continue
        rise = sum(points for _, points in choice)
        for rate, room in items:
            rise += rate * min(room, left)
            left -= min(room, left)
        best = max(best, rise)
    return best


def attacked(
    attack: Evasion,
    system: System,
    space: InputSpace,
    x: Tensor,
    y: Tensor,
    budget: float | Tensor,
    *,
    goal: str = "cost",
    threat: str = "evasion/white/cost:1",
    aux: Data | None = None,
) -> tuple[Tensor, Target]:
    target = Target(
        system,
        Threat.parse(threat),
        space=space,
        classes=2,
        rng=Streams(0),
        examples=len(x),
        aux=aux or Data.of(x, y),
    )
    given_x, given_y = x.clone(), y.clone()
    found = attack.perturb(target, given_x, given_y, Region(x.clone(), space, goal, budget), Streams(7))
    assert torch.equal(given_x, x)
    assert torch.equal(given_y, y)
    return found, target


def wrong(system: System, x: Tensor, y: Tensor) -> Tensor:
    return system.respond(x, torch.Generator()).labels != y


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64)


@pytest.mark.parametrize("budget", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("attack", "within"), [(ConstrainedPGD(), 1.001), (FeatureSearch(queries=250), 1.25)], ids=str
)
def test_what_is_bought_is_worth_nearly_what_the_budget_can_buy(attack, within, seed, budget):
    space, system, x = scorecard(seed)
    found, _ = attacked(attack, system, space, x, zeros(x), budget)
    rise = system.score(found) - system.score(x)
    best = torch.tensor([best_rise(space, system, row, budget) for row in x])
    assert (rise <= best * (1 + 1e-4) + 1e-4).all()  # the reference is a bound
    if attack.name == "constrained-pgd":
        assert (rise * within >= best - 1e-3).all()
    else:  # single examples may fall behind a search over all choices
        assert float(rise.sum()) * within >= float(best.sum())


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_it_breaks_what_can_be_broken_and_nothing_else(attack):
    space, system, x = scorecard(5)
    best = torch.tensor([best_rise(space, system, row, 2.0) for row in x])
    system.needed = float((system.score(x) + best).median())
    found, _ = attacked(attack, system, space, x, zeros(x), 2.0)
    possible = system.score(x) + best > system.needed
    clear = ((system.score(x) + best - system.needed).abs() > 1e-2) | ~possible
    assert 0 < int(possible.sum()) < len(x)
    broken = wrong(system, found, zeros(x))
    assert not (broken & ~possible).any()
    assert (broken | ~possible)[clear].float().mean() > (0.99 if attack.name == "constrained-pgd" else 0.8)


SPACE = InputSpace(
    shape=(4,),
    high=(1.0, 1.0, 3.0, 2.0),
    grid=(0.1, 0.25, 1.0, 1.0),
    mutable=(True, True, True, False),
    categorical=(False, False, True, True),
    costs=(5.0, 3.0, 1.0, 1.0),
)
GRID = SPACE.round(
    torch.tensor(
        list(itertools.product([i / 10 for i in range(11)], [i / 4 for i in range(5)], range(4), range(3)))
    )
)


def small_forest(seed: int) -> tuple[System, Tensor, Tensor]:
    """A forest of eight trees on a table of four columns, and rows of it."""
    generator = torch.Generator().manual_seed(seed)
    x = GRID[torch.randint(len(GRID), (300,), generator=generator)]
    noise = 0.3 * torch.randn(300, generator=generator)
    signal = (x[:, 0] - 0.5) * (x[:, 1] - 0.5) * 4 + 0.6 * (x[:, 2] == 1) - 0.3 * (x[:, 3] == 2)
    y = (signal + noise > 0).long()
    forest = RandomForestClassifier(8, max_depth=5, random_state=seed).fit(x.numpy(), y.numpy())
    module = Forest(SPACE, 2, 8, 5, 0.05)
    module.fill([tree.tree_ for tree in forest.estimators_], forest.classes_)
    return Bare(module).eval(), x[:50], y[:50]


@pytest.mark.parametrize("budget", [1.0, 2.0])
@pytest.mark.parametrize("knowledge", ["white", "black"])
@pytest.mark.parametrize("seed", range(2))
def test_on_a_forest_the_search_finds_what_an_exhaustive_one_does(seed, knowledge, budget):
    system, x, y = small_forest(seed)
    cost = torch.stack([SPACE.cost(GRID, row.expand_as(GRID)) for row in x])
    allowed = (cost <= budget + 1e-5) & (GRID[None, :, 3] == x[:, None, 3])
    possible = (allowed & wrong(system, GRID, y[:, None])).any(1)
    threat = f"evasion/{knowledge}/cost:{budget}"
    found, target = attacked(FeatureSearch(queries=300), system, SPACE, x, y, budget, threat=threat)
    assert violation(found, x, SPACE, "cost", budget) is None
    assert torch.equal(wrong(system, found, y), possible)
    assert (target.queries[~possible] == 300).all()
    gradient, _ = attacked(ConstrainedPGD(), system, SPACE, x, y, budget)
    broken = wrong(system, gradient, y)
    assert not (broken & ~possible).any()
    assert int(broken.sum()) >= 0.8 * int(possible.sum())  # its gradient is a stand-in's


@pytest.mark.parametrize("goal", ["linf", "l2", "l1", "l0"])
def test_under_a_norm_the_search_leaves_categories_and_keeps_to_the_ball(goal):
    system, x, y = small_forest(1)
    eps = {"linf": 0.2, "l2": 0.4, "l1": 0.5, "l0": 1}[goal]
    found, _ = attacked(FeatureSearch(queries=200), system, SPACE, x, y, eps, goal=goal)
    assert violation(found, x, SPACE, goal, eps) is None
    assert torch.equal(found[:, 2:], x[:, 2:])
    near = torch.stack([Region(row[None], SPACE, goal, eps).holds(GRID) for row in x])
    allowed = near & (GRID[None, :, 2:] == x[:, None, 2:]).all(2)
    possible = (allowed & wrong(system, GRID, y[:, None])).any(1)
    assert torch.equal(wrong(system, found, y), possible)


@st.composite
def tables(draw):
    """A scorecard with any mix of features, a budget and whether it can be broken at all."""
    counts = tuple(draw(st.lists(st.integers(2, 5), max_size=3)))
    return (
        scorecard(
            draw(st.integers(0, 999)),
            counts,
            draw(st.integers(1, 4)),
            grid=draw(st.sampled_from([0.0, 0.1, 1 / 3, 1.0])),
            movable=draw(st.sampled_from([0.0, 0.5, 1.0])),
        ),
        draw(st.sampled_from([0.0, 0.1, 1.0, 2.5, 50.0])),
        draw(st.sampled_from([-1.0, 0.5, NEVER])),
    )


@pytest.mark.parametrize("attack", [ConstrainedPGD(steps=3, rounds=2), FeatureSearch(queries=40)], ids=str)
@settings(max_examples=20, deadline=None)
@given(tables())
def test_no_rule_is_ever_broken(attack, table):
    (space, system, x), budget, needed = table
    system.needed = needed
    found, target = attacked(attack, system, space, x, zeros(x), budget)
    assert violation(found, x, space, "cost", budget) is None
    region = Region(x, space, "cost", budget)
    assert region.holds(found).all()
    assert torch.equal(wrong(system, region.snap(found), zeros(x)), wrong(system, found, zeros(x)))
    assert torch.equal(found[wrong(system, x, zeros(x))], x[wrong(system, x, zeros(x))])
    if budget == 0:
        assert torch.equal(found, x)
    assert int(target.queries.max()) <= 40


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_an_example_fares_the_same_in_other_company(attack):
    system, x, y = small_forest(2)
    whole, meter = attacked(attack, system, SPACE, x, y, 1.0)
    some = torch.tensor([3, 4, 11, 30])
    threat = Threat.parse("evasion/white/cost:1")
    door = Target(
        system, threat, space=SPACE, classes=2, rng=Streams(0), examples=50, aux=Data.of(x, y)
    ).keep(some)
    region = Region(x, SPACE, "cost", 1.0).keep(some)
    assert torch.equal(attack.perturb(door, x[some], y[some], region, Streams(7)), whole[some])
    assert torch.equal(door.queries[some], meter.queries[some])
    assert torch.equal(door.gradients[some], meter.gradients[some])


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_budgets_may_differ_by_example(attack):
    space, system, x = scorecard(3)
    budgets = torch.linspace(0, 3, len(x))
    found, _ = attacked(attack, system, space, x, zeros(x), budgets)
    spent = space.cost(found, x)
    assert (spent <= budgets * (1 + 1e-5) + 1e-6).all()
    assert torch.equal(found[0], x[0])
    for row in (5, 12):
        alone, _ = attacked(attack, system, space, x, zeros(x), float(budgets[row]))
        assert torch.equal(alone[row], found[row])


@pytest.mark.parametrize("queries", [1, 7, 60])
@pytest.mark.parametrize("granted", [None, 30])
def test_every_query_is_asked_and_none_more(queries, granted):
    space, system, x = scorecard(0, movable=1.0)
    threat = "evasion/black/cost:1" + (f",queries={granted}" if granted else "")
    _, target = attacked(FeatureSearch(queries=queries), system, space, x, zeros(x), 1.0, threat=threat)
    assert target.queries.tolist() == [min(queries, granted or queries)] * len(x)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_what_is_wrong_already_is_asked_once_and_left_alone(attack):
    space, system, x = scorecard(1)
    system.needed = -NEVER
    found, target = attacked(attack, system, space, x, zeros(x), 2.0)
    assert torch.equal(found, x)
    assert (target.queries + target.gradients).tolist() == [1] * len(x)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("count", [0, 1])
def test_few_examples_are_no_special_case(attack, count):
    space, system, x = scorecard(1)
    found, _ = attacked(attack, system, space, x[:count], zeros(x[:count]), 2.0)
    assert found.shape == x[:count].shape


class Wary(Scorecard):
    """Refuses to answer while the first number is low."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(super().respond(x, rng).logits, x[:, 0] - 0.6)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_being_refused_is_no_success_and_the_attack_goes_on(attack):
    space, system, x = scorecard(2, movable=1.0)
    x[:, 0], system.weights[0] = 0.5, 0.0
    wary = Wary(system.weights, system.points)
    best = torch.tensor([best_rise(space, system, row, 2.0) for row in x])
    wary.needed = float((system.score(x) + best).min()) - 0.1  # within reach of all, with that budget
    found, _ = attacked(attack, wary, space, x, zeros(x), 2.0 + 0.11 * space.costs[0])
    assert (wary.respond(found, torch.Generator()).labels == 1).float().mean() > 0.9


def test_a_loss_that_is_none_is_refused():
    space, system, x = scorecard(1)
    with pytest.raises(FirstlineError, match="no loss is called 'mragin'"):
        attacked(ConstrainedPGD(loss="mragin"), system, space, x, zeros(x), 1.0)


def test_cost_counts_changes_by_price_and_categories_once():
    x = torch.tensor([[0.5, 0.5, 0.0, 2.0]])
    moved = torch.tensor([[0.3, 0.75, 3.0, 2.0]])
    assert SPACE.cost(moved, x).item() == pytest.approx(0.2 * 5 + 0.25 * 3 + 1)
    region = Region(x, SPACE, "cost", 2.75)
    assert region.distance(moved).item() == pytest.approx(2.75)
    assert region.holds(moved).all()
    assert torch.equal(region.snap(moved), moved)  # a changed category is kept


@pytest.mark.parametrize(
    ("place", "value", "budget", "message"),
    [
        (0, 0.55, 9, "left the grid"),
        (2, 1.5, 9, "left the grid"),
        (2, 4.0, 9, "outside the allowed range"),
        (3, 1.0, 9, "changed immutable features"),
        (0, 0.9, 1, "left the cost ball of 1"),
        (2, 1.0, 0.5, "left the cost ball of 0.5"),
    ],
)
def test_points_that_no_row_could_be_break_the_threat(place, value, budget, message):
    x = torch.tensor([[0.5, 0.5, 0.0, 2.0]])
    moved = x.clone()
    moved[0, place] = value
    assert message in violation(moved, x, SPACE, "cost", budget)


def test_no_norm_measures_a_changed_category():
    x = torch.tensor([[0.5, 0.5, 0.0, 2.0]])
    moved = torch.tensor([[0.5, 0.5, 1.0, 2.0]])
    assert "changed categories of 1 of 1" in violation(moved, x, SPACE, "l2", 5.0)
    assert torch.equal(Region(x, SPACE, "l2", 5.0).snap(moved), x)


@given(st.integers(0, 999), st.floats(0, 4))
@settings(max_examples=20, deadline=None)
def test_a_cost_ball_is_an_l1_ball_of_priced_changes(seed, budget):
    space, _, x = scorecard(seed, movable=1.0)
    plain = InputSpace(
        shape=space.shape, high=tuple(torch.tensor(space.high).mul(torch.tensor(space.costs)).tolist())
    )
    prices = torch.tensor(space.costs)
    codes = torch.tensor(space.categorical)
    points = torch.where(codes, x, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)))
    near = Region(x, space, "cost", budget).project(points)
    expected = Region(x * prices, plain, "l1", budget).project(points * prices)
    torch.testing.assert_close(near * prices, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("costs", [(1.0, 0.0), (1.0, -1.0), (float("inf"), 1.0), (1.0,)])
def test_a_cost_is_a_positive_number_for_each_feature(costs):
    with pytest.raises(ContractBroken, match="cost"):
        InputSpace(shape=(2,), costs=costs)


@pytest.mark.parametrize("text", ["evasion/white/cost:2.5", "evasion/black/cost:3,queries=1k"])
def test_a_cost_threat_reads_back(text):
    assert str(Threat.parse(text)) == text


def test_a_budget_below_zero_is_none():
    with pytest.raises(FirstlineError, match="cost needs a budget of at least 0"):
        Threat.parse("evasion/white/cost:-1")
