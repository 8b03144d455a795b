"""Distance to the nearest class in the network's features. Source: Lee et al. 2018, arXiv:1807.03888, section 2.1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.detector import Statistical, check_fpr, class_means
from firstline.defenses.features import last_linear, with_features

NOISE = 1e-6  # directions with a smaller share of the largest variance are rounding errors of float32


class Mahalanobis(Statistical):
    """Scores inputs by the squared Mahalanobis distance of their features to the nearest class mean."""

    def __init__(self, inner: System, classes: int) -> None:
        super().__init__(inner)
        width = last_linear(inner).in_features
        self.register_buffer("whitening", torch.zeros(width, width))
        self.register_buffer("centres", torch.zeros(classes, width))  # class means, whitened

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Estimate the class means and the covariance that they share from features (n, width), classes (n,)."""
        features, centres = features.double(), self.get_buffer("centres")
        means = class_means(features, y, len(centres))
        apart = features - means[y]
        variance, axes = torch.linalg.eigh(apart.T @ apart / len(apart))
        kept = variance > NOISE * variance[-1]
        whitening = axes * torch.where(kept, variance, torch.inf).rsqrt()
        self.get_buffer("whitening").copy_(whitening)
        centres.copy_(means @ whitening)

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to x (n, *shape), and the squared distances (n,)."""
        answer, features = with_features(self._inside(), x, rng)
        apart = (features @ self.get_buffer("whitening"))[:, None] - self.get_buffer("centres")
        return answer, apart.square().sum(2).amin(1)


@defense("mahalanobis")
@dataclass(frozen=True)
class MahalanobisDetector(Defense):
    """Refuse inputs whose features are far from all classes, each taken for a Gaussian with one covariance.

    Claims to refuse inputs from elsewhere, and adversarial ones. fpr is the share of clean inputs that it may
    refuse. The features are those before the last layer; the paper's input preprocessing and its regression
    over all layers, which needs examples of the attack, are left out. Known to fall to attackers who keep the
    features near a class (Carlini & Wagner 2017, arXiv:1705.07263, on detectors by distribution), which is
    what attacks do here.
    """

    inputs = ("real",)

    fpr: float = 0.05

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the detector."""
        check_fpr(self, self.fpr)
        return Mahalanobis(system, task.classes)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Estimate means and covariance from one half of the data, and the threshold from the other."""
        assert isinstance(system, Mahalanobis)
        system.fit(data, self.fpr, ctx)
