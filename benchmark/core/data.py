"""Data, splits, input spaces and fingerprints."""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstline.benchmark.core.errors import ContractBroken


@dataclass(frozen=True)
class Data:
    """Examples x (n, *shape), labels y (n,) int64, and ids (n,) int64 that follow the rows through every filter."""

    x: Tensor
    y: Tensor
    ids: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Data":
        """Return data whose ids count the rows from 0."""
        return cls(x, y, torch.arange(len(x)))

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.ids):
            raise ContractBroken(
                f"data needs as many labels and ids as examples, got {len(self.x)} examples, "
                f"{len(self.y)} labels, {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor) -> "Data":
        """Return the rows at index, a (k,) tensor of positions or an (n,) mask."""
        return Data(self.x[index], self.y[index], self.ids[index])

    def to(self, device: torch.device | str) -> "Data":
        """Return the same data on device."""
        return Data(self.x.to(device), self.y.to(device), self.ids.to(device))


@dataclass(frozen=True)
class Splits:
    """train and test for the defender, aux for the attacker: same population, no row shared."""

    train: Data
    test: Data
    aux: Data

    def fingerprint(self) -> str:
        """Return the SHA-256 of all three splits: shapes, dtypes, values and labels."""
        digest = hashlib.sha256()
        for name, data in (("train", self.train), ("test", self.test), ("aux", self.aux)):
            for tensor in (data.x, data.y):
                array = tensor.contiguous().numpy()
                digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
                digest.update(array.data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Splits":
        """Return the same splits on device."""
        return replace(self, train=self.train.to(device), test=self.test.to(device), aux=self.aux.to(device))


@dataclass(frozen=True)
class InputSpace:
    """Where inputs live: shape of one example, range, grid, and for tables what each feature allows.

    low, high and grid are one number for all features or one per feature (flattened order). grid is the
    distance between neighbouring allowed values, 1/255 for 8-bit images, and 0 for a continuous feature.
    mutable says which features an attacker can change (empty: all); categorical which are codes without
    order (empty: none); costs what an attacker pays under a cost budget: for one unit of change, or for
    another category (empty: 1 each).
    """

    shape: tuple[int, ...]
    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0
    grid: float | tuple[float, ...] = 0.0
    mutable: tuple[bool, ...] = ()
    categorical: tuple[bool, ...] = ()
    features: tuple[str, ...] = ()
    costs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        width = 1
        for side in self.shape:
            width *= side
        for name in ("low", "high", "grid", "mutable", "categorical", "features", "costs"):
            value = getattr(self, name)
            if isinstance(value, tuple) and value and len(value) != width:
                raise ContractBroken(f"input space: {name} has {len(value)} entries for {width} features")
        if not all(0 < cost < math.inf for cost in self.costs):
            raise ContractBroken(
                "input space: every cost must be above 0; what may not change is not mutable"
            )

    def _like(self, value: float | tuple[float, ...] | tuple[bool, ...], x: Tensor) -> Tensor:
        tensor = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        return tensor if tensor.ndim == 0 else tensor.reshape(self.shape)

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest allowed values, broadcastable to x (n, *shape)."""
        return self._like(self.low, x), self._like(self.high, x)

    def changeable(self, x: Tensor) -> Tensor | None:
        """Return 1 where an attacker can change a feature at all and 0 elsewhere, or None where all can be."""
        return self._like(self.mutable, x) if self.mutable and not all(self.mutable) else None

    def movable(self, x: Tensor) -> Tensor | None:
        """Return 1 where a feature may be moved by degrees and 0 elsewhere, or None where all may."""
        if not any(self.categorical) and (not self.mutable or all(self.mutable)):
            return None
        free = torch.ones(self.shape, dtype=x.dtype, device=x.device)
        if self.mutable:
            free = free * self._like(self.mutable, x)
        if self.categorical:
            free = free * (1 - self._like(self.categorical, x))
        return free

    def prices(self, x: Tensor) -> Tensor:
        """Return what each feature costs, (*shape): per unit of change, or for another category."""
        return (
            self._like(self.costs, x)
            if self.costs
            else torch.ones(self.shape, dtype=x.dtype, device=x.device)
        )

    def cost(self, points: Tensor, x: Tensor) -> Tensor:
        """Return what an attacker pays for moving x to points (n, *shape), (n,).

        That is the price times the change, summed over the features; once the price for a changed category.
        Source: Kireev, Kulynych & Troncoso 2023, arXiv:2208.13058 (budgets in the attacker's own currency).
        """
        change = (points - x).abs()
        if any(self.categorical):
            change = torch.where(self._like(self.categorical, x) > 0, (change > 0).to(change), change)
        return (change * self.prices(x)).flatten(1).sum(1)

    def round(self, x: Tensor) -> Tensor:
        """Return x (n, *shape) moved to the nearest allowed values: clipped to the box, rounded to the grid."""
        kind = x.dtype
        low, high = self.box(x)
        if isinstance(self.grid, tuple):
            grid = self._like(self.grid, x)
            step = torch.where(grid > 0, grid, torch.ones_like(grid))
            x = torch.where(grid > 0, low + torch.round((x - low) / step) * step, x)
        elif self.grid > 0:
            levels = 1 / self.grid
            x = torch.round((x - low) * levels) / levels + low
        return torch.minimum(torch.maximum(x, low), high).to(kind)

    def uniform(self, like: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return count points (count, *shape) drawn uniformly from the box and rounded to the grid, typed as like."""
        drawn = torch.rand((count, *self.shape), generator=generator, dtype=torch.float64).to(like.device)
        low, high = self.box(drawn)
        if like.is_floating_point():
            return self.round((low + drawn * (high - low)).to(like.dtype))
        return (low + torch.floor(drawn * (high - low + 1))).clamp_max(high).to(like.dtype)

    def check(self, x: Tensor) -> str | None:
        """Return what is wrong with x (n, *shape) as inputs, or None."""
        if tuple(x.shape[1:]) != self.shape:
            return f"shape {tuple(x.shape[1:])} instead of {self.shape}"
        if not torch.isfinite(x).all():
            return "NaN or infinite values"
        low, high = self.box(x)
        out = ((x < low - 1e-6) | (x > high + 1e-6)).flatten(1).any(1)
        if out.any():
            return f"{int(out.sum())} of {len(x)} examples outside the allowed range"
        return None
