"""Search over single features, then over pairs: queries alone, for trees and whatever else has no gradient.

Source: Andriushchenko & Hein 2019, arXiv:1906.03526 (their coordinate attack on trees, which moves each feature
as far as it may go), here with values in between, pairs, and moves ranked by what they gain per cost, as
in the search of Kireev, Kulynych & Troncoso 2023, arXiv:2208.13058. With the attacker's own data granted, values
are taken from there: trees of the same population have their thresholds between them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.constrained import NOISE, noise
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import SLACK, Region
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.random_search import progress
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target

SHARE = 0.75  # of the queries that one round over the features takes at most, so that moves get combined
FINE = 256  # values of the attacker's data that are kept of a feature


class _Features:
    """What each feature may become, and what that costs: every goal is a budget that features share.

    For linf nothing is spent inside the ball; for l2 squares are.
    """

    def __init__(self, region: Region, data: Tensor | None) -> None:
        x, space = region.centre, region.space
        self.norm, self.x = region.norm, x.flatten(1)
        self.low, self.high = (bound.expand_as(x).flatten(1) for bound in (region.low, region.high))
        self.prices = space.prices(x).flatten() if region.norm == "cost" else torch.ones_like(self.x[0])
        self.budget = region.eps.flatten() ** (2 if region.norm == "l2" else 1)
        grid = torch.as_tensor(space.grid, dtype=x.dtype, device=x.device)
        self.grid = (grid.reshape(space.shape) if grid.ndim else grid.expand(space.shape)).flatten()
        self.floor = space.box(x)[0].expand(space.shape).flatten()
        free = space.changeable(x) if region.norm == "cost" else space.movable(x)
        self.free = (
            torch.arange(self.x.shape[1]) if free is None else free.flatten().nonzero().squeeze(1).cpu()
        )
        self.is_code = torch.zeros_like(self.prices, dtype=torch.bool)
        if space.categorical:
            self.is_code = torch.tensor(space.categorical, device=x.device).flatten()
        self.whole = (
            self.is_code if region.norm == "cost" else torch.full_like(self.is_code, region.norm == "l0")
        )
        self.known = None if data is None or len(data) == 0 else _distinct(data.flatten(1).to(self.x))

    def fee(self, values: Tensor, rows: Tensor, feature: int | slice = slice(None)) -> Tensor:
        """Return what it costs that a feature, or all, have these values (k, …) instead of those of the example."""
        change = (values - self.x[rows, feature]).abs()
        if self.norm == "linf":
            return torch.zeros_like(change)
        if self.norm == "l2":
            return change**2
        return torch.where(self.whole[feature], (change > 0).to(change), change) * self.prices[feature]

    def values(self, feature: Tensor, share: Tensor, money: Tensor, rows: Tensor) -> Tensor:
        """Return a value (k,) of each example's feature (k,) that money (k,) pays, the share (k,) of the way up.

        The way goes evenly through the values of the attacker's data, where there are any, else through the
        range; at 0 and 1 it ends at the limits. Codes are taken in turn.
        """
        x, low, high = (bound[rows, feature] for bound in (self.x, self.low, self.high))
        grid, floor, code = self.grid[feature], self.floor[feature], self.is_code[feature]
        if self.norm in ("l1", "cost", "l2"):
            reach = money.clamp_min(0) ** (0.5 if self.norm == "l2" else 1) / self.prices[feature]
        else:  # nothing is spent, or all at once
            reach = torch.full_like(money, torch.inf)
        low, high = torch.maximum(low, x - reach), torch.minimum(high, x + reach)
        value = low + share * (high - low)
        if self.known is not None:
            ranked = self.known[feature]
            ends = torch.searchsorted(ranked, torch.stack([low, high], 1))
            place = ends[:, 0] + share * (ends[:, 1] - ends[:, 0])
            met = ranked.gather(1, place.round().long().clamp(0, ranked.shape[1] - 1)[:, None]).squeeze(1)
            value = torch.where(
                (share > 0) & (share < 1), torch.minimum(torch.maximum(met, low), high), value
            )
        step = torch.where(grid > 0, grid, torch.ones_like(grid))
        # Towards the example's own value, so that rounding never costs more.
        whole = torch.trunc((value - x) / step + 1e-4 * (value - x).sign()) * step + x
        value = torch.where(grid > 0, floor + torch.round((whole - floor) / step) * step, value)
        top = self.high[rows, feature]
        return torch.where(code, torch.round(floor + share * (top - floor)), value)


def _distinct(data: Tensor) -> Tensor:
    """Return the distinct values (features, FINE) of each column of data (n, features), rising, infinity after them."""
    found = torch.full((data.shape[1], FINE), torch.inf, dtype=data.dtype, device=data.device)
    for number, column in enumerate(data.T):
        values = column.unique()
        if len(values) > FINE:
            values = values[torch.linspace(0, len(values) - 1, FINE, device=data.device).round().long()]
        found[number, : len(values)] = values
    return found


class _Search:
    """The best point met per example, how far it came (`progress`), and what it has asked."""

    def __init__(
        self, target: Target, x: Tensor, y: Tensor, region: Region, aux: Tensor | None, limit: int
    ) -> None:
        self.target, self.y, self.shape, self.limit = target, y, x.shape, limit
        self.features = _Features(region, aux)
        self.points = x.flatten(1).clone()
        self.height = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.asked = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def standing(self, rows: Tensor, limit: Tensor | int) -> Tensor:
        """Return which of rows are not broken and have queries left."""
        going: Tensor = (self.height[rows] <= 0) & (self.asked[rows] < limit)
        return going

    def ask(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return how far the points (k, features) of the examples at rows come."""
        self.asked[rows] += 1
        answer = self.target.scores(points.reshape(-1, *self.shape[1:]), rows)
        return progress(answer, self.y[rows])

    def take(self, points: Tensor, rows: Tensor, *, even: bool = False) -> Tensor:
        """Ask, keep what comes further than the best (or as far, if even), and return how far all came."""
        height, best = self.ask(points, rows), self.height[rows]
        better = (height > 0) | (height > best + (-noise(best) if even else noise(best)))
        self.points[rows[better]] = points[better]
        self.height[rows[better]] = torch.maximum(height, best)[better]
        return height

    def left(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the budget (k,) that points (k, features) leave."""
        return self.features.budget[rows] - self.features.fee(points, rows).sum(1)

    def round(self, rows: Tensor, order: Tensor, tried: int) -> Tensor:
        """Try each feature by itself, then the best moves together; return the rows where that helped."""
        features, start, before = self.features, self.points[rows], self.height[rows].clone()
        left = self.left(start, rows)
        value, worth = start.clone(), torch.zeros_like(start)
        stop = self.asked[rows] + max(1, int(self.limit * SHARE))
        stop = torch.minimum(stop, torch.full_like(stop, self.limit))
        for feature in order.tolist():
            own = features.fee(start[:, feature], rows, feature)
            place = torch.full_like(rows, feature)
            count = (
                int(features.high[0, feature] - features.floor[feature]) + 1
                if features.is_code[feature]
                else tried
            )
            last = torch.full_like(left, torch.nan)
            for number in range(count):
                share = torch.full_like(left, number / max(1, count - 1))
                new = features.values(place, share, left + own, rows)
                extra = features.fee(new, rows, feature) - own
                open_ = self.standing(rows, stop) & (new != start[:, feature]) & (new != last)
                last = new
                at = (open_ & (extra <= left + SLACK * features.budget[rows])).nonzero().squeeze(1)
                if len(at) == 0:
                    continue
                points = start[at]
                points[:, feature] = new[at]
                came = self.take(points, rows[at]) - before[at]
                came = torch.where(came > noise(before[at]), came, 0.0)
                density = came / extra[at].clamp_min(TINY) if features.norm != "linf" else came
                better = (came > 0) & (density > worth[at, feature] * (1 + NOISE))
                at, density = at[better], density[better]
                worth[at, feature], value[at, feature] = density, new[at]
        self.together(rows, start, value, worth)
        return rows[(self.height[rows] > before) & self.standing(rows, self.limit)]

    def together(self, rows: Tensor, start: Tensor, value: Tensor, worth: Tensor) -> None:
        """Make the moves that gain most per cost at once, as many as are paid for; then half of them, and so on."""
        features = self.features
        # In few digits: what is worth the same goes by its place, not by rounding noise.
        order = worth.to(torch.bfloat16).argsort(dim=1, descending=True, stable=True)
        extra = (features.fee(value, rows) - features.fee(start, rows)).gather(1, order)
        paid = extra.cumsum(1) <= (self.left(start, rows) + SLACK * features.budget[rows])[:, None]
        many = ((worth.gather(1, order) > 0) & paid).long().cumprod(1).sum(1)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous()
        )
        while bool((many > 1).any()):
            at = ((many > 1) & self.standing(rows, self.limit)).nonzero().squeeze(1)
            if len(at):
                self.take(torch.where(rank[at] < many[at, None], value[at], start[at]), rows[at])
            many = many // 2

    def pair(self, rows: Tensor, chance: Tensor) -> None:
        """Set two features of each example at rows anew; a changed one, or all, are set back before. chance is (k, 8)."""
        features = self.features
        points = self.points[rows]
        each = torch.arange(len(rows), device=rows.device)
        changed = points != features.x[rows]
        pick = (chance[:, 0, None] * changed.sum(1, keepdim=True)).long() + 1
        # All of them a quarter of the time, one of them half of the time.
        one = (changed.long().cumsum(1) == pick) & (chance[:, 1, None] < 0.75)
        back = changed & (one | (chance[:, 1, None] < 0.25))
        points = torch.where(back, features.x[rows], points)
        free = features.free.to(rows.device)
        for first in (2, 5):
            feature = free[(chance[:, first] * len(free)).long().clamp_max(len(free) - 1)]
            points[each, feature] = features.x[rows, feature]
            share = (chance[:, first + 1] * 2 - 0.5).clamp(0, 1)  # each end a quarter of the time
            new = features.values(feature, share, self.left(points, rows), rows)
            tried = points.clone()
            tried[each, feature] = new
            within = self.left(tried, rows) >= -SLACK * features.budget[rows]
            points = torch.where(within[:, None], tried, points)
        self.take(points, rows, even=True)


@attack("feature-search", version=1)
@dataclass(frozen=True)
class FeatureSearch(Evasion):
    """Try values of single features, make the best moves together, and search on in random pairs.

    values are tried of each number, all codes of each category; a round over the features ends when it no
    longer helps. With the attacker's own data granted, values are taken from there.
    """

    needs = ("scores",)
    goals = ("cost", "linf", "l2", "l1", "l0")

    queries: int = 1000
    values: int = 5

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return for each row of x (n, *shape) the point of its region with the largest margin met."""
        aux = target.aux.x if "aux" in target.threat.grants else None
        limit = target.afford(self.queries)
        search = _Search(target, x, y, region, aux, limit)
        free, every = search.features.free, torch.arange(len(x), device=x.device)
        if limit == 0 or len(free) == 0:
            return x.clone()
        search.height = search.ask(x.flatten(1), every)
        orders, pairs = rng.torch("orders"), rng.torch("pairs")
        rows = every[search.standing(every, limit)]
        while len(rows):
            rows = search.round(rows, free[torch.randperm(len(free), generator=orders)], self.values)
        rows = every
        for _ in range(limit):
            rows = rows[search.standing(rows, limit)]
            if len(rows) == 0:
                break
            chance = region.draw(lambda n: torch.rand(n, 8, generator=pairs))
            search.pair(rows, chance[rows])
        return search.points.reshape(x.shape)
