"""What defenses that change the answers share: what a system tells is not what it computed.

Source: Jia et al. 2019, arXiv:1909.10594 (confidence masking); Athalye et al. 2018, arXiv:1802.00420 (BPDA).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from firstline.benchmark.core.system import Response, System

FLOOR = 1e-12  # of a probability under the logarithm
LIFT = 1e-6  # what a label is put above a tie by; as a share of its probability


class Masked(System, ABC):
    """Answers with other probabilities than the inner system's; what they are, `told` says.

    Logits are the logarithms of what is told, floored at 1e-12. What is told need not add up to 1: the exponentials
    of the logits don't either then. Who has the gradients goes around the mask, and climbs the inner answer.
    """

    keeps_label: bool = True  # the class stays what it was, also where what is told has ties

    @abstractmethod
    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return what is told (n, classes), at least 0, where shares (n, classes, float64) was computed for x."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape) with the logarithms of what is told; what is no number stays as it is."""
        return self.masked(self._inside().respond(x, rng), x, rng)

    def masked(self, answer: Response, x: Tensor, rng: torch.Generator) -> Response:
        """Return what is told instead of the inner system's answer to x (n, *shape)."""
        logits = answer.logits
        known = torch.isfinite(logits).all(1, keepdim=True)
        shares = torch.softmax(torch.where(known, logits, 0).double(), 1)
        told = self.told(shares, x, rng).clamp_min(FLOOR).log().to(logits)
        if self.keeps_label:
            told = lifted(told, logits.argmax(1))
        return Response(torch.where(known, told, logits), answer.acceptance)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape) like the inner system, differentiably."""
        return self._inside().surrogate(x, rng)


def lifted(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (n, classes) with those of labels (n,) just above all others, where they weren't the largest."""
    above = torch.nextafter(logits.amax(1) + LIFT, logits.new_tensor(torch.inf))
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return torch.where(own & (logits.argmax(1) != labels)[:, None], above[:, None], logits)
