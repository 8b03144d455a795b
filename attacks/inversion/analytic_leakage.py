"""The closed form of a first linear layer. Source: Geiping et al. 2020, arXiv:2003.14053, proposition 3.1; Phong et al. 2018."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.inversion.descent import inside
from firstline.attacks.inversion.gradient_matching import labels_of
from firstline.benchmark.core.contracts import GradientLeakage, Update
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams

LEAST = 1e-12  # of a bias's gradient, below which it tells nothing


@attack("analytic-leakage")
@dataclass(frozen=True)
class AnalyticLeakage(GradientLeakage):
    """Divide the gradient of the first layer's weights by that of its biases: of one row, the quotient is the input.

    Exact for batches of one row and networks that begin with a linear layer with bias. Of more rows a unit's quotient
    is a mean of those that it is active for: the batch is made of the units with the largest bias gradients.
    """

    needs = ("gradients",)
    goals = ("updates",)
    inputs = ("real",)

    def rebuild(
        self, update: Update, space: InputSpace, classes: int, aux: Data | None, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """Return the quotients of as many units as the batch has rows. Raises FirstlineError for other networks."""
        first = next(
            (p for p in update.network.modules() if not list(p.children()) and list(p.parameters())), None
        )
        places = {id(p): g for p, g in zip(update.network.parameters(), update.gradients, strict=True)}
        if not isinstance(first, nn.Linear) or first.bias is None:
            raise FirstlineError(f"{self} needs a network that begins with a linear layer with bias")
        weight, bias = places[id(first.weight)].double(), places[id(first.bias)].double()
        units = bias.abs().argsort(descending=True, stable=True)
        units = units.repeat(-(-update.batch // len(units)))[: update.batch]
        scale = bias[units]
        known = scale.abs() > LEAST
        x = torch.where(known[:, None], weight[units] / torch.where(known, scale, 1.0)[:, None], 0.0)
        return (
            inside(space, x.reshape(update.batch, *space.shape).float().nan_to_num(nan=0.0)),
            labels_of(update, classes),
        )
