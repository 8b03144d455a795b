"""The membership protocol: who is asked about, and what scores are worth."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Membership
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.outcome import MembershipOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import membership

THREAT = "membership/black/scores"
TASK = Blobs(train=400, test=400)
SPLITS = TASK.load(None)


@dataclass(frozen=True)
class Attack(Membership):
    """Scores candidates by a function of them."""

    name = "planted"
    needs = ("scores",)
    goals = ("scores", "labels")

    rate: Callable[[Data], object] = lambda data: torch.zeros(len(data))

    def score(
        self, target: Target, candidates: Data, aux: Data | None, threat: Threat, rng: Streams
    ) -> Tensor:
        return self.rate(candidates)


def is_member(data: Data) -> Tensor:
    """Peek at the training data, which no attack can."""
    return (data.x[:, None] == SPLITS.train.x[None]).flatten(2).all(2).any(1)


def perfect(data: Data) -> Tensor:
    return is_member(data).float()


def chance(data: Data) -> Tensor:
    return torch.rand(len(data), generator=torch.Generator().manual_seed(5))


def run(make, rate, **more):
    given = {"task": TASK, "splits": SPLITS, "examples": 400, **more}
    made = make(Attack(rate), THREAT, **given)
    return membership.run(made.bench), made


def values(found) -> dict[str, float]:
    return {name: metric.value for name, metric in found.metrics.items()}


def test_perfect_scores_are_worth_everything(make):
    found, made = run(make, perfect)
    assert made.stages == ["fit", "craft", "score", "measure"]
    for name in ("auc", "tpr_at_1pct_fpr", "balanced_accuracy"):
        assert values(found)[name] == 1.0
    assert (found.outcome.member == (found.outcome.score == 1)).all()


def test_scores_by_chance_are_worth_nothing(make):
    found, _ = run(make, chance)
    assert values(found)["auc"] == pytest.approx(0.5, abs=0.08)
    assert values(found)["balanced_accuracy"] == pytest.approx(0.5, abs=0.08)
    assert values(found)["tpr_at_1pct_fpr"] < 0.1
    assert found.metrics["auc"].lo < 0.5 < found.metrics["auc"].hi


@pytest.mark.parametrize(
    "rate", [lambda d: torch.zeros(len(d)), lambda d: (torch.arange(len(d)) // 100).float()]
)
def test_ties_are_worth_nothing_because_candidates_are_shuffled(make, rate):
    found, _ = run(make, rate)
    assert values(found)["balanced_accuracy"] == pytest.approx(0.5, abs=0.08)
    assert values(found)["auc"] == pytest.approx(0.5, abs=0.08)


def test_upside_down_scores_are_worth_less_than_nothing(make):
    found, _ = run(make, lambda data: -perfect(data))
    assert values(found)["auc"] == 0
    assert values(found)["balanced_accuracy"] == 0


def test_infinite_scores_can_be_ranked(make):
    found, _ = run(make, lambda data: torch.where(is_member(data), torch.inf, -torch.inf))
    assert values(found)["auc"] == 1


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (lambda d: torch.full((len(d),), torch.nan), "returned 400 NaN scores"),
        (lambda d: perfect(d).index_fill(0, torch.tensor([3]), torch.nan), "returned 1 NaN scores"),
        (lambda d: torch.zeros(len(d), 1), r"scores of shape \(400, 1\) for 400 candidates"),
        (lambda d: torch.zeros(7), r"scores of shape \(7,\) for 400 candidates"),
        (lambda d: [0.0] * len(d), "scores of shape list for 400 candidates"),
        (lambda d: None, "scores of shape NoneType"),
    ],
)
def test_scores_that_can_not_be_ranked_are_a_failed_cell(make, rate, said):
    made = make(Attack(rate), THREAT, task=TASK, splits=SPLITS, examples=400)
    with pytest.raises(ContractBroken, match=f"the attack {said}|the attack returned {said}"):
        membership.run(made.bench)
    assert made.stages[-1] == "craft"


def test_candidates_are_as_many_members_as_others_and_shuffled(make):
    found, _ = run(make, perfect, examples=100)
    member = found.outcome.member
    assert len(member) == 100
    assert member.sum() == 50
    assert 10 < member[:50].sum() < 40
    for split, rows in ((SPLITS.train, member), (SPLITS.test, ~member)):
        assert (split.y[found.outcome.ids[rows]].numpy() == found.outcome.label[rows]).all()
        assert len(set(found.outcome.ids[rows].tolist())) == 50


def test_all_defenses_are_asked_about_the_same_candidates(make):
    (first, _), (again, _), (other, _) = (run(make, chance, seed=seed, examples=60) for seed in (0, 0, 1))
    assert (first.outcome.ids == again.outcome.ids).all()
    assert (first.outcome.ids != other.outcome.ids).any()


def test_more_examples_than_there_are_rows_are_as_many_as_there_are(make):
    found, _ = run(make, perfect, examples=10_000)
    assert len(found.outcome.member) == 800


def test_rows_that_the_defense_left_out_are_no_candidates(make):
    kept = SPLITS.train.ids[SPLITS.train.ids % 4 != 0]
    found, _ = run(make, perfect, kept=kept)
    members = found.outcome.ids[found.outcome.member]
    assert set(members.tolist()) <= set(kept.tolist())
    assert 100 < len(members) < 200
    assert (~found.outcome.member).sum() == 200
    assert values(found)["balanced_accuracy"] == 1.0


@pytest.mark.parametrize("what", ["members", "others"])
def test_without_members_or_others_there_is_nothing_to_tell_apart(make, what):
    empty = replace(SPLITS, test=SPLITS.test.rows(torch.arange(0)))
    more = {"kept": torch.tensor([10**6])} if what == "members" else {"splits": empty}
    with pytest.raises(ContractBroken, match="needs members and non-members; one of them is empty"):
        run(make, perfect, **more)


def test_an_attack_that_writes_to_its_candidates_leaves_the_score_alone(make):
    def write(data: Data) -> Tensor:
        found = perfect(data)
        data.x.zero_()
        data.y.zero_()
        return found

    assert run(make, write)[0].metrics == run(make, perfect)[0].metrics


def test_utility_is_measured_on_members_and_others_apart(make):
    def right_on_members(x: Tensor) -> Tensor:
        data = Data.of(x, torch.zeros(len(x), dtype=torch.int64))
        best = Blobs().best().respond(x, torch.Generator()).labels
        return torch.where(is_member(data), truth(x), 1 - best)

    def truth(x: Tensor) -> Tensor:
        same = (x[:, None] == SPLITS.train.x[None]).flatten(2).all(2)
        return SPLITS.train.y[same.int().argmax(1)]

    found, _ = run(make, perfect, answer=right_on_members)
    assert values(found)["train_accuracy"] == 1
    assert values(found)["test_accuracy"] < 0.1


def test_a_candidate_costs_its_queries(make):
    @dataclass(frozen=True)
    class Asking(Attack):
        def score(
            self, target: Target, candidates: Data, aux: Data | None, threat: Threat, rng: Streams
        ) -> Tensor:
            assert aux is None  # black box
            target.labels(candidates.x)
            return target.scores(candidates.x).logits[:, 0]

    found = membership.run(make(Asking(), THREAT, task=TASK, splits=SPLITS, examples=40).bench)
    assert found.outcome.queries.tolist() == [2] * 40
    assert found.queries == 80


def test_metrics_follow_from_the_outcome_alone():
    outcome = MembershipOutcome(
        ids=np.arange(6),
        member=np.array([True, True, True, False, False, False]),
        score=np.array([0.9, 0.8, 0.2, 0.7, 0.1, 0.0]),
        queries=np.ones(6, np.int64),
        label=np.array([0, 0, 0, 1, 1, 1]),
        answer=np.array([0, 0, 1, 1, -1, -2]),
    )
    found = membership.measure(outcome, np.random.Generator(np.random.Philox(0)))
    assert {name: metric.value for name, metric in found.items()} == {
        "auc": pytest.approx(8 / 9),
        "balanced_accuracy": pytest.approx(2 / 3),
        "train_accuracy": pytest.approx(2 / 3),
        "test_accuracy": pytest.approx(1 / 3),
    }
    assert found["auc"].better == "lower"
    assert found["auc"].method == "bootstrap"


@pytest.mark.parametrize(("outsiders", "resolved"), [(99, set()), (100, {0.01}), (1000, {0.01, 0.001})])
def test_a_rate_that_the_sample_cannot_resolve_is_left_out(outsiders, resolved):
    n = 10 + outsiders
    zeros = np.zeros(n, np.int64)
    score = np.random.Generator(np.random.Philox(1)).random(n)
    outcome = MembershipOutcome(zeros, np.arange(n) < 10, score, zeros, zeros, zeros)
    found = membership.measure(outcome, np.random.Generator(np.random.Philox(0)))
    assert {fpr for name, fpr in membership.LOW_FPR.items() if name in found} == resolved
