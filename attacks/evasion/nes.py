"""Ascent on estimated gradients. Source: Ilyas et al. 2018, arXiv:1804.08598 (NES, antithetic)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import TINY, column
from firstline.benchmark.core.random_search import progress
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target

ROOM = 1 << 22  # numbers that the probes of one batch may hold


def visible(spread: Tensor, space: InputSpace) -> Tensor:
    """Return spread (k, 1, …) per feature, at least a step of the grid: shorter probes would be rounded away."""
    grid = torch.as_tensor(space.grid, dtype=spread.dtype, device=spread.device)
    return torch.maximum(spread, grid.reshape(space.shape) if grid.ndim else grid)


@attack("nes", version=1)
@dataclass(frozen=True)
class NES(Evasion):
    """Estimate the margin's gradient from pairs of probes on either side of a point, and step along it.

    samples is how many probes one estimate takes. sigma is how far they go and stride how far a step goes,
    as shares of the radius; probes go at least one step of the grid, or the system would not see them.
    momentum is the share of earlier directions that each step keeps. Any probe that fools the system is a
    success. All examples share the directions of the probes.
    """

    needs = ("scores",)
    goals = ("linf", "l2")

    queries: int = 5000
    samples: int = 50
    sigma: float = 0.1
    stride: float = 0.2
    momentum: float = 0.9

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) the point that fooled the system, else the last one."""
        generator, left = rng.torch("probes"), target.afford(self.queries)
        found, rows = x.clone(), (region.eps.flatten() > 0).nonzero().squeeze(1)
        points, velocity, region = x[rows], torch.zeros_like(x[rows]), region.keep(rows)
        while left > 0 and len(rows):
            asked = region.snap(points)
            found[rows] = asked
            standing = progress(target.scores(asked, rows), y[rows]) <= 0
            left -= 1
            pairs = min(self.samples, left) // 2
            if pairs == 0:
                break
            left -= 2 * pairs
            directions = torch.randn(pairs, *x.shape[1:], generator=generator).to(x)
            gradient = torch.zeros_like(points)
            alive = standing.nonzero().squeeze(1)
            for part in alive.split(max(1, ROOM // (2 * directions.numel()))):
                here = region.keep(part)
                gradient[part], best, came = self._estimate(
                    target, here, points[part], y[rows[part]], directions, rows[part]
                )
                fooled = came > 0
                found[rows[part[fooled]]], standing[part[fooled]] = best[fooled], False
            alive = standing.nonzero().squeeze(1)
            rows, points, region = rows[alive], points[alive], region.keep(alive)
            slope = gradient[alive]
            slope = slope / column(slope.abs().flatten(1).mean(1), slope).clamp_min(TINY)
            velocity = self.momentum * velocity[alive] + slope
            points = region.step(points, velocity, region.eps * self.stride)
        return found

    def _estimate(
        self, target: Target, region: Region, points: Tensor, y: Tensor, directions: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the estimated gradients (k, *shape) at points, the best probe of each, and how far it came."""
        pairs, each = len(directions), torch.arange(len(points), device=points.device)
        both = torch.stack([directions, -directions], 1).flatten(0, 1)
        owner = each.repeat_interleave(2 * pairs)
        scale = 1.0 if region.norm == "linf" else math.sqrt(directions[0].numel())
        size = visible(region.eps * self.sigma / scale, region.space)
        around = region.keep(owner)
        probes = around.snap(around.project((points[:, None] + size[:, None] * both).flatten(0, 1)))
        came = progress(target.scores(probes, rows[owner]), y[owner]).view(-1, 2 * pairs)
        probes, top = probes.view(len(points), 2 * pairs, *points.shape[1:]), came.argmax(1)
        rise = came[:, 0::2] - came[:, 1::2]
        # Not the directions themselves, but what the ball, the box and the grid left of them.
        span = (probes[:, 0::2] - probes[:, 1::2]).flatten(2)
        gradient = torch.einsum("kp,kpd->kd", rise, span).view_as(points)
        return gradient, probes[each, top], came[each, top]
