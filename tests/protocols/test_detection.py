"""Detectors and monitors in a record: what is told of those who refuse, and of those who watch."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Evasion, PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import SystemFailed
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import evasion, poisoning
from firstline.benchmark.protocols.detection import acceptances, detection, monitoring

BLACK = "evasion/black/linf:0.05"
RNG = np.random.default_rng(0)


class Bright(System):
    """The best classifier, which accepts the less the brighter the first pixel is, from 0.5 on not at all."""

    def __init__(self) -> None:
        super().__init__(Blobs().best())

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(self._inside().respond(x, rng).logits, 0.5 - x[:, 0, 0, 0])


class Watchman(System):
    """Flags every query from the third on that it sees."""

    def __init__(self, inner: System | None = None, allowed: int = 2) -> None:
        super().__init__(inner or Blobs().best())
        self.allowed, self.seen = allowed, 0

    def observe(self, queries: Tensor) -> Tensor:
        before, self.seen = self.seen, self.seen + len(queries)
        return torch.arange(before, self.seen) >= self.allowed


@dataclass(frozen=True)
class Asking(Evasion):
    """Asks about each example so many times, one example after the other, and moves every input a little."""

    name = "asking"
    needs = ("labels",)
    goals = ("linf",)

    times: int = 2

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        for row in range(len(x)):
            for _ in range(self.times):
                target.labels(x[row : row + 1], torch.tensor([row]))
        return (x + 0.01).clamp(0, 1)


def test_without_refusals_and_monitors_nothing_is_told(make):
    found = evasion.run(make(Asking(), BLACK).bench)
    assert not {name for name in found.metrics if "detection" in name or "flagged" in name}
    assert not {name for name in found.outcome.arrays() if "acceptance" in name or "flagged" in name}


def test_a_detector_is_judged_by_the_acceptance_of_what_was_moved(make):
    made = make(Asking(), BLACK, system=Bright())
    found = evasion.run(made.bench)
    clean, adversarial = made.served.asked[0].chunk(2)
    moved = (clean != adversarial).flatten(1).any(1)
    scores = torch.cat([clean, adversarial[moved]])[:, 0, 0, 0].double().numpy()
    attacked = np.arange(len(scores)) >= len(clean)
    metrics = found.metrics
    assert metrics["detection_auc"].value == pytest.approx(roc_auc_score(attacked, scores), abs=1e-6)
    assert metrics["detection_average_precision"].value == pytest.approx(
        average_precision_score(attacked, scores), abs=1e-6
    )
    assert "detection_tpr_at_1pct_fpr" not in metrics  # which 48 clean inputs can't resolve
    assert metrics["detection_tpr_at_5pct_fpr"].method == "bootstrap"
    refused = int((adversarial[moved][:, 0, 0, 0] > 0.5).sum())
    assert metrics["inputs_until_refused"].value == (int(moved.sum()) + 1) / (refused + 1)
    assert found.outcome.adversarial_acceptance is not None
    assert np.allclose(found.outcome.adversarial_acceptance, 0.5 - adversarial[:, 0, 0, 0])


def test_a_detector_is_judged_by_triggered_inputs_too(make):
    @dataclass(frozen=True)
    class Backdoor(Poisoning):
        name = "backdoor"
        needs = ("train",)
        goals = ("backdoor",)

        def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
            def trigger(x: Tensor) -> Tensor:
                x = x.clone()
                x[:, 0, 0, 0] = 1
                return x

            return PoisonedData(train, torch.empty(0, dtype=torch.int64), trigger, 1)

    found = poisoning.run(make(Backdoor(), "poisoning/white/backdoor:10%", system=Bright()).bench)
    assert found.metrics["detection_auc"].value == 1
    assert found.metrics["inputs_until_refused"].value == 1
    assert found.outcome.triggered_acceptance is not None
    assert (found.outcome.triggered_acceptance == -0.5).all()


@pytest.mark.parametrize(
    ("clean", "suspect", "wait"),
    [([1.0] * 5, [-1.0] * 5, 1.0), ([1.0] * 5, [-1.0, 1.0, 1.0], 2.0), ([1.0] * 5, [-1.0] + [1.0] * 8, 5.0)],
)
def test_the_wait_for_a_refusal_is_the_mean_over_all_orders(clean, suspect, wait):
    found = detection(np.array(clean), np.array(suspect), RNG)
    assert found["inputs_until_refused"].value == wait
    order = np.random.default_rng(1)
    first = [np.argmax(order.permutation(np.array(suspect)) < 0) + 1 for _ in range(4000)]
    assert np.mean(first) == pytest.approx(wait, rel=0.1)


def test_who_never_refuses_has_no_wait_and_what_is_no_number_is_refused():
    never = detection(np.array([1.0, 2.0]), np.array([0.5, 3.0]), RNG)
    assert "inputs_until_refused" not in never
    assert never["detection_auc"].value == 0.5
    lost = acceptances(Response(torch.zeros(2, 3), torch.tensor([float("nan"), 0.25])))
    assert lost is not None
    assert lost.tolist() == [-np.inf, 0.25]
    assert detection(np.array([1.0]), lost[:1], RNG)["detection_auc"].value == 1
    assert detection(np.array([1.0]), np.array([]), RNG) == {}


def test_a_monitor_is_judged_by_its_first_flag_per_example(make):
    found = evasion.run(make(Asking(times=2), BLACK, system=Watchman(allowed=5)).bench)
    assert found.outcome.flagged_at is not None
    assert found.outcome.flagged_at.tolist() == [0, 0, 2] + [1] * 45
    assert found.metrics["flagged_attacks"].value == 46 / 48
    assert found.metrics["queries_until_flagged"].value == 1
    assert (
        found.metrics["flagged_honest_queries"].value == 43 / 48
    )  # one query each, the first five unsuspected


def test_each_cell_meets_a_monitor_that_has_seen_nothing(make):
    made = make(Asking(times=1), BLACK, system=Watchman(allowed=40))
    first, second = evasion.run(made.bench), evasion.run(made.bench)
    assert first.outcome.flagged_at is not None
    assert second.outcome.flagged_at is not None
    assert first.outcome.flagged_at.tolist() == second.outcome.flagged_at.tolist() == [0] * 40 + [1] * 8
    assert made.served.system.seen == 0


def test_a_monitor_sees_nobody_who_holds_the_system(make):
    found = evasion.run(make(Asking(), "evasion/white/linf:0.05", system=Watchman(allowed=0)).bench)
    assert found.outcome.flagged_at is None
    assert "flagged_attacks" not in found.metrics


def test_monitored_examples_that_asked_nothing_are_no_attacks():
    found = monitoring(np.array([0, 0, 3, 0]), np.array([0, 9, 9, 9]), np.array([False, True]))
    assert found["flagged_attacks"].value == 1 / 3
    assert "queries_until_flagged" not in found  # fewer than half were seen
    assert found["flagged_honest_queries"].value == 0.5
    assert set(monitoring(np.array([0]), np.array([0]), np.array([False]))) == {"flagged_honest_queries"}


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (lambda queries: 1 / 0, "observe raised ZeroDivisionError"),
        (lambda queries: torch.zeros(1, dtype=torch.bool), "must return 48 truth values"),
        (lambda queries: torch.zeros(len(queries)), "truth values"),
        (lambda queries: None, "truth values"),
    ],
)
def test_a_monitor_that_fails_is_the_system_s_failure(make, says, said):
    class Faulty(System):
        def observe(self, queries: Tensor) -> Tensor:
            return says(queries)

    @dataclass(frozen=True)
    class Once(Evasion):
        name = "once"
        needs = ("labels",)
        goals = ("linf",)

        def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
            target.labels(x)
            return x

    with pytest.raises(SystemFailed, match=said):
        evasion.run(make(Once(), BLACK, system=Faulty(Blobs().best())).bench)
