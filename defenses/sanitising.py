"""What sanitisers of training data share: coordinates in which rows are near or far, and the dropping of the worst.

Source: common ground of the sanitisers; each names its own.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import FirstlineError

NOISE = 1e-3  # of the largest spread: what varies less is left to rounding errors


def coordinates(x: Tensor, space: InputSpace) -> Tensor:
    """Return inputs x (n, *shape) as points (n, width), float64, each feature as a share of its range.

    Another category is as far away as the other end of a range, whatever the codes.
    """
    low, high = space.box(x)
    unit = ((x - low) / (high - low)).flatten(1).double()
    if not any(space.categorical):
        return unit
    parts = []
    for column, (share, code) in enumerate(zip(unit.unbind(1), x.flatten(1).unbind(1), strict=True)):
        if space.categorical[column]:
            kinds = torch.unique(code, return_inverse=True)[1]
            parts.append(one_hot(kinds).double() * 0.5**0.5)
        else:
            parts.append(share[:, None])
    return torch.cat(parts, 1)


def principal(features: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return an order of rows, (n,), and features (n, width) in that order on their first principal components.

    The order depends on what the rows hold and not on where they stand, so that what is drawn by position
    afterwards (starts, subsets) does not either. Components are left out where features hardly vary: the
    second result is (n, k) with k from 0 to components.
    """
    order = torch.from_numpy(np.lexsort(features.numpy().T))
    apart = features[order] - features.mean(0)
    _, length, axes = torch.linalg.svd(apart, full_matrices=False)
    least = max(NOISE * float(length[0]), 1e-9 * float(features.norm()))
    axes = axes[:components][length[:components] > least]
    return order, apart @ axes.T


def within_share(scores: Tensor, y: Tensor, share: float) -> Tensor:
    """Return which rows to keep, (n,) bool: of each class in y (n,) all but the share with the highest scores (n,).

    The number that goes is rounded to the nearest; the earlier of two equal rows stays.
    """
    keep = torch.ones(len(y), dtype=torch.bool)
    for label in torch.unique(y):
        members = (y == label).nonzero().flatten()
        order = scores[members].argsort(stable=True)
        keep[members[order[len(members) - round(share * len(members)) :]]] = False
    return keep


def check_share(defense: Defense, share: float, name: str = "share") -> None:
    """Raise FirstlineError unless share is one of the rows that can be left out."""
    if not 0 <= share < 0.5:
        raise FirstlineError(f"{defense}: {name} is a share of the rows, at least 0 and below 0.5")
