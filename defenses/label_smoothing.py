"""Label smoothing. Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.

As a defense: Goibert & Dohmatob 2019, arXiv:1906.11567 (their "standard" label smoothing).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import Network


@defense("label-smoothing")
@dataclass(frozen=True)
class LabelSmoothing(Defense):
    """Train on labels that give all classes together the share `smoothing`, and the true one the rest besides.

    Claims to hold against gradient attacks by not pushing logits apart. Known to fail: what it gains depends
    on the attack and its settings, and examples transferred from a plain network still work (Fu et al. 2020,
    arXiv:2009.08233). It can raise membership leakage. smoothing is the paper's for ImageNet.
    """

    smoothing: float = 0.1

    def objective(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy to smoothed labels."""
        return cross_entropy(network(x), y, label_smoothing=self.smoothing)
