"""Extraction: how well does a copy, made from answers to queries, do what the system does?

The system is fitted to all of train. The thief asks it, every query is charged to one budget, and what comes back is
a network of its own. That copy and the system are compared on test examples, where a copy that only learned the task
agrees too, and on uniform inputs, where only one that learned the system does (Tramèr et al. 2016,
arXiv:1609.02943, section 4.1: 1 - R_test and 1 - R_unif). Adversarial examples made on the copy are shown to the
system beside noise of the same size, which a system may not stand either (Papernot et al. 2017, arXiv:1602.02697).
"""

from contextlib import suppress
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Extraction
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.outcome import Bools, ExtractionOutcome, Ints
from firstline.benchmark.core.record import Metric
from firstline.benchmark.core.rng import isolated
from firstline.benchmark.core.system import REFUSED, Response, System
from firstline.benchmark.core.target import observed
from firstline.benchmark.protocols import ownership
from firstline.benchmark.protocols.bench import BATCH, Bench, Measured, Served, answered
from firstline.benchmark.protocols.numbers import plain, share

UNIFORM = 1000  # uniform inputs that the two are compared on


def run(bench: Bench) -> Measured:
    """Let the thief ask and copy, then compare system and copy."""
    attack = bench.attack
    assert isinstance(attack, Extraction)
    served = bench.fit(None)
    test = bench.splits.test
    drawn = test.rows(bench.draw("test", len(test), bench.examples))
    if len(drawn) == 0:
        raise ContractBroken("the task has no test example to compare system and copy on")
    bench.stage("craft")
    target = bench.target(served.system, None, bench.rng)
    aux = bench.splits.aux
    lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone()).to(bench.device) if bench.threat.aux else None
    copy = attack.extract(target, lent, bench.threat, bench.rng.child("attack", attack.name))
    uniform = bench.task.space.uniform(test.x, UNIFORM, bench.rng.torch("uniform"))
    copied = copy_logits(copy, torch.cat([drawn.x, uniform]), bench)
    moved = _moved(copy, drawn, bench)
    bench.stage("score")
    asked = torch.cat([drawn.x, uniform, *(moved or ())])
    answers = answered(served.score(asked, bench.rng.child("score")).cpu())
    victim, at_random, *shown = answers.split([len(drawn), UNIFORM, *(len(part) for part in moved or ())])
    bench.stage("verify")
    tested = ownership.tested(bench, served, Copied(copy))
    bench.stage("measure")
    own, others = copied.argmax(1).split([len(drawn), UNIFORM])
    apart = _variation(served, torch.cat([drawn.x, uniform]), copied, bench)
    outcome = ExtractionOutcome(
        ids=drawn.ids.numpy(),
        label=drawn.y.numpy(),
        victim_answer=victim.numpy(),
        copy_answer=own.numpy(),
        uniform_victim_answer=at_random.numpy(),
        uniform_copy_answer=others.numpy(),
        queries=target.queries.numpy(),
        variation=None if apart is None else apart[: len(drawn)].numpy(),
        uniform_variation=None if apart is None else apart[len(drawn) :].numpy(),
        transferred_answer=shown[0].numpy() if shown else None,
        noise_answer=shown[1].numpy() if shown else None,
        flagged_at=target.flagged_at.numpy() if target.watched else None,
        honest_flagged=_honest(served.system, drawn.x.to(bench.device)) if target.watched else None,
        copy_p=None if tested is None else np.array([tested.copy]),
        own_p=None if tested is None else np.array([tested.own]),
        innocent_p=None if tested is None else np.array(tested.innocents),
    )
    diagnostics = {**target.notes, **_parameters(copy, served.system)}
    if tested is not None:
        diagnostics["verification_queries"] = float(tested.queries)
    diagnostics["constant_agreement"] = _most_frequent(outcome.victim_answer)
    diagnostics["uniform_constant_agreement"] = _most_frequent(outcome.uniform_victim_answer)
    return Measured(
        outcome=outcome,
        metrics=measure(outcome),
        diagnostics=diagnostics,
        gate=judge(diagnostics),
        queries=int(target.queries.sum()),
        gradients=int(target.gradients.sum()),
    )


class Copied(System):
    """A copy as whoever stole it deploys it: as it is."""

    def __init__(self, copy: nn.Module) -> None:
        super().__init__()
        self.copy = copy

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Return the copy's logits."""
        with isolated(0):
            return Response(self.copy(_typed(self.copy, x)))


def copy_logits(copy: object, x: Tensor, bench: Bench) -> Tensor:
    """Return what a copy says about x (n, *shape), (n, classes) float64 on the CPU. Raises ContractBroken where it can't."""
    if not isinstance(copy, nn.Module):
        raise ContractBroken(f"the attack returned a {type(copy).__name__} instead of a module")
    copy.eval()
    found = []
    with torch.no_grad(), isolated(0):
        for part in x.split(BATCH):
            logits = copy(_typed(copy, part.to(bench.device, copy=True)))
            if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(part), bench.task.classes):
                shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ContractBroken(
                    f"the copy answers {len(part)} inputs with {shape}, not logits {(len(part), bench.task.classes)}"
                )
            found.append(logits.double().cpu())
    logits = torch.cat(found)
    if torch.isnan(logits).any():
        raise ContractBroken(f"the copy answers {int(torch.isnan(logits).any(1).sum())} inputs with NaN")
    return logits


