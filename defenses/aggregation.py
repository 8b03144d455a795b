"""Rules by which a server makes one model of its clients' models, some of which may be anything.

Source: McMahan et al. 2017, arXiv:1602.05629 (mean); Yin et al. 2018, arXiv:1803.01498, definitions 1 and 2
(median, trimmed mean); Blanchard et al. 2017, arXiv:1703.02757 (Krum, multi-Krum).

Each rule takes updates (clients, parameters), floating point, and how many clients are byzantine: their updates
may be anything, even not numbers. It returns one update (parameters,) of the same type on the same device. All rules
move with a shift of the updates, so models can be given instead of their differences from the last one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from firstline.benchmark.core.errors import FirstlineError, not_found

# How many clients a rule needs besides two for each byzantine one.
BEYOND = {"median": 1, "trimmed-mean": 1, "krum": 3, "multi-krum": 3}


def mean(updates: Tensor, byzantine: int) -> Tensor:
    """Return the mean of updates, which one client can move anywhere: the control."""
    check("mean", len(updates), byzantine)
    return updates.mean(0)


def median(updates: Tensor, byzantine: int) -> Tensor:
    """Return the median of each parameter, the mean of the two middle values where clients are even in number."""
    check("median", len(updates), byzantine)
    ordered, n = updates.sort(0).values, len(updates)
    return ordered[(n - 1) // 2 : n // 2 + 1].mean(0)


def trimmed_mean(updates: Tensor, byzantine: int) -> Tensor:
    """Return the mean of each parameter without its byzantine smallest and as many largest values."""
    check("trimmed-mean", len(updates), byzantine)
    return updates.sort(0).values[byzantine : len(updates) - byzantine].mean(0)


def krum_scores(updates: Tensor, byzantine: int) -> Tensor:
    """Return for each update the sum of squared distances to its clients - byzantine - 2 nearest others, (clients,).

    It is infinite where an update is not a number, or too far from too many.
    """
    # Differences before squares: models lie close together and far from the origin.
    squares = torch.stack([(updates - one).square().sum(1) for one in updates])
    squares = squares.nan_to_num(nan=torch.inf, posinf=torch.inf).fill_diagonal_(torch.inf)
    return squares.sort(1).values[:, : len(updates) - byzantine - 2].sum(1)


def krum(updates: Tensor, byzantine: int) -> Tensor:
    """Return the update with the lowest of `krum_scores`, the first of equals."""
    check("krum", len(updates), byzantine)
    return updates[krum_scores(updates, byzantine).argsort(stable=True)[0]]


def multi_krum(updates: Tensor, byzantine: int) -> Tensor:
    """Return the mean of the clients - byzantine updates with the lowest of `krum_scores`."""
    check("multi-krum", len(updates), byzantine)
    chosen = krum_scores(updates, byzantine).argsort(stable=True)[: len(updates) - byzantine]
    return updates[chosen.sort().values].mean(0)


RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": mean,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
}


def check(rule: str, clients: int, byzantine: int) -> None:
    """Raise FirstlineError when there is no such rule, or it can't bear so many byzantine ones among clients."""
    if rule not in RULES:
        raise not_found("aggregation rule", rule, RULES)
    if byzantine < 0 or clients < 1:
        raise FirstlineError(
            f"{rule} needs at least 1 client and 0 byzantine ones, got {clients} and {byzantine}"
        )
    fewest = 2 * byzantine + BEYOND[rule] if rule in BEYOND else 1
    if clients < fewest:
        raise FirstlineError(
            f"{rule} with {byzantine} byzantine clients needs at least {fewest} clients, got {clients}"
        )
