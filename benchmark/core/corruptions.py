"""Common corruptions of small images, and the region of an attacker who may only choose among them.

Source: Hendrycks & Dietterich 2019, arXiv:1903.12261, section 4; the constants are those of CIFAR-10-C, which
its authors chose for 32x32. They are kept at every size, and lengths in pixels scale with the shorter side: a
blur of one pixel of 32 is one of a quarter pixel of 8. So that such a blur is still one, pixels are moved by
bilinear interpolation. At 32x32 that is what the authors do, with these deviations: frost is left out (it
needs photographs), all edges are mirrored, motion is not rounded to whole pixels, zooms and elastic
transforms interpolate once, and JPEG leaves out what is lossless.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.jpeg import compress, grey
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat

SIDE = 32  # the image side that the constants are for


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt images: make(x, constant, generator), with one constant per severity."""

    make: Callable[[Tensor, Any, torch.Generator], Tensor]
    constants: tuple[Any, ...]

    def __call__(self, x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        """Return images x (n, c, h, w) in [0, 1] corrupted with severity 1 to 5, on the CPU as x is."""
        return self.make(x, self.constants[severity - 1], generator).clamp(0, 1)


def _scale(x: Tensor) -> float:
    """Return how many pixels of x are one pixel of a 32x32 image."""
    return min(x.shape[2:]) / SIDE


def _warp(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return x (n, c, h, w), each pixel taken from so many pixels further down and right (n or 1, h or 1, w or 1)."""
    n, _, h, w = x.shape
    rows = (torch.arange(h)[:, None] + down) * (2 / max(h - 1, 1)) - 1
    columns = (torch.arange(w) + right) * (2 / max(w - 1, 1)) - 1
    where = torch.stack(torch.broadcast_tensors(columns, rows), -1).expand(n, h, w, 2)
    return grid_sample(x, where, padding_mode="reflection", align_corners=True)


def _mix(x: Tensor, down: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of copies of x, moved by down and right (t,) or (t, n) pixels, weighted by weights (t,)."""
    kept = weights > 1e-4 * weights.max()
    weights, scale, mixed = weights[kept] / weights[kept].sum(), _scale(x), torch.zeros_like(x)
    for weight, dy, dx in zip(weights, down[kept] * scale, right[kept] * scale, strict=True):
        mixed += weight * _warp(x, dy.reshape(-1, 1, 1), dx.reshape(-1, 1, 1))
    return mixed


def _bell(distance: Tensor, sigma: float) -> Tensor:
    return torch.exp(-(distance**2) / (2 * sigma**2))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return numbers uniform in [-1, 1]."""
    return torch.rand(shape, generator=generator) * 2 - 1


def _gaussian_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, generator) / photons


def _impulse_noise(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    chance = torch.rand(x.shape, generator=generator)
    return x.masked_fill(chance < share / 2, 0).masked_fill(chance > 1 - share / 2, 1)


def _defocus_blur(x: Tensor, constant: tuple[float, float], generator: torch.Generator) -> Tensor:
    radius, sigma = constant
    reach = torch.arange(-2.0, 3.0)
    lens = (reach[:, None] ** 2 + reach**2 <= radius**2).float()
    apart = reach[:, None] - reach
    smooth = _bell(apart, sigma) * (apart.abs() <= 1)
    down, right = torch.meshgrid(reach, reach, indexing="ij")
    return _mix(x, down.flatten(), right.flatten(), (smooth @ lens @ smooth).flatten())


def _glass_blur(x: Tensor, constant: tuple[float, int], generator: torch.Generator) -> Tensor:
    """Every pixel becomes one of its upper and left neighbours or stays, between two Gaussian blurs.

    The authors' swap is one way in effect, as both sides are views of one array.
    """
    sigma, rounds = constant
    reach = torch.arange(-2.0, 3.0)
    still = torch.zeros_like(reach)

    def blurred(x: Tensor) -> Tensor:
        return _mix(_mix(x, reach, still, _bell(reach, sigma)), still, reach, _bell(reach, sigma))

    x = blurred(x)
    for _ in range(rounds):
        moved = torch.randint(-1, 1, (2, len(x), *x.shape[2:]), generator=generator) * _scale(x)
        x = _warp(x, moved[0], moved[1])
    return blurred(x)


def _streak(x: Tensor, constant: tuple[float, float], degrees: Tensor) -> Tensor:
    """Return x moved along one direction (n,) per image, half a bell curve long. Source: ImageMagick's motion blur."""
    radius, sigma = constant
    steps, angle = torch.arange(2 * radius + 1), torch.deg2rad(degrees)
    return _mix(x, steps[:, None] * torch.sin(angle), steps[:, None] * torch.cos(angle), _bell(steps, sigma))


def _motion_blur(x: Tensor, constant: tuple[float, float], generator: torch.Generator) -> Tensor:
    return _streak(x, constant, 45 * _uniform((len(x),), generator))


def _zoomed(x: Tensor, factor: float) -> Tensor:
    h, w = x.shape[2:]
    rows, columns = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    return _warp(
        x, (rows * (1 / factor - 1)).reshape(1, -1, 1), (columns * (1 / factor - 1)).reshape(1, 1, -1)
    )


def _zoom_blur(x: Tensor, factors: int, generator: torch.Generator) -> Tensor:
    total = x + sum(_zoomed(x, 1 + step / 100) for step in range(factors))
    return total / (factors + 1)


def _snow(x: Tensor, constant: tuple[float, ...], generator: torch.Generator) -> Tensor:
    mean, spread, zoom, threshold, radius, sigma, keep = constant
    flakes = mean + spread * torch.randn((len(x), 1, *x.shape[2:]), generator=generator)
    flakes = _zoomed(flakes, zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1))
    flakes = _streak(flakes, (radius, sigma), -90 + 45 * _uniform((len(x),), generator))
    pale = torch.maximum(x, grey(x) * 1.5 + 0.5)
    return keep * x + (1 - keep) * pale + flakes + flakes.flip(2, 3)


def _plasma(n: int, side: int, decay: float, generator: torch.Generator) -> Tensor:
    """Return n clouds (n, 1, side, side) in [0, 1]: midpoints displaced on a torus, ever less (diamond-square)."""
    cloud, height = torch.zeros(n, 1, 1), 1.0
    while cloud.shape[1] < side:
        lift = height * _uniform((3, *cloud.shape), generator)
        below = cloud.roll(-1, 1)
        inside = (cloud + below + cloud.roll(-1, 2) + below.roll(-1, 2)) / 4 + lift[0]
        across = (cloud + cloud.roll(-1, 2) + inside + inside.roll(1, 1)) / 4 + lift[1]
        along = (cloud + below + inside + inside.roll(1, 2)) / 4 + lift[2]
        upper, lower = torch.stack([cloud, across], -1), torch.stack([along, inside], -1)
        cloud = torch.stack([upper, lower], 2).reshape(n, 2 * cloud.shape[1], -1)
        height /= decay**2
    cloud = cloud - cloud.amin((1, 2), keepdim=True)
    return (cloud / cloud.amax((1, 2), keepdim=True).clamp_min(1e-12))[:, None, :side, :side]


def _fog(x: Tensor, constant: tuple[float, float], generator: torch.Generator) -> Tensor:
    thickness, decay = constant
    h, w = x.shape[2:]
    brightest = x.amax((1, 2, 3), keepdim=True)
    cloud = _plasma(len(x), max(h, w), decay, generator)[..., :h, :w]
    return (x + thickness * cloud) * brightest / (brightest + thickness)


def _brightness(x: Tensor, more: float, generator: torch.Generator) -> Tensor:
    """The value of HSV rises; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp_max(1)
    return torch.where(value > 0, x * (brighter / value.clamp_min(1e-12)), brighter)


def _contrast(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * share + mean


def _elastic(x: Tensor, constant: tuple[float, float, float], generator: torch.Generator) -> Tensor:
    """Three points of the image move anywhere near, all others with them; then each pixel moves a little.

    Constants are shares of the side: the length of the pixels' moves, how far apart moves are alike, and how
    far the three points move.
    """
    n, _, h, w = x.shape
    length, alike, shift = (share * min(h, w) for share in constant)
    arm = min(h, w) // 3
    corners = torch.tensor([[arm, arm], [arm, -arm], [-arm, -arm]]) + torch.tensor([h // 2, w // 2])
    ahead = torch.cat([corners + shift * _uniform((n, 3, 2), generator), torch.ones(n, 3, 1)], 2)
    back = torch.linalg.solve(ahead, corners.float().expand(n, 3, 2))
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([rows, columns], -1).expand(n, h, w, 2) + _waves(n, h, w, length, alike, generator)
    source = place @ back[:, None, :2] + back[:, None, None, 2]
    return _warp(x, source[..., 0] - rows, source[..., 1] - columns)


def _waves(n: int, h: int, w: int, length: float, alike: float, generator: torch.Generator) -> Tensor:
    """Return smooth random moves (n, h, w, 2): uniform ones of length, blurred with a Gaussian of width alike."""
    moves = length * _uniform((n, 2, h, w), generator)
    if alike > 0:
        rows, columns = torch.arange(h), torch.arange(w)
        down, right = _bell(rows[:, None] - rows, alike), _bell(columns[:, None] - columns, alike)
        moves = (down / down.sum(1, keepdim=True)) @ moves @ (right / right.sum(1, keepdim=True)).T
    return moves.movedim(1, -1)


def _pixelate(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    for size in ([int(share * side) for side in x.shape[2:]], x.shape[2:]):
        down, across = (_boxes(*sides) for sides in zip(x.shape[2:], size, strict=True))
        x = down @ x @ across.T
    return x


def _boxes(before: int, after: int) -> Tensor:
    """Return which of `before` pixels each of `after` is the mean of (after, before): those whose centre it covers."""
    after = max(after, 1)
    ratio = before / after
    offset = torch.arange(before) + 0.5 - (torch.arange(after)[:, None] + 0.5) * ratio
    inside = ((offset > -max(ratio, 1) / 2) & (offset <= max(ratio, 1) / 2)).float()
    return inside / inside.sum(1, keepdim=True)


def _jpeg(x: Tensor, quality: int, generator: torch.Generator) -> Tensor:
    return compress(x, quality)


CORRUPTIONS = {
    "gaussian-noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),  # standard deviation
    "shot-noise": Corruption(_shot_noise, (500, 250, 100, 75, 50)),  # photons of a white pixel
    "impulse-noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),  # share of values replaced
    "defocus-blur": Corruption(  # radius of the lens, width of its edge
        _defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "glass-blur": Corruption(  # width of the blur, rounds of moves
        _glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
    ),
    "motion-blur": Corruption(_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),  # radius, width
    "zoom-blur": Corruption(_zoom_blur, (7, 12, 16, 21, 26)),  # factors, from 1 in steps of 0.01
    "snow": Corruption(  # flakes: mean, spread, zoom, threshold; streak: radius, width; share kept
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "fog": Corruption(_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),  # thickness, decay
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),  # added to the value
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),  # share kept
    "elastic": Corruption(
        _elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    ),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),  # share of the side
    "jpeg": Corruption(_jpeg, (80, 65, 58, 50, 40)),  # quality
}


class Corrupted(Region):
    """What an attacker may choose who can only corrupt: the input, or one of its versions of one severity.

    The versions come from rng alone and are public; eps is the severity, and distances are reported in l2.
    """

    names = tuple(CORRUPTIONS)

    def __init__(self, x: Tensor, space: InputSpace, severity: int, rng: Streams) -> None:
        if len(space.shape) != 3:
            raise FirstlineError(f"corruptions are for images (c, h, w); these inputs are {space.shape}")
        self.centre, self.space, self.norm = x, space, "l2"
        self.eps = column(torch.full((len(x),), float(severity), device=x.device), x)
        self.rows = torch.arange(len(x), device=x.device)
        self._total, self._whole, self._severity, self._rng = len(x), x, severity, rng

    def version(self, name: str) -> Tensor:
        """Return the examples (n, *shape) with one corruption, on the grid."""
        whole = self._whole.cpu()
        low, high = self.space.box(whole)
        image = (whole - low) / (high - low)
        if len(image):
            image = CORRUPTIONS[name](image, self._severity, self._rng.torch("corruption", name))
        return self.space.round(low + image * (high - low)).to(self.centre)[self.rows]

    def random(self, generator: torch.Generator) -> Tensor:
        """Return one version per example, drawn uniformly."""
        chosen = self.draw(lambda n: torch.randint(len(self.names), (n,), generator=generator))
        points = self.centre.clone()
        for number, name in enumerate(self.names):
            points = torch.where(column(chosen == number, points), self.version(name), points)
        return points

    def snap(self, points: Tensor) -> Tensor:
        """Return points as they are: all versions are on the grid."""
        return points

    def holds(self, points: Tensor) -> Tensor:
        """Return which points (n, *shape) are the input or a version of it, (n,) bool."""
        found = _same(points, self.centre)
        for name in self.names:
            found |= _same(points, self.version(name))
        return found

    def violation(self, points: Tensor) -> str | None:
        """Return how points (n, *shape) break the threat, or None."""
        if points.shape != self.centre.shape:
            return f"returned shape {tuple(points.shape)} for inputs of shape {tuple(self.centre.shape)}"
        problem = self.space.check(points)
        if problem:
            return f"returned {problem}"
        other = int((~self.holds(points)).sum())
        if other:
            return f"returned {other} of {len(points)} points that are no corruption of severity {self._severity}"
        return None


def _same(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b).abs() <= 1e-6).flatten(1).all(1)


def region_of(threat: Threat, x: Tensor, space: InputSpace, rng: Streams) -> Region:
    """Return the points that an evasion threat allows around x (n, *shape). rng makes the corruptions."""
    if threat.goal == "corruption":
        return Corrupted(x, space, int(threat.eps), rng)
    return Region(x, space, threat.goal, threat.eps)
