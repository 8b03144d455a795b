"""Evasion: which inputs, moved within the threat, does the system get wrong?

An example counts as robust when the clean input is answered rightly and the adversarial one is answered
rightly or refused. Examples are drawn by the seed alone, so that every defense meets the same ones.
"""

from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstline.benchmark.core.contracts import Evasion, MinimalNorm
from firstline.benchmark.core.corruptions import region_of
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.geometry import SLACK, Region, violation
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.outcome import EvasionOutcome
from firstline.benchmark.core.record import Metric
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import INVALID, REFUSED
from firstline.benchmark.core.target import Target, observed
from firstline.benchmark.metrics.resilience import drop
from firstline.benchmark.protocols.bench import Bench, Measured, Served, answered
from firstline.benchmark.protocols.certificate import broken_certificates, certified, proven
from firstline.benchmark.protocols.detection import acceptances, detection, monitoring
from firstline.benchmark.protocols.gate import EXAMPLES, NORMS, Probe, figures, honesty, noisy
from firstline.benchmark.protocols.numbers import plain, share

NEVER = float("inf")  # the distance at which an example breaks that nothing breaks
CURVE = 4.0  # how far a security curve reaches, in radii of the threat model
POINTS = 41  # of a security curve


def run(bench: Bench) -> Measured:
    """Attack, check the threat again, score blindly, probe the gradients, measure."""
    attack = bench.attack
    assert isinstance(attack, Evasion)
    served = bench.fit(None)
    test = bench.splits.test
    drawn = test.rows(bench.draw("test", len(test), bench.examples)).to(bench.device)
    if len(drawn) == 0:
        raise ContractBroken("the task has no test example to attack")
    bench.stage("craft")
    target = bench.target(served.system, len(drawn), bench.rng)
    allowed = region_of(bench.threat, drawn.x, bench.task.space, bench.rng)
    adversarial = crafted(attack, target, drawn, allowed, bench)
    watched, usual = (bench.watched(served.system, x) for x in (adversarial, drawn.x))
    bench.stage("score")
    answers = served.score(torch.cat([drawn.x, adversarial]), bench.rng.child("score"))
    clean, answer = answered(answers[: len(drawn)]), answers[len(drawn) :]
    bench.stage("gate")
    proved = certified(served.system, drawn.x, bench.threat.goal, bench.rng.torch("certify"))
    shared = probed(served, drawn, clean.to(drawn.y.device), bench)
    bench.stage("measure")
    _none_idle(target, adversarial, allowed)
    far = allowed.distance(adversarial).double().cpu()
    gap = float((watched.labels.cpu() != answer.cpu()).float().mean())
    minimal = None
    if isinstance(attack, MinimalNorm):
        minimal = _minimal(far, clean.cpu(), answer.cpu(), drawn.y.cpu())
        # Within the threat's radius the attacker shows what it found, beyond it the clean input.
        beyond = minimal > bench.threat.eps * (1 + SLACK) + 1e-6
        answer = torch.where(beyond, clean.cpu(), answer.cpu())
        far = torch.where(beyond, 0.0, far)
    outcome = EvasionOutcome(
        ids=drawn.ids.cpu().numpy(),
        label=drawn.y.cpu().numpy(),
        clean_answer=clean.cpu().numpy(),
        adversarial_answer=answer.cpu().numpy(),
        distance=far.numpy(),
        queries=target.queries.numpy(),
        gradients=target.gradients.numpy(),
        minimal_distance=None if minimal is None else minimal.numpy(),
        certified_answer=None if proved is None else proved.labels.cpu().numpy(),
        certified_radius=None if proved is None else proved.radii.double().cpu().numpy(),
        clean_acceptance=acceptances(usual),
        adversarial_acceptance=acceptances(watched),
        flagged_at=target.flagged_at.numpy() if target.watched else None,
        honest_flagged=_honest(served, drawn.x).cpu().numpy() if target.watched else None,
    )
    own = {
        "invalid_answers": float((outcome.adversarial_answer == INVALID).mean()),
        "stochastic": float(served.system.stochastic),
        **_beside_noise(served, drawn, outcome, bench),
    }
    if not served.system.stochastic:  # whose answers differ by its own noise
        own["blind_gap"] = gap
    if proved is not None:
        own["broken_certificates"] = float(broken_certificates(outcome).mean())
    diagnostics = {**target.notes, **shared, **own}
    return Measured(
        outcome=outcome,
        metrics=measure(outcome, bench.threat.eps, bench.rng.numpy("bootstrap")),
        curves=curves(outcome, bench.threat.eps),
        diagnostics={name: value for name, value in diagnostics.items() if np.isfinite(value)},
        gate=judge(diagnostics),
        queries=int(target.queries.sum()),
        gradients=int(target.gradients.sum()),
    )


def crafted(attack: Evasion, target: Target, drawn: Data, allowed: Region, bench: Bench) -> Tensor:
    """What the attack returns, checked against the threat model and as it will be scored."""
    space, threat = bench.task.space, bench.threat
    region = region_of(threat, drawn.x.clone(), space, bench.rng)
    rng = bench.rng.child("attack", attack.name)
    minimal = isinstance(attack, MinimalNorm)
    craft = attack.minimise if isinstance(attack, MinimalNorm) else attack.perturb
    found = craft(target, drawn.x.clone(), drawn.y.clone(), region, rng)
    if not isinstance(found, Tensor):
        raise ContractBroken(f"the attack returned a {type(found).__name__} instead of a tensor")
    found = found.detach().to(drawn.x)
    problem = violation(found, drawn.x, space, threat.goal, NEVER) if minimal else allowed.violation(found)
    if problem:
        raise ContractBroken(f"the attack {problem}")
    if minimal:
        return space.round(found) if space.movable(found) is None else found
    return allowed.snap(found)


