"""Spectral norm regularisation. Source: Yoshida & Miyato 2017, arXiv:1705.10941."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import plain_loss, train


def spectral_norm(weight: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest singular value of weight by one step of power iteration, and the next step's start.

    weight (out, …) counts as a matrix (out, in), a kernel as (out, in x height x width); start is (in,), of
    any length but 0. The value never exceeds the true one, and has its gradient on weight.
    """
    matrix = weight.flatten(1)
    with torch.no_grad():
        left = matrix @ start
        left = left / left.norm().clamp_min(TINY)
        right = matrix.T @ left
        right = right / right.norm().clamp_min(TINY)
    return left @ matrix @ right, right


@defense("spectral-regularisation")
@dataclass(frozen=True)
class SpectralRegularisation(Defense):
    """Penalise the squared spectral norms of all weights, so that no layer stretches its input much.

    Claims a network less sensitive to moves of its input: the product of the norms bounds its Lipschitz
    constant in l2. The bound is loose, and nothing is certified: a convolution can stretch more than its
    kernel as a matrix, by the root of how many windows a pixel is in (Tsuzuku et al. 2018, arXiv:1802.04034),
    and a network of small norms can have small margins too. weight is the paper's lambda.
    """

    weight: float = 0.01

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe with the penalty."""
        generator = ctx.rng.torch("power")
        weights = [p for p in module.parameters() if p.ndim > 1]
        starts = [torch.randn(w[0].numel(), generator=generator).to(w.device) for w in weights]

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            # The starts are kept from step to step, so that one iteration each follows the moving weights.
            found = [spectral_norm(weight, start) for weight, start in zip(weights, starts, strict=True)]
            starts[:] = [start for _, start in found]
            penalty = torch.stack([norm for norm, _ in found]).square().sum() / 2
            return plain_loss(network, x, y) + self.weight * penalty

        return train(module, data, ctx.task.default.recipe, ctx.rng, loss=loss)
