"""Large logits. Source: Carlini & Wagner 2016, arXiv:1607.04311, section 3: what distillation does, on purpose."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System


class Scaled(System):
    """Multiplies the logits by a factor."""

    def __init__(self, inner: System, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape) with larger logits."""
        answer = self._inside().respond(x, rng)
        return Response(answer.logits * self.factor, answer.acceptance)


@defense("logit-scaling", tags={"broken"})
@dataclass(frozen=True)
class LogitScaling(Defense):
    """Multiply the logits, so that the softmax saturates.

    Claims what a vanished gradient seems to show: no answer changes, but in single precision the gradient of
    the cross-entropy is 0 wherever the margin is large. Broken by dividing the logits again, and by any loss
    that does not depend on their scale, such as the difference of logits ratio (Croce & Hein 2020,
    arXiv:2003.01690, equation 6).
    """

    factor: float = 1000.0

    def deploy(self, system: System, task: Task) -> System:
        """Return system with larger logits."""
        return Scaled(system, self.factor)
