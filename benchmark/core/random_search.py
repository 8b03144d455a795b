"""Random search over squares. Source: Andriushchenko et al. 2020, arXiv:1912.00049."""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.losses import margins
from firstline.benchmark.core.norms import TINY, column, length
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED, Response
from firstline.benchmark.core.target import Target, heed_refusals

# After so many ten thousandths of the queries the share of the input that a square covers is halved: as in
# AutoAttack's code, which stretches the paper's schedule to the budget.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
WIDER = 4  # times the share for l2: with the paper's, fewer examples fall to up to 1000 queries

Draw = Callable[..., Tensor]  # draw(3, 2) is (k, 3, 2), uniform in [0, 1), each example's own
Window = tuple[int, int]  # height and width


def progress(answer: Response, y: Tensor) -> Tensor:
    """Return how far answers about labels y (k,) have come, (k,): above 0 exactly where they are wrong.

    It is the margin; a wrong answer that is refused lies between the right ones and the others, the closer to
    0 the nearer it is to being accepted. An answer that is not a number counts as infinitely wrong.
    """
    labels, reached = answer.labels, heed_refusals(margins(answer.logits, y), answer, y)
    fooled = (labels != y) & (labels != REFUSED)
    if bool(fooled.any()):
        reached[fooled] = reached[fooled].nan_to_num(nan=math.inf).clamp_min(TINY)
    return reached


def _planes(shape: torch.Size) -> tuple[int, Window]:
    """Return channels, and height and width of each; anything but an image is one row of features."""
    if len(shape) == 3:
        return shape[0], (shape[1], shape[2])
    return 1, (shape[0], shape[1]) if len(shape) == 2 else (1, shape.numel())


def _window(share: float, plane: Window) -> Window:
    """Return the window that covers so much of a plane: a square if it fits, else as wide or tall as it takes."""
    height, width = plane
    area = share * height * width
    side = max(1, round(math.sqrt(area)))
    tall, wide = min(side, height), min(side, width)
    if tall < side:
        wide = min(width, max(wide, round(area / tall)))
    elif wide < side:
        tall = min(height, max(tall, round(area / wide)))
    return tall, wide


def _place(at: Tensor, window: Window, plane: Window, channels: int) -> Tensor:
    """Return the pixels (k, channels, size) of a window at random places; at is (k, 2), uniform in [0, 1)."""
    (tall, wide), (height, width) = window, plane
    top, left = (at[:, 0] * (height - tall + 1)).long(), (at[:, 1] * (width - wide + 1)).long()
    inside = _inside(tall, wide, width).to(at.device)
    return ((top * width + left)[:, None] + inside)[:, None].expand(-1, channels, -1)


@lru_cache(maxsize=64)
def _inside(tall: int, wide: int, width: int) -> Tensor:
    """Return the pixels (tall x wide) of the window in the corner of a plane."""
    return (torch.arange(tall)[:, None] * width + torch.arange(wide)).flatten()


class _Linf:
    """Points whose every value is the highest or the lowest allowed: stripes first, then squares."""

    def __init__(self, region: Region) -> None:
        self.channels, self.plane = _planes(region.centre.shape[1:])
        self.top = region.snap(region.project(region.high))
        self.bottom = region.snap(region.project(region.low))
        self.movable = (self.top != self.bottom).flatten(1).any(1)

    def keep(self, rows: Tensor) -> None:
        self.top, self.bottom = self.top[rows], self.bottom[rows]

    def first(self, draw: Draw) -> Tensor:
        height, width = self.plane
        up = (draw(self.channels, 1, width) < 0.5).expand(-1, -1, height, -1).reshape(self.top.shape)
        return torch.where(up, self.top, self.bottom)

    def move(self, points: Tensor, draw: Draw, share: float) -> Tensor:
        chance, flat = draw(2 + self.channels), (len(points), self.channels, -1)
        place = _place(chance[:, :2], _window(share, self.plane), self.plane, self.channels)
        up = (chance[:, 2:] < 0.5)[:, :, None]
        moved = points.clone()
        pixels = moved.view(flat)
        top, bottom = self.top.view(flat).gather(2, place), self.bottom.view(flat).gather(2, place)
        # A square that is there already teaches nothing; its opposite does.
        idle = (torch.where(up, top, bottom) == pixels.gather(2, place)).flatten(1).all(1)
        pixels.scatter_(2, place, torch.where(up ^ idle[:, None, None], top, bottom))
        return moved

    def took(self, rows: Tensor, points: Tensor) -> None:
        """Nothing is remembered."""


