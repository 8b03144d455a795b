"""Poisoning: what does the defended system lose when part of its training data is the attacker's?

The defense is fitted twice, to clean and to poisoned data, from the same random streams; it is not told which is
which. What `collect` leaves out is its detection of poison. Where it repairs, the repaired system is what is
measured: see `recovery`.
"""

import numpy as np
import torch
from torch import Tensor

from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.outcome import PoisoningOutcome
from firstline.benchmark.core.record import Metric
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.metrics.roc_intervals import auc_interval
from firstline.benchmark.protocols import recovery
from firstline.benchmark.protocols.bench import Bench, Measured, Served, answered
from firstline.benchmark.protocols.certificate import certified, certified_curve, disproved, proven_rows
from firstline.benchmark.protocols.detection import Floats, acceptances, detection
from firstline.benchmark.protocols.numbers import estimate, plain, share


def run(bench: Bench) -> Measured:
    """Poison, check the budget, fit twice, repair, score blindly, measure."""
    clean = bench.fit(None)
    bench.stage("poison")
    poisoned = poison(bench)
    test = bench.splits.test
    drawn = test.rows(bench.draw("test", len(test), bench.examples))
    if len(drawn) == 0:
        raise ContractBroken("the task has no test example to score")
    triggered = triggered_rows(poisoned, drawn, bench.task)
    served = fitted = bench.fit(poisoned)
    mended = None
    again: dict[str, Metric] = {}
    if bench.stack.repairs():
        bench.stage("repair")
        known = recovery.incident(bench, poisoned.data, fitted.kept, clean.system)
        mended = bench.repair(fitted, known, recovery.look(bench, drawn, triggered, poisoned.target_class))
        served = mended.served
        tuned = {"relapse": served.system, "relapse_without_repair": fitted.system}
        again = recovery.relapses(bench, clean.system, tuned, known, poisoned, triggered)
    bench.stage("score")
    inputs = [drawn.x.to(bench.device)]
    if triggered is not None:
        inputs.append(triggered.x.to(bench.device))

    def score(system: Served) -> Tensor:
        return answered(system.score(torch.cat(inputs), bench.rng.child("score"))).cpu()

    before, after = score(clean), score(served)
    poisonous = score(fitted) if mended else None
    # A filter may answer to one poisoned row with many others: what is proved holds for what it leaves.
    filters = any("collect" in layer.facts()["hooks"] for layer in bench.stack.layers)
    chance = bench.rng.torch("certify")
    proved = None if filters else certified(clean.system, inputs[0], "rows", chance)
    bench.stage("measure")
    outcome = PoisoningOutcome(
        ids=drawn.ids.numpy(),
        label=drawn.y.numpy(),
        clean_answer=before[: len(drawn)].numpy(),
        answer=after[: len(drawn)].numpy(),
        row_poisoned=torch.isin(poisoned.data.ids, poisoned.poisoned).numpy(),
        row_kept=torch.isin(poisoned.data.ids, served.kept).numpy(),
        row_label=poisoned.data.y.numpy(),
        row_suspicion=None if served.suspicion is None else served.suspicion.numpy(),
        triggered_label=None if triggered is None else triggered.y.numpy(),
        triggered_clean_answer=None if triggered is None else before[len(drawn) :].numpy(),
        triggered_answer=None if triggered is None else after[len(drawn) :].numpy(),
        target_class=None if triggered is None else np.array([poisoned.target_class]),
        clean_acceptance=None if triggered is None else _acceptances(served, drawn, bench),
        triggered_acceptance=None if triggered is None else _acceptances(served, triggered, bench),
        answer_before_repair=None if poisonous is None else poisonous[: len(drawn)].numpy(),
        triggered_answer_before_repair=None
        if poisonous is None or triggered is None
        else poisonous[len(drawn) :].numpy(),
        certified_rows=None if proved is None else proved.radii.long().cpu().numpy(),
        certified_against=None if proved is None else np.array([changes(bench.splits.train, poisoned.data)]),
    )
    metrics, curves = measure(outcome, bench.rng.numpy("bootstrap")), certified_curve(outcome)
    if mended is not None:
        more, traced = recovery.measure(outcome, mended.trace)
        metrics, curves = metrics | more | again, curves | traced
    own = {} if proved is None or mended else {"broken_certificates": float(disproved(outcome).mean())}
    return Measured(outcome=outcome, metrics=metrics, curves=curves, diagnostics=own, gate=judge(own))


def poison(bench: Bench) -> PoisonedData:
    """Return the whole poisoned training set: the attacker's share changed within its budget, the rest as it was."""
    attack, threat, train = bench.attack, bench.threat, bench.splits.train
    assert isinstance(attack, Poisoning)
    budget = int((threat.amount or 0) * len(train) + 1e-9)
    held = bench.draw("held", len(train), round(threat.train * len(train)))
    seen = train.rows(held)
    mine = Data(seen.x.clone(), seen.y.clone(), seen.ids.clone())
    made = attack.poison(mine, bench.task, budget, threat, bench.rng.child("attack", attack.name))
    if not isinstance(made, PoisonedData):
        raise ContractBroken(f"the attack returned a {type(made).__name__} instead of PoisonedData")
    problem = _overreach(made, seen, budget, bench.task)
    if problem:
        raise ContractBroken(f"the attack {problem}")
    x, y = train.x.clone(), train.y.clone()
    old = made.data.ids >= 0
    position = torch.searchsorted(train.ids, made.data.ids[old])
    x[position], y[position] = made.data.x[old], made.data.y[old]
    whole = Data(
        torch.cat([x, made.data.x[~old]]),
        torch.cat([y, made.data.y[~old]]),
        torch.cat([train.ids, made.data.ids[~old]]),
    )
    return PoisonedData(whole, made.poisoned, made.trigger, made.target_class)


