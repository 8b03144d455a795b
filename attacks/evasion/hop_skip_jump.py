"""A walk along the decision boundary, with labels alone. Source: Chen, Jordan & Wainwright 2020, arXiv:1904.02144."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.nes import ROOM, visible
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import TINY, column, distance, length
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.core.target import Target

TRIES = 100  # random inputs that are tried for a start
HALVINGS = 12  # of a step that leaves the wrong side
FEWEST = 10  # probes that an estimate is worth making with
RESERVE = 10  # queries that an estimate leaves for the step and the way back


class _Walk:
    """The examples on their way: where each stands, and what it has spent. All tensors are (k, …)."""

    def __init__(self, target: Target, x: Tensor, y: Tensor, norm: str, budget: int) -> None:
        self.target, self.x, self.y, self.norm, self.budget = target, x, y, norm, budget
        self.spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.found = x.clone()
        self.nearest = x.new_full((len(x),), math.inf)
        self.free = target.space.movable(x)

    def valid(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return points (k, *shape), or several per row (k, m, *shape), as inputs that an attacker may send."""
        rounded = self.target.space.round(points)
        if self.free is None:
            return rounded
        origin = self.x[rows] if points.ndim == self.x.ndim else self.x[rows][:, None]
        return torch.where(self.free > 0, rounded, origin)

    def fools(self, points: Tensor, rows: Tensor) -> Tensor:
        """Ask about points (k, *shape) and return which fool the system, (k,)."""
        answers = self.target.labels(points, rows)
        self.spent.index_add_(0, rows, torch.ones_like(rows))
        return (answers != self.y[rows]) & (answers != REFUSED)

    def tries(self, points: Tensor, rows: Tensor) -> Tensor:
        """Ask, remember the closest points that fool, and return which do."""
        fooled = self.fools(points, rows)
        far = distance(points, self.x[rows], self.norm)
        closer = (fooled & (far < self.nearest[rows])).nonzero().squeeze(1)
        self.found[rows[closer]], self.nearest[rows[closer]] = points[closer], far[closer]
        return fooled

    def solvent(self, rows: Tensor) -> Tensor:
        """Return which of rows can pay for another query."""
        return self.spent[rows] < self.budget


