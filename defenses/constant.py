"""A constant predictor: the floor of utility, and a check on the benchmark itself. Source: a control."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense


class Constant(nn.Module):
    """Answers every input with the same logits (classes,): the logarithm of the class shares."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, classes), with a zero gradient to x so that attacks can run."""
        return self.get_buffer("logits") + 0 * x.flatten(1).sum(1, keepdim=True)


@defense("constant", tags={"control"})
@dataclass(frozen=True)
class ConstantPredictor(Defense):
    """Answer with the commonest class. Perfectly robust and useless: shown, never ranked."""

    def build(self, task: Task) -> nn.Module:
        """Return the constant module."""
        return Constant(task.classes)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Set the logits to the logarithm of the smoothed class shares."""
        counts = torch.bincount(data.y, minlength=ctx.task.classes) + 1
        module.get_buffer("logits").copy_(torch.log(counts / counts.sum()))
        return module
