"""A lower bound on epsilon, from how well an attack guesses which canaries one training run saw.

Source: Steinke, Nasr & Jagielski 2023, arXiv:2305.08846, section 5 and appendix D.
"""

import numpy as np
from scipy.special import expit
from scipy.stats import binom

MOST = 1e-9  # how far below the bound the answer may lie


def audit_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return how probable it is at most that so many guesses are right, or more, under (epsilon, delta) privacy.

    A fair coin put each canary into the training data or left it out; the attack guessed the coins of some, and
    may choose which. The result is in [0, 1]; below 0.05, the claim of that privacy is refuted at 95% confidence.
    Raises ValueError unless 0 <= right <= guesses <= canaries, canaries > 0, epsilon >= 0 and delta is in [0, 1].

    >>> audit_p_value(10, 2, 2, 0.0, 0.0)
    0.25
    """
    if not (0 <= right <= guesses <= canaries and canaries > 0):
        raise ValueError(
            f"need 0 <= right <= guesses <= canaries and canaries > 0, got {right}, {guesses} and {canaries}"
        )
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(f"need epsilon >= 0 and delta in [0, 1], got {epsilon} and {delta}")
    guessed = binom(
        guesses, expit(epsilon)
    )  # what randomised response gives away: no private answer gives more
    p = float(guessed.sf(right - 1))
    if right > 0 and delta > 0:
        just_below = np.cumsum(guessed.pmf(np.arange(right)[::-1]))  # by 1 to `right` guesses
        p += 2 * canaries * delta * float((just_below / np.arange(1, right + 1)).max())
    return min(1.0, p)


def audited_epsilon(
    canaries: int, guesses: int, right: int, delta: float, *, significance: float = 0.05
) -> float:
    """Return the epsilon that the training run exceeds, at a confidence of 1 - significance: 0 or more.

    The arguments are those of `audit_p_value`; how many guesses to make must be decided before looking at the
    coins. 0 refutes nothing: the attack may be weak, or the canaries few. Never infinite, not even where all are
    right: few canaries bear out little. Raises ValueError as `audit_p_value` does, and unless significance is in (0, 1).

    >>> round(audited_epsilon(1000, 100, 95, 1e-5), 3)
    2.165
    """
    if not 0 < significance < 1:
        raise ValueError(f"the significance must lie between 0 and 1, got {significance}")

    def refuted(epsilon: float) -> bool:
        return audit_p_value(canaries, guesses, right, epsilon, delta) < significance

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > MOST:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