def _overreach(made: PoisonedData, seen: Data, budget: int, task: Task) -> str | None:
    """Say how the poison breaks the threat, or None."""
    data, listed = made.data, torch.unique(made.poisoned)
    if not torch.isin(seen.ids, data.ids).all():
        return f"took away {int((~torch.isin(seen.ids, data.ids)).sum())} training rows; it may only change or add rows"
    unknown = data.ids[(data.ids >= 0) & ~torch.isin(data.ids, seen.ids)]
    if len(unknown):
        return f"returned {len(unknown)} rows that it does not hold; added rows need negative ids"
    if len(torch.unique(data.ids)) != len(data.ids):
        return "returned several rows with one id"
    if len(listed) > budget:
        return f"poisoned {len(listed)} rows; its budget is {budget}"
    problem = task.space.check(data.x)
    if problem:
        return f"returned training data with {problem}"
    if data.y.dtype != torch.int64 or bool(((data.y < 0) | (data.y >= task.classes)).any()):
        return f"returned labels outside 0..{task.classes - 1}"
    order = torch.argsort(data.ids)
    order = order[data.ids[order] >= 0]
    original = seen.rows(torch.searchsorted(seen.ids, data.ids[order]))
    changed = (data.y[order] != original.y) | (data.x[order] != original.x).flatten(1).any(1)
    secret = torch.cat([data.ids[order][changed], data.ids[data.ids < 0]])
    hidden = secret[~torch.isin(secret, listed)]
    if len(hidden):
        return f"changed or added {len(hidden)} rows that it does not list as poisoned"
    return None


def triggered_rows(poisoned: PoisonedData, test: Data, task: Task) -> Data | None:
    """The test examples outside the target class, with the trigger on, on the grid."""
    if poisoned.trigger is None or poisoned.target_class is None:
        return None
    others = test.rows(test.y != poisoned.target_class)
    x = poisoned.trigger(others.x.clone())
    problem = task.space.check(x) if len(x) == len(others) else f"{len(x)} examples for {len(others)}"
    if problem:
        raise ContractBroken(f"the attack's trigger returned {problem}")
    return Data(task.space.round(x).to(others.x.dtype), others.y, others.ids)


def changes(clean: Data, poisoned: Data) -> int:
    """Return how many rows come, go or change their label between two training sets; a changed input is two."""
    old = poisoned.ids >= 0
    place = torch.searchsorted(clean.ids, poisoned.ids[old])
    moved = (poisoned.x[old] != clean.x[place]).flatten(1).any(1)
    relabelled = (poisoned.y[old] != clean.y[place]) & ~moved
    return int((~old).sum() + 2 * moved.sum() + relabelled.sum())


def _acceptances(served: Served, data: Data, bench: Bench) -> Floats | None:
    return acceptances(bench.watched(served.system, data.x))


def measure(outcome: PoisoningOutcome, rng: np.random.Generator) -> dict[str, Metric]:
    """Return the metrics of one poison against one defense; rng resamples."""
    right_before, right = outcome.clean_answer == outcome.label, outcome.answer == outcome.label
    metrics = {
        "clean_accuracy": share(right_before, "higher"),
        "accuracy": share(right, "higher"),
        "accuracy_drop": plain(right_before.mean() - right.mean(), len(right), "share", "lower"),
    }
    poison_rows, dropped = outcome.row_poisoned, ~outcome.row_kept
    metrics["poison_share"] = plain(poison_rows.mean(), len(poison_rows), "share")
    if poison_rows.any():
        metrics["detection_tpr"] = share(dropped[poison_rows], "higher")
    if not poison_rows.all():
        metrics["detection_fpr"] = share(dropped[~poison_rows], "lower")
    if outcome.row_suspicion is not None and poison_rows.any() and not poison_rows.all():
        judged = np.where(np.isnan(outcome.row_suspicion), -np.inf, outcome.row_suspicion)
        found = auc_interval(judged, poison_rows, rng)
        metrics["row_detection_auc"] = estimate(found, len(judged), "higher")
    if (
        outcome.triggered_answer is not None
        and outcome.triggered_label is not None
        and len(outcome.triggered_label)
    ):
        assert outcome.target_class is not None
        hits: np.ndarray[tuple[int], np.dtype[np.bool_]] = outcome.triggered_answer == outcome.target_class[0]
        metrics["attack_success_rate"] = share(hits, "lower")
        assert outcome.triggered_clean_answer is not None
        before = outcome.triggered_clean_answer == outcome.target_class[0]
        metrics["clean_attack_success_rate"] = share(before, "neither")
        target = outcome.row_label == outcome.target_class[0]
        if target.any():
            metrics["poison_share_of_target"] = plain(poison_rows[target].mean(), int(target.sum()), "share")
        held = (outcome.triggered_answer == outcome.triggered_label) | (outcome.triggered_answer == REFUSED)
        metrics["robust_accuracy"] = share(held, "higher")
    if outcome.certified_rows is not None and outcome.certified_against is not None:
        rows = proven_rows(outcome)
        metrics["certified_accuracy"] = share(rows >= outcome.certified_against[0], "higher")
        metrics["certified_rows_median"] = plain(float(np.median(rows)), len(rows), "rows", "higher")
    if outcome.clean_acceptance is not None and outcome.triggered_acceptance is not None:
        metrics |= detection(outcome.clean_acceptance, outcome.triggered_acceptance, rng)
    return metrics
