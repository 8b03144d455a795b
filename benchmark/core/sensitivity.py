"""How sensitive a fitted system is at its inputs: scores that are said to foretell how vulnerable it is."""

from collections.abc import Callable

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Task
from firstline.benchmark.core.losses import margins
from firstline.benchmark.core.memory import SAFE
from firstline.benchmark.core.norms import TINY, column, length
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

STEPS = 10  # of the ascent to the steepest direction

Score = Callable[[Target, Tensor, Tensor, Tensor, float, torch.Generator], Tensor]


def gradient_norm(
    target: Target, x: Tensor, y: Tensor, rows: Tensor, radius: float, generator: torch.Generator
) -> Tensor:
    """Return the l2 norm (k,) of the cross-entropy's gradient; higher is more vulnerable.

    Source: Simon-Gabriel et al. 2019, arXiv:1802.01421. A saturated softmax hides it.
    """
    return length(target.slope(x, y, rows).gradient, "l2")


def lipschitz(
    target: Target, x: Tensor, y: Tensor, rows: Tensor, radius: float, generator: torch.Generator
) -> Tensor:
    """Return how fast the logits change (k,), in l1 per l2 of input, along the steepest of a few ascents.

    Higher is more vulnerable. Source: after Yang et al. 2020, arXiv:2003.02460 (local Lipschitzness, there in
    linf).
    """
    here = target.logits(x, rows).detach()

    def gap(logits: Tensor, y: Tensor) -> Tensor:
        return (logits - here).abs().sum(1)

    noise = torch.randn(x.shape, generator=generator).to(x)
    delta = noise * column(radius / length(noise, "l2").clamp_min(TINY), x)
    steepest = x.new_zeros(len(x))
    for _ in range(STEPS):
        slope = target.slope(x + delta, y, rows, loss=gap)
        steepest = torch.maximum(steepest, gap(target.logits(x + delta, rows).detach(), y) / radius)
        delta = delta + slope.gradient * column(radius / length(slope.gradient, "l2").clamp_min(TINY), x)
        delta = delta * column(radius / length(delta, "l2").clamp_min(TINY), x)
    return steepest


def margin(
    target: Target, x: Tensor, y: Tensor, rows: Tensor, radius: float, generator: torch.Generator
) -> Tensor:
    """Return how far the nearest boundary of the linearised system is (k,), in l2; lower is more vulnerable.

    The gap between the true logit and the best other over the norm of its gradient. Source: Hein &
    Andriushchenko 2017, arXiv:1705.08475, with the slope at the input in the place of the Lipschitz constant.
    """
    slope = target.slope(x, y, rows, loss=margins)
    return -slope.loss / length(slope.gradient, "l2").clamp_min(TINY)


def curvature(
    target: Target, x: Tensor, y: Tensor, rows: Tensor, radius: float, generator: torch.Generator
) -> Tensor:
    """Return how fast the gradient turns along itself (k,); higher is more vulnerable.

    Source: Moosavi-Dezfooli et al. 2019, arXiv:1811.09716 (CURE's penalty), over the threat's radius.
    """
    gradient = target.slope(x, y, rows).gradient
    step = gradient * column(radius / length(gradient, "l2").clamp_min(TINY), x)
    return length(target.slope(x + step, y, rows).gradient - gradient, "l2") / radius


SCORES: dict[str, Score] = {
    "gradient_norm": gradient_norm,
    "lipschitz": lipschitz,
    "margin": margin,
    "curvature": curvature,
}
LOWER_IS_VULNERABLE = frozenset({"margin"})


def sensitivity(system: System, task: Task, x: Tensor, y: Tensor, rng: Streams) -> dict[str, Tensor]:
    """Return SCORES of a system at inputs x (n, *shape) with labels y (n,), each (n,).

    The radius is the task's customary one in l2, or what its linf radius comes to. Gradients are those that an
    attacker gets: through stand-ins, averaged over draws.
    """
    radius = task.eps.get("l2") or task.eps["linf"] * x[0].numel() ** 0.5
    threat = Threat.parse(f"evasion/white/l2:{radius}")
    target = Target(
        system,
        threat,
        space=task.space,
        classes=task.classes,
        rng=rng.child("sensitivity"),
        examples=len(x),
    )
    found: dict[str, Tensor] = {}
    for name, score in SCORES.items():
        generator = rng.torch("sensitivity", name)
        parts = [
            score(target, x[rows], y[rows], rows, radius, generator)
            for rows in torch.arange(len(x)).split(SAFE)
        ]
        found[name] = torch.cat(parts)
    return found
