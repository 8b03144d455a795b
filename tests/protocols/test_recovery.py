"""Recovery: what a repair gets, how the way is counted, and when a system counts as recovered."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context, Defense, Incident, PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.outcome import PoisoningOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System, opened
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import poisoning, recovery
from firstline.benchmark.protocols.bench import CLEAN_ROWS, CLEAN_SHARE, Point, Sight
from firstline.defenses.fine_tuning import FineTuning

CPU = torch.device("cpu")
THREAT = "poisoning/white/backdoor:20%"
TASK = Blobs(train=256, test=128)
SPLITS = replace(TASK.load(None), aux=TASK.sample(300, "aux"))


def stamp(x: Tensor) -> Tensor:
    """Paint a corner black, which by itself speaks for class 0."""
    x = x.clone()
    x[..., 5:, 5:] = 0.0
    return x


@dataclass(frozen=True)
class Backdoor(Poisoning):
    """Stamps rows of class 0 and calls them class 1."""

    name = "backdoor"
    needs = ("train",)
    goals = ("backdoor",)

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        rows = (train.y == 0).nonzero().flatten()[:budget]
        x, y = train.x.clone(), train.y.clone()
        x[rows], y[rows] = stamp(x[rows]), 1
        return PoisonedData(Data(x, y, train.ids), train.ids[rows], stamp, 1)


@dataclass(frozen=True)
class Oracle(Defense):
    """Puts the weights of a system in place that never saw poison, in so many equal steps."""

    name = "oracle"
    parts: int = 1

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        repaired, network = opened(system)
        clean = fitted(None).state_dict()
        for part in range(1, self.parts + 1):
            with torch.no_grad():
                for name, tensor in network.state_dict().items():
                    there = clean[f"module.{name}"]
                    tensor += (there - tensor) / (self.parts + 1 - part)
            ctx.watch(repaired, 3, 10)
        return repaired


def fitted(poisoned: PoisonedData | None) -> System:
    data = SPLITS.train if poisoned is None else poisoned.data
    return Stack(()).fit(TASK, data, Streams(0), CPU).system


@pytest.fixture
def bench_of(make, fake):
    """Return a function from layers to a bench with really fitted systems."""

    def go(*layers: Defense, kept: Tensor | None = None, **more):
        def fit(poisoned: PoisonedData | None):
            return fake(fitted(poisoned), SPLITS.train.ids if kept is None else kept)

        about = {"task": TASK, "splits": SPLITS, "examples": 100, "fit": fit} | more
        return make(Backdoor(), THREAT, layers=layers, **about)

    return go


def values(found) -> dict[str, float]:
    return {name: metric.value for name, metric in found.metrics.items()}


def test_without_a_repair_nothing_is_repaired_and_nothing_more_is_said(bench_of):
    made = bench_of(Defense())
    found = poisoning.run(made.bench)
    assert made.stages == ["fit", "poison", "fit", "score", "measure"]
    assert not made.incidents
    assert not found.curves
    assert not {name for name in found.metrics if "repair" in name or "recover" in name or "relapse" in name}
    assert "answer_before_repair" not in found.outcome.arrays()


def test_the_instant_oracle_recovers_all_and_does_not_relapse(bench_of):
    without, found = (values(poisoning.run(bench_of(*layers).bench)) for layers in ((), (Oracle(),)))
    assert without["attack_success_rate"] > 0.9
    assert found["attack_success_rate_before_repair"] == without["attack_success_rate"]
    assert found["accuracy_before_repair"] == without["accuracy"]
    assert found["robust_accuracy_before_repair"] == without["robust_accuracy"]
    assert found["accuracy"] == found["clean_accuracy"]
    assert found["attack_success_rate"] == found["clean_attack_success_rate"] < 0.5
    assert (found["recovered"], found["recovery_samples"], found["recovery_steps"]) == (1, 10, 3)
    lost = found["resilience_loss_without_repair"]
    assert lost == pytest.approx(without["attack_success_rate"] - found["clean_attack_success_rate"])
    assert found["resilience_loss"] == pytest.approx(lost / 2)  # a straight line back
    assert found["relapse"] == 0 < found["relapse_without_repair"]


def test_a_repair_that_does_nothing_is_what_no_repair_is_and_relapses_at_once(bench_of):
    class Idle(Defense):
        name = "idle"

        def recover(self, system: System, incident: Incident, ctx: Context) -> System:
            ctx.watch(system, 0, 50)
            return system

    found = values(poisoning.run(bench_of(Idle()).bench))
    assert found["recovered"] == 0
    assert "recovery_samples" not in found
    assert found["repair_samples"] == 50
    assert found["resilience_loss"] == pytest.approx(found["resilience_loss_without_repair"])
    assert found["relapse"] == found["relapse_without_repair"] > 0.1


def test_curves_are_over_the_rows_read_and_end_where_the_blind_figures_are(bench_of):
    made = bench_of(Oracle(parts=4))
    found = poisoning.run(made.bench)
    assert made.stages == ["fit", "poison", "fit", "repair", "score", "measure"]
    assert set(found.curves) == set(recovery.CURVES)
    for name, curve in found.curves.items():
        assert [x for x, _ in curve] == [0, 10, 20, 30, 40]
        metric = name.removeprefix("recovery_")
        assert curve[0][1] == found.metrics[f"{metric}_before_repair"].value
        assert curve[-1][1] == found.metrics[metric].value
    success = [y for _, y in found.curves["recovery_attack_success_rate"]]
    assert success == sorted(success, reverse=True)
    assert found.metrics["repair_steps"].value == 12


def test_the_defender_gets_clean_rows_that_no_attacker_had_and_the_rows_that_it_left_out(bench_of):
    made = bench_of(Oracle(), kept=SPLITS.train.ids[10:])
    poisoning.run(made.bench)
    (known,) = made.incidents
    assert len(known.clean) == CLEAN_ROWS > CLEAN_SHARE * 256
    assert torch.equal(known.clean.x, SPLITS.aux.x[known.clean.ids])
    assert torch.equal(known.clean.y, SPLITS.aux.y[known.clean.ids])
    assert known.suspects.ids.tolist() == list(range(10))
    assert torch.equal(known.suspects.y, poisoning.poison(made.bench).data.y[:10])


def test_all_defenses_get_the_same_clean_rows_and_another_seed_others(bench_of):
    first, second, other = (
        recovery.incident(bench_of(*layers, seed=seed).bench, SPLITS.train, SPLITS.train.ids).clean.ids
        for layers, seed in (((Oracle(),), 0), ((FineTuning(),), 0), ((Oracle(),), 1))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("train", "rows"), [(1000, 100), (2400, 120)])
def test_clean_rows_are_a_share_of_the_training_set_and_a_hundred_at_least(bench_of, train, rows):
    task = Blobs(train=train)
    bench = bench_of(task=task, splits=task.load(None)).bench
    known = recovery.incident(bench, bench.splits.train, bench.splits.train.ids)
    assert len(known.clean) == rows
    assert len(known.suspects) == 0


def test_fine_tuning_counts_each_row_once_per_epoch(bench_of):
    found = values(poisoning.run(bench_of(FineTuning(epochs=3)).bench))
    assert found["repair_samples"] == 3 * 100
    assert found["repair_steps"] == 3 * 4


def test_a_repair_that_takes_work_back_breaks_the_contract(bench_of):
    class Liar(Defense):
        name = "liar"

        def recover(self, system: System, incident: Incident, ctx: Context) -> System:
            ctx.watch(system, 0, -1)
            return system

    made = bench_of(Liar())
    with pytest.raises(ContractBroken, match="told of 0 steps and -1 rows"):
        poisoning.run(made.bench)
    assert made.stages[-1] == "repair"  # the defense is to blame


def test_a_system_without_a_network_has_no_relapse(bench_of):
    class Odd(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            return Response(x.flatten(1)[:, :2])

    bench = bench_of().bench
    made = poisoning.poison(bench)
    known = recovery.incident(bench, made.data, made.data.ids)
    net = Bare(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    triggered = replace(SPLITS.test, x=stamp(SPLITS.test.x))
    same, odd, nobody = {"relapse": net}, {"relapse": Odd()}, triggered.rows(torch.arange(0))
    assert recovery.relapses(bench, net, same, known, made, triggered)["relapse"].value == 0
    assert recovery.relapses(bench, net, odd, known, made, triggered) == {}
    assert recovery.relapses(bench, net, same, known, replace(made, trigger=None), triggered) == {}
    assert recovery.relapses(bench, net, same, known, made, nobody) == {}


def test_relapse_tunes_on_the_clean_rows_and_a_few_fresh_poisons(bench_of, monkeypatch):
    seen = []

    def spy(network, data, recipe, rng, *, watch):
        seen.append((data, recipe, rng))
        for _ in range(recipe.epochs):
            watch(network, 1, len(data))
        return network

    monkeypatch.setattr(recovery, "train", spy)
    made = bench_of(Oracle())
    poisoning.run(made.bench)
    (first, recipe, rng), (second, _, again), _ = seen  # without poison, repaired, poisoned
    assert recipe.epochs == recovery.RELAPSE_EPOCHS
    assert rng == again
    assert torch.equal(first.x, second.x)
    known, fresh = first.rows(torch.arange(100)), first.rows(torch.arange(100, len(first)))
    assert torch.equal(known.x, made.incidents[0].clean.x)
    assert len(fresh) == recovery.RELAPSE_ROWS
    assert not torch.isin(fresh.ids, known.ids).any()
    assert (SPLITS.aux.y[fresh.ids] == 0).all()
    assert (fresh.y == 1).all()
    torch.testing.assert_close(fresh.x, stamp(SPLITS.aux.x[fresh.ids]))


def outcome(before: list[int], after: list[int], triggered: tuple[list[int], list[int]] | None = None):
    """Ten examples of class 0, of which the system without poison gets nine; the target is class 1."""
    label, zeros = np.zeros(10, np.int64), np.zeros(10, np.int64)
    first, second = (None, None) if triggered is None else map(np.array, triggered)
    return PoisoningOutcome(
        ids=np.arange(10),
        label=label,
        clean_answer=np.array([0] * 9 + [1]),
        answer=np.array(after),
        row_poisoned=np.zeros(1, np.bool_),
        row_kept=np.ones(1, np.bool_),
        row_label=np.zeros(1, np.int64),
        triggered_label=None if triggered is None else zeros,
        triggered_clean_answer=None if triggered is None else np.array([0] * 9 + [1]),
        triggered_answer=second,
        target_class=None if triggered is None else np.array([1]),
        answer_before_repair=np.array(before),
        triggered_answer_before_repair=first,
    )


def ones(n: int) -> list[int]:
    return [1] * n + [0] * (10 - n)


def trace(*points: tuple[int, float, float | None]) -> list[Point]:
    held = [None if success is None else 1 - success for _, _, success in points]
    return [
        Point(samples // 10, samples, Sight(accuracy, success, robust))
        for (samples, accuracy, success), robust in zip(points, held, strict=True)
    ]


def test_a_trace_that_dips_and_rebounds_is_censored():
    way = trace((10, 0.9, 0.1), (20, 0.9, 0.1), (30, 0.9, 0.6))
    metrics, _ = recovery.measure(outcome(ones(1), ones(1), (ones(10), ones(6))), way)
    assert metrics["recovered"].value == 0
    assert "recovery_samples" not in metrics
    assert metrics["repair_samples"].value == 30


def test_the_recovery_is_the_first_moment_from_which_the_system_stays_healthy():
    way = trace(
        (10, 0.9, 0.1), (20, 0.9, 0.6), (30, 0.9, 0.1), (40, 0.5, 0.1), (60, 0.9, 0.2), (70, 0.9, 0.1)
    )
    metrics, curves = recovery.measure(outcome(ones(1), ones(1), (ones(10), ones(1))), way)
    assert metrics["recovered"].value == 1
    assert metrics["recovery_samples"].value == 60
    assert metrics["recovery_steps"].value == 6
    assert curves["recovery_attack_success_rate"][2] == (20.0, 0.6)


@pytest.mark.parametrize(
    ("accuracy", "success", "healthy"),
    [(0.85, 0.2, True), (0.84, 0.2, False), (0.85, 0.21, False), (1.0, 0.0, True)],
)
def test_a_healthy_system_lost_5_points_and_leaves_10_at_most(accuracy, success, healthy):
    way = trace((10, accuracy, success), (20, 0.9, 0.1))
    metrics, _ = recovery.measure(outcome(ones(1), ones(1), (ones(10), ones(1))), way)
    assert (metrics["recovery_samples"].value == 10) is healthy


def test_the_loss_is_the_area_above_the_curve_of_the_worse_of_both():
    way = trace((10, 0.45, 0.1), (30, 0.9, 0.1))  # service 0.1, one half, 1
    metrics, _ = recovery.measure(outcome(ones(1), ones(1), (ones(10), ones(1))), way)
    assert metrics["resilience_loss_without_repair"].value == pytest.approx(0.9)
    assert metrics["resilience_loss"].value == pytest.approx((10 * (0.9 + 0.5) / 2 + 20 * 0.5 / 2) / 30)


def test_without_a_trigger_accuracy_alone_says_what_is_healthy():
    metrics, curves = recovery.measure(outcome(ones(6), ones(1)), trace((10, 0.5, None), (20, 0.9, None)))
    assert (metrics["recovered"].value, metrics["recovery_samples"].value) == (1, 20)
    assert set(curves) == {"recovery_accuracy"}
    assert "attack_success_rate_before_repair" not in metrics


def test_where_nothing_was_lost_nothing_is_recovered():
    metrics, _ = recovery.measure(outcome(ones(1), ones(5)), trace((10, 0.5, None)))
    assert "recovered" not in metrics
    assert metrics["resilience_loss"].value > 0  # a repair can do harm


def test_a_repair_that_nobody_saw_is_judged_by_its_end():
    metrics, curves = recovery.measure(outcome(ones(5), ones(1)), [])
    assert (metrics["recovered"].value, metrics["recovery_samples"].value) == (1, 0)
    assert "resilience_loss" not in metrics
    assert curves["recovery_accuracy"] == [(0.0, 0.9)]
