"""Many networks of one architecture trained at once, each as the one training loop would train it alone.

What it gains on one thread, and for which networks nothing, is measured by `make perf`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams, isolated
from firstline.benchmark.core.training import Network, Recipe, plain_loss, train

Objective = Callable[[Network, Tensor, Tensor], Tensor]

# Bytes of weights that train together. With gradients and momentum that is three times as much, which is read
# and written in every step: more of it leaves the processor's cache, less of it pays for more calls.
TOGETHER = 4 << 20

ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (torch.relu, lambda slope, out: torch.ops.aten.threshold_backward(slope, out, 0)),
    nn.Sigmoid: (torch.sigmoid, torch.ops.aten.sigmoid_backward),
    nn.Tanh: (torch.tanh, torch.ops.aten.tanh_backward),
}  # each with its slope, which autograd too computes from the output


@dataclass(frozen=True)
class _Linear:
    """The linear layers that stand at one place in k networks: weight (k, out, in) and bias (k, out)."""

    weight: nn.Parameter
    bias: nn.Parameter


_Layer = _Linear | type[nn.Module]


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what a sequence of sequences does, in order."""
    if type(module) is nn.Sequential:
        for child in module:
            yield from _parts(child)
    else:
        yield module


def _plan(module: nn.Module, data: Data) -> list[object] | None:
    """Return what module consists of, equal for two that can be stacked, or None if it is no plain perceptron."""
    first, *rest = _parts(module)
    if type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1):
        parts = rest
    elif data.x.ndim == 2:
        parts = [first, *rest]
    else:
        return None
    plan: list[object] = []
    for part in parts:
        if type(part) is nn.Linear:
            plan.append((part.weight.shape, part.weight.dtype))
        elif type(part) in ACTIVATIONS:
            plan.append(type(part))
        else:
            return None
    weights = list(module.parameters())
    whole = 2 * sum(type(part) is nn.Linear for part in parts) == len(
        weights
    )  # none lacks a bias or stands twice
    return plan if weights and whole and all(weight.requires_grad for weight in weights) else None