class _L2:
    """Points on the sphere, all of the radius spent: what two windows hold goes into a new bump in the first."""

    def __init__(self, region: Region) -> None:
        self.region, shape = region, region.centre.shape[1:]
        self.channels, self.plane = _planes(shape)
        low, high = region.space.box(region.centre)
        self.low, self.high = (side.expand(shape).reshape(1, self.channels, -1) for side in (low, high))
        free = region.space.movable(region.centre)
        self.free = None if free is None else free.reshape(1, self.channels, -1)
        self.movable = region.eps.flatten() > 0
        self.spent = torch.zeros_like(region.eps.flatten())  # squared distance of the best points

    def keep(self, rows: Tensor) -> None:
        self.region, self.spent = self.region.keep(rows), self.spent[rows]

    def took(self, rows: Tensor, points: Tensor) -> None:
        """Remember how long the way is to points, the new best ones of rows."""
        self.spent[rows] = (points - self.region.centre[rows]).flatten(1).square().sum(1)

    def first(self, draw: Draw) -> Tensor:
        centre, (height, width) = self.region.centre, self.plane
        tall, wide = max(1, height // 5), max(1, width // 5)
        down, along = height // tall, width // wide
        chance, bumps = draw(self.channels, down, along, 2), _bumps(tall, wide).to(centre)
        tiles = bumps[(chance[..., 0] * len(bumps)).long()] * ((chance[..., 1:] < 0.5) * 2.0 - 1.0)
        block = (-1, self.channels, down, along, tall, wide)
        pattern = tiles.view(block).transpose(3, 4).reshape(-1, self.channels, down * tall, along * wide)
        top, left = (height - down * tall) // 2, (width - along * wide) // 2
        sides = (left, width - along * wide - left, top, height - down * tall - top)
        delta = torch.nn.functional.pad(pattern, sides).view_as(centre)
        delta = delta * (self.region.eps / column(length(delta, "l2"), delta))
        return self.region.snap(self.region.project(centre + delta))

    def move(self, points: Tensor, draw: Draw, share: float) -> Tensor:
        tall, wide = _window(share * WIDER, self.plane)
        # An odd side of at least three where there is room, as in the paper: a bump has two halves.
        window = (min(self.plane[0], max(3, tall | 1)), min(self.plane[1], max(3, wide | 1)))
        chance, centre, flat = draw(5 + self.channels), self.region.centre, (len(points), self.channels, -1)
        here = _place(chance[:, :2], window, self.plane, self.channels)
        there = _place(chance[:, 2:4], window, self.plane, self.channels)
        moved = points.clone()
        pixels, origin = moved.view(flat), centre.view(flat)
        middle, cleared = origin.gather(2, here), origin.gather(2, there)
        old = pixels.gather(2, here) - middle
        held = old.square().sum(2, keepdim=True)
        pixels.scatter_(2, here, middle)
        freed = held + (pixels.gather(2, there) - cleared).square_().sum(2, keepdim=True)
        pixels.scatter_(2, there, cleared)
        bumps = _bumps(*window).to(points)
        sign = (chance[:, 5:] < 0.5).to(points) * 2 - 1
        new = bumps[(chance[:, 4] * len(bumps)).long()][:, None] * sign[:, :, None]
        new = new + old / held.sqrt().clamp_min(TINY)
        if self.free is not None:
            new *= self.free.expand_as(pixels).gather(2, here)
        room = (self.region.eps.flatten() ** 2 - self.spent).clamp_min(0) / self.channels
        height = (room[:, None, None] + freed).sqrt() / new.square().sum(2, keepdim=True).sqrt().clamp_min(
            TINY
        )
        low, high = (side.expand_as(pixels).gather(2, here) for side in (self.low, self.high))
        pixels.scatter_(2, here, torch.clamp(middle + new * height, low, high))
        return self.region.snap(moved)


@lru_cache(maxsize=64)
def _bumps(tall: int, wide: int) -> Tensor:
    """Return unit patterns (m, tall x wide): two hills of opposite sign, above and beside each other.

    A window one pixel high or wide has one pattern. Source: the paper, for l2.
    """
    patterns = []
    if tall > 1 or wide == 1:
        patterns.append(torch.cat([_hill(tall // 2, wide), -_hill(tall - tall // 2, wide)]))
    if wide > 1:
        patterns.append(torch.cat([_hill(wide // 2, tall), -_hill(wide - wide // 2, tall)]).T)
    flat = torch.stack([pattern.flatten() for pattern in patterns])
    return flat / length(flat, "l2")[:, None]


def _hill(tall: int, wide: int) -> Tensor:
    """Return a pyramid (tall, wide) of unit length: nested squares about the middle, the t-th of them 1/t^2 high."""
    reach = max(tall, wide) // 2 + 1
    height = (1 / torch.arange(1, reach + 1) ** 2).flip(0).cumsum(0).flip(0)
    rows, cols = (torch.arange(tall) - tall // 2).abs(), (torch.arange(wide) - wide // 2).abs()
    hill = height[torch.maximum(rows[:, None], cols)]
    return hill / length(hill.reshape(1, -1), "l2").clamp_min(TINY)


def square_search(
    target: Target,
    x: Tensor,
    y: Tensor,
    region: Region,
    rng: Streams,
    *,
    queries: int,
    p: float = 0.8,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the best point met for each row of x (n, *shape), and how far it came: see `progress`.

    At most queries are asked per example, fewer where the threat's budget is smaller; with none at all the
    points are start, or x, and have come -infinity far. start (n, *shape), points in the region, takes the
    place of the paper's stripes or tiles. p is the share of the input that the first squares cover.
    """
    generator, budget = rng.torch("squares"), target.afford(queries)
    found = region.snap(x if start is None else start).clone()
    reached = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    moves = _Linf(region) if region.norm == "linf" else _L2(region)
    rows = moves.movable.nonzero().squeeze(1) if budget else torch.arange(0)
    moves.keep(rows)
    points, labels, best = found[rows], y[rows], reached[rows]

    def draw(*shape: int) -> Tensor:
        uniform = region.draw(lambda n: torch.rand(n, *shape, generator=generator))
        return uniform if len(rows) == len(uniform) else uniform[rows]

    for query in range(budget):
        if len(rows) == 0:
            break
        if query == 0:
            candidates = points if start is not None else moves.first(draw)
        else:
            share = p / 2 ** bisect_left(HALVINGS, (query - 1) * 10_000 // budget)
            candidates = moves.move(points, draw, share)
        came = progress(target.scores(candidates, rows), labels)
        better = (came > best).nonzero().squeeze(1)
        taken = candidates[better]
        points[better], best[better] = taken, came[better]
        moves.took(better, taken)
        if query + 1 == budget or bool((came > 0).any()):
            found[rows], reached[rows] = points, best
            left = (best <= 0).nonzero().squeeze(1)
            rows, points, labels, best = rows[left], points[left], labels[left], best[left]
            moves.keep(left)
    return found, reached
