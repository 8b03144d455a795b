"""The ensembles that a robust accuracy should be measured with: strong, cheap members first.

Source: Croce & Hein 2020, arXiv:2003.01690 (AutoAttack), whose members most of these are, in another order and
with one set of standing examples throughout: what one member breaks, no other sees.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.evasion.apgd import APGD
from firstline.attacks.evasion.apgd_targeted import APGDTargeted
from firstline.attacks.evasion.apgd_wide import APGDWide
from firstline.attacks.evasion.fab import FAB
from firstline.attacks.evasion.hop_skip_jump import HopSkipJump
from firstline.attacks.evasion.rays import RayS
from firstline.attacks.evasion.sigma_zero import SigmaZero
from firstline.attacks.evasion.square import Square
from firstline.attacks.evasion.transfer import Transfer
from firstline.attacks.evasion.wide_search import WideSearch
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED
from firstline.benchmark.core.target import Target

DRAWS = 5  # answers of a stochastic system that must all be wrong for an example to leave


def cascade(
    members: Iterable[Evasion],
    target: Target,
    x: Tensor,
    y: Tensor,
    region: Region,
    rng: Streams,
    *,
    draws: int = 1,
) -> Tensor:
    """Return x (n, *shape) after each member attacked what the earlier ones left standing.

    An example leaves when `draws` answers are all wrong; what comes back is the point with the most wrong
    answers, else the last member's best try. The share of the examples that each member broke is told as a
    diagnostic.
    """
    found, most = x.clone(), torch.zeros(len(x), device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for number, member in enumerate([None, *members]):
        if len(rows) == 0:
            break
        here = target.keep(rows)
        points = x[rows]
        if member is not None:
            points = member.perturb(here, points, y[rows], region.keep(rows), rng.child(str(number)))
        wrong = torch.zeros(len(rows), device=x.device)
        asked = here.afford(draws)
        for _ in range(asked):
            labels = here.labels(points)
            wrong += (labels != y[rows]) & (labels != REFUSED)
        better = wrong >= most[rows]
        found[rows[better]], most[rows[better]] = points[better], wrong[better]
        broken = wrong == max(asked, 1)
        if member is not None:
            target.tell(f"broken by {number} {member}", float(broken.sum()) / max(len(x), 1))
        rows = rows[~broken]
    return found


@attack("standard", version=3)
@dataclass(frozen=True)
class Standard(Evasion):
    """White-box: Auto-PGD, from wider balls and with a random search after it, then towards each class.

    linf adds a Square search from afar, l2 a short FAB; l1 does without searches, l0 is sigma-zero. fab adds the
    whole of FAB, which costs more than all others together. Meant to be at least as strong as AutoAttack's
    standard version at a third of its cost.
    """

    needs = ("gradients", "scores", "labels")
    goals = ("linf", "l2", "l1", "l0")

    fab: bool = False

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        draws = DRAWS if target.system.stochastic else 1
        members = MEMBERS[region.norm]
        if self.fab and region.norm != "l0":
            members = (*members, FAB())
        return cascade(members, target, x, y, region, rng, draws=draws)


# Cheap ones first. Which radii, losses and lengths break most for their cost was measured (results/strength.md).
MEMBERS: dict[str, tuple[Evasion, ...]] = {
    "linf": (
        APGD(steps=50),
        WideSearch(steps=72, restarts=4, radii=(2.0, 3.0, 2.0, 5.0), queries=700),
        Square(queries=1000),
        APGDTargeted(steps=36),
    ),
    "l2": (
        APGD(steps=50),
        WideSearch(),
        APGDWide(steps=72, restarts=2, radii=(2.0,), loss="ce"),
        APGDTargeted(steps=25),
        FAB(steps=60, targets=3),
    ),
    "l1": (
        APGD(steps=50),
        APGDWide(restarts=8, loss="ce"),
        APGDTargeted(steps=25),
        APGDWide(restarts=6),
    ),
    "l0": (SigmaZero(),),
}


@attack("standard-scores", version=1)
@dataclass(frozen=True)
class StandardScores(Evasion):
    """Black-box, on scores: Square, with the whole query budget."""

    needs = ("scores", "labels")
    goals = ("linf", "l2")

    queries: int = 5000

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        return cascade([Square(queries=self.queries)], target, x, y, region, rng)


@attack("standard-labels", version=1)
@dataclass(frozen=True)
class StandardLabels(Evasion):
    """Black-box, on labels: RayS for linf, HopSkipJump for l2."""

    needs = ("labels",)
    goals = ("linf", "l2")

    queries: int = 2000

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        member = RayS(queries=self.queries) if region.norm == "linf" else HopSkipJump(queries=self.queries)
        return cascade([member], target, x, y, region, rng)


@attack("standard-gray", version=1)
@dataclass(frozen=True)
class StandardGray(Evasion):
    """Gray-box: transfer from surrogates of the same architecture, then Square."""

    needs = ("architecture", "train", "scores", "labels")
    goals = ("linf", "l2")

    queries: int = 5000

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        return cascade([Transfer(), Square(queries=self.queries)], target, x, y, region, rng)
