"""The one training loop, shared by the tasks' recipes and by defenses that change its batches or its loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams, isolated

Perturb = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: epochs, batch size, Adam's peak learning rate and weight decay.

    The learning rate rises over the first tenth of the steps and falls linearly to zero after it.
    """

    epochs: int = 20
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.0


def plain_loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of module on x (n, *shape) and y (n,)."""
    return cross_entropy(module(x), y)


def train(
    module: nn.Module,
    data: Data,
    recipe: Recipe,
    rng: Streams,
    *,
    perturb: Perturb | None = None,
    loss: Loss = plain_loss,
) -> nn.Module:
    """Fit module to data in place and return it in evaluation mode.

    perturb may replace each batch's inputs (adversarial training); loss maps module, inputs and labels to a
    scalar. Batch orders come from rng's stream "batches" on the CPU, whatever the device.

    Raises FirstlineError when the loss is no longer a number.
    """
    steps = recipe.epochs * max(1, -(-len(data) // recipe.batch))
    warm = max(1, steps // 10)
    optimiser = torch.optim.Adam(module.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    order, noise = rng.torch("batches"), rng.torch("perturb")
    module.train()
    with isolated(rng.integer("dropout")):
        for epoch in range(recipe.epochs):
            for rows in torch.randperm(len(data), generator=order).split(recipe.batch):
                batch = data.rows(rows.to(data.x.device))
                x = batch.x if perturb is None else perturb(module, batch.x, batch.y, noise)
                value = loss(module, x, batch.y)
                if not torch.isfinite(value):
                    raise FirstlineError(
                        f"training diverged in epoch {epoch + 1}: the loss is {value.item()}"
                    )
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                optimiser.step()
                schedule.step()
    return module.eval()
