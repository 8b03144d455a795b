"""Norm balls, cut to the input space: the points that an attacker may choose."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import BALLS, column, distance

SLACK = 1e-5  # float32 rounding that a distance may exceed its radius by, relative


class Region:
    """The points that an attacker may choose for each example: the ball around x, inside the input space.

    x is (n, *shape); eps a radius, or one per example (n,). Features that may not move, or that are
    categories, stay as they are. `keep` narrows it to the examples that still stand.

    The norm `cost` is l1 of changes times their prices; there `snap`, `distance` and `holds` take changed
    categories for what they are, while steps and projections leave them to attacks that know how.
    """

    def __init__(self, x: Tensor, space: InputSpace, norm: str, eps: float | Tensor) -> None:
        if norm not in BALLS:
            raise FirstlineError(f"no ball is implemented for {norm!r}; use one of: {', '.join(BALLS)}")
        self.centre, self.space, self.norm = x, space, norm
        self.eps = column(torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x)), x)
        self.rows = torch.arange(len(x), device=x.device)  # of the examples that the attack was given
        self._total = len(x)
        self._ops = BALLS[norm]
        self._free = self._loose = space.movable(x)  # by steps; where points may differ from x at all
        self._prices = None
        if norm == "cost":
            self._prices, self._loose = space.prices(x), space.changeable(x)
        low, high = space.box(x)
        grid = torch.as_tensor(space.grid, dtype=x.dtype, device=x.device)
        self._grid = grid.reshape(space.shape) if grid.ndim else grid
        self._gridded = bool((self._grid > 0).any())
        if norm == "linf":
            self.low, self.high = torch.maximum(x - self.eps, low), torch.minimum(x + self.eps, high)
        else:
            self.low, self.high = low.expand_as(x), high.expand_as(x)
        if self._gridded and norm == "linf":
            step = torch.where(self._grid > 0, self._grid, torch.ones_like(self._grid))
            inner_low = torch.ceil((self.low - low) / step - 1e-4) * step + low
            inner_high = torch.floor((self.high - low) / step + 1e-4) * step + low
            # Rounded again, to be the very numbers that InputSpace.round gives.
            inner_low, inner_high = space.round(inner_low), space.round(inner_high)
            self._snap_low = torch.where(self._grid > 0, torch.minimum(inner_low, x), self.low)
            self._snap_high = torch.where(self._grid > 0, torch.maximum(inner_high, x), self.high)

    def __len__(self) -> int:
        return len(self.centre)

    def _rounded(self, points: Tensor) -> Tensor:
        """Return space.round of points; for points that the region clips anyway, without its intermediate tensors."""
        if self.norm != "linf" or isinstance(self.space.grid, tuple) or self.space.low != 0.0:
            return self.space.round(points)
        levels = 1 / self.space.grid
        return (points * levels).round_().div_(levels)

    def keep(self, rows: Tensor) -> Self:
        """Return the region of the examples at rows (k,), positions within this region."""
        smaller = object.__new__(type(self))
        smaller.__dict__.update(self.__dict__)
        for name in ("centre", "eps", "rows", "low", "high", "_snap_low", "_snap_high"):
            if name in self.__dict__:
                setattr(smaller, name, self.__dict__[name][rows])
        return smaller

    def resized(self, eps: float | Tensor, centre: Tensor | None = None) -> "Region":
        """Return the same region with another radius, or with one per example (n,); around centre if given."""
        other = Region(self.centre if centre is None else centre, self.space, self.norm, eps)
        other.rows, other._total = self.rows, self._total
        return other

    def draw(self, sample: Callable[[int], Tensor]) -> Tensor:
        """Return the rows of sample(n) that belong to the examples here, n being how many there were at first.

        So an example meets the same chance whichever others were left out before.
        """
        drawn = sample(self._total).to(self.centre.device)
        return drawn if len(self) == self._total else drawn[self.rows]

    def step(self, points: Tensor, gradient: Tensor, stride: Tensor) -> Tensor:
        """Return points moved uphill by stride (n, 1, …) and brought back into the region."""
        if self.norm == "linf":
            if self._free is not None:
                gradient = gradient * self._free
            moved = torch.addcmul(points, gradient.sign(), stride)
            return torch.clamp(moved, self.low, self.high, out=moved)
        return self.project(torch.addcmul(points, self.steepest(points, gradient, stride), stride))

    def steepest(self, points: Tensor, gradient: Tensor, stride: Tensor) -> Tensor:
        """Return the direction (n, *shape) of unit length in the norm that climbs most from points."""
        if self._free is not None:
            gradient = gradient * self._free
        if self.norm not in ("l1", "cost"):
            return self._ops.steepest(gradient, gradient)
        room = torch.where(gradient > 0, self.high - points, points - self.low) / stride.clamp_min(1e-12)
        if self._prices is None:
            return self._ops.steepest(gradient, room)
        return self._ops.steepest(gradient / self._prices, room * self._prices) / self._prices

    def project(self, points: Tensor) -> Tensor:
        """Return the points brought into the ball and the box; inner points stay."""
        points = self._hold(points, self._free)
        if self.norm == "linf":
            return torch.clamp(points, self.low, self.high)
        delta = points - self.centre
        low, high = self.low - self.centre, self.high - self.centre
        if self._prices is None:
            near = self._ops.project(delta, self.eps, low, high)
        else:
            paid = delta * self._prices
            near = self._ops.project(paid, self.eps, low * self._prices, high * self._prices)
            near = torch.where(near == paid, delta, near / self._prices)
        near = torch.where(near == delta, points, self.centre + near)
        return torch.clamp(near, self.low, self.high)

    def _hold(self, points: Tensor, free: Tensor | None) -> Tensor:
        """The points with all features that are not free back where they were."""
        return points if free is None else torch.where(free > 0, points, self.centre)

    def random(self, generator: torch.Generator) -> Tensor:
        """Return one point per example, drawn uniformly from the ball and cut to the box.

        For l0: as many random features as the radius says, each anywhere in its range.
        """
        shape = self.centre.shape[1:]
        if self._ops.random is None:
            chosen = self.draw(lambda n: torch.rand(n, *shape, generator=generator)).to(self.centre.dtype)
            value = self.draw(lambda n: torch.rand(n, *shape, generator=generator)).to(self.centre.dtype)
            if self._free is not None:
                chosen = chosen * self._free
            zero = torch.zeros_like(chosen)
            picked = self._ops.project(chosen + 1e-9, self.eps, zero, zero + 2) > 0
            points = torch.where(picked, self.low + value * (self.high - self.low), self.centre)
            return self._hold(points, self._free)
        return self.project(self.beyond(generator))

    def beyond(self, generator: torch.Generator) -> Tensor:
        """Return what `random` cuts to the box, uncut: such points may be no inputs. l0 has none but random's."""
        draw = self._ops.random
        if draw is None:
            return self.random(generator)
        shape = self.centre.shape[1:]
        delta = self.draw(lambda n: draw(torch.Size((n, *shape)), generator)).to(self.centre.dtype) * self.eps
        if self._prices is not None:
            delta = delta / self._prices
        return self._hold(self.centre + delta, self._free)

    def snap(self, points: Tensor) -> Tensor:
        """Return the points as the system will be given them: on the grid, still inside the region."""
        if not self._gridded:
            return points
        rounded = self._hold(self._rounded(points), self._loose)
        if self.norm == "linf":
            return torch.clamp(rounded, self._snap_low, self._snap_high, out=rounded)
        outside = self.distance(rounded) > self.eps.flatten() * (1 + SLACK / 10)
        if outside.any():
            grid = torch.where(self._grid > 0, self._grid, torch.full_like(self._grid, 1e-12))
            nearer = self.centre + torch.trunc((points - self.centre) / grid) * grid
            rounded = torch.where(
                column(outside, points), self._hold(self.space.round(nearer), self._loose), rounded
            )
        return rounded

    def distance(self, points: Tensor) -> Tensor:
        """Return how far points (n, *shape) are from the centre, (n,): in the norm, or what the change costs."""
        if self.norm == "cost":
            return self.space.cost(points, self.centre)
        return distance(points, self.centre, self.norm)

    def holds(self, points: Tensor) -> Tensor:
        """Return which points (n, *shape) lie within the radius, (n,) bool."""
        return self.distance(points) <= self.eps.flatten() * (1 + SLACK) + 1e-6

    def violation(self, points: Tensor) -> str | None:
        """Return how points (n, *shape) break the threat of the largest radius here, or None: see `violation`."""
        eps = float(self.eps.max()) if len(self) else 0.0
        return violation(points, self.centre, self.space, self.norm, eps)


