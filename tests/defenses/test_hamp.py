"""HAMP's labels and loss against closed forms, and what its answers give away."""

import math

import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System
from firstline.defenses.hamp import Disguised, Hamp, top_share
from firstline.defenses.hamp_training import HampTraining
from firstline.defenses.none import NoDefense

TASK = Blobs(train=96, test=64)
ROWS = TASK.load(None).train
Y = torch.tensor([0, 2, 1, 2])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def says(logits: Tensor):
    """A network that answers so, whatever it is asked."""
    return lambda x: logits


@pytest.mark.parametrize("classes", [2, 10, 30, 100])
@pytest.mark.parametrize("gamma", [0.05, 0.5, 0.8, 0.99])
def test_a_soft_label_has_the_asked_entropy_and_its_class_on_top(classes, gamma):
    top = top_share(classes, gamma)
    rest = (1 - top) / (classes - 1)
    entropy = -top * math.log(top) - (1 - top) * math.log(rest)
    assert entropy == pytest.approx(gamma * math.log(classes), abs=1e-9)
    assert top > rest


def test_the_share_of_a_label_known_beforehand_is_found():
    gamma = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert top_share(2, gamma) == pytest.approx(0.9, abs=1e-12)
    assert top_share(30, 0.0) == pytest.approx(1.0, abs=1e-12)


def test_a_network_that_knows_nothing_pays_what_its_labels_lack_in_entropy():
    loss = Hamp(gamma=0.6, alpha=0.01).objective(says(torch.zeros(4, 3)), ROWS.x[:4], Y)
    assert float(loss) == pytest.approx((1 - 0.6) * math.log(3) - 0.01 * 3 * math.log(3), rel=1e-5)


def test_without_a_reward_the_soft_labels_themselves_cost_nothing_and_are_stationary():
    top = top_share(3, 0.6)
    logits = torch.full((4, 3), (1 - top) / 2).scatter(1, Y[:, None], top).log().requires_grad_()
    loss = Hamp(gamma=0.6, alpha=0.0).objective(says(logits), ROWS.x[:4], Y)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_the_loss_is_the_authors_times_the_number_of_classes():
    logits = torch.randn(4, 3, generator=seeded(0))
    top = top_share(3, 0.7)
    total = 0.0
    for row, label in zip(logits.softmax(1).tolist(), Y.tolist(), strict=True):
        soft = [top if k == label else (1 - top) / 2 for k in range(3)]
        divergence = sum(p * math.log(p / q) for p, q in zip(soft, row, strict=True)) / 3  # as their code
        total += divergence + 0.02 * sum(q * math.log(q) for q in row)
    loss = Hamp(gamma=0.7, alpha=0.02).objective(says(logits), ROWS.x[:4], Y)
    assert float(loss) == pytest.approx(3 * total / 4, rel=1e-5)


def test_training_with_a_share_of_the_epochs_is_another_fit():
    whole, short = (
        Stack((defense,)).fit(TASK, ROWS, Streams(0), torch.device("cpu")).system.state_dict()
        for defense in (Hamp(), Hamp(share=0.5))
    )
    assert any(not torch.equal(whole[name], short[name]) for name in whole)


class Scores(System):
    """Scores that the input says itself: its first eight pixels."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x.flatten(1)[:, :8], x.flatten(1)[:, 9] - 0.5)


def test_answers_are_the_scores_of_random_inputs_in_the_order_of_the_input():
    system = Hamp().deploy(Scores(), TASK)
    x = torch.rand(32, 1, 8, 8, generator=seeded(1))
    answer, inner = system.respond(x, seeded(2)), Scores().respond(x, seeded(0))
    others = torch.rand(x.shape, generator=seeded(2)).flatten(1)[:, :8]
    assert torch.equal(answer.logits.sort(1).values, others.sort(1).values)
    assert torch.equal(answer.logits.argsort(1), inner.logits.argsort(1))
    assert torch.equal(answer.acceptance, inner.acceptance)
    assert torch.equal(system.surrogate(x, seeded(2)).logits, inner.logits)


def test_an_answer_tells_nothing_but_the_order_of_the_classes():
    system = Hamp().deploy(Scores(), TASK)
    x = torch.rand(32, 1, 8, 8, generator=seeded(1))
    sure = x**4  # other scores in the same order
    assert not torch.equal(system.respond(x, seeded(2)).logits, system.respond(x, seeded(3)).logits)
    assert torch.equal(system.respond(x, seeded(2)).logits, system.respond(sure, seeded(2)).logits)


def test_no_label_changes_not_even_of_equal_scores():
    fitted = Stack((NoDefense(),)).fit(TASK, ROWS, Streams(0), torch.device("cpu")).system
    flat = Bare(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
    for system in (fitted, flat):
        disguised = Hamp().deploy(system, TASK)
        assert torch.equal(
            disguised.respond(ROWS.x, seeded(0)).labels, system.respond(ROWS.x, seeded(0)).labels
        )


def test_the_training_alone_gives_the_same_network_and_its_own_scores():
    fit = lambda layer: Stack((layer,)).fit(TASK, ROWS, Streams(0), torch.device("cpu")).system  # noqa: E731
    disguised, open_ = fit(Hamp()), fit(HampTraining())
    assert isinstance(disguised, Disguised)
    assert not isinstance(open_, Disguised)
    assert torch.equal(disguised.surrogate(ROWS.x, seeded(0)).logits, open_.respond(ROWS.x, seeded(0)).logits)


@pytest.mark.parametrize("defense", [Hamp(gamma=1.0), Hamp(gamma=-0.1), Hamp(alpha=-1.0), Hamp(share=0.0)])
def test_settings_that_mean_nothing_are_named(defense):
    with pytest.raises(FirstlineError, match=r"hamp\(.*(gamma must|share is)"):
        Stack((defense,)).fit(TASK, ROWS, Streams(0), torch.device("cpu"))
