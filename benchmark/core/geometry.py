"""Norm balls, cut to the input space: distances, projections, steepest directions, random points, rounding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError

SLACK = 1e-5  # float32 rounding that a distance may exceed its radius by, relative


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    """Return the distance (n,) between the rows of a and b (n, *shape), in linf, l2, l1 or l0."""
    return length(a - b, norm)


def length(delta: Tensor, norm: str) -> Tensor:
    """Return the norm (n,) of each row of delta (n, *shape)."""
    flat = delta.flatten(1)
    if norm == "l0":
        return (flat != 0).sum(1).to(flat.dtype)
    size: Tensor = torch.linalg.vector_norm(
        flat, ord=float("inf") if norm == "linf" else int(norm[1:]), dim=1
    )
    return size


def _column(eps: Tensor, x: Tensor) -> Tensor:
    return eps.reshape(-1, *[1] * (x.ndim - 1))


def _project_linf(points: Tensor, centre: Tensor, eps: Tensor) -> Tensor:
    return torch.clamp(points, centre - eps, centre + eps)


def _project_l2(points: Tensor, centre: Tensor, eps: Tensor) -> Tensor:
    delta = points - centre
    size = _column(length(delta, "l2"), delta)
    # Only outer points move; inner ones stay exactly where they are.
    return torch.where(size > eps, centre + delta * (eps / size.clamp_min(1e-30)), points)


def _steepest_l2(gradient: Tensor) -> Tensor:
    direction = gradient / _column(length(gradient, "l2"), gradient).clamp_min(1e-30)
    # A gradient that is no number moves nothing, as with torch.sign.
    return torch.nan_to_num(direction, nan=0.0)


def _random_linf(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * 2 - 1


def _random_l2(shape: torch.Size, generator: torch.Generator) -> Tensor:
    direction = _steepest_l2(torch.randn(shape, generator=generator))
    width = direction[0].numel() if len(direction) else 1
    return direction * _column(torch.rand(shape[0], generator=generator) ** (1 / width), direction)


@dataclass(frozen=True)
class _Norm:
    project: Callable[[Tensor, Tensor, Tensor], Tensor]
    steepest: Callable[[Tensor], Tensor]
    random: Callable[[torch.Size, torch.Generator], Tensor]


_NORMS = {
    "linf": _Norm(_project_linf, torch.sign, _random_linf),
    "l2": _Norm(_project_l2, _steepest_l2, _random_l2),
}


class Region:
    """The points that an attacker may choose for each example: the ball around x, inside the input space.

    x is (n, *shape); eps a radius, or one per example (n,). Features that may not move, or that are
    categories, stay as they are.
    """

    def __init__(self, x: Tensor, space: InputSpace, norm: str, eps: float | Tensor) -> None:
        if norm not in _NORMS:
            raise FirstlineError(f"no ball is implemented for {norm!r}; use one of: {', '.join(_NORMS)}")
        self.centre, self.space, self.norm = x, space, norm
        self.eps = _column(torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x)), x)
        self._ops = _NORMS[norm]
        self._free = space.movable(x)
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

    def _rounded(self, points: Tensor) -> Tensor:
        """Return space.round of points; for points that the region clips anyway, without its intermediate tensors."""
        if self.norm != "linf" or isinstance(self.space.grid, tuple) or self.space.low != 0.0:
            return self.space.round(points)
        levels = 1 / self.space.grid
        return (points * levels).round_().div_(levels)

    def keep(self, rows: Tensor) -> "Region":
        """Return the region of the examples at rows."""
        smaller = object.__new__(Region)
        smaller.__dict__.update(self.__dict__)
        for name in ("centre", "eps", "low", "high", "_snap_low", "_snap_high"):
            if name in self.__dict__:
                setattr(smaller, name, self.__dict__[name][rows])
        return smaller

    def step(self, points: Tensor, gradient: Tensor, stride: Tensor) -> Tensor:
        """Return points moved uphill by stride (n, 1, …) and brought back into the region."""
        if self._free is not None:
            gradient = gradient * self._free
        if self.norm == "linf":
            moved = torch.addcmul(points, gradient.sign(), stride)
            return torch.clamp(moved, self.low, self.high, out=moved)
        return self.project(torch.addcmul(points, self._ops.steepest(gradient), stride))

    def project(self, points: Tensor) -> Tensor:
        """Return the points brought into the ball and then into the box; inner points stay."""
        near = self._ops.project(self._hold(points), self.centre, self.eps)
        return torch.clamp(near, self.low, self.high)

    def _hold(self, points: Tensor) -> Tensor:
        """The points with all features that may not move back where they were."""
        return points if self._free is None else torch.where(self._free > 0, points, self.centre)

    def random(self, generator: torch.Generator) -> Tensor:
        """Return one point per example, drawn uniformly from the ball and cut to the box."""
        delta = (
            self._ops.random(self.centre.shape, generator).to(self.centre.device, self.centre.dtype)
            * self.eps
        )
        return self.project(self.centre + delta)

    def snap(self, points: Tensor) -> Tensor:
        """Return the points as the system will be given them: on the grid, still inside the region."""
        if not self._gridded:
            return points
        rounded = self._hold(self._rounded(points))
        if self.norm == "linf":
            return torch.clamp(rounded, self._snap_low, self._snap_high, out=rounded)
        outside = length(rounded - self.centre, self.norm) > self.eps.flatten() * (1 + SLACK / 10)
        if outside.any():
            grid = torch.where(self._grid > 0, self._grid, torch.full_like(self._grid, 1e-12))
            nearer = self.centre + torch.trunc((points - self.centre) / grid) * grid
            rounded = torch.where(_column(outside, points), self._hold(self.space.round(nearer)), rounded)
        return rounded


def violation(adversarial: Tensor, x: Tensor, space: InputSpace, norm: str, eps: float) -> str | None:
    """Return how adversarial examples (n, *shape) break the threat around x, or None.

    Checked: shape, NaN, box, immutable features, and distance up to float32 rounding.
    """
    if adversarial.shape != x.shape:
        return f"returned shape {tuple(adversarial.shape)} for inputs of shape {tuple(x.shape)}"
    problem = space.check(adversarial)
    if problem:
        return f"returned {problem}"
    if space.mutable:
        fixed = ~torch.tensor(space.mutable, device=x.device).reshape(space.shape)
        changed = ((adversarial != x) & fixed).flatten(1).any(1)
        if changed.any():
            return f"changed immutable features of {int(changed.sum())} of {len(x)} examples"
    far = distance(adversarial, x, norm)
    out = far > eps * (1 + SLACK) + 1e-6
    if out.any():
        return f"left the {norm} ball of {eps:g} on {int(out.sum())} of {len(x)} examples, by up to {far.max() - eps:.3g}"
    return None