def _typed(copy: nn.Module, x: Tensor) -> Tensor:
    """X as the copy's own weights are typed: equations are solved in float64."""
    weight = next((p for p in copy.parameters() if p.is_floating_point()), None)
    return x if weight is None or not x.is_floating_point() else x.to(weight.dtype)


def _moved(copy: nn.Module, drawn: Data, bench: Bench) -> tuple[Tensor, Tensor] | None:
    """Test examples moved against the copy by one step of signs, and in signs of chance; None where they can't be.

    A copy without gradients, such as a tree, moves nothing.
    """
    eps = bench.task.eps.get("linf")
    if eps is None or not drawn.x.is_floating_point():
        return None
    data = drawn.to(bench.device)
    region = Region(data.x, bench.task.space, "linf", eps)
    leaf = data.x.clone().requires_grad_()
    gradient = None
    with suppress(RuntimeError), torch.enable_grad(), isolated(0):
        loss = nn.functional.cross_entropy(copy(_typed(copy, leaf)), data.y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if gradient is None:
        return None
    signs = torch.randint(0, 2, data.x.shape, generator=bench.rng.torch("noise")).to(data.x) * 2 - 1
    return tuple(  # type: ignore[return-value]
        region.snap(region.project(data.x + eps * way)).cpu() for way in (gradient.sign(), signs)
    )


def _variation(served: Served, x: Tensor, copied: Tensor, bench: Bench) -> Tensor | None:
    """Total variation distances (n,) of the two answers' probabilities; None where the thief is told no scores."""
    if "scores" not in bench.threat.grants:
        return None
    victim = bench.watched(served.system, x).logits.double().cpu()
    return (torch.softmax(victim, 1) - torch.softmax(copied, 1)).abs().sum(1).nan_to_num(nan=2.0) / 2


def _honest(system: System, x: Tensor) -> Bools:
    """Which of x (n, *shape), asked by somebody honest, the monitor flags."""
    return np.asarray(observed(deepcopy(system), x).cpu().numpy(), np.bool_)


def _parameters(copy: nn.Module, system: System) -> dict[str, float]:
    """How far the weights of the copy are from the system's, relative to these, where both are one linear layer.

    Weights that are moved by the same vector for all classes answer the same, so their mean over classes is taken off.
    """
    found = []
    for module in (copy, system):
        linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
        if len(linear) != 1 or sum(p.numel() for p in module.parameters()) != sum(
            p.numel() for p in linear[0].parameters()
        ):
            return {}
        weight = torch.cat(
            [p.detach().double().cpu().reshape(len(linear[0].weight), -1) for p in linear[0].parameters()], 1
        )
        found.append(weight - weight.mean(0))
    mine, theirs = found
    if mine.shape != theirs.shape:
        return {}
    return {"parameter_error": float((mine - theirs).norm() / theirs.norm().clamp_min(1e-300))}


def _most_frequent(answers: Ints) -> float:
    """The share of the most frequent answer: how often a copy that always says it agrees."""
    return float(np.unique(answers, return_counts=True)[1].max() / len(answers))


def measure(outcome: ExtractionOutcome) -> dict[str, Metric]:
    """Return the metrics of one copy; what helps the thief is bad for the defender.

    A refused or invalid answer of the system (-1, -2) agrees with nothing.
    """
    agreed = outcome.victim_answer == outcome.copy_answer
    found = {
        "accuracy": share(outcome.victim_answer == outcome.label, "higher"),
        "copy_accuracy": share(outcome.copy_answer == outcome.label, "lower"),
        "agreement": share(agreed, "lower"),
        "uniform_agreement": share(outcome.uniform_victim_answer == outcome.uniform_copy_answer, "lower"),
        "queries": plain(float(outcome.queries.sum()), 1, "queries", "higher"),
    }
    for name in ("variation", "uniform_variation"):
        values = getattr(outcome, name)
        if values is not None:
            found[name] = plain(float(values.mean()), len(values), "share", "higher")
    right = outcome.victim_answer == outcome.label
    if outcome.transferred_answer is not None and outcome.noise_answer is not None and right.any():
        found["transfer"] = share(_errs(outcome.transferred_answer, outcome.label)[right], "lower")
        found["noise_error"] = share(_errs(outcome.noise_answer, outcome.label)[right], "neither")
    if outcome.flagged_at is not None and outcome.honest_flagged is not None:
        found["flagged_honest_queries"] = share(outcome.honest_flagged, "lower")
        first = int(outcome.flagged_at[0])
        found["flagged_attacks"] = plain(float(first > 0), 1, "share", "higher")
        if first:
            found["queries_until_flagged"] = plain(first, 1, "queries", "lower")
    if outcome.copy_p is not None and outcome.own_p is not None and outcome.innocent_p is not None:
        found |= ownership.measure(outcome.copy_p, outcome.own_p, outcome.innocent_p)
    return found


def _errs(answer: Ints, label: Ints) -> Bools:
    """Which answers are wrong and not refused; what is no number is wrong."""
    return np.asarray((answer != label) & (answer != REFUSED), np.bool_)
