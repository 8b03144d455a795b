"""Interval bound propagation. Source: Gowal et al. 2018, arXiv:1810.12715.

A box of inputs is pushed through the network layer by layer, as a box that holds all its outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, one_hot

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Bare, Certificate, System
from firstline.benchmark.core.training import train

ROUNDS = 20  # of the bisection for the largest radius that is proved, from the input range down to a millionth of it

Box = tuple[Tensor, Tensor]
Rule = Callable[[nn.Module, Tensor, Tensor], Box]


def _monotone(layer: nn.Module, low: Tensor, high: Tensor) -> Box:
    """No output falls when an input rises: the ends of the box go to the ends."""
    return layer(low), layer(high)


def _around(centre: Tensor, reach: Tensor) -> Box:
    return centre - reach, centre + reach


def _linear(layer: nn.Module, low: Tensor, high: Tensor) -> Box:
    assert isinstance(layer, nn.Linear)
    return _around(layer((low + high) / 2), linear((high - low) / 2, layer.weight.abs()))


def _conv2d(layer: nn.Module, low: Tensor, high: Tensor) -> Box:
    assert isinstance(layer, nn.Conv2d)
    reach = layer._conv_forward((high - low) / 2, layer.weight.abs(), None)  # with the layer's own padding
    return _around(layer((low + high) / 2), reach)


def _sequential(layer: nn.Module, low: Tensor, high: Tensor) -> Box:
    assert isinstance(layer, nn.Sequential)
    for part in layer:
        low, high = box_of(part, low, high)
    return low, high


RULES: dict[type[nn.Module], Rule] = {
    nn.Sequential: _sequential,
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.ReLU: _monotone,
    nn.Flatten: _monotone,
    nn.Identity: _monotone,
    nn.MaxPool2d: _monotone,
    nn.AvgPool2d: _monotone,
    nn.AdaptiveAvgPool2d: _monotone,
}


def rule_of(layer: nn.Module) -> Rule:
    """Return how intervals pass a layer; one of a kind of its own may say of itself that it is `monotone`.

    Raises FirstlineError naming the layer where that is not known.
    """
    rule = _monotone if getattr(layer, "monotone", False) else RULES.get(type(layer))
    if rule is None:
        known = ", ".join(kind.__name__ for kind in RULES)
        raise FirstlineError(
            f"interval bounds have no rule for the layer {layer}; use a network of {known}, or of layers "
            "that have monotone = True because no output falls when an input rises"
        )
    return rule


def box_of(layer: nn.Module, low: Tensor, high: Tensor) -> Box:
    """Return bounds of all outputs of layer for inputs between low and high (n, *shape)."""
    return rule_of(layer)(layer, low, high)


def parts_of(network: nn.Module) -> tuple[nn.Sequential, nn.Linear]:
    """Return all but the last layer of network, and that one, whose difference of outputs is bounded at once.

    Raises FirstlineError where a layer has no rule, or the last one is not linear.
    """
    flat = list(_flat(network))
    if not flat or type(flat[-1]) is not nn.Linear:
        raise FirstlineError(
            f"interval bounds need a network that ends in a linear layer; this one ends in {flat[-1] if flat else network}"
        )
    for layer in flat:
        rule_of(layer)
    return nn.Sequential(*flat[:-1]), flat[-1]


def _flat(network: nn.Module) -> list[nn.Module]:
    if type(network) is nn.Sequential:
        return [layer for part in network for layer in _flat(part)]
    return [network]


def worst_margins(network: nn.Module, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return bounds (n, classes) of how far each logit exceeds that of class y (n,) anywhere between low and high.

    0 for y itself; y is the answer in the whole box where all others are below 0. The last layer and the
    difference are one linear map, whose bound is tighter than that of the two in turn.
    """
    inside, last = parts_of(network)
    low, high = box_of(inside, low, high)
    others = last.weight[None] - last.weight[y][:, None]  # (n, classes, features)
    centre, reach = (low + high) / 2, (high - low) / 2
    bound = (others @ centre[:, :, None] + others.abs() @ reach[:, :, None]).squeeze(2)
    if last.bias is not None:
        bound = bound + last.bias[None] - last.bias[y][:, None]
    return bound.masked_fill(one_hot(y, bound.shape[1]) > 0, 0.0)


