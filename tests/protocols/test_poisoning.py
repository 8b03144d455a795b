"""The poisoning protocol: what a poisoner may change, and what a defense loses or finds."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import NOBODY, Context, Defense, PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.outcome import PoisoningOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import REFUSED, Certificate, System
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import poisoning
from firstline.defenses.deep_partition_aggregation import DeepPartitionAggregation

THREAT = "poisoning/white/availability:10%"  # 6 of 64 rows
TASK = Blobs(train=64, test=64)
TRAIN = TASK.load(None).train


@dataclass(frozen=True)
class Attack(Poisoning):
    """Returns what a function makes of the rows that it holds."""

    name = "planted"
    needs = ("train",)
    goals = ("availability", "backdoor")

    make: Callable[[Data], object] = lambda data: PoisonedData(data, NOBODY)

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        return self.make(train)


def flip(data: Data, rows: list[int], listed: list[int] | None = None) -> PoisonedData:
    y = data.y.clone()
    y[rows] = 1 - y[rows]
    return PoisonedData(replace(data, y=y), data.ids[rows if listed is None else listed])


def move(data: Data, x: Tensor | float, listed: int = 6) -> PoisonedData:
    changed = data.x.clone()
    changed[:6] = x
    return PoisonedData(replace(data, x=changed), data.ids[:listed])


def append(data: Data, ids: list[int], listed: list[int] | None = None) -> PoisonedData:
    new = data.rows(torch.arange(len(ids)))
    grown = Data(
        torch.cat([data.x, new.x]), torch.cat([data.y, 1 - new.y]), torch.cat([data.ids, torch.tensor(ids)])
    )
    return PoisonedData(grown, torch.tensor(ids if listed is None else listed, dtype=torch.int64))


def secretly(made: PoisonedData) -> PoisonedData:
    """Put the added rows first, and change the last row without a word."""
    turned = made.data.rows(torch.arange(len(made.data)).roll(len(made.poisoned)))
    return replace(flip(turned, [-1]), poisoned=made.poisoned)


def label(data: Data, value: object) -> PoisonedData:
    y = data.y.to(torch.float32) if isinstance(value, float) else data.y.clone()
    y[0] = value
    return PoisonedData(replace(data, y=y), data.ids[:1])


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (lambda d: flip(d, list(range(7))), "poisoned 7 rows; its budget is 6"),
        (lambda d: flip(d, [], listed=list(range(7))), "poisoned 7 rows; its budget is 6"),
        (lambda d: append(d, [-1, -2, -3, -4, -5, -6, -7]), "poisoned 7 rows; its budget is 6"),
        (lambda d: flip(d, [3, 4], listed=[3]), "changed or added 1 rows that it does not list as poisoned"),
        (lambda d: flip(d, [3], listed=[5]), "changed or added 1 rows that it does not list"),
        (lambda d: move(d, 0.5, listed=4), "changed or added 2 rows that it does not list"),
        (lambda d: append(d, [-1, -2], listed=[-2]), "changed or added 1 rows that it does not list"),
        (lambda d: secretly(append(d, [-1, -2])), "changed or added 1 rows that it does not list"),
        (lambda d: PoisonedData(d.rows(torch.arange(2, 64)), NOBODY), "took away 2 training rows; it may only change or add"),
        (lambda d: append(d, [900, 901]), "returned 2 rows that it does not hold; added rows need negative ids"),
        (lambda d: append(d, [-1, -1]), "returned several rows with one id"),
        (lambda d: append(d, [0]), "returned several rows with one id"),
        (lambda d: move(d, 1.5), "returned training data with 6 of 64 examples outside the allowed range"),
        (lambda d: move(d, float("nan")), "returned training data with NaN or infinite values"),
        (lambda d: PoisonedData(replace(d, x=d.x.flatten(1)), NOBODY), r"returned training data with shape \(64,\) instead of"),
        (lambda d: label(d, 2), r"returned labels outside 0\.\.1"),
        (lambda d: label(d, -1), r"returned labels outside 0\.\.1"),
        (lambda d: label(d, 0.5), r"returned labels outside 0\.\.1"),
        (lambda d: d, "returned a Data instead of PoisonedData"),
        (lambda d: None, "returned a NoneType instead of PoisonedData"),
    ],
)  # fmt: skip
def test_a_poisoner_that_does_more_than_its_threat_allows_is_a_failed_cell(make, make_it, said):
    made = make(Attack(make_it), THREAT)
    with pytest.raises(ContractBroken, match=f"the attack {said}"):
        poisoning.run(made.bench)
    assert made.stages[-1] == "poison"  # the attack is to blame
    assert made.fitted_to == [None]


@pytest.mark.parametrize(
    "make_it",
    [
        lambda d: flip(d, [0, 63, 5, 7, 9, 11]),
        lambda d: flip(d, [], listed=[1, 2]),
        lambda d: append(d, [-1, -2, -3, -4, -5, -6]),
        lambda d: move(d, 0.5),
        lambda d: PoisonedData(d, NOBODY),
    ],
)
def test_a_poisoner_within_its_budget_is_measured(make, make_it):
    made = make(Attack(make_it), THREAT)
    found = poisoning.run(made.bench)
    assert found.metrics["accuracy_drop"].value == 0  # the served system never looks at the data
    assert made.stages == ["fit", "poison", "fit", "score", "measure"]


@pytest.mark.parametrize(("threat", "rows"), [("10%", 6), ("100%", 64), ("0%", 0), ("0.05", 3)])
def test_the_budget_is_the_share_of_all_training_rows_rounded_down(make, threat, rows):
    seen = []

    @dataclass(frozen=True)
    class Asking(Attack):
        def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
            seen.append(budget)
            return PoisonedData(train, NOBODY)

    poisoning.poison(make(Asking(), f"poisoning/white/availability:{threat}").bench)
    assert seen == [rows]


def test_the_poisoned_set_is_the_whole_with_the_attackers_rows_in_their_places(make):
    held: list[Data] = []

    def change(data: Data) -> PoisonedData:
        held.append(data)
        poisoned = flip(data, [1, 3])
        grown = append(poisoned.data, [-1])
        return PoisonedData(grown.data, torch.cat([poisoned.poisoned, grown.poisoned]))

    made = make(Attack(change), "poisoning/gray/availability:10%,train=25%")
    whole = poisoning.poison(made.bench)
    flipped = held[0].ids[[1, 3]]
    assert len(held[0]) == 16
    assert torch.equal(held[0].x, TRAIN.x[held[0].ids])
    assert torch.equal(whole.data.ids, torch.cat([TRAIN.ids, torch.tensor([-1])]))
    assert torch.equal(whole.data.x[:64], TRAIN.x)
    assert sorted((whole.data.y[:64] != TRAIN.y).nonzero().flatten().tolist()) == sorted(flipped.tolist())
    assert sorted(whole.poisoned.tolist()) == sorted([-1, *flipped.tolist()])


def test_the_order_in_which_a_poisoner_returns_its_rows_does_not_matter(make):
    def backwards(data: Data) -> PoisonedData:
        made = flip(data, [3, 10])
        return replace(made, data=made.data.rows(torch.arange(len(data)).flip(0)))

    plain, turned = (
        poisoning.poison(make(Attack(change), THREAT).bench).data
        for change in (lambda d: flip(d, [3, 10]), backwards)
    )
    for name in ("x", "y", "ids"):
        assert torch.equal(getattr(plain, name), getattr(turned, name))


def test_a_poisoner_can_not_reach_what_it_does_not_hold(make):
    def foreign(data: Data) -> PoisonedData:
        missing = sorted(set(range(64)) - set(data.ids.tolist()))[:1]
        return append(data, missing)

    with pytest.raises(ContractBroken, match="1 rows that it does not hold"):
        poisoning.run(make(Attack(foreign), "poisoning/gray/availability:10%,train=25%").bench)


def test_a_poisoner_that_writes_to_its_data_leaves_the_task_alone(make):
    def write(data: Data) -> PoisonedData:
        data.y[:6] = 1 - data.y[:6]
        return PoisonedData(data, data.ids[:6])

    made = make(Attack(write), THREAT)
    poisoning.run(made.bench)
    assert made.bench.splits.fingerprint() == TASK.load(None).fingerprint()
    assert int((made.fitted_to[1].data.y != TRAIN.y).sum()) == 6


def test_all_defenses_meet_the_same_poison(make):
    class Shield(Defense):
        name = "shield"

    @dataclass(frozen=True)
    class Random(Attack):
        def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
            rows = torch.randperm(len(train), generator=rng.torch("rows"))[:budget]
            return flip(train, rows.tolist())

    sets = [
        poisoning.poison(make(Random(), "poisoning/gray/availability:5%,train=50%", **more).bench).data
        for more in ({}, {"layers": (Shield(),)}, {"seed": 1})
    ]
    assert torch.equal(sets[0].y, sets[1].y)
    assert not torch.equal(sets[0].y, sets[2].y)


@pytest.mark.parametrize(
    ("kept", "tpr", "fpr"),
    [
        (list(range(64)), 0.0, 0.0),
        (list(range(6, 64)), 1.0, 0.0),
        (list(range(3, 64)), 0.5, 0.0),
        (list(range(6, 35)), 1.0, 0.5),
        (list(range(6)), 0.0, 1.0),
    ],
)
def test_what_a_defense_left_out_is_its_detection(make, kept, tpr, fpr):
    found = poisoning.run(
        make(Attack(lambda d: flip(d, list(range(6)))), THREAT, kept=torch.tensor(kept)).bench
    )
    assert found.metrics["detection_tpr"].value == tpr
    assert found.metrics["detection_fpr"].value == pytest.approx(fpr)


def test_how_suspect_rows_were_is_kept_and_ranked(make):
    made = make(Attack(lambda d: flip(d, list(range(6)))), THREAT)
    made.served.suspicion = torch.arange(64).double()
    made.served.suspicion[40:] = torch.nan  # dropped before a filter looked: least suspect
    found = poisoning.run(made.bench)
    assert np.array_equal(found.outcome.row_suspicion, made.served.suspicion.numpy(), equal_nan=True)
    # 6 poisoned rows stand below 34 clean ones, and above 24
    assert found.metrics["row_detection_auc"].value == pytest.approx(24 / 58)
    assert "row_detection_auc" not in poisoning.run(make(Attack(), THREAT).bench).metrics


def test_added_rows_can_be_detected_too(make):
    kept = torch.cat([TRAIN.ids, torch.tensor([-2])])
    found = poisoning.run(make(Attack(lambda d: append(d, [-1, -2])), THREAT, kept=kept).bench)
    assert found.metrics["detection_tpr"].value == 0.5
    assert len(found.outcome.row_poisoned) == 66


def test_without_poison_there_is_no_detection_rate(make):
    metrics = poisoning.run(make(Attack(), THREAT).bench).metrics
    assert "detection_tpr" not in metrics
    assert metrics["detection_fpr"].value == 0


def stamp(x: Tensor) -> Tensor:
    """Paint the lower right corner white: the trigger of BadNets."""
    x = x.clone()
    x[..., 5:, 5:] = 1.0
    return x


@dataclass(frozen=True)
class Backdoor(Poisoning):
    """A small BadNets: stamp rows of class 0 and call them class 1."""

    name = "backdoor"
    needs = ("train",)
    goals = ("backdoor",)

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        rows = (train.y == 0).nonzero().flatten()[:budget]
        x, y = train.x.clone(), train.y.clone()
        x[rows], y[rows] = stamp(x[rows]), 1
        return PoisonedData(Data(x, y, train.ids), train.ids[rows], stamp, 1)


def test_a_backdoor_is_measured_on_triggered_examples_outside_the_target_class(make, fake):
    task = Blobs(train=256, test=128)
    splits = task.load(None)
    fits = []

    def fit(poisoned: PoisonedData | None):
        data = splits.train if poisoned is None else poisoned.data
        fitted = Stack(()).fit(task, data, Streams(0), torch.device("cpu"))
        fits.append(fake(fitted.system, fitted.kept))
        return fits[-1]

    made = make(Backdoor(), "poisoning/white/backdoor:10%", task=task, splits=splits, fit=fit, examples=100)
    found = poisoning.run(made.bench)
    outcome = found.outcome
    others = outcome.label == 0
    assert (outcome.triggered_label == 0).all()
    assert len(outcome.triggered_answer) == others.sum() > 30
    triggered = fits[1].asked[0][100:]
    assert torch.equal(triggered, stamp(splits.test.x[outcome.ids[others]]))
    assert found.metrics["attack_success_rate"].value == (outcome.triggered_answer == 1).mean() > 0.9
    assert found.metrics["robust_accuracy"].value == pytest.approx(
        1 - found.metrics["attack_success_rate"].value
    )
    assert found.metrics["attack_success_rate"].n == others.sum()
    assert found.metrics["accuracy"].value > 0.9
    assert outcome.row_poisoned.sum() == 25


@pytest.mark.parametrize(
    ("trigger", "said"),
    [
        (lambda x: x + 1, "outside the allowed range"),
        (lambda x: x * torch.nan, "NaN or infinite values"),
        (lambda x: x.flatten(1), r"shape \(64,\) instead of"),
        (lambda x: x[:3], "3 examples for"),
    ],
)
def test_a_trigger_that_leaves_the_input_space_is_a_failed_cell(make, trigger, said):
    attack = Attack(lambda d: PoisonedData(d, NOBODY, trigger, 1))
    made = make(attack, "poisoning/white/backdoor:10%")
    with pytest.raises(ContractBroken, match=f"the attack's trigger returned .*{said}"):
        poisoning.run(made.bench)
    assert made.stages[-1] == "poison"


def test_a_trigger_without_victims_has_no_success_rate(make):
    splits = TASK.load(None)
    ones = replace(splits, test=splits.test.rows(splits.test.y == 1))
    attack = Attack(lambda d: PoisonedData(d, NOBODY, stamp, 1))
    metrics = poisoning.run(make(attack, "poisoning/white/backdoor:10%", splits=ones).bench).metrics
    assert "attack_success_rate" not in metrics


def test_without_test_examples_there_is_nothing_to_score(make):
    splits = TASK.load(None)
    empty = replace(splits, test=splits.test.rows(torch.arange(0)))
    with pytest.raises(ContractBroken, match="no test example to score"):
        poisoning.run(make(Attack(), THREAT, splits=empty).bench)


def test_metrics_follow_from_the_outcome_alone():
    outcome = PoisoningOutcome(
        ids=np.arange(4),
        label=np.array([0, 1, 2, 2]),
        clean_answer=np.array([0, 1, 2, -1]),
        answer=np.array([0, 2, -2, 2]),
        row_poisoned=np.array([True, True, False, False, False]),
        row_kept=np.array([False, True, True, True, False]),
        row_label=np.array([2, 2, 2, 1, 0]),
        triggered_label=np.array([0, 1]),
        triggered_answer=np.array([2, -1]),
        triggered_clean_answer=np.array([0, 2]),
        target_class=np.array([2]),
    )
    assert {
        name: metric.value for name, metric in poisoning.measure(outcome, np.random.default_rng(0)).items()
    } == {
        "clean_accuracy": 0.75,
        "accuracy": 0.5,
        "accuracy_drop": 0.25,
        "detection_tpr": 0.5,
        "detection_fpr": pytest.approx(1 / 3),
        "poison_share": 0.4,
        "poison_share_of_target": pytest.approx(2 / 3),
        "attack_success_rate": 0.5,
        "clean_attack_success_rate": 0.5,
        "robust_accuracy": 0.5,  # a refused trigger is a trigger that did not work
    }


@pytest.mark.parametrize(
    ("made", "count"),
    [
        (flip(TRAIN, [1, 2, 3]), 3),
        (move(TRAIN, 0.5), 12),
        (append(TRAIN, [-1, -2]), 2),
        (secretly(append(TRAIN, [-1, -2])), 3),
        (PoisonedData(TRAIN, NOBODY), 0),
    ],
)
def test_a_changed_input_is_two_changes_and_every_other_one(made, count):
    assert poisoning.changes(TRAIN, made.data) == count


@dataclass(frozen=True)
class Prover(Defense):
    """Claims that so many rows change no answer."""

    name = "prover"

    rows: float = 5.0

    def deploy(self, system: System, task: Task) -> System:
        return Claim(system, self.rows)


class Claim(System):
    def __init__(self, inner: System, rows: float) -> None:
        super().__init__(inner)
        self.rows = rows

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        if norm != "rows":
            return None
        return Certificate(self.respond(x, rng).labels, torch.full((len(x),), self.rows))


@dataclass(frozen=True)
class Filter(Defense):
    name = "filter"

    def collect(self, data: Data, ctx: Context) -> Data:
        return data


def proof(make, fake, layers: tuple[Defense, ...], rows: int):
    """Run a poison of so many flipped labels, under which the answer to every example changes."""
    good = Stack(layers).fit(TASK, TRAIN, Streams(0), torch.device("cpu"))

    def fit(poisoned: PoisonedData | None):
        answer = None if poisoned is None else lambda x: torch.full((len(x),), REFUSED)
        return fake(good.system, good.kept, answer)

    made = make(Attack(lambda d: flip(d, list(range(rows)))), THREAT, fit=fit, layers=layers)
    return poisoning.run(made.bench)


def test_a_proof_that_covers_the_poison_and_fails_is_caught(make, fake):
    found = proof(make, fake, (Prover(5),), rows=5)
    assert found.metrics["certified_accuracy"].value == found.metrics["clean_accuracy"].value > 0.9
    assert found.metrics["certified_rows_median"].value == 5
    assert found.diagnostics["broken_certificates"] == 1
    assert found.gate.verdict == "fail"
    wrong = 1 - found.metrics["clean_accuracy"].value
    assert found.curves["certified_accuracy"] == [
        (0.0, pytest.approx(1 - wrong)),
        (5.0, pytest.approx(1 - wrong)),
    ]


def test_a_proof_against_fewer_rows_than_the_poison_has_is_not_broken_by_it(make, fake):
    found = proof(make, fake, (Prover(4),), rows=5)
    assert found.metrics["certified_accuracy"].value == 0
    assert found.diagnostics["broken_certificates"] == 0
    assert found.gate.verdict == "pass"


def test_behind_a_filter_nothing_is_proved(make, fake):
    found = proof(make, fake, (Filter(), Prover(5)), rows=5)
    assert "certified_accuracy" not in found.metrics
    assert found.diagnostics == {}


def test_votes_of_parts_keep_their_proof_under_poison(make, fake):
    layers = (DeepPartitionAggregation(partitions=15),)

    def fit(poisoned: PoisonedData | None):
        data = TRAIN if poisoned is None else poisoned.data
        fitted = Stack(layers).fit(TASK, data, Streams(0), torch.device("cpu"))
        return fake(fitted.system, fitted.kept)

    for count in (1, 3, 6):
        attack = Attack(lambda d, count=count: flip(d, list(range(count))))
        found = poisoning.run(make(attack, THREAT, fit=fit, layers=layers).bench)
        assert found.diagnostics["broken_certificates"] == 0
        assert 0 < found.metrics["certified_accuracy"].value <= found.metrics["accuracy"].value
