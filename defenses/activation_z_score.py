"""Unusual activations for the class that is answered.

Source: Zheng & Hong 2018, Robust Detection of Adversarial Attacks by Modeling the Intrinsic Properties of Deep
Neural Networks, with one Gaussian per class and independent features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.detector import Statistical, check_fpr, class_means
from firstline.defenses.features import last_linear, with_features

FLOOR = 0.01  # of a class's mean variance, added to each: a feature that never varied is no proof


class ZScores(Statistical):
    """Scores inputs by the mean squared z-score of their features, by the statistics of the predicted class."""

    def __init__(self, inner: System, classes: int) -> None:
        super().__init__(inner)
        width = last_linear(inner).in_features
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("deviation", torch.ones(classes, width))

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Estimate mean and deviation per class and feature from features (n, width), classes (n,)."""
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        mean.copy_(class_means(features, y, len(mean)))
        variance = class_means((features - mean[y]).square(), y, len(mean))
        deviation.copy_((variance + FLOOR * variance.mean(1, keepdim=True)).clamp_min(1e-12).sqrt())

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to x (n, *shape), and the mean squared z-scores (n,)."""
        answer, features = with_features(self._inside(), x, rng)
        label = answer.logits.argmax(1)
        z = (features - self.get_buffer("mean")[label]) / self.get_buffer("deviation")[label]
        return answer, z.square().mean(1)


@defense("activation-z-score")
@dataclass(frozen=True)
class ActivationZScore(Defense):
    """Refuse inputs whose features are unusual for the class that the network answers.

    Claims that adversarial examples activate a class's features in other ways than its own examples. fpr is
    the share of clean inputs that it may refuse. Known to fall to attackers who keep the features usual
    (Carlini & Wagner 2017, arXiv:1705.07263, on detectors by distribution), which is what attacks do here.
    """

    inputs = ("real",)

    fpr: float = 0.05

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the detector."""
        check_fpr(self, self.fpr)
        return ZScores(system, task.classes)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Estimate means and deviations from one half of the data, and the threshold from the other."""
        assert isinstance(system, ZScores)
        system.fit(data, self.fpr, ctx)