def violation(adversarial: Tensor, x: Tensor, space: InputSpace, norm: str, eps: float) -> str | None:
    """Return how adversarial examples (n, *shape) break the threat around x, or None.

    Checked: shape, NaN, box, immutable features, and distance up to float32 rounding; categories, which may
    change under `cost` alone, and then to another code; and there the grid of the other features too.
    """
    if adversarial.shape != x.shape:
        return f"returned shape {tuple(adversarial.shape)} for inputs of shape {tuple(x.shape)}"
    problem = space.check(adversarial)
    if problem:
        return f"returned {problem}"
    loose = space.changeable(x)
    if loose is not None:
        changed = ((adversarial != x) & (loose == 0)).flatten(1).any(1)
        if changed.any():
            return f"changed immutable features of {int(changed.sum())} of {len(x)} examples"
    if norm == "cost":
        step = torch.as_tensor(space.grid, dtype=x.dtype, device=x.device)
        step = step.reshape(space.shape) if step.ndim else step
        off = (adversarial - space.round(adversarial)).abs() > 1e-6 + 1e-3 * step
        off = (off & (adversarial != x)).flatten(1).any(1)
        if off.any():
            return f"left the grid of whole numbers and codes on {int(off.sum())} of {len(x)} examples"
    elif any(space.categorical):
        codes = torch.tensor(space.categorical, device=x.device).reshape(space.shape)
        changed = ((adversarial != x) & codes).flatten(1).any(1)
        if changed.any():
            return (
                f"changed categories of {int(changed.sum())} of {len(x)} examples, which no {norm} ball measures; "
                "attack them under a cost budget"
            )
    far = space.cost(adversarial, x) if norm == "cost" else distance(adversarial, x, norm)
    out = far > eps * (1 + SLACK) + 1e-6
    if out.any():
        return f"left the {norm} ball of {eps:g} on {int(out.sum())} of {len(x)} examples, by up to {far.max() - eps:.3g}"
    return None