def _needs_logits_alone(objective: Objective, module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Return whether objective asks the network about x itself only, and draws nothing at random."""
    asked = []

    def network(given: Tensor) -> Tensor:
        asked.append(given is x)
        logits: Tensor = module(given)
        return logits

    with isolated(0):
        before = torch.get_rng_state()
        objective(network, x, y)
        return all(asked) and torch.equal(torch.get_rng_state(), before)


def _stacked(modules: Sequence[nn.Module]) -> list[_Layer]:
    """Return the layers of modules, one network's weights behind another's, with gradients to write to."""
    layers: list[_Layer] = []
    for group in zip(*map(_parts, modules), strict=True):
        if isinstance(group[0], nn.Linear):
            layer = _Linear(
                nn.Parameter(torch.stack([part.weight.detach() for part in group])),
                nn.Parameter(torch.stack([part.bias.detach() for part in group])),
            )
            layer.weight.grad, layer.bias.grad = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
            layers.append(layer)
        elif type(group[0]) in ACTIVATIONS:
            layers.append(type(group[0]))
    return layers


def _forward(layers: list[_Layer], x: Tensor) -> list[Tensor]:
    """Return x (k, n, features) and what each layer makes of it."""
    kept = [x]
    for layer in layers:
        if isinstance(layer, _Linear):
            kept.append(torch.baddbmm(layer.bias.unsqueeze(1), kept[-1], layer.weight.mT))
        else:
            kept.append(ACTIVATIONS[layer][0](kept[-1]))
    return kept


def _backward(layers: list[_Layer], kept: list[Tensor], slope: Tensor) -> None:
    """Write the gradients of all weights, for the slope (k, n, classes) of the losses along the logits."""
    for place in reversed(range(len(layers))):
        layer = layers[place]
        if isinstance(layer, _Linear):
            torch.bmm(slope.mT, kept[place], out=layer.weight.grad)
            torch.sum(slope, 1, out=layer.bias.grad)
            if place:
                slope = torch.bmm(slope, layer.weight)
        else:
            slope = ACTIVATIONS[layer][1](slope, kept[place + 1])


def _answering(logits: Tensor) -> Network:
    """Return a network that answers logits, which are there already."""
    return lambda _: logits


@torch.no_grad()
def _train_stacked(
    modules: Sequence[nn.Module],
    data: Data,
    rows: Tensor,
    recipe: Recipe,
    orders: Sequence[torch.Generator],
    objective: Objective,
    first: int,
) -> None:
    """Fit modules, which are plain perceptrons of one plan, in place; first is the number of the first of them."""
    layers = _stacked(modules)
    weights = [
        weight for layer in layers if isinstance(layer, _Linear) for weight in (layer.weight, layer.bias)
    ]
    size = rows.shape[1]
    batches = -(-size // recipe.batch)
    optimiser, schedule = recipe.optimiser(weights, recipe.epochs * max(1, batches), fused=True)
    for epoch in range(recipe.epochs):
        shuffled = torch.stack(
            [
                own[torch.randperm(size, generator=order).to(own.device)]
                for own, order in zip(rows, orders, strict=True)
            ]
        )
        for batch in shuffled.split(recipe.batch, dim=1):
            chosen = batch.flatten()
            x = data.x.index_select(0, chosen).unflatten(0, batch.shape)
            y = data.y.index_select(0, chosen).unflatten(0, batch.shape)
            kept = _forward(layers, x.flatten(2))
            logits = kept[-1].requires_grad_()
            with torch.enable_grad():
                losses = torch.stack(
                    [
                        objective(_answering(own), given, labels)
                        for own, given, labels in zip(logits, x, y, strict=True)
                    ]
                )
                (slope,) = torch.autograd.grad(losses.sum(), logits)
            if not torch.isfinite(losses).all():
                wrong = int(losses.isfinite().logical_not().nonzero()[0])
                raise FirstlineError(
                    f"network {first + wrong}: training diverged in epoch {epoch + 1}: "
                    f"the loss is {losses[wrong].item()}"
                )
            _backward(layers, kept, slope)
            optimiser.step()
            schedule.step()
    for number, module in enumerate(modules):
        for own, stack in zip(module.parameters(), weights, strict=True):
            own.copy_(stack[number])


def train_many(
    modules: Sequence[nn.Module],
    data: Data,
    rows: Tensor,
    recipe: Recipe,
    rngs: Sequence[Streams],
    *,
    objective: Objective = plain_loss,
) -> list[nn.Module]:
    """Fit each of modules to rows of its own, in place, and return them in evaluation mode.

    rows (k, m) int64 holds the positions in data that network k learns from, in its order. Each network gets what
    `train(modules[k], data.rows(rows[k]), recipe, rngs[k], loss=objective)` gives it, up to rounding. objective
    maps a network, inputs and labels to a scalar, and may only call the network.

    Perceptrons (linear layers with bias, ReLU, tanh or sigmoid between, in nn.Sequential, perhaps behind
    nn.Flatten) are stacked: one batched product per layer, some networks at a time. Everything else goes
    through `train` one by one, with its exact weights: dropout and batch norm, which depend on the order in
    which one network draws and counts; convolutions, since torch does stacked ones in groups, which takes
    longer at common batch sizes; frozen or shared weights; networks that are not all alike; an objective that
    asks about other inputs than the batch's own, or draws at random. The choice never depends on timings.

    Raises FirstlineError, naming the network by its number from 0, when a loss is no longer a number, and
    ValueError when modules, rows and rngs are not equally many.
    """
    if rows.ndim != 2 or not len(modules) == len(rows) == len(rngs):
        raise ValueError(
            f"one row of positions and one seed per network: got {len(modules)} networks, rows of shape "
            f"{tuple(rows.shape)} and {len(rngs)} streams"
        )
    rows = rows.to(data.x.device)
    plans = [_plan(module, data) for module in modules]
    stackable = rows.numel() > 0 and plans[0] is not None and all(plan == plans[0] for plan in plans)
    if stackable:
        trial = data.rows(rows[0, : recipe.batch])
        stackable = _needs_logits_alone(objective, modules[0], trial.x, trial.y)
    if not stackable:
        for number, (module, own, rng) in enumerate(zip(modules, rows, rngs, strict=True)):
            try:
                train(module, data.rows(own), recipe, rng, loss=objective)
            except FirstlineError as error:
                raise FirstlineError(f"network {number}: {error}") from error
        return list(modules)
    size = sum(weight.nbytes for weight in modules[0].parameters())
    together = max(1, TOGETHER // size)
    for first in range(0, len(modules), together):
        chunk = slice(first, first + together)
        orders = [rng.torch("batches") for rng in rngs[chunk]]
        _train_stacked(modules[chunk], data, rows[chunk], recipe, orders, objective, first)
    return [module.eval() for module in modules]
