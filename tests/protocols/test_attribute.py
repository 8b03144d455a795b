"""Attribute inference: what an attacker is asked, and the gain over what needs no system."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.attacks.inversion.confidence_inference import ConfidenceInference
from firstline.attacks.inversion.confusion_inference import ConfusionInference, prior
from firstline.attacks.inversion.posterior_inference import PosteriorInference
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import AttributeInference
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.outcome import AttributeOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import attribute, inversion

THREAT = "inversion/black/attribute,aux=yes"


@dataclass(frozen=True)
class Survey(Blobs):
    """Two answers: a coin, which nothing else says, and the class; the secret is the coin."""

    name = "survey"
    secret = "coin"
    space = InputSpace(shape=(2,), high=1.0, grid=1.0, categorical=(True, True), features=("coin", "class"))

    def load(self, folder: Path | None) -> Splits:
        return Splits(*(self.asked(n, name) for n, name in ((200, "train"), (200, "test"), (300, "aux"))))

    def asked(self, n: int, name: str) -> Data:
        coin = torch.rand(n, generator=Streams(0).torch(name)) < 0.5
        y = torch.arange(n) % 2
        return Data.of(torch.stack([coin.float(), y.float()], 1), y)


class Remembers(System):
    """Answers rightly, and surely where it knows the row; it knows the coins of its rows by their number."""

    def __init__(self, surely: bool) -> None:
        super().__init__()
        self.surely = surely

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        right = torch.nn.functional.one_hot(x[:, 1].long(), 2).float()
        sure = 1 + 4 * x[:, 0] if self.surely else torch.ones(len(x))
        return Response(right * sure[:, None])


@dataclass(frozen=True)
class Planted(AttributeInference):
    """Knows the answer, or what it is told to."""

    name = "planted"
    needs = ("labels",)
    goals = ("attribute",)

    made: object = None
    given: list[Tensor] = field(default_factory=list, compare=False)

    def infer(
        self,
        target: Target,
        options: Tensor,
        y: Tensor,
        aux: Data,
        feature: int,
        threat: Threat,
        rng: Streams,
    ) -> Tensor:
        self.given.append(options)
        return self.made(options) if callable(self.made) else self.made


def run(make, attack, system=None, task=None):
    task = task or Survey()
    bench = make(attack, THREAT, system=system or Remembers(surely=False), task=task, examples=400).bench
    return inversion.run(bench)


def values(found):
    return {name: metric.value for name, metric in found.metrics.items()}


def test_the_secret_is_not_among_what_the_attacker_gets(make):
    attack = Planted(made=lambda options: torch.zeros(options.shape[:2]))
    run(make, attack)
    (options,) = attack.given
    assert tuple(options.shape) == (400, 2, 2)
    assert torch.equal(options[:, 0, 0], torch.zeros(400))
    assert torch.equal(options[:, 1, 0], torch.ones(400))
    assert torch.equal(options[:, 0, 1], options[:, 1, 1])


def test_a_coin_cannot_be_imputed_and_who_knows_it_gains_half(make):
    task = Survey()
    splits = task.load(None)
    truth = torch.cat([splits.train.x[:, 0], splits.test.x[:, 0]])
    found = run(make, Planted(made=torch.stack([1 - truth, truth], 1)))
    told = values(found)
    assert told["attribute_accuracy"] == 1
    assert 0.4 < told["imputation_accuracy"] < 0.6
    assert told["gain"] == pytest.approx(1 - told["imputation_accuracy"])
    assert found.metrics["gain"].lo < told["gain"] < found.metrics["gain"].hi


def test_a_system_that_says_nothing_gives_no_gain(make):
    for attack in (ConfidenceInference(), ConfusionInference(), PosteriorInference()):
        metric = run(make, attack).metrics["gain"]
        assert metric.lo <= 0 <= metric.hi


def test_what_a_secret_follows_from_is_imputed():
    space = Survey().space
    secret = attribute.secret_of("coin", space, "survey")
    same = torch.arange(400) % 2
    data = Data.of(torch.stack([same.float(), same.float()], 1), same)
    assert attribute.imputed(data, data, secret).tolist() == same.tolist()


def test_of_rivals_the_best_on_own_data_imputes():
    space = Survey().space
    secret = attribute.secret_of("coin", space, "survey")
    rare = (torch.arange(300) % 10 == 0).float()
    noise = torch.rand(300, generator=torch.Generator().manual_seed(0)).round()
    data = Data.of(torch.stack([rare, noise], 1), torch.zeros(300, dtype=torch.int64))
    assert attribute.imputed(data, data, secret).sum() == 0


class Tells(System):
    """Answers with the label that the coin shows, as sure as it is made."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure = sure

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        shown = torch.nn.functional.one_hot(x[:, 0].long(), 2).float()
        return Response((self.sure * shown + (1 - self.sure) * (1 - shown)).log())


@pytest.mark.parametrize(("sure", "follows"), [(0.95, "label"), (0.7, "feature")])
def test_of_the_other_features_and_the_system_the_likelier_wins(sure, follows):
    coin = torch.arange(1000) % 2
    feature = torch.where(torch.arange(1000) % 10 < 8, coin, 1 - coin)  # shows the coin four times in five
    aux = Data.of(torch.stack([coin, feature], 1).float(), coin)
    threat = Threat.parse(THREAT)
    target = Target(Tells(sure), threat, space=Survey().space, classes=2, rng=Streams(0))
    people = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    options = attribute.every_value(people, attribute.Secret(0, 2))
    scores = PosteriorInference().infer(target, options, torch.tensor([0, 1]), aux, 0, threat, Streams(0))
    assert scores.argmax(1).tolist() == ([0, 1] if follows == "label" else [1, 0])
    shares = torch.softmax(scores, 1)  # feature and label point apart: 0.8 (1 - sure) to 0.2 sure
    against = 0.2 * sure / (0.2 * sure + 0.8 * (1 - sure))
    assert shares[0, 0].item() == pytest.approx(against, abs=0.01)


def test_priors_count_one_row_more_of_each_value():
    aux = Data.of(torch.tensor([[0.0], [0.0], [1.0]]), torch.zeros(3, dtype=torch.int64))
    assert prior(aux, 0, 3).exp().tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (torch.zeros(3, 2), r"shape \(3, 2\), not \(400, 2\)"),
        (torch.full((400, 2), torch.nan), "800 NaN scores"),
        ("text", "shape str"),
    ],
)
def test_scores_that_cannot_be_ranked_fail_the_cell(make, made, said):
    with pytest.raises(ContractBroken, match=said):
        run(make, Planted(made=made))


def test_tasks_without_a_secret_say_so(make):
    with pytest.raises(ContractBroken, match="names no secret feature"):
        run(make, Planted(made=torch.zeros(3, 2)), task=Blobs())


def test_metrics_follow_from_the_outcome_alone():
    told = attribute.measure(
        AttributeOutcome(
            ids=np.arange(4),
            member=np.array([True, True, False, False]),
            value=np.array([1, 1, 0, 0]),
            guess=np.array([1, 1, 0, 1]),
            imputed=np.array([1, 0, 0, 0]),
            right=np.array([True, True, True, False]),
        ),
        np.random.default_rng(0),
    )
    assert {name: metric.value for name, metric in told.items()} == {
        "attribute_accuracy": 0.75,
        "imputation_accuracy": 0.75,
        "gain": 0.0,
        "gain_members": 0.5,
        "gain_others": -0.5,
        "accuracy": 0.5,
    }
