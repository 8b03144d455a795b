"""Membership attacks: what they make of the answers."""

import torch
from torch import Tensor

from firstline.attacks.membership.loss_threshold import LossThreshold
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

THREAT = Threat.parse("membership/black/scores")


class Given(System):
    """Answers with its inputs as logits."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x)


def scores(logits: Tensor, y: Tensor) -> tuple[Tensor, Target]:
    target = Target(
        Given(), THREAT, space=InputSpace((3,), -99.0, 99.0), classes=3, rng=Streams(0), examples=len(y)
    )
    return LossThreshold().score(target, Data.of(logits, y), None, THREAT, Streams(0)), target


def test_the_score_is_minus_the_loss_of_the_true_label():
    logits, y = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]), torch.tensor([0, 2])
    found, target = scores(logits, y)
    torch.testing.assert_close(found, logits.double().log_softmax(1)[[0, 1], y])
    assert target.queries.tolist() == [1, 1]


def test_losses_too_small_for_single_precision_still_differ():
    logits = torch.tensor([[20.0, 0.0, 0.0], [25.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    found, _ = scores(logits, torch.zeros(3, dtype=torch.int64))
    assert found.dtype == torch.float64
    assert found[0] < found[1] < found[2] < 0
