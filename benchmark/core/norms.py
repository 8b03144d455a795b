"""The norms that a ball can have: distances, projections, steepest directions and random points.

Points are (n, *shape); radii eps are (n, 1, …), in input units (a count of features for l0).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-30  # what a length is divided by at least
ROUNDS = 50  # of the search for l1's threshold; each halves what the Newton step leaves


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


def column(values: Tensor, x: Tensor) -> Tensor:
    """Return values (n,) as (n, 1, …), to be broadcast over x (n, *shape)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _project_linf(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.clamp(torch.clamp(delta, -eps, eps), low, high)


def _project_l2(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    size = column(length(delta, "l2"), delta)
    # Only outer points move; inner ones stay exactly where they are.
    near = torch.where(size > eps, delta * (eps / size.clamp_min(TINY)), delta)
    return torch.clamp(near, low, high)


def _project_l1(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The nearest point of the l1 ball cut with the box: soft thresholding, clipped.

    The threshold is found by Newton's method, safeguarded by bisection: the length falls with it, piecewise
    linearly. Source: Croce & Hein 2021, arXiv:2103.01208.
    """
    inside = torch.clamp(delta, low, high)
    over = length(inside, "l1") > eps.flatten()
    if not bool(over.any()):
        return inside
    flat = delta[over].flatten(1)
    bound = torch.where(
        flat > 0, high.expand_as(delta)[over].flatten(1), -low.expand_as(delta)[over].flatten(1)
    )
    size, radius = flat.abs(), eps.expand(len(delta), *eps.shape[1:])[over].reshape(-1, 1)
    least, most = torch.zeros_like(radius), size.amax(1, keepdim=True)
    threshold = torch.zeros_like(radius)
    for _ in range(ROUNDS):
        left = size - threshold
        gap = torch.minimum(left, bound).clamp_min(0).sum(1, keepdim=True) - radius
        going = gap.abs() > 1e-6 * radius  # a row that is there stays, whatever the others need
        if not bool(going.any()):
            break
        least, most = torch.where(gap > 0, threshold, least), torch.where(gap > 0, most, threshold)
        moving = ((left > 0) & (left < bound)).sum(1, keepdim=True)
        step = threshold + gap / moving.clamp_min(1)
        good = (moving > 0) & (step > least) & (step < most)
        threshold = torch.where(going, torch.where(good, step, (least + most) / 2), threshold)
    near = torch.minimum(size - threshold, bound).clamp_min(0)
    near = near * (radius / near.sum(1, keepdim=True).clamp_min(TINY)).clamp_max(1)
    inside[over] = (near * flat.sign()).reshape(-1, *delta.shape[1:])
    return inside


def _project_l0(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    inside = torch.clamp(delta, low, high)
    flat = inside.flatten(1)
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order).contiguous()
    )
    return torch.where(rank + 1 <= eps.reshape(-1, 1), flat, torch.zeros_like(flat)).reshape(inside.shape)


def _steepest_l2(gradient: Tensor, room: Tensor) -> Tensor:
    direction = gradient / column(length(gradient, "l2"), gradient).clamp_min(TINY)
    # A gradient that is no number moves nothing, as with torch.sign.
    return torch.nan_to_num(direction, nan=0.0)


def _steepest_l1(gradient: Tensor, room: Tensor) -> Tensor:
    """The largest slopes first, each as far as the box leaves it room, until one unit of length is spent."""
    flat, free = torch.nan_to_num(gradient.flatten(1), nan=0.0), room.flatten(1)
    order = torch.where(free > 0, flat.abs(), -1.0).argsort(dim=1, descending=True, stable=True)
    sorted_room = torch.where(flat != 0, free, 0.0).gather(1, order)
    spent = sorted_room.cumsum(1) - sorted_room
    amount = torch.minimum(sorted_room, (1 - spent).clamp_min(0))
    return (torch.zeros_like(flat).scatter_(1, order, amount) * flat.sign()).reshape(gradient.shape)


def _steepest_l0(gradient: Tensor, room: Tensor) -> Tensor:
    top = column(length(gradient, "linf"), gradient).clamp_min(TINY)
    return torch.nan_to_num(gradient / top, nan=0.0)


def _random_linf(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * 2 - 1


def _random_l2(shape: torch.Size, generator: torch.Generator) -> Tensor:
    normal = torch.randn(shape, generator=generator)
    direction = normal / column(length(normal, "l2"), normal).clamp_min(TINY)
    width = direction[0].numel() if len(direction) else 1
    return direction * column(torch.rand(shape[0], generator=generator) ** (1 / width), direction)


def _random_l1(shape: torch.Size, generator: torch.Generator) -> Tensor:
    # Exponential spacings are uniform on the simplex; one more of them makes the inside uniform too.
    flat = torch.Size((shape[0], shape[1:].numel() + 1))
    gaps = -torch.log1p(-torch.rand(flat, generator=generator))
    share = (gaps / gaps.sum(1, keepdim=True).clamp_min(TINY))[:, :-1].reshape(shape)
    return share * torch.sign(torch.rand(shape, generator=generator) - 0.5)


@dataclass(frozen=True)
class Norm:
    """What a ball of one norm can do.

    project(delta, eps, low, high) returns the nearest delta in the ball and in the box [low, high], which
    holds 0. steepest(gradient, room) returns the direction of unit length that climbs most, where room (n,
    *shape) is how far each feature may still go, in units of the step. random(shape, generator) draws from
    the unit ball; None where there is none that is natural.
    """

    project: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    steepest: Callable[[Tensor, Tensor], Tensor]
    random: Callable[[torch.Size, torch.Generator], Tensor] | None


BALLS = {
    "linf": Norm(_project_linf, lambda gradient, room: gradient.sign(), _random_linf),
    "l2": Norm(_project_l2, _steepest_l2, _random_l2),
    "l1": Norm(_project_l1, _steepest_l1, _random_l1),
    "l0": Norm(_project_l0, _steepest_l0, None),
    "cost": Norm(_project_l1, _steepest_l1, _random_l1),  # of changes times their prices
}
