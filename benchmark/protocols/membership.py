"""Membership inference: can training examples be told from others of the same distribution?

Candidates are as many training rows as test rows, drawn by the seed alone; rows that the defense left out of
training are not members and are not asked about.
"""

import numpy as np
import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Membership
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.outcome import MembershipOutcome
from firstline.benchmark.core.record import Metric
from firstline.benchmark.metrics.roc_intervals import auc_interval, tpr_interval
from firstline.benchmark.protocols.bench import Bench, Measured, answered
from firstline.benchmark.protocols.numbers import estimate, plain, share

LOW_FPR = {"tpr_at_1pct_fpr": 0.01, "tpr_at_0.1pct_fpr": 0.001}


def run(bench: Bench) -> Measured:
    """Draw candidates, let the attack score them, measure."""
    attack = bench.attack
    assert isinstance(attack, Membership)
    served = bench.fit(None)
    candidates, member = _candidates(bench, served.kept)
    if not member.any() or member.all():
        raise ContractBroken("membership needs members and non-members; one of them is empty")
    bench.stage("craft")
    target = bench.target(served.system, len(candidates), bench.rng)
    aux = bench.splits.aux.to(bench.device) if bench.threat.aux else None
    asked = candidates.to(bench.device)
    mine = Data(asked.x.clone(), asked.y.clone(), asked.ids.clone())
    scores = attack.score(target, mine, aux, bench.threat, bench.rng.child("attack", attack.name))
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (len(candidates),):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ContractBroken(f"the attack returned scores of shape {shape} for {len(candidates)} candidates")
    if torch.isnan(scores).any():
        raise ContractBroken(f"the attack returned {int(torch.isnan(scores).sum())} NaN scores")
    bench.stage("score")
    answers = answered(served.score(asked.x, bench.rng.child("score"))).cpu()
    bench.stage("measure")
    outcome = MembershipOutcome(
        ids=candidates.ids.numpy(),
        member=member.numpy(),
        score=scores.detach().double().cpu().numpy(),
        queries=target.queries.numpy(),
        label=candidates.y.numpy(),
        answer=answers.numpy(),
    )
    return Measured(
        outcome=outcome,
        metrics=measure(outcome, bench.rng.numpy("bootstrap")),
        queries=int(target.queries.sum()),
        gradients=int(target.gradients.sum()),
    )


def _candidates(bench: Bench, kept: Tensor) -> tuple[Data, Tensor]:
    """Members first, then as many non-members; and which are which."""
    train, test = bench.splits.train, bench.splits.test
    half = min(len(train), len(test), max(1, bench.examples // 2))
    inside = train.rows(bench.draw("members", len(train), half))
    inside = inside.rows(torch.isin(inside.ids, kept))
    outside = test.rows(bench.draw("non-members", len(test), half))
    both = Data(
        torch.cat([inside.x, outside.x]),
        torch.cat([inside.y, outside.y]),
        torch.cat([inside.ids, outside.ids]),
    )
    # Shuffled, so that an attack can't tell members by their place.
    order = torch.randperm(len(both), generator=bench.rng.torch("draw", "candidates"))
    return both.rows(order), (torch.arange(len(both)) < len(inside))[order]


def measure(outcome: MembershipOutcome, rng: np.random.Generator) -> dict[str, Metric]:
    """Return the metrics of one attack; lower is better for the defender.

    balanced_accuracy is that of an attacker who knows how many candidates are members and calls as many of
    the highest scores so: no threshold is fitted to the truth. TPR at an FPR below one non-member is left out.
    """
    member, score = outcome.member, outcome.score
    right, n = outcome.answer == outcome.label, len(member)
    # Candidates are shuffled, so that equal scores are told apart by chance.
    guess = np.argsort(np.argsort(score, kind="stable"), kind="stable") >= n - member.sum()
    balanced = (guess[member].mean() + (~guess[~member]).mean()) / 2
    metrics = {"auc": estimate(auc_interval(score, member, rng), n, "lower")}
    for name, fpr in LOW_FPR.items():
        if fpr * (~member).sum() < 1:
            continue  # not resolvable: with so few non-members, this rate allows no false alarm at all
        metrics[name] = estimate(tpr_interval(score, member, fpr, rng), n, "lower")
    metrics["balanced_accuracy"] = plain(balanced, n, "share", "lower")
    metrics["train_accuracy"] = share(right[member], "higher")
    metrics["test_accuracy"] = share(right[~member], "higher")
    return metrics
