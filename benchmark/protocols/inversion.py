"""Inversion: what did the training inputs of each class look like?

The system is fitted to all of train. The attacker hands in one reconstruction per class. Inputs of its own, where the
threat grants them, come without labels: what a class looks like is what it wants to find out. An evaluator, which was
fitted to the split test alone, that the system never saw and the attacker never gets, says whose they are: linear
discriminants of contrast-normalised inputs, so that it has neither the system's architecture nor its training
inputs. A second one takes inputs as they are. A picture that is close to the average of all people is close to
everybody: distances are reported beside whom it is taken for, and beside what the mean input alone gets.

Sources: the question is that of Fredrikson, Jha & Ristenpart 2015, CCS; an evaluation model as in Zhang et al. 2020,
arXiv:1911.07135, section 5; distances to the nearest training input and in features as in Kahla et al. 2022,
arXiv:2203.06569.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from firstline.benchmark.core.contracts import Inversion
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.outcome import InversionOutcome
from firstline.benchmark.core.record import Metric
from firstline.benchmark.metrics.images import psnr, ssim
from firstline.benchmark.protocols import attribute, updates
from firstline.benchmark.protocols.bench import Bench, Measured, answered
from firstline.benchmark.protocols.numbers import plain, share
from firstline.benchmark.protocols.pictures import LEVELS, Levels, compared, in_steps

COMPONENTS = 100  # principal components that the evaluator looks at, at most
WINDOW = 11  # of SSIM: smaller images have none
FITTED = 5000  # rows that the evaluators are fitted to, and tested on, at most
TOP = 5
UNKNOWN = -1  # the label of an input of which nobody says what it shows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluator:
    """Linear discriminants of the principal components of inputs; plain says that it sees brightness and contrast."""

    components: PCA
    discriminants: LinearDiscriminantAnalysis
    classes: int
    plain: bool

    def features(self, x: Floats) -> Floats:
        """Return the components (n, k) of inputs x (n, *shape)."""
        return np.asarray(self.components.transform(_seen(x, self.plain)), np.float64)

    def scores(self, x: Floats) -> Floats:
        """Return a score (n, classes) for x (n, *shape); the highest is the answer, classes it never saw have none."""
        found = np.full((len(x), self.classes), -np.inf)
        seen = self.discriminants.classes_
        told = self.discriminants.decision_function(self.features(x))
        found[:, seen] = told if len(seen) > 2 else np.stack([-told, told], 1)
        return found


def evaluator(data: Data, classes: int, *, plain: bool = False) -> Evaluator:
    """Return an evaluator fitted to data. Raises ContractBroken where data has fewer than two classes."""
    x, y = data.x[:FITTED].double().cpu().numpy(), data.y[:FITTED].cpu().numpy()
    if len(np.unique(y)) < 2:
        raise ContractBroken("an evaluator needs test examples of two classes at least")
    flat = _seen(x, plain)
    components = PCA(min(COMPONENTS, *(side - 1 for side in flat.shape)), random_state=0).fit(flat)
    discriminants = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return Evaluator(components, discriminants.fit(components.transform(flat), y), classes, plain)


def _seen(x: Floats, plain: bool) -> Floats:
    return x.reshape(len(x), -1) if plain else normalised(x)


def normalised(x: Floats) -> Floats:
    """Return inputs (n, *shape) flat, each less its mean and of length 1: contrast and brightness are gone."""
    flat = x.reshape(len(x), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(np.divide(flat, length, out=np.zeros_like(flat), where=length > 0), np.float64)


def run(bench: Bench) -> Measured:
    """Measure what the threat's goal names: inputs of classes, an attribute of people, or batches behind updates."""
    return {"classes": reconstruct, "attribute": attribute.run, "updates": updates.run}[bench.threat.goal](
        bench
    )


