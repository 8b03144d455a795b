"""The one training loop, shared by the tasks' recipes and by defenses that change its batches or its loss."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.rng import Streams, isolated

Perturb = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
Network = Callable[[Tensor], Tensor]  # inputs (n, *shape) to logits (n, classes)
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Judge = Callable[[nn.Module], float]
Watch = Callable[[nn.Module, int, int], None]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: epochs, batch size, learning rate and weight decay.

    Without momentum it is by Adam, whose learning rate rises linearly to `rate` over the first share `warm` of the
    steps and falls linearly to zero after it. With momentum it is by stochastic gradient descent at a constant rate.
    """

    epochs: int = 20
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.0
    warm: float = 0.1
    momentum: float | None = None

    def optimiser(
        self, parameters: Iterable[nn.Parameter], steps: int, *, fused: bool = False
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Return the optimiser of parameters and its schedule over so many steps.

        fused does a step in one pass over the weights: it is faster, and rounds otherwise.
        """
        made: torch.optim.Optimizer
        kernel = True if fused else None  # None lets torch choose, as ever
        if self.momentum is None:
            made = torch.optim.Adam(parameters, lr=self.rate, weight_decay=self.decay, fused=kernel)
            warm = max(1, int(steps * self.warm))
            return made, torch.optim.lr_scheduler.LambdaLR(
                made, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
            )
        made = torch.optim.SGD(
            parameters, lr=self.rate, momentum=self.momentum, weight_decay=self.decay, fused=kernel
        )
        return made, torch.optim.lr_scheduler.LambdaLR(made, lambda _: 1.0)


def plain_loss(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of network on x (n, *shape) and y (n,)."""
    return cross_entropy(network(x), y)


@contextmanager
def worst_weights(module: nn.Module, size: float) -> Iterator[None]:
    """Let module have weights nearby that fit worse, for as long as the context lasts.

    Each weight of two or more dimensions goes up its own gradient, which must be there, by size times its own
    length. Weights and buffers come back exactly: running statistics never see the moved weights. Source: Wu,
    Xia & Wang 2020, arXiv:2004.05884, with one step of the weights.
    """
    weights = [(p, p.grad, p.detach().clone()) for p in module.parameters() if p.ndim > 1]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.no_grad():
        for weight, gradient, was in weights:
            if gradient is not None:
                weight.add_(gradient * (size * was.norm() / gradient.norm().clamp_min(TINY)))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, was in [(weight, was) for weight, _, was in weights] + buffers:
                tensor.copy_(was)


def train(
    module: nn.Module,
    data: Data,
    recipe: Recipe,
    rng: Streams,
    *,
    perturb: Perturb | None = None,
    loss: Loss = plain_loss,
    awp: float = 0.0,
    judge: Judge | None = None,
    watch: Watch | None = None,
) -> nn.Module:
    """Fit module to data in place and return it in evaluation mode.

    perturb may replace each batch's inputs (adversarial training) by whatever loss takes; loss maps module,
    inputs and labels to a scalar. awp above 0 is the size of an adversarial weight perturbation: each step
    goes down the gradient that the loss has at `worst_weights`. judge scores module, in evaluation mode, after
    each epoch; the weights of the best epoch are kept, the first of equals. watch sees module after each epoch, in
    evaluation mode, with the steps and the rows that the epoch took; it changes nothing. Batch orders come from
    rng's stream "batches" on the CPU, whatever the device.

    Raises FirstlineError when the loss is no longer a number.
    """
    batches = -(-len(data) // recipe.batch)
    steps = recipe.epochs * max(1, batches)
    optimiser, schedule = recipe.optimiser(module.parameters(), steps)
    order, noise = rng.torch("batches"), rng.torch("perturb")
    best, kept = -math.inf, None
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
                if awp:
                    with worst_weights(module, awp):
                        optimiser.zero_grad(set_to_none=True)
                        loss(module, x, batch.y).backward()
                optimiser.step()
                schedule.step()
            if judge is not None:
                score = judge(module.eval())
                module.train()
                if score > best:
                    best, kept = score, {name: t.clone() for name, t in module.state_dict().items()}
            if watch is not None:
                with isolated(0):  # whatever it draws, dropout goes on as if nobody had looked
                    watch(module.eval(), batches, len(data))
                module.train()
    if kept is not None:
        module.load_state_dict(kept)
    return module.eval()
