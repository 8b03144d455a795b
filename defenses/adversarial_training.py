"""Adversarial training with PGD. Source: Madry et al. 2018, arXiv:1706.06083, sections 2.1 and 5."""

from dataclasses import dataclass

from firstline.benchmark.core.adversarial import AdversarialTrainer
from firstline.benchmark.core.registry import defense


@defense("adversarial-training", version=2)
@dataclass(frozen=True)
class AdversarialTraining(AdversarialTrainer):
    """Swap every training batch for its worst case inside a ball, found by PGD.

    Claims robustness in the norm and radius it was trained for; known to buy little in other norms, to cost
    clean accuracy, to overfit when trained long (Rice et al. 2020, arXiv:2002.11569: see holdout), and to
    raise membership leakage (Song et al. 2019, arXiv:1905.10291). The settings are those of every adversarial
    trainer: `AdversarialTrainer` explains them.
    """
