"""Only the most likely classes. Source: Shokri et al. 2017, arXiv:1610.05820, section VIII."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.confidence_masking import Masked


class TopK(Masked):
    """Tells the k largest probabilities; the other classes share what is left in equal parts."""

    def __init__(self, inner: System, k: int) -> None:
        super().__init__(inner)
        self.k = k

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return shares (n, classes) with all but the k largest of a row, the first of equals, made equal."""
        # By sorting: `topk` takes any of equals, also one that is not the answered class.
        order = shares.sort(dim=1, descending=True, stable=True).indices
        rest = order[:, self.k :]
        if rest.shape[1] == 0:
            return shares
        mean = shares.gather(1, rest).mean(1, keepdim=True)
        return shares.scatter(1, rest, mean.expand(rest.shape))


@defense("top-k")
@dataclass(frozen=True)
class TopKAnswers(Defense):
    """Tell the k largest probabilities, and of the other classes only what they come to together.

    Claims to hide how the unlikely classes compare, at no cost in accuracy. It changes nothing where there are no
    more than k + 1 classes. Known to help little against membership inference, even with k = 1 (Shokri et al.,
    section VIII): what tells members is the confidence in the class that is told.
    """

    k: int = 3

    def deploy(self, system: System, task: Task) -> System:
        """Return system that tells k probabilities."""
        if self.k < 1:
            raise FirstlineError(f"{self}: k must be at least 1")
        return TopK(system, self.k)
