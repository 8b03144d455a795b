"""Evasion: which inputs, moved within the threat, does the system get wrong?

An example counts as robust when the clean input is answered rightly and the adversarial one is answered
rightly or refused. Examples are drawn by the seed alone, so that every defense meets the same ones.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.geometry import Region, distance, violation
from firstline.benchmark.core.outcome import EvasionOutcome
from firstline.benchmark.core.record import Gate, Metric
from firstline.benchmark.core.system import INVALID, REFUSED
from firstline.benchmark.core.target import checked
from firstline.benchmark.protocols.bench import Bench, Measured, Served, answered
from firstline.benchmark.protocols.numbers import plain, share

# Crafting and blind scoring answer the same inputs: a larger difference means that the system behaves
# differently when it is watched. A stochastic system differs by its own noise. Source: EVALUATION, check 7.
BLIND_GAP = 0.02


def run(bench: Bench) -> Measured:
    """Attack, check the threat again, score blindly, measure."""
    attack = bench.attack
    assert isinstance(attack, Evasion)
    served = bench.fit(None)
    test = bench.splits.test
    drawn = test.rows(bench.draw("test", len(test), bench.examples)).to(bench.device)
    if len(drawn) == 0:
        raise ContractBroken("the task has no test example to attack")
    bench.stage("craft")
    target = bench.target(served.system, len(drawn), bench.rng)
    space, threat = bench.task.space, bench.threat
    found = attack.perturb(
        target, drawn.x.clone(), drawn.y.clone(), threat, bench.rng.child("attack", attack.name)
    )
    if not isinstance(found, Tensor):
        raise ContractBroken(f"the attack returned a {type(found).__name__} instead of a tensor")
    found = found.detach().to(drawn.x)
    problem = violation(found, drawn.x, space, threat.goal, threat.eps)
    if problem:
        raise ContractBroken(f"the attack {problem}")
    adversarial = Region(drawn.x, space, threat.goal, threat.eps).snap(found)
    watched = _watched(served, adversarial, bench)
    bench.stage("score")
    answers = served.score(torch.cat([drawn.x, adversarial]), bench.rng.child("score"))
    clean, answer = answered(answers[: len(drawn)]), answers[len(drawn) :]
    bench.stage("measure")
    outcome = EvasionOutcome(
        ids=drawn.ids.cpu().numpy(),
        label=drawn.y.cpu().numpy(),
        clean_answer=clean.cpu().numpy(),
        adversarial_answer=answer.cpu().numpy(),
        distance=distance(adversarial, drawn.x, threat.goal).double().cpu().numpy(),
        queries=target.queries.numpy(),
        gradients=target.gradients.numpy(),
    )
    gap = float((watched != answer.cpu()).float().mean())
    return Measured(
        outcome=outcome,
        metrics=measure(outcome),
        diagnostics={
            "blind_gap": gap,
            "invalid_answers": float((outcome.adversarial_answer == INVALID).mean()),
            "stochastic": float(served.system.stochastic),
        },
        gate=_gate(gap, served.system.stochastic, outcome),
        queries=int(target.queries.sum()),
        gradients=int(target.gradients.sum()),
    )


def robust(outcome: EvasionOutcome) -> NDArray[np.bool_]:
    """Return which examples are right when clean, and right or refused when attacked, (n,)."""
    held = (outcome.adversarial_answer == outcome.label) | (outcome.adversarial_answer == REFUSED)
    return np.asarray((outcome.clean_answer == outcome.label) & held)


def measure(outcome: EvasionOutcome) -> dict[str, Metric]:
    """Return the metrics of one attack on one system."""
    right, held = outcome.clean_answer == outcome.label, robust(outcome)
    n = len(right)
    metrics = {
        "clean_accuracy": share(right, "higher"),
        "robust_accuracy": share(held, "higher"),
        "clean_rejection_rate": share(outcome.clean_answer == REFUSED, "lower"),
        "mean_distance": plain(outcome.distance.mean(), n, "input units"),
        "queries_per_example": plain(outcome.queries.mean(), n, "queries"),
        "gradients_per_example": plain(outcome.gradients.mean(), n, "gradients"),
    }
    if right.any():
        metrics["attack_success_rate"] = share(~held[right], "lower")
    return metrics


@torch.no_grad()
def _watched(served: Served, x: Tensor, bench: Bench) -> Tensor:
    """Answers of the system in the attack's own process, which saw the gradients."""
    noise, classes = bench.rng.torch("watched"), bench.task.classes
    parts = [checked(served.system.respond, part.clone(), noise, classes) for part in x.split(512)]
    return torch.cat([part.labels for part in parts]).cpu()


def _gate(gap: float, stochastic: bool, outcome: EvasionOutcome) -> Gate:
    reasons = []
    if gap > BLIND_GAP and not stochastic:
        reasons.append(
            f"{gap:.1%} of the answers differ between crafting and blind scoring (limit {BLIND_GAP:.0%}): "
            "the system behaves differently when it is attacked"
        )
    verdict = "fail" if reasons else "pass"
    invalid = float((outcome.adversarial_answer == INVALID).mean())
    if invalid:
        reasons.append(
            f"{invalid:.1%} of the adversarial inputs got NaN or infinite logits; they count as errors"
        )
        verdict = "fail" if verdict == "fail" else "warn"
    return Gate(verdict=verdict, reasons=reasons)  # type: ignore[arg-type]
