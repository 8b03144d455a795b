"""The bound of a one-run audit, against published figures, exact sums and a mechanism whose epsilon is known."""

import math
from fractions import Fraction

import pytest
from scipy.stats import binom

from firstline.benchmark.metrics.dp_audit import audit_p_value, audited_epsilon


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "known"),
    [(1000, 100, 100, 3.465), (1000, 100, 95, 2.165), (1000, 1000, 700, 0.732), (1000, 200, 190, 2.394)],
)
def test_bounds_are_the_known_ones(canaries, guesses, right, known):
    assert audited_epsilon(canaries, guesses, right, 1e-5) == pytest.approx(known, abs=5e-4)


def test_all_right_without_delta_has_a_closed_form():
    # All r guesses are right with probability q ** r, and q is e ** epsilon / (1 + e ** epsilon).
    q = 0.05 ** (1 / 60)
    assert audited_epsilon(60, 60, 60, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


@pytest.mark.parametrize(("guesses", "right"), [(12, 0), (12, 1), (12, 9), (12, 12)])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 1000)])
def test_the_p_value_is_the_sum_written_out_in_fractions(guesses, right, delta):
    canaries, q = 20, Fraction(3, 4)  # epsilon is log 3

    def exactly(k: int) -> Fraction:
        return math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k)

    wanted = sum(exactly(k) for k in range(right, guesses + 1))
    below = [sum(exactly(k) for k in range(right - i, right)) / i for i in range(1, right + 1)]
    wanted = min(Fraction(1), wanted + 2 * canaries * delta * max(below, default=Fraction(0)))
    assert audit_p_value(canaries, guesses, right, math.log(3), float(delta)) == pytest.approx(float(wanted))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_randomised_response_is_refuted_no_more_often_than_allowed(epsilon):
    guesses = 60
    found = [audited_epsilon(guesses, guesses, right, 0.0) for right in range(guesses + 1)]
    wrongly = [right for right, bound in enumerate(found) if bound > epsilon]
    assert 0.01 < binom.pmf(wrongly, guesses, 1 / (1 + math.exp(-epsilon))).sum() <= 0.05


def test_guesses_like_those_of_a_coin_refute_nothing():
    assert audited_epsilon(1000, 100, 50, 1e-5) == 0.0
    assert audited_epsilon(1000, 0, 0, 1e-5) == 0.0


def test_the_bound_rises_with_what_is_right_and_falls_with_delta():
    assert audited_epsilon(500, 100, 90, 0.0) > audited_epsilon(500, 100, 90, 1e-4)
    assert audited_epsilon(500, 100, 90, 0.0) > audited_epsilon(500, 100, 80, 0.0)
    assert audited_epsilon(500, 100, 90, 0.0) > audited_epsilon(500, 100, 90, 0.0, significance=0.01)


@pytest.mark.parametrize("counts", [(0, 0, 0), (10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_that_do_not_fit_are_told(counts):
    with pytest.raises(ValueError, match="need 0 <= right <= guesses <= canaries"):
        audited_epsilon(*counts, 1e-5)


def test_values_out_of_range_are_told():
    with pytest.raises(ValueError, match=r"delta in \[0, 1\], got 0.0 and 2.0"):
        audited_epsilon(10, 5, 5, 2.0)
    with pytest.raises(ValueError, match=r"need epsilon >= 0 .* got -1\.0"):
        audit_p_value(10, 5, 5, -1.0, 0.0)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.0"):
        audited_epsilon(10, 5, 5, 0.0, significance=1.0)
