"""What a network computes before its last linear layer, whatever layers of a stack lie around it."""

import torch
from torch import Tensor, nn

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.system import Response, System


def last_linear(system: System) -> nn.Linear:
    """Return the last linear layer of the network inside system, in the order in which modules are listed.

    Raises FirstlineError where there is none.
    """
    innermost = system
    while innermost.inner is not None:
        innermost = innermost.inner
    layers = [module for module in innermost.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise FirstlineError(
            "this detector reads what goes into the network's last nn.Linear layer, and the network has none"
        )
    return layers[-1]


def with_features(system: System, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
    """Return the answer of system to x (n, *shape), and what went into the last linear layer, (n, width).

    Both come from one pass and are differentiable where the system is. A system that asks its network more
    than once counts by the first time.
    """
    seen: list[Tensor] = []
    hook = last_linear(system).register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    try:
        answer = system.respond(x, rng)
    finally:
        hook.remove()
    return answer, seen[0]
