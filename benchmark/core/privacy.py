"""What differentially private training promises: what a run did, and its epsilon by one accountant.

Two accountants give one run two epsilons, so figures of different ones don't compare. Here it is always the
privacy loss distributions (PLD) of the package dp-accounting, which is the tightest in it.
Source: Koskela, Jälkö & Honkela 2020, arXiv:1906.03049; as implemented by Doroshenko et al. 2022, arXiv:2207.04380.
"""

import math
from dataclasses import dataclass, replace
from importlib import import_module

from firstline.benchmark.core.packages import require

INSTALL = "pip install 'firstline[privacy]'"
SAMPLING = ("poisson", "shuffled")
NEIGHBOURS = {"add-or-remove": "ADD_OR_REMOVE_ONE", "replace": "REPLACE_ONE"}  # as dp-accounting calls them
GRID = 1e-4  # on which privacy losses are rounded up, dp-accounting's default
LEAST = 1e-3  # noise; with less, one step alone loses more than a million


@dataclass(frozen=True)
class PrivateTraining:
    """What a run of DP-SGD did: all that an accountant asks for, and what its promise is about.

    Each of so many steps draws a share in (0, 1] of the rows, clips the gradient of each to length clip, and adds
    Gaussian noise to their sum, of standard deviation noise (sigma) times clip. sampling is "poisson" where each row
    is drawn by itself with probability share, "shuffled" where batches are cut from a shuffled epoch. Neighbours,
    which can't be told apart by much, are two data sets of which one has a row more ("add-or-remove"), or of which
    one row differs ("replace").

    Raises ValueError for what no run can have done.
    """

    noise: float
    clip: float
    share: float
    steps: int
    delta: float
    sampling: str = "poisson"
    neighbours: str = "add-or-remove"

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and self.clip > 0 and self.steps >= 1):
            raise ValueError(
                f"noise must be at least 0, clip positive and steps at least 1, got {self.noise}, {self.clip} "
                f"and {self.steps}"
            )
        if not (0 < self.share <= 1 and 0 < self.delta < 1):
            raise ValueError(
                f"the share must be in (0, 1] and delta in (0, 1), got {self.share} and {self.delta}"
            )
        if self.sampling not in SAMPLING or self.neighbours not in NEIGHBOURS:
            raise ValueError(
                f"sampling must be one of {', '.join(SAMPLING)} and neighbours one of {', '.join(NEIGHBOURS)}, "
                f"got {self.sampling!r} and {self.neighbours!r}"
            )


def epsilon(run: PrivateTraining) -> float | None:
    """Return the epsilon that run keeps at its delta, or None where rows weren't drawn by Poisson sampling.

    It is at least 0, and infinite with noise below 0.001. Shuffled batches are None and not a guess: what Poisson sampling
    amplifies, shuffling may not (Chua et al. 2024, arXiv:2403.17673). It bounds the algorithm as a whole: who
    knows the seed knows the noise. Takes a second or less. Raises FirstlineError where dp-accounting isn't installed.
    """
    if run.sampling != "poisson":
        return None
    if run.noise < LEAST:
        return math.inf
    require("epsilon", {"package": "dp_accounting", "install": INSTALL})
    accounting = import_module("dp_accounting")
    relation = accounting.NeighboringRelation[NEIGHBOURS[run.neighbours]]
    # Losses grow with the square of 1 / noise: on a finer grid, little noise would take minutes and say no more.
    grid = GRID / min(1.0, run.noise) ** 2
    accountant = import_module("dp_accounting.pld").PLDAccountant(relation, grid)
    step = accounting.PoissonSampledDpEvent(run.share, accounting.GaussianDpEvent(run.noise))
    return float(accountant.compose(step, run.steps).get_epsilon(run.delta))


def noise_for(target: float, run: PrivateTraining) -> float:
    """Return the least noise, to one part in a hundred, with which run keeps an epsilon of at most target.

    run's own noise doesn't matter. Raises ValueError where target isn't positive or run's sampling has no epsilon,
    and FirstlineError where dp-accounting isn't installed.
    """
    if not target > 0:
        raise ValueError(f"the target epsilon must be positive, got {target}")

    def kept(noise: float) -> bool:
        found = epsilon(replace(run, noise=noise))
        if found is None:
            raise ValueError("shuffled batches have no epsilon; draw them by Poisson sampling")
        return found <= target

    low = high = 1.0
    while not kept(high):
        low, high = high, 2 * high
    while low == high or kept(low):
        low, high = low / 2, low
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high
