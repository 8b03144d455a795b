"""Inversion: what did the training inputs of each class look like?

The system is fitted to all of train. The attacker hands in one reconstruction per class. An evaluator, which was
fitted to the split test alone, that the system never saw and the attacker never gets, says whose they are: linear
discriminants of contrast-normalised inputs, so that it has neither the system's architecture nor its training
inputs. A picture that is close to the average of all people is close to everybody: distances are reported beside
whom it is taken for, and beside what the mean input alone gets.

Sources: the question is that of Fredrikson, Jha & Ristenpart 2015, CCS; an evaluation model as in Zhang et al. 2020,
arXiv:1911.07135, section 5; distances to the nearest training input and in features as in Kahla et al. 2022,
arXiv:2203.06569.
"""

from dataclasses import dataclass

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
from firstline.benchmark.metrics.images import ncc, psnr, ssim
from firstline.benchmark.protocols import attribute, updates
from firstline.benchmark.protocols.bench import Bench, Measured, answered
from firstline.benchmark.protocols.numbers import plain, share

COMPONENTS = 100  # principal components that the evaluator looks at, at most
WINDOW = 11  # of SSIM: smaller images have none
FITTED = 5000  # rows that the evaluator is fitted to, at most

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluator:
    """Linear discriminants of the principal components of contrast-normalised inputs."""

    components: PCA
    discriminants: LinearDiscriminantAnalysis
    classes: int

    def features(self, x: Floats) -> Floats:
        """Return the components (n, k) of inputs x (n, *shape)."""
        return np.asarray(self.components.transform(normalised(x)), np.float64)

    def scores(self, x: Floats) -> Floats:
        """Return a score (n, classes) for x (n, *shape); the highest is the answer, classes it never saw have none."""
        found = np.full((len(x), self.classes), -np.inf)
        seen = self.discriminants.classes_
        told = self.discriminants.decision_function(self.features(x))
        found[:, seen] = told if len(seen) > 2 else np.stack([-told, told], 1)
        return found


def evaluator(data: Data, classes: int) -> Evaluator:
    """Return an evaluator fitted to data. Raises ContractBroken where data has fewer than two classes."""
    x, y = data.x[:FITTED].double().cpu().numpy(), data.y[:FITTED].cpu().numpy()
    if len(np.unique(y)) < 2:
        raise ContractBroken("an evaluator needs test examples of two classes at least")
    flat = normalised(x)
    components = PCA(min(COMPONENTS, *(side - 1 for side in flat.shape)), random_state=0).fit(flat)
    discriminants = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return Evaluator(components, discriminants.fit(components.transform(flat), y), classes)


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
    target = bench.target(served.system, None, bench.rng)
    aux = bench.splits.aux
    lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone()).to(bench.device) if bench.threat.aux else None
    found = attack.reconstruct(target, lent, bench.threat, bench.rng.child("attack", attack.name))
    made = _checked(found, bench)
    bench.stage("score")
    drawn = test.rows(bench.draw("test", len(test), bench.examples))
    answers = answered(served.score(torch.cat([made, drawn.x]), bench.rng.child("score")).cpu())
    bench.stage("measure")
    judge_ = evaluator(test, task.classes)
    x, y = train.x.double().cpu().numpy(), train.y.cpu().numpy()
    means = np.stack([x[y == c].mean(0) if (y == c).any() else x.mean(0) for c in range(task.classes)])
    pictures = made.double().numpy()
    outcome = InversionOutcome(
        label=np.arange(task.classes),
        reconstruction=pictures,
        class_mean=means,
        likeness=likeness(pictures, means),
        evaluator_score=judge_.scores(pictures),
        nearest_distance=_nearest(pictures, x, y),
        victim_answer=answers[: task.classes].numpy(),
        victim_right=(answers[task.classes :] == drawn.y).numpy(),
    )
    average = np.broadcast_to(x.mean(0), means.shape)
    diagnostics = {
        **target.notes,
        "evaluator_error": float((judge_.scores(x[:FITTED]).argmax(1) != y[:FITTED]).mean()),
        "feature_distance": _apart(judge_, pictures, means),
        "mean_image_evaluator_accuracy": float(
            (judge_.scores(average).argmax(1) == np.arange(task.classes)).mean()
        ),
        "mean_image_feature_distance": _apart(judge_, average, means),
        "class_mean_evaluator_accuracy": float(
            (judge_.scores(means).argmax(1) == np.arange(task.classes)).mean()
        ),
        "mean_image_ncc": float(ncc(average.reshape(len(means), -1), means.reshape(len(means), -1)).mean()),
        "mean_image_distance": float(_nearest(average, x, y).mean()),
    }
    return Measured(
        outcome=outcome,
        metrics=measure(outcome, _width(bench)),
        diagnostics={name: value for name, value in diagnostics.items() if np.isfinite(value)},
        gate=judge(diagnostics),
        queries=int(target.queries.sum()),
        gradients=int(target.gradients.sum()),
    )


