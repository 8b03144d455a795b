"""Carlini & Wagner's l2 attack. Source: Carlini & Wagner 2017, arXiv:1608.04644, sections V and VI.

Points are kept in the box by clipping (the paper's "projected gradient descent") and not by the hyperbolic
tangent: that hardly moves features which lie at the sides of the box, as most do in scans and drawings.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.closest import Adam, Closest
from firstline.benchmark.core.contracts import MinimalNorm
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("carlini-wagner", version=1)
@dataclass(frozen=True)
class CarliniWagner(MinimalNorm):
    """Descend on squared length + constant x margin, and search for the smallest constant that succeeds.

    Each example has its own constant, so that each of the searches rounds is one batch: ten times as much
    while nothing was found, halfway between what failed and what succeeded after that. rate is Adam's, as a
    share of the box's width. An example whose loss is not lower than a tenth of the steps ago leaves the
    round. confidence is the margin that the descent is after.
    """

    needs = ("gradients",)
    goals = ("l2",)

    searches: int = 6
    steps: int = 100
    rate: float = 0.03
    constant: float = 0.1
    confidence: float = 0.0

    def minimise(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return the closest points (n, *shape) in l2 that fooled the system, x where none did."""
        search = Closest(target, x, y, region)
        if not len(search):
            return search.found
        constant = search.reach.new_full((len(search),), self.constant)
        failed, worked = torch.zeros_like(constant), torch.full_like(constant, math.inf)
        for _ in range(self.searches):
            success = self._descend(search, constant)
            failed, worked = torch.where(success, failed, constant), torch.where(success, constant, worked)
            constant = torch.where(worked < math.inf, (failed + worked) / 2, constant * 10)
        return search.found

    def _descend(self, search: Closest, constant: Tensor) -> Tensor:
        """Return which examples were fooled on one descent, (k,) bool."""
        success = torch.zeros(len(search), dtype=torch.bool, device=constant.device)
        rows, slope = torch.arange(len(search), device=constant.device), search.start
        low, high, rate = search.low, search.high, self.rate * float(search.width.max())
        delta, adam, last = torch.zeros_like(low), Adam(low), torch.full_like(constant, math.inf)
        check = max(1, self.steps // 10)
        for step in range(self.steps):
            if step:
                slope = search.ask(delta, rows)
                success[rows] |= slope.broken
            missing, gradient = (self.confidence - slope.loss).clamp_min(0), slope.gradient
            if step % check == 0:
                loss = delta.flatten(1).square().sum(1) + constant * missing
                going = loss < last * 0.9999
                last = loss
                if not bool(going.any()):
                    break
                if not bool(going.all()):
                    rows, low, high, delta = (t[going] for t in (rows, low, high, delta))
                    constant, last, missing = (t[going] for t in (constant, last, missing))
                    gradient = gradient[going]
                    adam.keep(going)
            climb = gradient * column(constant * (missing > 0), delta)
            mean, root = adam.update(2 * delta - climb)
            delta = torch.clamp(delta - rate * mean / root, low, high)
        return success