def _minimal(far: Tensor, clean: Tensor, answer: Tensor, y: Tensor) -> Tensor:
    """The distance (n,) at which each example breaks."""
    wrong = (answer != y) & (answer != REFUSED)
    return torch.where(clean != y, 0.0, torch.where(wrong, far, NEVER))


def _none_idle(target: Target, found: Tensor, allowed: Region) -> None:
    """Raise ContractBroken for an attack that did not run: its cell says nothing about the system.

    One that asked and moved nothing met a system that stands, or whose gradients are lost to it.
    """
    asked_anything = bool((target.queries + target.gradients).any())
    if asked_anything or bool((found != allowed.centre).any()) or target.threat.goal not in NORMS:
        return
    if bool((allowed.snap(allowed.random(Streams(0).torch("any"))) != allowed.centre).any()):
        raise ContractBroken(
            "the attack moved no input and asked nothing: it did not run, which says nothing about the defense; "
            "return the best try where nothing fools the system"
        )


def probed(served: Served, drawn: Data, clean: Tensor, bench: Bench) -> dict[str, float]:
    """Return the gate's figures of a system under the cell's threat model; its other cells find them in the memo."""
    name = f"{bench.threat.goal}:{bench.threat.amount}"
    if name not in served.memo:
        right = (clean == drawn.y).nonzero().squeeze(1)
        order = torch.randperm(len(right), generator=bench.rng.torch("gate examples"))
        some = drawn.rows(right[order[:EXAMPLES].to(right.device)].sort().values)
        task, rng = bench.task, bench.rng.child("gate")
        found: dict[str, float] = {}
        if len(some) and bench.threat.goal != "corruption":  # which has no ball to climb in
            probe = Probe(served.system, some, bench.threat, task.space, task.classes, rng)
            found = figures(probe) | honesty(probe, drawn, clean)
        served.memo[name] = found
    return served.memo[name]


def _beside_noise(served: Served, drawn: Data, outcome: EvasionOutcome, bench: Bench) -> dict[str, float]:
    """The share of the examples that random noise breaks and this attack does not."""
    held = torch.from_numpy(robust(outcome)).to(drawn.y.device)
    if bench.threat.goal not in NORMS or bench.threat.eps == 0 or not bool(held.any()):
        return {}
    task = bench.task
    stands = drawn.rows(held)
    probe = Probe(served.system, stands, bench.threat, task.space, task.classes, bench.rng.child("noise"))
    return {"weaker_than_noise": float(noisy(probe).sum()) / len(drawn)}


def robust(outcome: EvasionOutcome) -> NDArray[np.bool_]:
    """Return which examples are right when clean, and right or refused when attacked, (n,)."""
    held = (outcome.adversarial_answer == outcome.label) | (outcome.adversarial_answer == REFUSED)
    return np.asarray((outcome.clean_answer == outcome.label) & held)


def measure(outcome: EvasionOutcome, eps: float, rng: np.random.Generator) -> dict[str, Metric]:
    """Return the metrics of one attack on one system, eps being the threat model's radius; rng resamples."""
    right, held = outcome.clean_answer == outcome.label, robust(outcome)
    n = len(right)
    metrics = {
        "clean_accuracy": share(right, "higher"),
        "robust_accuracy": share(held, "higher"),
        "accuracy_drop": plain(drop(right.mean(), held.mean()), n, "share", "lower"),
        "clean_rejection_rate": share(outcome.clean_answer == REFUSED, "lower"),
        "mean_distance": plain(outcome.distance.mean(), n, "input units"),
        "queries_per_example": plain(outcome.queries.mean(), n, "queries"),
        "gradients_per_example": plain(outcome.gradients.mean(), n, "gradients"),
    }
    if right.any():
        metrics["attack_success_rate"] = share(~held[right], "lower")
    if outcome.certified_radius is not None:
        metrics["certified_accuracy"] = share(proven(outcome) >= eps, "higher")
    far = outcome.minimal_distance
    if far is not None and eps > 0:
        area = np.minimum(far, CURVE * eps).mean() / (CURVE * eps)
        metrics["curve_area"] = plain(area, n, "share", "higher")
        if right.any() and np.isfinite(median := np.median(far[right])):
            metrics["median_minimal_distance"] = plain(median, int(right.sum()), "input units", "higher")
    if outcome.clean_acceptance is not None and outcome.adversarial_acceptance is not None:
        moved = outcome.distance > 0
        metrics |= detection(outcome.clean_acceptance, outcome.adversarial_acceptance[moved], rng)
    if outcome.flagged_at is not None and outcome.honest_flagged is not None:
        metrics |= monitoring(outcome.flagged_at, outcome.queries, outcome.honest_flagged)
    return metrics


def curves(outcome: EvasionOutcome, eps: float) -> dict[str, list[tuple[float, float]]]:
    """Return the security curve of a minimal-norm attack: the accuracy that is left at each radius."""
    far = outcome.minimal_distance
    if far is None or eps == 0:
        return {}
    radii = np.linspace(0, CURVE * eps, POINTS)
    return {"robust_accuracy": [(float(r), float((far > r * (1 + SLACK)).mean())) for r in radii]}


def _honest(served: Served, x: Tensor) -> Tensor:
    """Which of clean inputs x (n, *shape), each asked once, a monitor that has seen nothing else flags, (n,)."""
    return observed(deepcopy(served.system), x)
