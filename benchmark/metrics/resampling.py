"""Drawing with replacement, fast enough for 10,000 resamples of 100,000 examples, and what the draws say.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

import math

import numpy as np
from numba import njit

from firstline.benchmark.metrics.checks import Floats
from firstline.benchmark.metrics.rates import Interval

# Steele, Lea & Flood 2014, Fast Splittable Pseudorandom Number Generators: SplitMix64. A number is
# made from its place alone, so that the compiler can make several at once; NumPy's generators cost a call each.
GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S30, S27, S31, S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
UNIT = 1.0 / 9007199254740992.0  # 2 ** -53


@njit(cache=True)
def pick(key: np.uint64, place: int, n: int) -> int:
    """The draw at this place in the stream of key: a whole number in [0, n), all equally likely."""
    z = key + GAMMA * np.uint64(place)
    z = (z ^ (z >> S30)) * FIRST
    z = (z ^ (z >> S27)) * SECOND
    z = z ^ (z >> S31)
    return int(np.float64(z >> S11) * UNIT * n)


def stream(rng: np.random.Generator) -> np.uint64:
    """Return the key of a stream of draws, taken from rng."""
    return rng.integers(0, 2**64, dtype=np.uint64)


def percentiles(value: float, drawn: Floats) -> Interval:
    """Return value between the 2.5% and 97.5% percentiles of what the resamples gave, and always inside them.

    The limits are attained values (no interpolation). Raises ValueError where nothing was drawn.

    >>> percentiles(0.5, np.arange(100.0) / 100)
    Interval(value=0.5, lo=0.02, hi=0.97)
    """
    if drawn.size == 0:
        raise ValueError("need at least one resample, got 0")
    ordered = np.sort(drawn)
    lo, hi = (float(ordered[min(drawn.size - 1, math.floor(q * drawn.size))]) for q in (0.025, 0.975))
    return Interval(value, min(value, lo), max(value, hi))
