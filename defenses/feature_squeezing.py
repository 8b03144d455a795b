"""Answers that change when the input is squeezed. Source: Xu, Evans & Qi 2018, arXiv:1704.01155, section V."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.detector import Detector, check_fpr
from firstline.defenses.median_smoothing import check_size, median_filter
from firstline.defenses.quantisation import check_bits, to_levels
from firstline.defenses.transformation import images_only, straight_through


class Squeezes(Detector):
    """Scores images by how far the class probabilities move when the image loses bits, or is smoothed."""

    def __init__(self, inner: System, bits: int, size: int, low: Tensor, high: Tensor) -> None:
        super().__init__(inner)
        self.size = size
        self.register_buffer("low", low)
        self.register_buffer("step", (high - low) / (2**bits - 1))

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to x (n, c, h, w), and the largest l1 distance of probabilities, (n,), in [0, 2]."""
        rounded = to_levels(x, self.get_buffer("low"), self.get_buffer("step"))
        answer = self._inside().respond(x, rng)
        plain = answer.logits.softmax(1)
        moved = [
            (self._inside().respond(squeezed, rng).logits.softmax(1) - plain).abs().sum(1)
            for squeezed in (straight_through(x, rounded), median_filter(x, self.size))
        ]
        return answer, torch.stack(moved).amax(0)


@defense("feature-squeezing")
@dataclass(frozen=True)
class FeatureSqueezing(Defense):
    """Refuse images that are answered otherwise after rounding to few bits, or after median smoothing.

    Claims that squeezing changes little for clean inputs, and much for adversarial ones. fpr is the share of clean
    inputs that it may refuse; bits and size, the window's side in pixels, are those of `bit-depth` and
    `median-smoothing`: 1 and 2 in the paper for MNIST, 5 and 2 for CIFAR-10. On images of 8x8 pixels smoothing
    changes so many clean answers that little is left to find. Known to fall to attackers who fool the network on
    the squeezed images as well (He et al. 2017, arXiv:1706.04701), which is what attacks do here, the rounding
    being the identity on the way back.
    """

    inputs = ("real",)

    fpr: float = 0.05
    bits: int = 3
    size: int = 2

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the detector."""
        images_only(self, task)
        check_fpr(self, self.fpr)
        check_bits(self, self.bits)
        check_size(self, self.size)
        low, high = task.space.box(torch.zeros(1))
        return Squeezes(system, self.bits, self.size, low, high)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Choose the threshold."""
        assert isinstance(system, Squeezes)
        system.set_threshold(data.x, self.fpr, ctx.rng.torch("answers"))