def reconstruct(bench: Bench) -> Measured:
    """Let the attacker reconstruct, and let the evaluator say whom."""
    attack, task = bench.attack, bench.task
    assert isinstance(attack, Inversion)
    served = bench.fit(None)
    train, test = bench.splits.train, bench.splits.test
    if not train.x.is_floating_point():
        raise ContractBroken("reconstructions are judged as inputs of numbers; this task has none")
    bench.stage("craft")
    aux = _unlabelled(bench.splits.aux)
    door = replace(bench, splits=replace(bench.splits, aux=aux))
    target = door.target(served.system, None, bench.rng)
    lent = _unlabelled(aux).to(bench.device) if bench.threat.aux else None
    found = attack.reconstruct(target, lent, bench.threat, bench.rng.child("attack", attack.name))
    levels = _levels(found, bench)
    low, high = task.space.box(train.x)
    made = low + torch.from_numpy(levels).to(train.x) / LEVELS * (high - low)
    bench.stage("score")
    drawn = test.rows(bench.draw("test", len(test), bench.examples))
    answers = answered(served.score(torch.cat([made, drawn.x]), bench.rng.child("score")).cpu())
    bench.stage("measure")
    judge_, plain_judge = evaluator(test, task.classes), evaluator(test, task.classes, plain=True)
    x, y = train.x.double().cpu().numpy(), train.y.cpu().numpy()
    means = np.stack([x[y == c].mean(0) if (y == c).any() else x.mean(0) for c in range(task.classes)])
    pictures, label = made.double().numpy(), np.arange(task.classes)
    width = float((high - low).max())
    has_ssim = pictures.ndim == 4 and min(pictures.shape[2:]) >= WINDOW
    distance, closest = _nearest(pictures, x, y)
    outcome = InversionOutcome(
        label=label,
        reconstruction=levels,
        likeness=likeness(pictures, means),
        evaluator_score=judge_.scores(pictures),
        plain_score=plain_judge.scores(pictures),
        psnr=psnr(pictures, means, data_range=width),
        ssim=ssim(pictures, means, data_range=width) if has_ssim else None,
        nearest_distance=distance,
        victim_answer=answers[: task.classes].numpy(),
        victim_right=(answers[task.classes :] == drawn.y).numpy(),
    )
    average = np.broadcast_to(x.mean(0), means.shape)
    diagnostics = {
        **target.notes,
        "victim_accuracy": float(outcome.victim_right.mean()),
        "evaluator_error": float((judge_.scores(x[:FITTED]).argmax(1) != y[:FITTED]).mean()),
        "feature_distance": _apart(judge_, pictures, means),
        "mean_image_evaluator_accuracy": float(_first(judge_.scores(average)).mean()),
        "mean_image_feature_distance": _apart(judge_, average, means),
        "mean_image_ncc": float(np.diag(likeness(average, means)).mean()),
        "mean_image_psnr": float(psnr(average, means, data_range=width).mean()),
        "mean_image_distance": float(_nearest(average, x, y)[0].mean()),
        "class_mean_evaluator_accuracy": float(_first(judge_.scores(means)).mean()),
    }
    diagnostics = {name: value for name, value in diagnostics.items() if np.isfinite(value)}
    return Measured(
        outcome=outcome,
        metrics=measure(outcome),
        diagnostics=diagnostics,
        gate=judge(diagnostics),
        queries=int(target.queries.sum()),
        gradients=int(target.gradients.sum()),
        picture=compared(in_steps(train.x[torch.from_numpy(closest)], task.space), levels),
    )


def _unlabelled(data: Data) -> Data:
    """A copy of data in which nobody says what an input shows."""
    return Data(data.x.clone(), torch.full_like(data.y, UNKNOWN), data.ids.clone())


def _levels(found: object, bench: Bench) -> Levels:
    """Reconstructions in steps of the input space. Raises ContractBroken where they are none."""
    space, wanted = bench.task.space, (bench.task.classes, *bench.task.space.shape)
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ContractBroken(f"the attack returned reconstructions of shape {shape}, not {wanted}")
    made = found.detach().double().cpu()
    if problem := space.check(made):
        raise ContractBroken(f"the attack's reconstructions have {problem}")
    return in_steps(space.round(made), space)


def likeness(pictures: Floats, means: Floats) -> Floats:
    """Return the normalised cross-correlations (n, classes) of pictures (n, *shape) with means (classes, *shape)."""
    return np.asarray(np.clip(normalised(pictures) @ normalised(means).T, -1, 1), np.float64)


def _nearest(pictures: Floats, x: Floats, y: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """How far, in l2, the closest training input of its class (of all, where it has none) is, and which row that is."""
    found, rows = np.empty(len(pictures)), np.empty(len(pictures), np.int64)
    for c, picture in enumerate(pictures):
        own = np.flatnonzero(y == c) if (y == c).any() else np.arange(len(x))
        squares = ((x[own] - picture) ** 2).reshape(len(own), -1).sum(1)
        rows[c], found[c] = own[squares.argmin()], np.sqrt(squares.min())
    return found, rows


def _apart(judge_: Evaluator, a: Floats, b: Floats) -> float:
    """The mean l2 distance of the evaluator's features of a and b (n, *shape)."""
    return float(np.linalg.norm(judge_.features(a) - judge_.features(b), axis=1).mean())


def measure(outcome: InversionOutcome) -> dict[str, Metric]:
    """Return the metrics of one attack over all classes."""
    own, count = outcome.label, len(outcome.label)
    found = {
        "evaluator_accuracy": share(_first(outcome.evaluator_score), "lower"),
        "plain_evaluator_accuracy": share(_first(outcome.plain_score), "lower"),
        "identification": share(_first(outcome.likeness), "lower"),
        "victim_agreement": share(outcome.victim_answer == own, "neither"),
        "ncc": plain(float(np.diag(outcome.likeness).mean()), count, "correlation", "lower"),
        "ncc_other": plain(_others(outcome.likeness), count, "correlation"),
        "nearest_distance": plain(float(outcome.nearest_distance.mean()), count, "input units", "higher"),
    }
    if count > TOP:
        found["evaluator_top5"] = share(_first(outcome.evaluator_score, TOP), "lower")
    if np.isfinite(outcome.psnr).all():
        found["psnr"] = plain(float(outcome.psnr.mean()), count, "decibels", "lower")
    if outcome.ssim is not None:
        found["ssim"] = plain(float(outcome.ssim.mean()), count, "similarity", "lower")
    if outcome.victim_right.size:
        found["accuracy"] = share(outcome.victim_right, "higher")
    return found


def _first(scores: Floats, places: int = 1) -> NDArray[np.bool_]:
    """Which rows of scores (classes, classes) have their own class among the highest so many; a tie counts against it.

    A picture that is anybody's is nobody's.
    """
    own = np.diag(scores)[:, None]
    return np.asarray((scores >= own).sum(1) <= places, np.bool_)


def _others(alike: Floats) -> float:
    """The mean likeness with the classes that a picture is not of."""
    count = len(alike)
    return float((alike.sum() - np.trace(alike)) / max(1, count * (count - 1)))
