"""Membership by the length of the gradient: training left little to pull at what it saw. Source: Nasr, Shokri & Houmansadr 2019, arXiv:1812.00910, section III."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, innermost
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

ROWS = 64  # at once: each has gradients of its own


@attack("gradient-norm")
@dataclass(frozen=True)
class GradientNorm(Membership):
    """Score each candidate by minus the norm of its loss's gradient on all parameters of the network inside.

    The white-box attack of the paper feeds gradients and activations to a network; the norm alone is its strongest
    single feature there.
    """

    needs = ("gradients",)
    goals = ("scores", "labels")

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return minus the norm (n,) of each gradient. Raises FirstlineError where the innermost system is no network."""
        inside = innermost(target.system)
        if not isinstance(inside, Bare):
            raise FirstlineError(f"{self}: the system holds no network whose parameters could be told")
        network = inside.module
        parameters = {name: p.detach() for name, p in network.named_parameters()}
        buffers = dict(network.named_buffers())

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            logits = torch.func.functional_call(network, (weights, buffers), (x[None],))
            return torch.nn.functional.cross_entropy(logits, y[None])

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        found = []
        for x, y in zip(candidates.x.split(ROWS), candidates.y.split(ROWS), strict=True):
            squares = [g.flatten(1).double().square().sum(1) for g in each(parameters, x, y).values()]
            found.append(-torch.stack(squares).sum(0).sqrt())
        return torch.cat(found)