@attack("hop-skip-jump", version=1)
@dataclass(frozen=True)
class HopSkipJump(MinimalNorm):
    """Estimate the boundary's normal from random probes, step along it, and return to the boundary.

    probes is how many the first estimate takes; the t-th takes the square root of t times as many. reach is
    how far they go, as a share of the distance to the example.
    """

    needs = ("labels",)
    goals = ("l2", "linf")

    queries: int = 1000
    probes: int = 40
    reach: float = 0.03

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) the closest point met that fools the system, x where none was."""
        walk = _Walk(target, x, y, region.norm, target.afford(self.queries))
        rows = torch.arange(len(x), device=x.device)
        if len(x) == 0 or walk.budget == 0 or (walk.free is not None and not bool(walk.free.any())):
            return walk.found
        rows = rows[~walk.tries(x, rows)]
        points, rows = self._start(walk, rows, region, rng.torch("starts"))
        points = self._boundary(walk, points, rows)
        generator, turn = rng.torch("probes"), 0
        while True:
            turn += 1
            count = round(self.probes * math.sqrt(turn))
            directions = torch.randn(min(count, walk.budget), *x.shape[1:], generator=generator).to(x)
            share = (walk.budget - walk.spent[rows] - RESERVE).clamp_max(count)
            left = (share >= FEWEST).nonzero().squeeze(1)
            rows, points, share = rows[left], points[left], share[left]
            if len(rows) == 0:
                return walk.found
            normal = self._normal(walk, points, rows, directions, share)
            points = self._boundary(walk, self._jump(walk, points, rows, normal, turn), rows)

    def _start(
        self, walk: _Walk, rows: Tensor, region: Region, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the first random input of the box that fools, and the rows for which there was one."""
        shape, started = walk.x.shape[1:], walk.x.clone()
        low, high = walk.target.space.box(walk.x)
        ready = torch.zeros(len(walk.x), dtype=torch.bool, device=walk.x.device)
        left = rows
        for _ in range(TRIES):
            left = left[walk.solvent(left)]
            if len(left) == 0:
                break
            noise = region.draw(lambda n: torch.rand(n, *shape, generator=generator)).to(walk.x)
            points = walk.valid(low + noise[left] * (high - low), left)
            fooled = walk.tries(points, left)
            started[left[fooled]], ready[left[fooled]] = points[fooled], True
            left = left[~fooled]
        rows = rows[ready[rows]]
        return started[rows], rows

    def _boundary(self, walk: _Walk, points: Tensor, rows: Tensor) -> Tensor:
        """Return the points moved towards their examples until just before the answer turns right."""
        x, points = walk.x[rows], points.clone()
        ends = points.clone()
        far = distance(points, x, walk.norm)
        top = torch.ones_like(far)
        bottom = torch.zeros_like(far)
        going = torch.arange(len(rows), device=rows.device)
        for _ in range(math.ceil(math.log2(10 / self.reach))):
            going = going[walk.solvent(rows[going])]
            if len(going) == 0:
                break
            middle = column((bottom[going] + top[going]) / 2, x)
            delta = ends[going] - x[going]
            if walk.norm == "linf":
                limit = middle * column(far[going], x)
                delta = torch.clamp(delta, -limit, limit)
            else:
                delta = delta * middle
            tried = walk.valid(x[going] + delta, rows[going])
            fooled = walk.tries(tried, rows[going])
            top[going] = torch.where(fooled, middle.flatten(), top[going])
            bottom[going] = torch.where(fooled, bottom[going], middle.flatten())
            points[going[fooled]] = tried[fooled]
        return points

    def _normal(self, walk: _Walk, points: Tensor, rows: Tensor, directions: Tensor, share: Tensor) -> Tensor:
        """Return the estimated direction (k, *shape) in which the answer turns wrong fastest."""
        normals = torch.empty_like(points)
        far = column(distance(points, walk.x[rows], "l2"), points)
        size = visible(self.reach / math.sqrt(directions[0].numel()) * far, walk.target.space)
        at_once = max(1, ROOM // max(1, directions.numel()))
        for part in torch.arange(len(rows), device=rows.device).split(at_once):
            here = points[part][:, None]
            probes = walk.valid(here + size[part][:, None] * directions, rows[part])
            asked = torch.arange(len(directions), device=rows.device) < share[part][:, None]
            fooled = walk.fools(probes[asked], rows[part].repeat_interleave(share[part]))
            signs = torch.zeros(asked.shape, dtype=points.dtype, device=points.device)
            signs[asked] = fooled.to(points.dtype) * 2 - 1
            mean = signs.sum(1, keepdim=True) / share[part][:, None]
            # One answer for all probes: the mean says all there is.
            weight = torch.where(mean.abs() == 1, signs, (signs - mean) * asked)
            normal = torch.einsum("km,kmd->kd", weight, (probes - here).flatten(2))
            normals[part] = normal.view_as(points[part])
        return normals

    def _jump(self, walk: _Walk, points: Tensor, rows: Tensor, normal: Tensor, turn: int) -> Tensor:
        """Return the points moved along normal, as far as they keep fooling the system."""
        x, ends = walk.x[rows], points.clone()
        if walk.norm == "linf":
            normal = normal.sign()
        else:
            normal = normal / column(length(normal, "l2"), normal).clamp_min(TINY)
        stride = distance(points, x, walk.norm) / math.sqrt(turn)
        going = torch.arange(len(rows), device=rows.device)
        for _ in range(HALVINGS):
            going = going[walk.solvent(rows[going])]
            if len(going) == 0:
                break
            tried = walk.valid(points[going] + column(stride[going], x) * normal[going], rows[going])
            fooled = walk.tries(tried, rows[going])
            ends[going[fooled]] = tried[fooled]
            stride[going] /= 2
            going = going[~fooled]
        return ends
