"""What is told instead of what was computed: against the formulas, and without another class than before."""

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.system import INVALID, Response, System
from firstline.defenses.confidence_masking import FLOOR
from firstline.defenses.labels_only import LabelsOnlyAnswers
from firstline.defenses.logit_scaling import LogitScaling
from firstline.defenses.output_noise import OutputNoise
from firstline.defenses.output_rounding import OutputRounding
from firstline.defenses.reverse_sigmoid import ReverseSigmoidAnswers
from firstline.defenses.top_k import TopKAnswers

TASK = Blobs()
KEEPING = (OutputRounding(), OutputRounding(decimals=0), TopKAnswers(), TopKAnswers(k=1), LabelsOnlyAnswers())
MASKS = (*KEEPING, OutputNoise(), ReverseSigmoidAnswers())


class Given(System):
    """Takes its inputs for its logits, and refuses those whose first is below -50."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x, x[:, 0] + 50)


def behind(defense: Defense) -> System:
    return defense.deploy(Given(), TASK).eval()


def answer(defense: Defense, logits: Tensor, seed: int = 0) -> Response:
    return behind(defense).respond(logits, torch.Generator().manual_seed(seed))


def told(defense: Defense, logits: Tensor, seed: int = 0) -> np.ndarray:
    """The softmax of the answers, in float64."""
    return torch.softmax(answer(defense, logits, seed).logits.double(), 1).numpy()


def drawn(n: int, classes: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(n, classes, generator=torch.Generator().manual_seed(classes))


def softmax(logits: Tensor) -> np.ndarray:
    exponentials = np.exp(logits.double().numpy() - logits.double().numpy().max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


EDGES = {
    "equal": torch.zeros(1, 4),
    "equal but for a rounding error": torch.tensor([[1.0, 1.0 + 2**-23, 1.0], [-7.0, 3.0, 3.0 + 2**-22]]),
    "far apart": torch.tensor([[-1000.0, 1000.0, 999.0], [0.0, -3e4, 3e4]]),
    "spread thin": 0.01 * drawn(50, 100),
    "spread thin, the last the largest": torch.arange(64.0)[None] * 1e-6,
    "usual": drawn(200, 7),
}


@pytest.mark.parametrize("defense", KEEPING, ids=str)
@pytest.mark.parametrize("case", EDGES)
def test_the_class_stays_what_it_was(defense, case):
    logits = EDGES[case]
    found = answer(defense, logits).logits
    assert torch.isfinite(found).all()
    assert torch.equal(found.argmax(1), logits.argmax(1))
    assert torch.equal(torch.softmax(found, 1).argmax(1), logits.argmax(1))


@pytest.mark.parametrize("defense", MASKS, ids=str)
def test_answers_are_finite_and_of_the_type_that_they_were(defense):
    for logits in EDGES.values():
        found = answer(defense, logits).logits
        assert torch.isfinite(found).all()
        assert found.dtype == logits.dtype


@pytest.mark.parametrize("defense", MASKS, ids=str)
def test_what_is_no_number_stays_none_and_what_is_refused_stays_refused(defense):
    logits = torch.tensor([[0.0, torch.nan, 1.0], [torch.inf, 0.0, 1.0], [-60.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    found = answer(defense, logits)
    assert found.labels[:2].tolist() == [INVALID, INVALID]
    assert found.accepted.tolist() == [True, True, False, True]


@pytest.mark.parametrize("defense", MASKS, ids=str)
def test_gradients_go_around_the_mask(defense):
    x = drawn(5, 3).requires_grad_()
    logits = behind(defense).surrogate(x, torch.Generator()).logits
    assert torch.equal(logits, x)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert gradient[:, 0].eq(1).all()


@pytest.mark.parametrize("decimals", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("classes", [2, 7, 30])
def test_rounding_is_that_of_numpy_and_not_normalised(decimals, classes):
    logits = drawn(300, classes)
    found = answer(OutputRounding(decimals=decimals), logits).logits.double().exp().numpy()
    np.testing.assert_allclose(found, np.round(softmax(logits), decimals), atol=1e-6)


def test_the_told_vector_is_the_rounded_one_normalised():
    logits = torch.log(torch.tensor([[0.446, 0.334, 0.220]]))  # to 0.4, 0.3 and 0.2
    np.testing.assert_allclose(told(OutputRounding(decimals=1), logits), [[4 / 9, 3 / 9, 2 / 9]], atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 6, 7, 20])
def test_top_k_is_what_numpy_makes_of_it(k):
    logits = drawn(100, 7)
    expected = softmax(logits)
    for row in expected:
        rest = np.argsort(-row, kind="stable")[k:]
        if len(rest):
            row[rest] = row[rest].mean()
    np.testing.assert_allclose(told(TopKAnswers(k=k), logits), expected, atol=1e-6)


def test_top_k_tells_nothing_new_about_the_rest():
    found = told(TopKAnswers(k=2), torch.log(torch.tensor([[0.1, 0.5, 0.06, 0.3, 0.04]])))
    np.testing.assert_allclose(found, [[0.2 / 3, 0.5, 0.2 / 3, 0.3, 0.2 / 3]], atol=1e-6)


def test_top_k_tells_of_equals_the_first():
    found = told(TopKAnswers(k=1), torch.tensor([[0.2, 0.4, 0.4]]).log())
    np.testing.assert_allclose(found, [[0.3, 0.4, 0.3]], atol=1e-6)


def test_labels_only_tells_one_and_zero_whatever_was_computed():
    logits = drawn(100, 7)
    np.testing.assert_allclose(
        told(LabelsOnlyAnswers(), logits), np.eye(7)[logits.argmax(1).numpy()], atol=1e-11
    )
    assert len(answer(LabelsOnlyAnswers(), logits).logits.unique()) == 2


def test_output_noise_has_the_stated_spread_and_asking_again_takes_it_away():
    shares = torch.tensor([0.5, 0.3, 0.2]).repeat(20_000, 1)
    found = answer(OutputNoise(sigma=0.05), shares.log()).logits.double().exp()
    np.testing.assert_allclose(found.std(0).numpy(), [0.05] * 3, atol=0.001)
    np.testing.assert_allclose(found.mean(0).numpy(), [0.5, 0.3, 0.2], atol=0.002)


def test_output_noise_is_drawn_from_the_generator_alone_and_told_as_no_less_than_nothing():
    logits = drawn(100, 7)
    first = answer(OutputNoise(), logits).logits
    assert behind(OutputNoise()).stochastic
    assert torch.equal(first, answer(OutputNoise(), logits).logits)
    assert not torch.equal(first, answer(OutputNoise(), logits, seed=1).logits)
    assert float(first.double().exp().min()) == pytest.approx(FLOOR, rel=1e-4)


@pytest.mark.parametrize("classes", [2, 7, 30])
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.1), (0.7, 0.5), (3.0, 2.0)])
def test_reverse_sigmoid_is_the_formula(beta, gamma, classes):
    logits = drawn(200, classes)
    y = softmax(logits)
    raised = y - beta * (1 / (1 + np.exp(-gamma * np.log(y / (1 - y)))) - 0.5)
    raised = np.maximum(raised, 0)
    expected = raised / raised.sum(1, keepdims=True)
    found = told(ReverseSigmoidAnswers(beta=beta, gamma=gamma), logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_reverse_sigmoid_tells_sure_answers_apart():
    # Of two classes the logit is the difference of the logits, also where float64 rounds the probability to 1.
    z = torch.tensor([40.0, 60.0, 100.0])
    found = told(ReverseSigmoidAnswers(), torch.stack([z, torch.zeros(3)], 1))
    np.testing.assert_allclose(found[:, 0], 1.5 - 1 / (1 + np.exp(-0.1 * z.double().numpy())), atol=1e-6)


def test_reverse_sigmoid_may_change_the_class_where_something_is_next_to_impossible():
    logits = torch.tensor([[0.4, 0.3, 0.3, 1e-30]]).log()
    assert int(answer(ReverseSigmoidAnswers(), logits).labels) == 3


def test_logit_scaling_is_a_temperature():
    logits = drawn(50, 7)
    np.testing.assert_allclose(told(LogitScaling(factor=1 / 8), logits), softmax(logits / 8), atol=1e-6)


@pytest.mark.parametrize(
    ("defense", "said"),
    [
        (OutputRounding(decimals=-1), "decimals must be from 0 to 12"),
        (TopKAnswers(k=0), "k must be at least 1"),
        (OutputNoise(sigma=0.0), "sigma must be positive"),
        (ReverseSigmoidAnswers(gamma=-1.0), "beta and gamma must be at least 0"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(defense, said):
    with pytest.raises(FirstlineError, match=said):
        behind(defense)
