"""Input gradient regularisation. Source: Ross & Doshi-Velez 2018, arXiv:1711.09404."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import train


@defense("gradient-regularisation")
@dataclass(frozen=True)
class GradientRegularisation(Defense):
    """Penalise the squared length of the loss's gradient on the input, by differentiating twice.

    Claims that small moves of the input change the loss little. Known to fail beyond small radii: it flattens
    the loss to first order and at the training points alone, which is adversarial training for a ball that
    shrinks to nothing (Simon-Gabriel et al. 2019, arXiv:1802.01421). weight is the paper's lambda, which it
    searches for per data set. Networks need a second derivative; a step costs about two and a half plain ones.
    """

    inputs = ("real",)

    weight: float = 1.0

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe with the penalty."""

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            losses = cross_entropies(network(x), y)
            (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
            return losses.mean() + self.weight * gradient.square().flatten(1).sum(1).mean()

        return train(module, data, ctx.task.default.recipe, ctx.rng, loss=loss)
