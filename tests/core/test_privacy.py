"""One accountant for all epsilons: its figures are known, and what it can't account for has none."""

import importlib.util
import math
from dataclasses import replace

import pytest

from firstline.benchmark.core import packages
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.privacy import PrivateTraining, epsilon, noise_for

needs_accountant = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs dp-accounting: firstline[privacy]"
)


def abadi(noise: float, epochs: int) -> PrivateTraining:
    """A run of Abadi et al. 2016 on MNIST: lots of 600 of 60,000 rows."""
    return PrivateTraining(noise, clip=4.0, share=0.01, steps=100 * epochs, delta=1e-5)


def tutorial(noise: float, epochs: int) -> PrivateTraining:
    """A run of TensorFlow Privacy's tutorial on MNIST: lots of 256 of 60,000 rows."""
    return PrivateTraining(noise, 1.0, 256 / 60_000, epochs * 60_000 // 256, delta=1e-5)


@needs_accountant
@pytest.mark.parametrize(
    ("run", "known"),
    [
        (abadi(4.0, 20), 0.395),
        (abadi(4.0, 100), 0.947),
        (abadi(4.0, 400), 2.03),
        (abadi(2.0, 100), 2.16),
        (abadi(8.0, 100), 0.437),
        (tutorial(1.3, 15), 0.864),
        (tutorial(1.1, 60), 2.382),
        (tutorial(0.7, 45), 5.639),
    ],
)
def test_epsilons_of_published_runs_are_the_known_ones(run, known):
    assert epsilon(run) == pytest.approx(known, abs=0.006 if known > 2 else 0.001)


def gaussian_delta(eps: float, noise: float) -> float:
    """The delta of one Gaussian mechanism at eps. Source: Balle & Wang 2018, arXiv:1805.06530, theorem 8."""

    def tail(z: float) -> float:
        return 0.5 * math.erfc(-z / math.sqrt(2))

    return tail(0.5 / noise - eps * noise) - math.exp(eps) * tail(-0.5 / noise - eps * noise)


@needs_accountant
@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (3.0, 4), (0.3, 1)])
def test_without_sampling_the_gaussian_mechanism_has_its_closed_form(noise, steps):
    run = PrivateTraining(noise, 1.0, 1.0, steps, 1e-5)
    found = epsilon(run)
    # Steps that all see all rows are one step with less noise. The accountant rounds up, and hardly.
    delta = gaussian_delta(found, noise / math.sqrt(steps))
    assert 0.99 * run.delta < delta <= 1.0001 * run.delta


@needs_accountant
def test_replacing_a_row_costs_more_than_leaving_it_out():
    run = abadi(4.0, 20)
    assert epsilon(replace(run, neighbours="replace")) > 1.5 * epsilon(run)


def test_shuffled_batches_have_no_epsilon_and_runs_without_noise_an_infinite_one():
    assert epsilon(replace(abadi(4.0, 20), sampling="shuffled")) is None
    assert epsilon(abadi(0.0, 20)) == math.inf


@needs_accountant
def test_the_noise_for_an_epsilon_is_the_least_that_keeps_it():
    run = abadi(1.0, 20)
    found = noise_for(0.395, run)
    assert found == pytest.approx(4.0, rel=0.01)
    assert epsilon(replace(run, noise=found)) <= 0.395 < epsilon(replace(run, noise=0.98 * found))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"noise": -1.0}, "noise must be at least 0, .* got -1.0"),
        ({"noise": math.nan}, "noise must be at least 0"),
        ({"clip": 0.0}, "clip positive"),
        ({"steps": 0}, "steps at least 1"),
        ({"share": 0.0}, r"the share must be in \(0, 1\].* got 0.0"),
        ({"share": 1.5}, "the share must be"),
        ({"delta": 0.0}, r"delta in \(0, 1\)"),
        ({"sampling": "sorted"}, "sampling must be one of poisson, shuffled .* got 'sorted'"),
        ({"neighbours": "near"}, "neighbours one of add-or-remove, replace, .* and 'near'"),
    ],
)
def test_what_no_run_can_have_done_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        replace(abadi(4.0, 20), **wrong)


def test_a_target_that_no_noise_reaches_is_refused():
    with pytest.raises(ValueError, match="must be positive, got 0"):
        noise_for(0.0, abadi(4.0, 20))
    with pytest.raises(ValueError, match="shuffled batches have no epsilon"):
        noise_for(1.0, replace(abadi(4.0, 20), sampling="shuffled"))


def test_without_the_accountant_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(
        FirstlineError, match=r"dp_accounting, which is not .* pip install 'firstline\[privacy\]'"
    ):
        epsilon(abadi(4.0, 20))