def around(x: Tensor, eps: float | Tensor, space: InputSpace) -> Box:
    """Return the box of valid inputs within eps, a radius or one per example (n,), of x (n, *shape) in linf."""
    radius = eps if isinstance(eps, float) else column(eps.to(x), x)
    least, most = space.box(x)
    return torch.maximum(x - radius, least), torch.minimum(x + radius, most)


class Bounded(System):
    """Answers as the network does, and proves answers by interval bounds."""

    def __init__(self, inner: Bare, space: InputSpace) -> None:
        super().__init__(inner)
        self.space = space

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        """Return the largest radii in linf, of those that a bisection tries, within which no bound reaches 0."""
        if norm != "linf":
            return None
        inner = self._inside()
        assert isinstance(inner, Bare)
        labels = self.respond(x, rng).labels
        least, most = self.space.box(x)
        low = torch.zeros(len(x), device=x.device)
        high = low + (most - least).max()
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            bounds = worst_margins(inner.module, labels.clamp_min(0), *around(x, middle, self.space))
            others = one_hot(labels.clamp_min(0), bounds.shape[1]) == 0
            holds = ((bounds < 0) | ~others).all(1) & (labels >= 0)
            low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
        return Certificate(labels, low)


@defense("interval-bound-propagation")
@dataclass(frozen=True)
class IntervalBoundPropagation(Defense):
    """Train the network so that its interval bounds, too, answer rightly, and prove answers by them.

    Claims that no linf perturbation within the proved radius changes an answer, without chance, up to the
    rounding of single precision. Known to cost much clean accuracy at large radii, to prove nothing in other
    norms and next to nothing of networks that were not trained for it, and to be sensitive to how fast the
    radius rises (Zhang et al. 2020, arXiv:1906.06316).

    eps is the radius of the training, 0 for the task's customary one. The loss is kappa of the usual one and
    the rest of the one at the bounds' worst. The share of the bounds and the radius rise from 0 over the
    share ramp of the steps, after the share warm of them: about 1/30 and 1/6 in the authors' code for MNIST,
    and slower here, where recipes are short; the recipe's epochs are multiplied by stretch.
    """

    inputs = ("real",)

    eps: float = 0.0
    kappa: float = 0.5
    warm: float = 0.05
    ramp: float = 0.5
    stretch: int = 3

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by the task's recipe, stretched, on both losses."""
        eps = self.eps or ctx.task.eps.get("linf", 0.0)
        if eps <= 0:
            raise FirstlineError(f"{self}: task {ctx.task.name} has no customary linf radius; set eps")
        if not (0 <= self.kappa <= 1 and self.warm >= 0 and self.ramp > 0 and self.stretch >= 1):
            raise FirstlineError(
                f"{self}: kappa is a share, warm must be at least 0, ramp positive and stretch at least 1"
            )
        recipe = ctx.task.default.recipe
        recipe = replace(recipe, epochs=recipe.epochs * self.stretch)
        steps, done = recipe.epochs * max(1, -(-len(data) // recipe.batch)), count()

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            risen = min(1.0, max(0.0, (next(done) / steps - self.warm) / self.ramp))
            kappa = 1 - risen * (1 - self.kappa)
            bounds = worst_margins(network, y, *around(x, risen * eps, ctx.task.space))
            return kappa * cross_entropy(network(x), y) + (1 - kappa) * cross_entropy(bounds, y)

        return train(module, data, recipe, ctx.rng, loss=loss)

    def deploy(self, system: System, task: Task) -> System:
        """Return system with its proofs."""
        if not isinstance(system, Bare):
            raise FirstlineError(
                f"{self.name} proves answers of a bare network: let it be the first layer that deploys"
            )
        parts_of(system.module)
        return Bounded(system, task.space)
