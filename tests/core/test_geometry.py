"""Norm balls cut to the input space: the definitions, restated over many random points."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region, violation
from firstline.benchmark.core.norms import distance, length

WIDTH = 12
NORMS = ("linf", "l2", "l1", "l0")
TABLE = InputSpace(
    (WIDTH,),
    low=(0.0,) * 6 + (-1.0,) * 6,
    high=(1.0,) * 6 + (3.0,) * 6,
    grid=(0.0, 0.1, 0.25) * 4,
    mutable=(True, False, True, True) * 3,
    categorical=(False,) * 10 + (True, False),
)
SPACES = {
    "continuous": InputSpace((1, 3, 4)),
    "8-bit": InputSpace((1, 3, 4), grid=1 / 255),
    "17 levels": InputSpace((1, 3, 4), grid=1 / 16),
    "wide box": InputSpace((WIDTH,), low=-9.0, high=9.0),
    "table": TABLE,
}
GRIDDED = ("8-bit", "17 levels", "table")
SEEDS = st.integers(0, 2**32 - 1)
RADII = st.sampled_from([0.0, 1 / 255, 8 / 255, 0.03, 0.1, 0.125, 0.7, 5.0]) | st.floats(0, 2)


def uniform(space: InputSpace, n: int, seed: int, reach: float = 0.0) -> Tensor:
    """Return n points of the space; reach 0.5 makes the box they fill half as wide again."""
    low, high = space.box(torch.zeros(1))
    drawn = torch.rand(n, *space.shape, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * (drawn * (1 + 2 * reach) - reach)


def centres(space: InputSpace, seed: int, n: int = 4) -> Tensor:
    return space.round(uniform(space, n, seed))


def moving(space: InputSpace) -> Tensor:
    free = space.movable(torch.zeros(1))
    return (torch.ones(space.shape) if free is None else free).bool()


def over(*names: str):
    """Run a test over norms and spaces by name, and over many seeds and radii."""

    def wrap(test):
        tried = given(seed=SEEDS, eps=RADII)(settings(deadline=None, max_examples=25)(test))
        return pytest.mark.parametrize("norm", NORMS)(pytest.mark.parametrize("name", names)(tried))

    return wrap


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2), ("l1", 1), ("l0", 0)])
def test_the_length_of_a_row_is_the_norm_that_numpy_gives(norm, order):
    delta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    delta[0, 0] = 0
    expected = [np.linalg.norm(row.ravel(), order) for row in delta.numpy()]
    assert length(delta, norm).tolist() == pytest.approx(expected, rel=1e-6)
    assert distance(delta + 1, torch.ones(1), norm).tolist() == pytest.approx(expected, abs=1e-5)


@over(*SPACES)
def test_a_projected_point_is_allowed_by_the_threat(name, norm, seed, eps):
    space = SPACES[name]
    x, points = centres(space, seed), uniform(space, 4, seed + 1, reach=0.5)
    assert violation(Region(x, space, norm, eps).project(points), x, space, norm, eps) is None


@over(*SPACES)
def test_projecting_twice_is_projecting_once(name, norm, seed, eps):
    space = SPACES[name]
    region = Region(centres(space, seed), space, norm, eps)
    once = region.project(uniform(space, 4, seed + 1, reach=0.5))
    torch.testing.assert_close(region.project(once), once, atol=1e-6, rtol=1e-6)


@over(*SPACES)
def test_inner_points_stay_exactly_where_they_are(name, norm, seed, eps):
    space = SPACES[name]
    x = centres(space, seed)
    inner = torch.where(moving(space), uniform(space, 4, seed + 1), x)
    radii = distance(inner, x, norm) * (1 + 1e-5) + eps
    assert torch.equal(Region(x, space, norm, radii).project(inner), inner)


@over("continuous", "8-bit", "17 levels")
def test_linf_projection_is_the_nearest_point_of_ball_and_box(name, norm, seed, eps):
    space = SPACES[name]
    x, points = centres(space, seed), uniform(space, 4, seed + 1, reach=0.5)
    region = Region(x, space, "linf", eps)
    expected = points.clamp(min=x - eps, max=x + eps).clamp(0, 1)
    torch.testing.assert_close(region.project(points), expected)


@given(seed=SEEDS, eps=st.floats(0.01, 2))
@settings(deadline=None, max_examples=50)
def test_l2_projection_is_the_nearest_point_of_the_ball(seed, eps):
    space = SPACES["wide box"]
    x, points = centres(space, seed) / 3, uniform(space, 4, seed + 1)
    region = Region(x, space, "l2", eps)
    found = region.project(points)
    others = region.random(torch.Generator().manual_seed(seed + 2))
    assert (distance(found, points, "l2") <= distance(others, points, "l2") + 1e-5).all()
    assert (
        distance(found, x, "l2") >= torch.minimum(distance(points, x, "l2"), torch.tensor(eps)) - 1e-4
    ).all()


@over(*GRIDDED)
def test_a_snapped_point_is_on_the_grid_and_still_in_the_region(name, norm, seed, eps):
    space = SPACES[name]
    x = centres(space, seed)
    region = Region(x, space, norm, eps)
    snapped = region.snap(region.project(uniform(space, 4, seed + 1, reach=0.5)))
    assert violation(snapped, x, space, norm, eps) is None
    assert torch.equal(torch.where(moving(space), space.round(snapped), snapped), snapped)
    torch.testing.assert_close(region.snap(snapped), snapped, atol=0, rtol=0)


@over(*GRIDDED)
def test_snapping_moves_a_point_by_less_than_one_grid_step_per_feature(name, norm, seed, eps):
    space = SPACES[name]
    x = centres(space, seed)
    region = Region(x, space, norm, eps)
    points = region.project(uniform(space, 4, seed + 1))
    step = torch.as_tensor(space.grid).expand(12).reshape(space.shape)
    assert ((region.snap(points) - points).abs() <= step + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_smaller_than_the_grid_holds_its_centre_alone(norm):
    space = SPACES["8-bit"]
    x = centres(space, 0)
    region = Region(x, space, norm, 0.9 / 255)
    assert torch.equal(region.snap(region.random(torch.Generator().manual_seed(0))), x)


@pytest.mark.parametrize("name", SPACES)
def test_without_a_grid_snapping_changes_nothing(name):
    space = replace(SPACES[name], grid=0.0)
    points = uniform(space, 4, 0)
    assert Region(points, space, "linf", 0.1).snap(points) is points


@pytest.mark.parametrize("norm", NORMS)
@given(seed=SEEDS)
@settings(deadline=None, max_examples=25)
def test_features_that_may_not_move_never_do(norm, seed):
    # These need not have values that rounding gives: codes come as they are.
    x = torch.where(moving(TABLE), centres(TABLE, seed), uniform(TABLE, 4, seed))
    region = Region(x, TABLE, norm, 2 if norm == "l0" else 0.5)
    generator = torch.Generator().manual_seed(seed)
    points = region.random(generator)
    for _ in range(3):
        points = region.step(points, torch.randn(x.shape, generator=generator), region.eps * 0.4)
        still = ~moving(TABLE)
        assert torch.equal(points[:, still], x[:, still])
        assert torch.equal(region.snap(points)[:, still], x[:, still])
    assert (points != x)[:, moving(TABLE)].any()


@over(*SPACES)
def test_each_example_can_have_a_radius_of_its_own(name, norm, seed, eps):
    space = SPACES[name]
    x, points = centres(space, seed), uniform(space, 4, seed + 1, reach=0.5)
    radii = torch.tensor([0.0, eps, eps / 2, 0.3])
    whole = Region(x, space, norm, radii)
    for row, radius in enumerate(radii.tolist()):
        alone = Region(x[row : row + 1], space, norm, radius)
        assert torch.equal(whole.project(points)[row], alone.project(points[row : row + 1])[0])
        inside = whole.project(points)
        assert torch.equal(whole.snap(inside)[row], alone.snap(inside[row : row + 1])[0])


@over(*SPACES)
def test_the_region_of_some_rows_is_that_of_the_whole_at_these_rows(name, norm, seed, eps):
    space = SPACES[name]
    x, points = centres(space, seed), uniform(space, 4, seed + 1, reach=0.5)
    whole, rows = Region(x, space, norm, torch.tensor([eps, 0.1, 0.2, eps])), torch.tensor([3, 1])
    part = whole.keep(rows)
    gradient = uniform(space, 4, seed + 2) - 0.5
    stride = whole.eps * 0.3
    inside = whole.project(points)
    assert torch.equal(part.project(points[rows]), inside[rows])
    assert torch.equal(part.snap(inside[rows]), whole.snap(inside)[rows])
    assert torch.equal(
        part.step(inside[rows], gradient[rows], stride[rows]), whole.step(inside, gradient, stride)[rows]
    )
    assert len(part.random(torch.Generator())) == 2


@over(*SPACES)
def test_a_step_stays_in_the_region_and_leaves_its_arguments_alone(name, norm, seed, eps):
    space = SPACES[name]
    x = centres(space, seed)
    region = Region(x, space, norm, eps)
    points, gradient = region.random(torch.Generator().manual_seed(seed)), uniform(space, 4, seed) - 0.5
    given_points, given_gradient = points.clone(), gradient.clone()
    moved = region.step(points, gradient, region.eps)
    assert violation(moved, x, space, norm, eps) is None
    assert torch.equal(points, given_points)
    assert torch.equal(gradient, given_gradient)


def test_a_step_goes_uphill_by_the_stride():
    x, space = torch.zeros(1, WIDTH), SPACES["wide box"]
    gradient = torch.arange(WIDTH, dtype=torch.float32).reshape(1, WIDTH) - 5
    stride = torch.full((1, 1), 0.25)
    signs = Region(x, space, "linf", 1.0).step(x, gradient, stride)
    assert torch.equal(signs, 0.25 * gradient.sign())
    unit = Region(x, space, "l2", 1.0).step(x, gradient, stride)
    torch.testing.assert_close(unit, 0.25 * gradient / gradient.norm())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_a_gradient_that_says_nothing_moves_nothing(norm, bad):
    x = centres(SPACES["continuous"], 0)
    region = Region(x, SPACES["continuous"], norm, 0.2)
    assert torch.equal(region.step(x, torch.full_like(x, bad), region.eps), x)


@over(*SPACES)
def test_a_random_point_is_allowed_by_the_threat(name, norm, seed, eps):
    space = SPACES[name]
    x = centres(space, seed)
    points = Region(x, space, norm, eps).random(torch.Generator().manual_seed(seed))
    assert violation(points, x, space, norm, eps) is None


@pytest.mark.parametrize(("norm", "share"), [("linf", 0.25), ("l2", 0.25)])
def test_random_points_fill_the_ball_evenly(norm, share):
    space = InputSpace((2,), low=-9.0, high=9.0)
    x = torch.zeros(20_000, 2)
    points = Region(x, space, norm, 2.0).random(torch.Generator().manual_seed(0))
    assert float((length(points, norm) <= 1).float().mean()) == pytest.approx(share, abs=0.015)
    assert float(length(points, norm).max()) > 1.99
    assert points.mean(0).tolist() == pytest.approx([0, 0], abs=0.05)


@pytest.mark.parametrize("norm", ["l3", "l7", ""])
def test_a_norm_without_a_ball_is_refused_with_those_that_have_one(norm):
    with pytest.raises(
        FirstlineError, match=f"no ball is implemented for '{norm}'; use one of: linf, l2, l1, l0"
    ):
        Region(torch.zeros(1, 2), InputSpace((2,)), norm, 0.1)


FLAT = InputSpace((4,), mutable=(True, True, True, False))
X = torch.full((3, 4), 0.5)


def moved(feature: int, by: float) -> Tensor:
    points = X.clone()
    points[1, feature] += by
    return points


@pytest.mark.parametrize(
    ("points", "norm", "said"),
    [
        (X[:2], "linf", "returned shape (2, 4) for inputs of shape (3, 4)"),
        (X[:, :3], "linf", "returned shape (3, 3) for inputs of shape (3, 4)"),
        (moved(0, float("nan")), "linf", "returned NaN or infinite values"),
        (moved(0, float("inf")), "linf", "returned NaN or infinite values"),
        (moved(0, 0.6), "linf", "returned 1 of 3 examples outside the allowed range"),
        (moved(3, 1e-6), "linf", "changed immutable features of 1 of 3 examples"),
        (moved(0, 0.101), "linf", "left the linf ball of 0.1 on 1 of 3 examples, by up to 0.001"),
        (moved(0, -0.101), "l2", "left the l2 ball of 0.1 on 1 of 3 examples, by up to 0.001"),
        (moved(0, 0.101), "l1", "left the l1 ball of 0.1 on 1 of 3 examples, by up to 0.001"),
        (moved(0, 0.001), "l0", "left the l0 ball of 0.1 on 1 of 3 examples, by up to 0.9"),
    ],
)
def test_every_kind_of_violation_is_said(points, norm, said):
    assert violation(points, X, FLAT, norm, 0.1) == said


@pytest.mark.parametrize(
    ("by", "norm", "eps"), [(0.1, "linf", 0.1), (0.1, "l2", 0.1), (0.4, "l0", 1), (0.0, "l2", 0.0)]
)
def test_a_point_at_the_edge_of_its_ball_breaks_nothing(by, norm, eps):
    assert violation(moved(2, by), X, FLAT, norm, eps) is None


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_points_without_the_box_are_uniform_in_the_ball_even_at_its_edge(norm):
    """At a corner of the box half of every feature's moves lead out; features that may not move stay."""
    space = InputSpace((4,), mutable=(True, True, True, False))
    corner = torch.zeros(4000, 4)
    region = Region(corner, space, norm, 0.3)
    free = region.beyond(torch.Generator().manual_seed(0))
    assert bool(region.holds(free).all())
    assert not free[:, 3].any()
    assert float((free[:, :3] < 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    cut = region.random(torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut, region.project(free))
    assert float(cut.min()) == 0.0