def _checked(found: object, bench: Bench) -> Tensor:
    """Reconstructions as float32 on the CPU. Raises ContractBroken where they are none."""
    wanted = (bench.task.classes, *bench.task.space.shape)
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ContractBroken(f"the attack returned reconstructions of shape {shape}, not {wanted}")
    made = found.detach().float().cpu()
    if problem := bench.task.space.check(made):
        raise ContractBroken(f"the attack's reconstructions have {problem}")
    return made


def likeness(pictures: Floats, means: Floats) -> Floats:
    """Return the normalised cross-correlations (n, classes) of pictures (n, *shape) with means (classes, *shape)."""
    return np.asarray(np.clip(normalised(pictures) @ normalised(means).T, -1, 1), np.float64)


def _nearest(pictures: Floats, x: Floats, y: NDArray[np.int64]) -> Floats:
    """The l2 distance (classes,) of each picture to the closest training input of its class; of all, where it has none."""
    found = np.empty(len(pictures))
    for c, picture in enumerate(pictures):
        own = x[y == c] if (y == c).any() else x
        found[c] = np.sqrt(((own - picture) ** 2).reshape(len(own), -1).sum(1).min())
    return found


def _apart(judge_: Evaluator, a: Floats, b: Floats) -> float:
    """The mean l2 distance of the evaluator's features of a and b (n, *shape)."""
    return float(np.linalg.norm(judge_.features(a) - judge_.features(b), axis=1).mean())


def _width(bench: Bench) -> float:
    """The widest range of any feature."""
    low, high = bench.task.space.box(torch.zeros(1, dtype=torch.float64))
    return float((high - low).max())


def measure(outcome: InversionOutcome, width: float = 1.0) -> dict[str, Metric]:
    """Return the metrics of one attack over all classes; width is the range of the inputs."""
    own = outcome.label
    score, count = outcome.evaluator_score, len(own)
    ahead = (score > score[np.arange(count), own][:, None]).sum(1)
    taken_for_other = ahead > 0
    ties = (score == score[np.arange(count), own][:, None]).sum(
        1
    ) > 1  # a picture that is anybody's is nobody's
    flat = outcome.reconstruction.reshape(count, -1)
    means = outcome.class_mean.reshape(count, -1)
    found = {
        "evaluator_accuracy": share(~taken_for_other & ~ties, "lower"),
        "identification": share(_identified(outcome.likeness), "lower"),
        "victim_agreement": share(outcome.victim_answer == own, "neither"),
        "ncc": plain(float(np.diag(outcome.likeness).mean()), count, "correlation", "lower"),
        "ncc_other": plain(_others(outcome.likeness), count, "correlation"),
        "nearest_distance": plain(float(outcome.nearest_distance.mean()), count, "input units", "higher"),
    }
    if count > 5:
        found["evaluator_top5"] = share((ahead < 5) & ~ties, "lower")
    close = psnr(flat, means, data_range=width)
    if np.isfinite(close).all():
        found["psnr"] = plain(float(close.mean()), count, "decibels", "lower")
    shape = outcome.reconstruction.shape
    if len(shape) == 4 and min(shape[2:]) >= WINDOW:
        alike = ssim(outcome.reconstruction, outcome.class_mean, data_range=width)
        found["ssim"] = plain(float(alike.mean()), count, "similarity", "lower")
    if outcome.victim_right.size:
        found["accuracy"] = share(outcome.victim_right, "higher")
    return found


def _identified(alike: Floats) -> NDArray[np.bool_]:
    """Which pictures (n,) are more like the mean of their own class than like any other's."""
    own = np.diag(alike)
    return np.asarray((alike >= own[:, None]).sum(1) == 1, np.bool_)


def _others(alike: Floats) -> float:
    """The mean likeness with the classes that a picture is not of."""
    count = len(alike)
    return float((alike.sum() - np.trace(alike)) / max(1, count * (count - 1)))
