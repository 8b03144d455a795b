"""The membership protocol: who is fitted to what, what the attacker gets, and what scores are worth."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.attacks.membership.loss_threshold import LossThreshold
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Defense, Membership, Shadows, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.outcome import MembershipOutcome
from firstline.benchmark.core.privacy import PrivateTraining, epsilon
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe
from firstline.benchmark.metrics.dp_audit import audited_epsilon
from firstline.benchmark.protocols import membership
from firstline.benchmark.protocols.bench import Bank

THREAT = "membership/gray/scores"
TASK = Blobs(train=400, test=60, sigma=0.1)  # the best classifier is always right
SPLITS = TASK.load(None)
K = 6


class Leaky(System):
    """Answers rightly, and says by how sure it is whether it was fitted to the input."""

    def __init__(self, data: Data, sure: float = 9.0) -> None:
        super().__init__(Blobs().best())
        self.register_buffer("known", data.x.flatten(1))
        self.sure = sure

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        answer = self.inner.respond(x, rng).labels
        seen = (x.flatten(1)[:, None] == self.get_buffer("known")[None]).all(2).any(1)
        logits = torch.nn.functional.one_hot(answer, 2) * torch.where(seen, self.sure, 1.0)[:, None]
        return Response(logits)


def bank_of(system: Callable[[Data], System], canaries: int = 0, systems: int = K) -> Bank:
    data, canary = membership.with_canaries(SPLITS.train, 2, canaries, Streams(0))
    rows = membership.halves(len(data), systems, Streams(0))
    return Bank([system(data.rows(mine)) for mine in rows], data, rows, canary)


@dataclass(frozen=True)
class Attack(Membership):
    """Scores candidates by a function of them; given holds what it was called with."""

    name = "planted"
    needs = ("scores", "architecture")
    goals = ("scores", "labels")

    rate: Callable[[Data], object] = lambda data: torch.zeros(len(data))
    given: list[tuple[Target, Data, Shadows | None]] = field(default_factory=list, compare=False)

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        self.given.append((target, candidates, shadows))
        return self.rate(candidates)


def run(make, attack: Membership, bank: Bank | None = None, threat: str = THREAT, **more):
    banks = {True: bank or bank_of(Leaky), False: bank_of(lambda data: Leaky(data, sure=3.0))}
    asked: list[bool] = []

    def told(defended: bool) -> Bank:
        asked.append(defended)
        return banks[defended]

    given = {"task": TASK, "splits": SPLITS, "examples": 400, **more}
    made = make(attack, threat, **given)
    return membership.run(replace(made.bench, bank=told)), made, asked


def values(found) -> dict[str, float]:
    return {name: metric.value for name, metric in found.metrics.items()}


def chance(data: Data) -> Tensor:
    return torch.rand(len(data), generator=torch.Generator().manual_seed(int(data.ids.sum())))


def test_a_system_that_gives_its_rows_away_is_found_out(make):
    found, made, _ = run(make, LossThreshold())
    assert made.stages == ["craft", "measure"]
    for name in ("auc", "tpr_at_1pct_fpr", "tpr_at_0.1pct_fpr", "tnr_at_0.1pct_fnr", "balanced_accuracy"):
        assert values(found)[name] == 1.0
    assert found.gate.verdict == "pass"
    assert dict(found.curves["roc"])[1e-4] == 1.0


def test_a_system_that_gives_nothing_away_leaves_guessing(make):
    found, _, _ = run(make, LossThreshold(), bank_of(lambda data: Leaky(data.rows(torch.arange(0)))))
    assert values(found)["auc"] == pytest.approx(0.5, abs=0.03)
    assert values(found)["balanced_accuracy"] == pytest.approx(0.5, abs=0.03)
    assert found.metrics["auc"].lo <= 0.5 <= found.metrics["auc"].hi


@pytest.mark.parametrize("rate", [lambda d: torch.zeros(len(d)), lambda d: torch.arange(len(d)) // 50])
def test_ties_are_told_apart_by_chance(make, rate):
    found, _, _ = run(make, Attack(rate))
    assert values(found)["tpr_at_1pct_fpr"] == pytest.approx(0.01, abs=0.015)
    assert values(found)["auc"] == pytest.approx(0.5, abs=0.03)


def test_upside_down_scores_are_worth_less_than_nothing(make):
    @dataclass(frozen=True)
    class Upside(LossThreshold):
        def score(self, *given: object) -> Tensor:
            return -super().score(*given)

    assert values(run(make, Upside())[0])["auc"] == 0


def test_infinite_scores_can_be_ranked(make):
    @dataclass(frozen=True)
    class Sure(LossThreshold):
        def score(self, *given: object) -> Tensor:
            return torch.where(super().score(*given) > -0.1, torch.inf, -torch.inf)

    assert values(run(make, Sure())[0])["auc"] == 1


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (lambda d: torch.full((len(d),), torch.nan), "returned 400 NaN scores"),
        (lambda d: chance(d).index_fill(0, torch.tensor([3]), torch.nan), "returned 1 NaN scores"),
        (lambda d: torch.zeros(len(d), 1), r"returned scores of shape \(400, 1\) for 400 candidates"),
        (lambda d: torch.zeros(7), r"returned scores of shape \(7,\) for 400 candidates"),
        (lambda d: [0.0] * len(d), "returned scores of shape list for 400 candidates"),
    ],
)
def test_scores_that_can_not_be_ranked_are_a_failed_cell(make, rate, said):
    with pytest.raises(ContractBroken, match=f"the attack {said}"):
        run(make, Attack(rate))


def test_every_row_is_in_one_system_of_each_pair_and_more_pairs_change_none():
    rows = membership.halves(101, 6, Streams(0))
    assert rows.shape == (6, 50)
    for pair in range(3):
        both = torch.cat([rows[2 * pair], rows[2 * pair + 1]])
        assert len(torch.unique(both)) == 100
    assert torch.equal(membership.halves(101, 10, Streams(0))[:6], rows)
    assert not torch.equal(rows[0], rows[2])


def test_canaries_have_a_wrong_label_and_all_else_is_as_it_was():
    data, canary = membership.with_canaries(SPLITS.train, 2, 30, Streams(0))
    assert int(canary.sum()) == 30
    assert (data.y[canary] != SPLITS.train.y[canary]).all()
    assert torch.equal(data.y[~canary], SPLITS.train.y[~canary])
    assert torch.equal(data.x, SPLITS.train.x)
    many = Data.of(torch.zeros(900, 1), torch.zeros(900, dtype=torch.int64))
    wrong = membership.with_canaries(many, 4, 900, Streams(0))[0].y
    assert torch.bincount(wrong, minlength=4).tolist() == pytest.approx([0, 300, 300, 300], abs=60)
    with pytest.raises(ContractBroken, match="401 canaries were asked for, and there are 400 rows"):
        membership.with_canaries(SPLITS.train, 2, 401, Streams(0))


def test_shadows_are_all_systems_but_the_targets_pair(make):
    attack, bank = Attack(chance), bank_of(Leaky)
    found, _, asked = run(make, attack, bank, THREAT + ",defense=known", examples=50)
    assert asked == [True]
    assert len(attack.given) == K
    member = membership.members(bank.rows, 400)
    place = torch.from_numpy(found.outcome.ids)  # ids of the oracle's rows are their positions
    for number, (_, candidates, shadows) in enumerate(attack.given):
        others = [k for k in range(K) if k // 2 != number // 2]
        assert [id(system) for system in shadows.systems] == [id(bank.systems[k]) for k in others]
        assert torch.equal(shadows.member, member[others][:, place])
        for system, logits, told in zip(
            shadows.systems, shadows.logits, shadows.population_logits, strict=True
        ):
            assert torch.equal(logits, system.respond(candidates.x, torch.Generator()).logits)
            assert torch.equal(told, system.respond(SPLITS.aux.x, torch.Generator()).logits)
        assert torch.equal(shadows.population.x, SPLITS.aux.x)
    assert (found.outcome.member == member[:, place].numpy()).all()


def test_who_does_not_know_the_defense_fits_shadows_without_one(make):
    attack = Attack(chance)
    _, _, asked = run(make, attack)
    assert asked == [True, False]
    assert all(system.sure == 3.0 for _, _, shadows in attack.given for system in shadows.systems)


def test_who_needs_no_shadows_gets_none(make):
    @dataclass(frozen=True)
    class Plain(Attack):
        needs = ("scores",)

    attack = Plain(chance)
    _, _, asked = run(make, attack, threat="membership/black/scores")
    assert asked == [True]
    assert all(shadows is None for _, _, shadows in attack.given)


def test_all_defenses_are_asked_about_the_same_candidates(make):
    first, again, other = (run(make, Attack(chance), seed=seed, examples=60)[0] for seed in (0, 0, 1))
    assert (first.outcome.ids == again.outcome.ids).all()
    assert (first.outcome.ids != other.outcome.ids).any()


def test_more_examples_than_there_are_rows_are_as_many_as_there_are(make):
    assert run(make, Attack(chance), examples=10_000)[0].outcome.member.shape == (K, 400)


def test_canaries_are_always_asked_about_and_measured_apart(make):
    found, _, _ = run(make, LossThreshold(), bank_of(Leaky, canaries=20), examples=50)
    assert int(found.outcome.canary.sum()) == 20
    assert found.outcome.member.shape == (K, 50)
    # The leaky system is surer of what it saw, and these labels are wrong: a higher loss.
    assert values(found)["canary_auc"] == pytest.approx(0.0, abs=0.15)
    assert 0 < values(found)["auc"] < 1


def test_an_attack_that_writes_to_its_candidates_leaves_the_score_alone(make):
    def write(data: Data) -> Tensor:
        found = chance(data)
        data.x.zero_()
        data.y.zero_()
        return found

    assert run(make, Attack(write))[0].metrics == run(make, Attack(chance))[0].metrics


def test_a_candidate_costs_its_queries_over_all_targets(make):
    @dataclass(frozen=True)
    class Asking(Attack):
        def score(self, target: Target, candidates: Data, *rest: object) -> Tensor:
            target.labels(candidates.x)
            return target.scores(candidates.x).logits[:, 0]

    found, _, _ = run(make, Asking(), examples=40)
    assert found.outcome.queries.tolist() == [2 * K] * 40
    assert found.queries == 80 * K


def test_rows_that_give_members_away_by_themselves_fail_the_gate(make):
    bank = bank_of(Leaky)
    marked = bank.data.x.clone()
    marked[bank.rows[0], :, :1] += 0.5  # the source of the data says who is a member, in one half at least
    told = replace(bank, data=Data(marked, bank.data.y, bank.data.ids), memo={})
    advantage = membership.blind_advantage(told.data, membership.members(bank.rows, 400))
    assert advantage > 4
    found, _, _ = run(make, Attack(chance), told)
    assert found.gate.verdict == "fail"
    assert "rows alone, without the system, tell members" in found.gate.reasons[0]
    assert abs(membership.blind_advantage(bank.data, membership.members(bank.rows, 400))) < 4


def test_metrics_follow_from_the_outcome_alone():
    # Four systems, four candidates: scores of the first pair are two higher than those of the second.
    member = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], bool)
    score = np.where(member, 1.0, 0.0)
    score[:2] += 2
    outcome = MembershipOutcome(
        ids=np.arange(4),
        label=np.zeros(4, np.int64),
        canary=np.zeros(4, bool),
        member=member,
        score=score,
        right=member | (np.arange(4) == 0),
        test_right=np.array([[True, False], [True, True], [False, False], [True, True]]),
        queries=np.ones(4, np.int64),
    )
    found, unresolved = membership.measure(outcome, np.random.default_rng(0))
    assert {name: metric.value for name, metric in found.items()} == {
        "auc": pytest.approx(
            (4 * 8 + 4 * 4) / 64
        ),  # the first pair beats all but itself, the second only itself
        "balanced_accuracy": pytest.approx(0.5),  # thresholds of the other pair are of no use here
        "balanced_accuracy_by_class": pytest.approx(0.5),
        "precision": pytest.approx(0.5),  # all of the first pair are called members, and none of the second
        "recall": pytest.approx(0.5),
        "train_accuracy": 1.0,
        "candidate_accuracy": pytest.approx(2 / 8),
        "test_accuracy": pytest.approx(5 / 8),
    }
    assert found["auc"].better == "lower"
    assert found["auc"].method == "bootstrap"
    # The members of the first pair's scores of 3 are found at no alarm; the next scores, of 2, are all others'.
    assert unresolved == dict.fromkeys(
        ("tpr_at_1pct_fpr", "tpr_at_0.1pct_fpr", "tnr_at_0.1pct_fnr"), (0.5, 0.5)
    )


@pytest.mark.parametrize(("candidates", "resolved"), [(48, set()), (50, {"1pct"}), (500, {"1pct", "0.1pct"})])
def test_a_rate_that_the_sample_cannot_resolve_is_told_by_its_ends(candidates, resolved):
    rng = np.random.default_rng(1)
    member = np.tile(np.arange(candidates) % 2 == 0, (4, 1))
    outcome = MembershipOutcome(
        ids=np.arange(candidates),
        label=np.zeros(candidates, np.int64),
        canary=np.zeros(candidates, bool),
        member=member,
        score=rng.random(member.shape),
        right=member,
        test_right=np.ones((4, 0), bool),
        queries=np.ones(candidates, np.int64),
    )
    found, unresolved = membership.measure(outcome, rng)
    assert {name for name in membership.LOW_FPR if f"tpr_at_{name}_fpr" in found} == resolved
    assert {name for name in membership.LOW_FPR if f"tpr_at_{name}_fpr" not in unresolved} == resolved
    falling = np.sort(outcome.score[~member])[::-1]
    for low, high in (ends for name, ends in unresolved.items() if name.startswith("tpr")):
        assert low == (outcome.score[member] > falling[0]).mean()
        assert high == (outcome.score[member] > falling[1]).mean()
    assert "test_accuracy" not in found


@dataclass(frozen=True)
class Claiming(Defense):
    """Claims what it does not do."""

    name = "claiming"
    noise: float = 4.0

    def recipe(self, task: Task) -> Recipe:
        return task.default.recipe

    def privacy(self, task: object, rows: int) -> PrivateTraining:
        return PrivateTraining(noise=self.noise, clip=1.0, share=0.1, steps=10, delta=1e-5)


def test_a_claim_of_privacy_that_the_attack_refutes_fails_the_gate(make):
    pytest.importorskip("dp_accounting")
    found, _, _ = run(make, LossThreshold(), layers=(Claiming(),))
    claimed = epsilon(Claiming().privacy(TASK, 200))
    assert found.metrics["epsilon"].value == claimed < 1
    # 40 guesses of 400, all of them right, on each of six targets
    expected = audited_epsilon(400, 40, 40, 1e-5, significance=0.05 / K)
    assert found.diagnostics["audited_epsilon"] == expected > claimed
    assert found.gate.verdict == "fail"
    assert any("refute the claimed privacy" in reason for reason in found.gate.reasons)
    honest, _, _ = run(make, Attack(chance), layers=(Claiming(),))
    assert honest.gate.verdict == "pass"
    assert "epsilon" not in run(make, Attack(chance))[0].metrics
