"""Primal-dual proximal gradient descent. Source: Matyasko & Chau 2021, arXiv:2106.01538.

The constraint is on the log-odds instead of the margin, and the defaults are for a hundred steps: larger steps
that fall less, and a start nearer to balance, than the paper's, which are for five times as many.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Adam, Closest, log_odds
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import TINY, column, length
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target

EXTREME = math.log(1e6)  # how far the weights of norm and error may be apart, as a logarithm
ROUNDS = 50  # of Newton's method; a handful is usual


@attack("pdpgd", version=1)
@dataclass(frozen=True)
class PDPGD(MinimalNorm):
    """Descend on the error while a proximal step shrinks the norm; the weights of the two play against both.

    rate is Adam's first step length, as a share of the box's width; it falls to fall of that, exponentially.
    ratio is the weight of the norm over that of the error to begin with. dual_rate is how fast its logarithm
    moves: towards the norm where the last point fooled, towards the error where not. The weights used are a
    running mean, of which memory stays at each step. rounds is how often the proximal step is iterated.
    """

    needs = ("gradients",)
    goals = ("linf", "l2", "l1")

    steps: int = 100
    rate: float = 0.3
    fall: float = 0.1
    ratio: float = 0.5
    dual_rate: float = 0.1
    memory: float = 0.9
    rounds: int = 5

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the closest points (n, *shape) that fooled the system, x where none did."""
        search, norm = Closest(target, x, y, region, log_odds), region.norm
        if not len(search):
            return search.found
        delta, slope, adam = torch.zeros_like(search.x), search.start, Adam(search.x)
        dual = search.reach.new_full((len(search),), -math.log(self.ratio))
        error, width = dual.sigmoid(), float(search.width.max())
        for step in range(self.steps - 1):
            mean, root = adam.update(-slope.gradient * column(torch.sigmoid(-slope.loss), delta))
            rate = self.rate * width * self.fall ** (step / self.steps)
            delta = torch.clamp(delta - rate * mean / root, search.low, search.high)
            weight = rate * column((1 - error) / error, delta)
            delta = self._proximal(delta, root, weight, search, norm)
            pace = self.dual_rate * (1 - 0.9 * step / self.steps)
            dual = (dual + pace * torch.where(slope.broken, -1.0, 1.0)).clamp(-EXTREME, EXTREME)
            error = error * self.memory + dual.sigmoid() * (1 - self.memory)
            slope = search.ask(delta)
        return search.found

    def _proximal(self, delta: Tensor, root: Tensor, weight: Tensor, search: Closest, norm: str) -> Tensor:
        """Return the proximal point of weight times the norm at delta, in the metric of Adam's root."""
        top = column(root.flatten(1).amax(1), root)
        metric, weight = root / top, weight / top
        near, going = delta, torch.ones(len(delta), dtype=torch.bool, device=delta.device)
        for _ in range(self.rounds):
            pulled = _shrunk(torch.lerp(near, delta, metric), weight, norm)
            pulled = torch.clamp(pulled, search.low, search.high)
            pulled = torch.where(column(going, delta), pulled, near)
            moved = length(pulled - near, "l2") / length(pulled, "l2").clamp_min(TINY)
            near, going = pulled, going & (moved > 0.01)
            if not bool(going.any()):
                break
        return near


def _shrunk(delta: Tensor, weight: Tensor, norm: str) -> Tensor:
    """Return the proximal point of weight (n, 1, …) times the norm, for each row of delta (n, *shape)."""
    if norm == "l1":
        return delta.sign() * (delta.abs() - weight).clamp_min(0)
    if norm == "l2":
        return delta * (1 - weight / column(length(delta, "l2"), delta).clamp_min(TINY)).clamp_min(0)
    level = _level(delta.abs().flatten(1), weight.flatten(1)).reshape(weight.shape)
    return torch.clamp(delta, -level, level)


def _level(size: Tensor, weight: Tensor) -> Tensor:
    """Return the level (n, 1) above which the rows of size (n, d) hold weight (n, 1) in all, 0 if they hold less.

    What lies above a level falls ever slower as it rises, so that Newton's method comes from below.
    """
    level = (size.amax(1, keepdim=True) - weight).clamp_min(0)
    low = size.sum(1, keepdim=True) <= weight
    for _ in range(ROUNDS):
        above = torch.relu(size - level)
        count = above.count_nonzero(1)[:, None].clamp_min(1)
        rise = (above.sum(1, keepdim=True) - weight) / count
        going = ~low & (rise > 1e-5 * level)  # a row that is there stays, whatever the others need
        if not bool(going.any()):
            break
        level = torch.where(going, level + rise, level)
    return level.masked_fill(low, 0)
