"""What the attacks share that treat the system as linear around a point: where its decision changes."""

from typing import NamedTuple

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Closest
from firstline.benchmark.core.norms import TINY

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}  # the norm of a gradient that says how fast a loss can rise
ROUNDS = 50  # of Newton's method; a handful is usual


def crossing(gradient: Tensor, gap: Tensor, low: Tensor, high: Tensor, norm: str) -> Tensor:
    """Return the shortest step (n, *shape) in norm, within [low, high], along which a linear loss rises by gap (n,).

    gradient (n, *shape) is that of the loss; low is at most 0 and high at least 0. Where no step does it, the
    one that comes closest is returned. Source: Croce & Hein 2020, arXiv:1907.02044.
    """
    slope = gradient.flatten(1)
    uphill = gap.sign()[:, None] * slope.sign()
    room = torch.where(uphill > 0, high.flatten(1), -low.flatten(1))
    slope, rise = slope.abs(), gap.abs()[:, None]
    room = torch.where(slope > 0, room, 0.0)
    fill = _steepest_first if norm == "l1" else _evenly
    return (fill(slope, rise, room, norm) * uphill).reshape(gradient.shape)


def _steepest_first(slope: Tensor, rise: Tensor, room: Tensor, norm: str) -> Tensor:
    """Fill the room of the steepest features until the loss has risen enough."""
    slope, order = slope.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    gain = slope * room
    missing = rise - (gain.cumsum(1) - gain)
    amount = torch.minimum(missing.clamp_min(0) / slope.clamp_min(TINY), room)
    return torch.zeros_like(amount).scatter_(1, order, amount)


def _evenly(slope: Tensor, rise: Tensor, room: Tensor, norm: str) -> Tensor:
    """Move all features at the pace that is shortest in norm; each stops at the end of its room.

    The loss rises along this path piecewise linearly and ever slower, so that Newton's method comes from below.
    """
    pace = torch.ones_like(slope) if norm == "linf" else slope
    time = torch.zeros_like(rise)
    for _ in range(ROUNDS):
        amount = torch.minimum(pace * time, room)
        missing = rise - (slope * amount).sum(1, keepdim=True)
        speed = (slope * pace * (pace * time < room)).sum(1, keepdim=True)
        going = (missing > 1e-6 * rise) & (speed > 0)  # a row that is there stays, whatever the others need
        if not bool(going.any()):
            break
        time = torch.where(going, time + missing / speed.clamp_min(TINY), time)
    return torch.minimum(pace * time, room)


class Boundary(NamedTuple):
    """The nearest of several decision boundaries of a linearised system, for each of m points.

    gradient (m, *shape) is that of the loss that turns positive beyond it, rise (m,) the length of it, which
    says how fast the loss can climb, and gap (m,) how much is missing. away (m, candidates) is how far each
    boundary is, infinity where the gradient is zero. broken (m,) says which points fool the system already.
    """

    gradient: Tensor
    rise: Tensor
    gap: Tensor
    away: Tensor
    broken: Tensor


def nearest(search: Closest, delta: Tensor, rows: Tensor, classes: Tensor) -> Boundary:
    """Return the nearest boundary to one of classes (m, candidates), seen from x + delta (m, *shape) at rows (m,).

    Distances are in the norm of the search, the box left aside. A point that fools is not asked about again.
    """
    gradient, away = torch.zeros_like(delta), delta.new_full(classes.shape, torch.inf)
    rise, gap = delta.new_zeros(len(rows)), delta.new_zeros(len(rows))
    broken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for candidate in range(classes.shape[1]):
        left = (~broken).nonzero().squeeze(1)
        if not len(left):
            break
        aim = torch.stack([search.y[rows[left]], classes[left, candidate]], 1)
        slope = search.ask(delta[left], rows[left], aim)
        speed = torch.linalg.vector_norm(slope.gradient.flatten(1), ord=DUAL[search.region.norm], dim=1)
        far = torch.where(speed > 0, slope.loss.abs() / speed.clamp_min(TINY), torch.inf)
        closer = far < away[left].amin(1)
        best = left[closer]
        gradient[best], rise[best], gap[best] = slope.gradient[closer], speed[closer], -slope.loss[closer]
        away[left, candidate], broken[left] = far, slope.broken
    return Boundary(gradient, rise, gap, away, broken)


def others(y: Tensor, classes: int) -> Tensor:
    """Return all classes but the true ones y (n,), (n, classes - 1)."""
    return (y[:, None] + torch.arange(1, classes, device=y.device)) % classes
