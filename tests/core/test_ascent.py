"""The one ascent loop, against the slow and obvious one, and its book-keeping of rows."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.ascent import Slope, ascend, module_slope
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.geometry import Region

SPACE = InputSpace((1, 4, 4))
GREY = InputSpace((1, 4, 4), grid=1 / 16)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).requires_grad_(False)


def examples(n: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 4, 4, generator=generator), torch.randint(3, (n,), generator=generator)


def slow_pgd(
    module: nn.Module, x: Tensor, y: int, start: Tensor, norm: str, eps: float, steps: int, stride: float
) -> Tensor:
    """Projected gradient ascent on one example (1, *shape), as the paper's algorithm box has it."""
    point = start
    for _ in range(steps):
        point = point.detach().requires_grad_()
        logits = module(point)
        if int(logits.argmax()) != y:
            return point.detach()
        (gradient,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([y])), point)
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        delta = point.detach() + stride * eps * direction - x
        delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / float(delta.norm()))
        point = (x + delta).clamp(0, 1)
    return point


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("linf", 0.1), ("l2", 0.1), ("l2", 0.4)])
def test_ascent_is_the_slow_and_obvious_pgd(norm, eps):
    module, (x, y) = network(), examples()
    y[:18] = module(x[:18]).argmax(1)  # right when clean; some of the others are not
    region = Region(x, SPACE, norm, eps)
    start = region.random(torch.Generator().manual_seed(2))

    def climb(points: Tensor, rows: Tensor) -> Slope:
        return module_slope(module, points, y[rows])._replace(broken=module(points).argmax(1) != y[rows])

    found = ascend(climb, region, start=start, steps=15, stride=0.2)
    expected = [
        slow_pgd(module, x[i : i + 1], int(y[i]), start[i : i + 1], norm, eps, 15, 0.2) for i in range(len(x))
    ]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-6, rtol=0)
    broken = (module(found).argmax(1) != y).float().mean()
    assert 0 < broken < 1  # both ways of ending were met


class Plan:
    """A loss that rises everywhere, and a step at which each example breaks; remembers what it was asked."""

    def __init__(self, x: Tensor, breaks_at: dict[int, int]) -> None:
        self.x, self.breaks_at = x, breaks_at
        self.asked: list[tuple[Tensor, list[int]]] = []

    def __call__(self, points: Tensor, rows: Tensor) -> Slope:
        assert points.shape == self.x[rows].shape
        step = len(self.asked)
        self.asked.append((points.clone(), rows.tolist()))
        return Slope(
            torch.ones_like(points),
            torch.tensor([self.breaks_at.get(r) == step for r in rows.tolist()]),
            torch.zeros(len(points)),
        )


def rising(n: int = 5) -> Tensor:
    return torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1).expand(n, 1, 4, 4) / 10


def test_an_example_leaves_when_it_breaks_and_keeps_the_point_that_broke_it():
    x = rising()
    plan = Plan(x, {3: 0, 0: 2, 4: 2})
    found = ascend(plan, Region(x, SPACE, "linf", 0.1), start=x, steps=4, stride=0.25)
    assert [rows for _, rows in plan.asked] == [[0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 2, 4], [1, 2]]
    way = torch.tensor([0.05, 0.1, 0.1, 0.0, 0.05]).reshape(5, 1, 1, 1)  # 2, 4, 4, 0 and 2 steps of 0.025
    torch.testing.assert_close(found, x + way)


def test_points_come_with_the_rows_that_they_belong_to():
    x = rising()
    plan = Plan(x, {1: 0, 0: 1})
    ascend(plan, Region(x, SPACE, "linf", 0.04), start=x, steps=3, stride=0.1)
    for points, rows in plan.asked:
        assert ((points - x[rows]).abs() <= 0.04 + 1e-6).all()


def test_each_example_climbs_within_its_own_radius():
    x = rising(3)
    found = ascend(
        Plan(x, {}), Region(x, SPACE, "linf", torch.tensor([0.0, 0.1, 0.2])), start=x, steps=9, stride=0.5
    )
    torch.testing.assert_close((found - x).flatten(1).amax(1), torch.tensor([0.0, 0.1, 0.2]))


def test_a_stride_stays_with_its_example_when_others_leave():
    x = rising(3)
    region = Region(x, SPACE, "linf", torch.tensor([0.4, 0.04, 0.2]))
    found = ascend(Plan(x, {0: 0}), region, start=x, steps=2, stride=0.25)
    torch.testing.assert_close((found - x).flatten(1).amax(1), torch.tensor([0.0, 0.02, 0.1]))


def test_nothing_more_is_asked_once_all_are_broken():
    x = rising()
    plan = Plan(x, dict.fromkeys(range(5), 1))
    ascend(plan, Region(x, SPACE, "linf", 0.1), start=x, steps=50, stride=0.1)
    assert len(plan.asked) == 2


def test_without_a_verdict_the_ascent_goes_all_the_way():
    x, calls = rising(), []

    def climb(points: Tensor, rows: Tensor) -> Slope:
        calls.append(rows.tolist())
        return Slope(torch.ones_like(points), None, torch.zeros(len(points)))

    found = ascend(climb, Region(x, SPACE, "linf", 0.1), start=x, steps=7, stride=1.0)
    assert calls == [[0, 1, 2, 3, 4]] * 7
    torch.testing.assert_close(found, x + 0.1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_system_is_asked_on_the_grid_and_the_result_is_on_it(norm):
    x = GREY.round(rising())
    plan = Plan(x, {2: 1})
    found = ascend(plan, Region(x, GREY, norm, 0.3), start=x, steps=3, stride=0.3)
    for points in (found, *(points for points, _ in plan.asked)):
        assert torch.equal(GREY.round(points), points)


def test_no_steps_return_the_start_and_leave_it_alone():
    x = rising()
    start = x + 0.01
    kept = start.clone()
    assert torch.equal(
        ascend(Plan(x, {}), Region(x, SPACE, "linf", 0.1), start=start, steps=0, stride=0.1), kept
    )
    ascend(Plan(x, {0: 0, 1: 1}), Region(x, SPACE, "l2", 0.1), start=start, steps=3, stride=0.1)
    assert torch.equal(start, kept)


def test_no_examples_are_no_trouble():
    x = torch.zeros(0, 1, 4, 4)
    assert len(ascend(Plan(x, {}), Region(x, SPACE, "l2", 0.1), start=x, steps=3, stride=0.1)) == 0


def test_the_input_gradient_is_that_of_the_summed_loss_and_leaves_the_parameters_alone():
    module, (x, y) = network().requires_grad_(True), examples(6)
    found = module_slope(module, x, y).gradient
    assert all(p.grad is None for p in module.parameters())
    assert not x.requires_grad
    nudge = torch.zeros_like(x)
    nudge[2, 0, 1, 3] = 1e-3
    with torch.no_grad():
        sides = [cross_entropy(module((x + s * nudge).double().float()), y, reduction="sum") for s in (1, -1)]
    assert float(found[2, 0, 1, 3]) == pytest.approx(float(sides[0] - sides[1]) / 2e-3, rel=0.02)
