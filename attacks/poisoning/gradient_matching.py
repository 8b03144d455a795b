"""Hidden-trigger backdoors: rows of the target class, without the trigger, that teach it nevertheless.

Sources: Geiping et al. 2021, arXiv:2009.02276, algorithm 1 (gradient matching), towards a trigger as in Souri et al.
2022, arXiv:2106.08970, section 3, without their retraining and choice of rows; Saha et al. 2020, arXiv:1910.00033
(feature collision with patched images); Aghakhani et al. 2021, arXiv:2005.00191 (bullseye).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.attacks.poisoning.backdoor import choose
from firstline.attacks.poisoning.patch import patch
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import train as fit

Objective = Callable[[Tensor], Tensor]  # the poisons (n, *shape) to a scalar, the lower the better
FALLS = (
    3 / 8,
    5 / 8,
    7 / 8,
)  # where the step length falls to a tenth, as shares of the steps (Geiping et al. 2021)


def gradient_objective(network: nn.Module, triggered: Tensor, target: int) -> Objective:
    """Return 1 - cosine of the loss gradients of the poisons and of triggered (m, *shape), both labelled target."""
    parameters = [p for p in network.parameters() if p.requires_grad]

    def gradient(x: Tensor, graph: bool) -> Tensor:
        y = torch.full((len(x),), target, device=x.device)
        parts = torch.autograd.grad(cross_entropy(network(x), y), parameters, create_graph=graph)
        return torch.cat([part.flatten() for part in parts])

    wanted = gradient(triggered, graph=False)
    wanted = wanted / wanted.norm().clamp_min(TINY)

    def objective(poisons: Tensor) -> Tensor:
        found = gradient(poisons, graph=True)
        cosine: Tensor = found @ wanted / found.norm().clamp_min(TINY)
        return 1 - cosine

    return objective


def collision_objective(network: nn.Module, triggered: Tensor, target: int) -> Objective:
    """Return the mean squared distance of each poison's features from those of one of triggered, in turn."""
    wanted = _features(network, triggered).detach()
    return lambda poisons: (
        (_features(network, poisons) - wanted[torch.arange(len(poisons)) % len(wanted)])
        .square()
        .sum(1)
        .mean()
    )


def bullseye_objective(network: nn.Module, triggered: Tensor, target: int) -> Objective:
    """Return the squared distance of the poisons' mean features from those of triggered, over their square."""
    wanted = _features(network, triggered).detach().mean(0)
    size = wanted.square().sum().clamp_min(TINY)
    return lambda poisons: (_features(network, poisons).mean(0) - wanted).square().sum() / size


OBJECTIVES = {
    "gradient": gradient_objective,
    "collision": collision_objective,
    "bullseye": bullseye_objective,
}


@attack("gradient-matching")
@dataclass(frozen=True)
class GradientMatching(Poisoning):
    """Move rows of the target class within eps so that learning them teaches a patch that they don't show.

    objective says how: 'gradient' (their loss gradient points where that of patched rows of other classes,
    labelled target, does), 'collision' or 'bullseye' (their features are those of patched rows). The network
    that measures it has the task's architecture and recipe, on the rows held; sources is how many patched rows
    it is shown. eps is the linf radius, 0 the task's customary one; stride, a share of it, the first step of
    Adam on the gradient's signs. Features are what goes into the network's last linear layer; their papers
    let the victim keep the network below it, so a victim that trains from scratch is moved less by the two.
    """

    needs = ("train", "architecture")
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    objective: str = "gradient"
    eps: float = 0.0
    steps: int = 250
    stride: float = 0.1
    sources: int = 100
    size: int = 3
    value: float = 1.0
    corner: str = "bottom-right"
    margin: int = 0

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows of class target moved; no label changes.

        Raises FirstlineError when steps or sources is 0, the inputs are no images, the patch does not fit on
        them, there is no such objective, no radius, no class target, too few rows of it, or none of another class.
        """
        if self.steps < 1 or self.sources < 1:
            raise FirstlineError(
                f"{self.name}: steps and sources must be at least 1, got {self.steps} and {self.sources}"
            )
        if self.objective not in OBJECTIVES:
            raise not_found("objective", self.objective, OBJECTIVES)
        stamp = patch(
            self.name, task, size=self.size, value=self.value, corner=self.corner, margin=self.margin
        )
        eps = self.eps or task.eps.get("linf", 0.0)
        if eps <= 0:
            raise FirstlineError(f"{self.name}: task {task.name} has no customary linf radius; set eps")
        rows = choose(self.name, train, task, budget, rng, target=self.target, source="target")
        others = (train.y != self.target).nonzero().squeeze(1)
        if len(others) == 0:
            raise FirstlineError(
                f"{self.name}: the attacker holds no row outside class {self.target}; raise train="
            )
        x = train.x.clone()
        if budget:
            shown = others[torch.randperm(len(others), generator=rng.torch("sources"))[: self.sources]]
            own = rng.child("surrogate")
            network = fit(initialise(task.default.build, own), train, task.default.recipe, own)
            objective = OBJECTIVES[self.objective](network, stamp(train.x[shown]), self.target)
            x[rows] = self._crafted(objective, Region(train.x[rows], task.space, "linf", eps), eps, rng)
        return PoisonedData(Data(x, train.y, train.ids), train.ids[rows], stamp, self.target)

    def _crafted(self, objective: Objective, region: Region, eps: float, rng: Streams) -> Tensor:
        """Return the points of region (n, *shape), on the grid, with the lowest objective met."""
        points = region.random(rng.torch("start")).requires_grad_()
        best, least = region.centre, float("inf")
        optimiser = torch.optim.Adam([points], lr=self.stride * eps)
        milestones = [max(1, round(share * self.steps)) for share in FALLS]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones)
        for _ in range(self.steps):
            value = objective(points)
            if float(value.detach()) < least:
                best, least = points.detach().clone(), float(value.detach())
            (gradient,) = torch.autograd.grad(value, points)
            points.grad = gradient.sign()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                points.copy_(region.project(points))
        return region.snap(best)


def _features(network: nn.Module, x: Tensor) -> Tensor:
    """Return what goes into the last linear layer of network for x (n, *shape), (n, width)."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise FirstlineError("features are what goes into a network's last nn.Linear layer, and it has none")
    seen: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    try:
        network(x)
    finally:
        hook.remove()
    return seen[0]
