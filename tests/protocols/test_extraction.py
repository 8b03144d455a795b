"""The extraction protocol: what a thief gets, and what its copy is worth."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.extraction.own_labels import OwnLabels
from firstline.attacks.extraction.retraining import Retraining
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Extraction
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import BudgetExhausted, ContractBroken
from firstline.benchmark.core.outcome import ExtractionOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import extraction

TASK = Blobs(train=64, test=200)


class Same(nn.Module):
    """The best classifier, or with flip one that is always wrong about it."""

    def __init__(self, flip: bool = False) -> None:
        super().__init__()
        self.inner, self.flip = Blobs().best(), flip

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner.respond(x, torch.Generator()).logits
        return logits.flip(1) if self.flip else logits


@dataclass(frozen=True)
class Planted(Extraction):
    """Returns what it is told to, after so many queries; given holds what it was called with."""

    name = "planted"
    needs = ("labels",)
    goals = ("scores", "labels")

    made: Callable[[], object] = Same
    asks: int = 10
    given: list[tuple[Target, Data | None]] = field(default_factory=list, compare=False)

    def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
        self.given.append((target, aux))
        target.labels(torch.zeros(self.asks, 1, 8, 8))
        return self.made()


def run(make, attack, threat="extraction/black/scores:100", **more):
    return extraction.run(make(attack, threat, task=TASK, examples=150, **more).bench)


def values(found):
    return {name: metric.value for name, metric in found.metrics.items()}


def test_a_perfect_copy_agrees_everywhere_and_its_examples_carry_over(make):
    found = run(make, Planted())
    told = values(found)
    assert (told["agreement"], told["uniform_agreement"], told["variation"]) == (1, 1, 0)
    assert told["copy_accuracy"] == told["accuracy"]
    assert told["queries"] == found.queries == 10
    assert told["transfer"] > told["noise_error"]


def test_a_copy_that_is_always_wrong_agrees_nowhere(make):
    told = values(run(make, Planted(made=lambda: Same(flip=True))))
    assert (told["agreement"], told["uniform_agreement"]) == (0, 0)


def test_what_a_thief_does_to_its_data_stays_with_it(make):
    @dataclass(frozen=True)
    class Vandal(Planted):
        def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
            aux.x.zero_()
            return super().extract(target, aux, threat, rng)

    made = make(Vandal(), "extraction/black/labels:100,aux=yes", task=TASK)
    extraction.run(made.bench)
    assert made.bench.splits.aux.x.any()


def test_data_is_lent_where_the_threat_says_so_and_scores_are_compared_where_they_are_told(make):
    lent, none = Planted(), Planted()
    run(make, lent, "extraction/black/scores:100,aux=yes")
    told = values(run(make, none, "extraction/black/labels:100"))
    assert lent.given[0][1] is not None
    assert none.given[0][1] is None
    assert "variation" not in told


def test_more_queries_than_granted_fail_the_cell(make):
    with pytest.raises(BudgetExhausted, match="grants 100 queries in all"):
        run(make, Planted(asks=101))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: torch.zeros(2), "a Tensor instead of a module"),
        (lambda: nn.Flatten(), r"not logits \(512, 2\)"),
        (lambda: nn.Sequential(nn.Flatten(), Nan()), "1150 inputs with NaN"),
    ],
)
def test_what_is_no_copy_fails_the_cell(make, made, said):
    with pytest.raises(ContractBroken, match=said):
        run(make, Planted(made=made))


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 2), torch.nan)


class Watchful(System):
    """Flags every query after the fifth that it ever sees."""

    def __init__(self) -> None:
        super().__init__(Blobs().best())
        self.register_buffer("seen", torch.zeros(()))

    def respond(self, x: Tensor, rng: torch.Generator):
        return self.inner.respond(x, rng)

    def observe(self, queries: Tensor) -> Tensor:
        count = self.seen + torch.arange(1, len(queries) + 1)
        self.seen += len(queries)
        return count > 5


def test_a_monitor_is_judged_by_when_it_speaks_and_by_whom_it_wrongs(make):
    told = values(run(make, Planted(), system=Watchful()))
    assert (told["flagged_attacks"], told["queries_until_flagged"]) == (1, 6)
    assert told["flagged_honest_queries"] == pytest.approx(145 / 150)


def test_the_control_learns_from_the_same_rows_and_asks_nothing(make):
    threat = "extraction/black/labels:40,aux=yes"
    stolen, learned = run(make, Retraining(), threat), run(make, OwnLabels(), threat)
    assert (stolen.queries, learned.queries) == (40, 0)
    # The best classifier is right about almost all of aux: both learn from almost the same labels.
    assert abs(values(stolen)["agreement"] - values(learned)["agreement"]) < 0.1


def test_metrics_follow_from_the_outcome_alone():
    told = extraction.measure(
        ExtractionOutcome(
            ids=np.arange(4),
            label=np.array([0, 0, 1, 1]),
            victim_answer=np.array([0, 0, 1, -1]),
            copy_answer=np.array([0, 1, 1, 1]),
            uniform_victim_answer=np.array([0, 1]),
            uniform_copy_answer=np.array([0, 0]),
            queries=np.array([7]),
            variation=np.array([0.0, 1.0, 0.5, 0.5]),
            transferred_answer=np.array([1, -1, -2, 0]),
            noise_answer=np.array([0, 0, 0, 0]),
        )
    )
    assert {name: metric.value for name, metric in told.items()} == {
        "accuracy": 0.75,
        "copy_accuracy": 0.75,
        "agreement": 0.5,
        "uniform_agreement": 0.5,
        "queries": 7,
        "variation": 0.5,
        "transfer": pytest.approx(
            2 / 3
        ),  # a refusal is no error, no number is one; the fourth was wrong before
        "noise_error": pytest.approx(1 / 3),
    }


def test_a_linear_copy_is_told_by_its_weights_up_to_what_all_classes_share():
    linear = nn.Linear(3, 2)
    moved = nn.Linear(3, 2)
    with torch.no_grad():
        moved.weight.copy_(linear.weight + torch.tensor([1.0, 2.0, 3.0]))
        moved.bias.copy_(linear.bias + 5)

    class Of(System):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    assert extraction._parameters(moved, Of(linear))["parameter_error"] < 1e-6
    assert extraction._parameters(nn.Sequential(linear, nn.Linear(2, 2)), Of(linear)) == {}
