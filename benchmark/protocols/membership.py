"""Membership inference: can the rows that a system was fitted to be told from others of the same distribution?

The rows of the split train are cut into random halves, again and again, and a system is fitted to each half: the
two of a pair are fitted to complementary halves, so that every row is in exactly half of the systems and nothing
but chance says in which. Each system is the target once. Its shadows are all others but its own pair, which the
attacker fits with the target's defense where the threat grants it, and with none where it doesn't.

Sources: the game is that of Carlini et al. 2022, arXiv:2112.03570, section IV; shadows with the defense of the
target and canaries with wrong labels are from Aerni, Zhang & Tramèr 2024, arXiv:2404.17399; the check by rows alone
is from Das, Zhang & Tramèr 2024, arXiv:2406.16201.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor

from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.outcome import MembershipOutcome
from firstline.benchmark.core.privacy import epsilon
from firstline.benchmark.core.record import Metric
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import asked
from firstline.benchmark.metrics.dp_audit import audited_epsilon
from firstline.benchmark.metrics.roc import auc, roc_curve, tpr_at_fpr
from firstline.benchmark.metrics.target_intervals import pooled_auc, pooled_tpr
from firstline.benchmark.metrics.thresholds import balanced_accuracy, best_threshold, class_thresholds
from firstline.benchmark.protocols.bench import BATCH, Bank, Bench, Measured, answered
from firstline.benchmark.protocols.numbers import estimate, plain, share

LOW_FPR = {"1pct": 0.01, "0.1pct": 0.001}
CURVE = np.logspace(-4, 0, 33)  # the false-positive rates at which the curve is recorded
BLIND = 4  # pairs whose halves the check by rows alone looks at
FOLDS = 5
AUDITED = 20  # one in so many candidates is guessed to be a member, and one not to be

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def run(bench: Bench) -> Measured:
    """Fit the systems, let the attack score the candidates for each of them, measure."""
    attack, threat = bench.attack, bench.threat
    assert isinstance(attack, Membership)
    assert bench.bank is not None
    bank = bench.bank(True)
    own = bank
    if "architecture" in attack.needs and "defense" not in threat.grants:
        own = bench.bank(False)
    picked = _candidates(bench, bank)
    candidates = bank.data.rows(picked)
    member = members(bank.rows, len(bank.data))[:, picked]
    if len(candidates) == 0 or not (member.any(1) & ~member.all(1)).all():
        raise ContractBroken("membership needs members and non-members; one of them is empty")
    labels = _answers(bench, bank, "data", bank.data.x)[1][:, picked]
    tested = _answers(bench, bank, "test", bench.splits.test.x)[1]
    bench.stage("craft")
    scores, queries, gradients = [], torch.zeros(len(candidates), dtype=torch.int64), 0
    for number, system in enumerate(bank.systems):
        target = bench.target(system, len(candidates), bench.rng.child("shadow", str(number)))
        mine = Data(candidates.x.clone(), candidates.y.clone(), candidates.ids.clone()).to(bench.device)
        shadows = _shadows(bench, own, number, picked) if "architecture" in attack.needs else None
        rng = bench.rng.child("attack", attack.name, str(number))
        scores.append(_scored(attack.score(target, mine, shadows, threat, rng), len(candidates)))
        queries += target.queries
        gradients += int(target.gradients.sum())
    bench.stage("measure")
    outcome = MembershipOutcome(
        ids=candidates.ids.numpy(),
        label=candidates.y.numpy(),
        canary=bank.canary[picked].numpy(),
        member=member.numpy(),
        score=torch.stack(scores).numpy(),
        right=(labels == candidates.y).numpy(),
        test_right=(tested == bench.splits.test.y).numpy(),
        queries=queries.numpy(),
    )
    figures = _once(bench, bank)
    metrics, unresolved = measure(outcome, bench.rng.numpy("bootstrap"))
    if "epsilon" in figures:
        metrics["epsilon"] = plain(figures["epsilon"], len(scores), "nats", "lower")
        figures["audited_epsilon"] = audit(outcome, figures["delta"])
        figures["audit_excess"] = figures["audited_epsilon"] - figures["epsilon"]
    return Measured(
        outcome=outcome,
        metrics=metrics,
        unresolved=unresolved,
        curves=curves(outcome),
        diagnostics=figures,
        gate=judge(figures),
        queries=int(queries.sum()),
        gradients=gradients,
    )


def _once(bench: Bench, bank: Bank) -> dict[str, float]:
    """What is so for all attacks on a bank: the advantage of rows alone, and the privacy that the defense claims."""
    if not bank.memo:
        bank.memo["blind_advantage"] = blind_advantage(bank.data, members(bank.rows, len(bank.data)))
        claim = bench.stack.privacy(bench.task, bank.rows.shape[1])
        kept = None if claim is None else epsilon(claim)
        if claim is not None and kept is not None and np.isfinite(kept):
            bank.memo.update(epsilon=kept, delta=claim.delta)
    return dict(bank.memo)


def audit(outcome: MembershipOutcome, delta: float) -> float:
    """Return the epsilon that one of the targets exceeds, at 95% confidence over all of them: at least 0.

    Of each target the twentieth of the candidates with the highest scores is guessed to be members, and that with the
    lowest not to be, and each target is held to its part of the 5%. Source: Steinke, Nasr & Jagielski 2023,
    arXiv:2305.08846, for coins that are tossed by themselves; members here are a random half.
    """
    targets, count = outcome.member.shape
    each = max(1, count // AUDITED)
    found = []
    for member, score in zip(outcome.member, outcome.score, strict=True):
        order = np.argsort(score, kind="stable")
        right = int(member[order[count - each :]].sum() + (~member[order[:each]]).sum())
        found.append(audited_epsilon(count, 2 * each, right, delta, significance=0.05 / targets))
    return max(found)


def halves(rows: int, systems: int, rng: Streams) -> Tensor:
    """Return the positions (systems, rows // 2) that each system is fitted to, sorted; 2p and 2p + 1 share none.

    The first pairs are the same however many there are.
    """
    half, found = rows // 2, []
    for pair in range(systems // 2):
        order = torch.randperm(rows, generator=rng.torch("half", str(pair)))
        found += [order[:half].sort().values, order[half : 2 * half].sort().values]
    return torch.stack(found)


def members(rows: Tensor, count: int) -> Tensor:
    """Return which of count positions are among rows (k, m): (k, count) bool."""
    return torch.zeros(len(rows), count, dtype=torch.bool).scatter_(1, rows, value=True)


def with_canaries(data: Data, classes: int, count: int, rng: Streams) -> tuple[Data, Tensor]:
    """Return data with another label on count rows, each as likely as any but the true one, and which rows (n,)."""
    if count > len(data):
        raise ContractBroken(f"{count} canaries were asked for, and there are {len(data)} rows")
    order = torch.randperm(len(data), generator=rng.torch("canaries"))
    canary = torch.zeros(len(data), dtype=torch.bool)
    canary[order[:count]] = True
    shift = torch.randint(1, max(2, classes), (len(data),), generator=rng.torch("canary labels"))
    return Data(data.x, torch.where(canary, (data.y + shift) % classes, data.y), data.ids), canary


def blind_advantage(data: Data, member: Tensor) -> float:
    """Return by how many standard deviations rows alone tell members from others better than chance.

    A logistic regression of membership on inputs and labels, cross-validated, for a few of the halves member
    (k, n); the mean of its AUCs is held against that of the rank test under chance.
    """
    x = torch.cat([data.x.flatten(1).float(), torch.nn.functional.one_hot(data.y).float()], 1).numpy()
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    some = member[: 2 * BLIND : 2].numpy()
    found = []
    for mine in some:
        guess = cross_val_predict(
            LogisticRegression(C=0.01, max_iter=100), x, mine, cv=FOLDS, method="decision_function"
        )
        found.append(auc(guess, mine))
    inside = int(some[0].sum())
    outside = len(data) - inside
    deviation = np.sqrt((inside + outside + 1) / (12 * inside * outside) / len(some))
    return float((np.mean(found) - 0.5) / deviation)


def _candidates(bench: Bench, bank: Bank) -> Tensor:
    """The positions in the bank's data of the rows that are asked about, sorted: all canaries, and others."""
    canaries, others = bank.canary.nonzero().flatten(), (~bank.canary).nonzero().flatten()
    rest = max(0, bench.examples - len(canaries))
    return torch.cat([canaries, others[bench.draw("candidates", len(others), rest)]]).sort().values


def _answers(bench: Bench, bank: Bank, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (k, n, classes) and labels (k, n) of all systems for x (n, *shape), computed once per bank."""
    if name not in bank.answers:
        logits, labels = [], []
        for number, system in enumerate(bank.systems):
            parts = (part.to(bench.device, copy=True) for part in x.split(BATCH))
            noise = bench.rng.torch("shadow answers", name, str(number))
            answer = asked(system.respond, parts, noise, bench.task.classes)
            logits.append(answer.logits.cpu())
            labels.append(answered(answer.labels.cpu()))
        bank.answers[name] = torch.stack(logits), torch.stack(labels)
    return bank.answers[name]


def _shadows(bench: Bench, own: Bank, target: int, picked: Tensor) -> Shadows:
    """The attacker's systems against the target of that number: all of a bank but its pair."""
    others = torch.tensor([number for number in range(len(own.systems)) if number // 2 != target // 2])
    population = bench.splits.aux
    return Shadows(
        systems=[own.systems[number] for number in others.tolist()],
        member=members(own.rows, len(own.data))[others][:, picked],
        logits=_answers(bench, own, "data", own.data.x)[0][others][:, picked],
        population=population,
        population_logits=_answers(bench, own, "population", population.x)[0][others],
    )


def _scored(scores: object, count: int) -> Tensor:
    """Scores (count,) as float64 on the CPU. Raises ContractBroken where they can't be ranked."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (count,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ContractBroken(f"the attack returned scores of shape {shape} for {count} candidates")
    if torch.isnan(scores).any():
        raise ContractBroken(f"the attack returned {int(torch.isnan(scores).sum())} NaN scores")
    return scores.detach().double().cpu()


def untied(score: Floats, rng: np.random.Generator) -> Floats:
    """Return ranks of score (targets, n) among all of it, equal scores in an order of chance."""
    flat = score.ravel()
    ranks = np.empty(len(flat))
    ranks[np.lexsort((rng.random(len(flat)), flat))] = np.arange(len(flat))
    return ranks.reshape(score.shape)


def measure(
    outcome: MembershipOutcome, rng: np.random.Generator
) -> tuple[dict[str, Metric], dict[str, tuple[float, float]]]:
    """Return the metrics of one attack over all targets, and what can't be resolved; lower is better for the defender.

    Intervals resample targets: candidates share systems. A rate that allows less than one false alarm among all
    non-members is not resolvable: what is told of it is the share of members found without a false alarm, and with
    one, between which it lies.
    """
    metrics, unresolved = _separation(outcome.score, outcome.member, rng, "")
    if outcome.canary.any():
        canary = outcome.canary
        more, vague = _separation(outcome.score[:, canary], outcome.member[:, canary], rng, "canary_")
        metrics, unresolved = metrics | more, unresolved | vague
    metrics |= _by_threshold(outcome)
    targets = len(outcome.member)
    metrics["train_accuracy"] = plain(outcome.right[outcome.member].mean(), targets, "share", "higher")
    metrics["candidate_accuracy"] = plain(outcome.right[~outcome.member].mean(), targets, "share", "higher")
    if outcome.test_right.size:
        metrics["test_accuracy"] = share(outcome.test_right.ravel(), "higher")
    return metrics, unresolved


def _separation(
    score: Floats, member: Bools, rng: np.random.Generator, prefix: str
) -> tuple[dict[str, Metric], dict[str, tuple[float, float]]]:
    usable = member.any(1) & ~member.all(1)  # few canaries may all be on one side
    score, member = score[usable], member[usable]
    if len(member) < 2:
        return {}, {}
    finite = _finite(score)
    found = {f"{prefix}auc": estimate(pooled_auc(finite, member, rng), member.size, "lower")}
    ranks, unresolved = untied(finite, rng), {}
    rates = [(f"tpr_at_{name}_fpr", ranks, member, rate) for name, rate in LOW_FPR.items()]
    for name, order, wanted, rate in [*rates, ("tnr_at_0.1pct_fnr", -ranks, ~member, 0.001)]:
        if (hits := pooled_tpr(order, wanted, rate, rng)) is not None:
            found[prefix + name] = estimate(hits.over_targets, member.size, "lower")
        else:
            ends = (tpr_at_fpr(order.ravel(), wanted.ravel(), errors / (~wanted).sum()) for errors in (0, 1))
            unresolved[prefix + name] = (next(ends), next(ends))
    return found, unresolved


def _finite(score: Floats) -> Floats:
    """Score with infinities as numbers beyond all others."""
    return np.clip(score, np.finfo(np.float64).min / 2, np.finfo(np.float64).max / 2)


def _by_threshold(outcome: MembershipOutcome) -> dict[str, Metric]:
    """What thresholds do that were best for the attacker's other systems, of all classes and of each."""
    score, member, label = _finite(outcome.score), outcome.member, outcome.label
    targets, classes = len(score), int(label.max()) + 1
    if targets < 4:
        return {}
    overall, by_class, called = [], [], np.empty_like(member)
    for first in range(0, targets, 2):
        others = np.arange(targets) // 2 != first // 2
        known, inside = score[others].ravel(), member[others].ravel()
        cut = best_threshold(known, inside)
        cuts = class_thresholds(known, inside, np.tile(label, targets - 2), classes)[label]
        for one in (first, first + 1):
            overall.append(balanced_accuracy(score[one], member[one], cut))
            by_class.append(balanced_accuracy(score[one], member[one], cuts))
            called[one] = score[one] >= cut
    found = {
        "balanced_accuracy": plain(float(np.mean(overall)), targets, "share", "lower"),
        "balanced_accuracy_by_class": plain(float(np.mean(by_class)), targets, "share", "lower"),
        "recall": plain(called[member].mean(), targets, "share"),
    }
    if called.any():
        found["precision"] = plain(member[called].mean(), targets, "share", "lower")
    return found


def curves(outcome: MembershipOutcome) -> dict[str, list[tuple[float, float]]]:
    """Return the pooled ROC curve at false-positive rates on a logarithmic scale: the highest TPR up to each."""
    curve = roc_curve(_finite(outcome.score).ravel(), outcome.member.ravel())
    place = np.searchsorted(curve.fpr, CURVE, side="right") - 1
    return {"roc": list(zip(CURVE.tolist(), curve.tpr[place].tolist(), strict=True))}
