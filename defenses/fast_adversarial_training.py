"""Fast adversarial training, FGSM-RS. Source: Wong, Rice & Kolter 2020, arXiv:2001.03994."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.adversarial import AdversarialTrainer
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import defense


@defense("fast-adversarial-training")
@dataclass(frozen=True)
class FastAdversarialTraining(AdversarialTrainer):
    """Move every training batch by one long step from a random start in the ball, for the price of two epochs.

    Claims nearly the robustness of adversarial training with many steps. Known for catastrophic overfitting:
    within an epoch the network learns to hide from the one step, and every attack of several steps wins; the
    paper saw it at longer steps, and others at larger radii and with long training (Andriushchenko &
    Flammarion 2020, arXiv:2007.02617); on MNIST the authors' own code was seen to end at 0% under PGD
    (github.com/locuslab/fast_adversarial, issue 20). holdout keeps an epoch from before it, which is the
    paper's remedy.
    """

    steps: int = 1
    stride: float = 1.25

    def start(self, region: Region, generator: torch.Generator) -> Tensor:
        """Return a point of the whole ball, as in the paper.

        Cut to the box, black pixels would start at 0 or above and the step would take all of them to 0 or eps:
        what is random about the method would be lost where images are black and white.
        """
        return region.beyond(generator)
