"""Membership by a network that has seen how shadows answer to what they were fitted to, and to what they were not.

Sources: Shokri et al. 2017, arXiv:1610.05820, sections V-C and VI, a network per class from many shadows; Salem et
al. 2019, arXiv:1806.01246, adversary 1, one network from one shadow and the three largest probabilities.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from firstline.attacks.membership.signals import numbers
from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

HIDDEN = 64
STEPS = 400
BATCH = 128  # per network and step
RATE = 0.01


@attack("shadow-classifier")
@dataclass(frozen=True)
class ShadowClassifier(Membership):
    """One network per class tells members by the probabilities of an answer, largest first; it learns from all shadows.

    Networks have a hidden layer of 64, and 400 steps of Adam at a falling rate. A class that the shadows saw nothing of, or nothing but
    members, gives no network: its candidates score 0. Kept to show what it was: the thresholds of `modified-entropy`
    reach as much with no training (Song & Mittal 2021), and at low false-positive rates `lira` sees far more.
    """

    needs = ("scores", "architecture")
    goals = ("scores",)

    shadows: ClassVar[int | None] = None
    largest: ClassVar[int | None] = None
    by_class: ClassVar[bool] = True

    def score(
        self, target: Target, candidates: Data, shadows: Shadows | None, threat: Threat, rng: Streams
    ) -> Tensor:
        """Return the networks' log odds (n,) of membership. Raises FirstlineError without shadows."""
        if shadows is None or len(shadows.systems) == 0:
            raise FirstlineError(
                f"{self}: no shadow to learn from; raise shadows= in the threat model to at least 4"
            )
        count = self.shadows or len(shadows.systems)
        member = shadows.member[:count]
        known = self._features(shadows.logits[:count])
        asked = self._features(target.scores(candidates.x).logits)
        labels = candidates.y.cpu()
        group = labels if self.by_class else torch.zeros_like(labels)
        found = torch.zeros(len(labels), dtype=torch.float64)
        usable = [one for one in group.unique().tolist() if 0 < member[:, group == one].float().mean() < 1]
        rows = [known[:, group == one].flatten(0, 1) for one in usable]
        inside = [member[:, group == one].flatten() for one in usable]
        if usable:
            networks = _trained(rows, inside, rng)
            with torch.no_grad():
                for place, one in enumerate(usable):
                    own = tuple(part[place : place + 1] for part in networks)
                    found[group == one] = _log_odds(own, asked[None, group == one])[0]
        return found

    def _features(self, logits: Tensor) -> Tensor:
        answers: Tensor = torch.from_numpy(numbers(logits)).softmax(-1)
        return answers.sort(-1, descending=True).values[..., : self.largest]


@attack("one-shadow")
@dataclass(frozen=True)
class OneShadow(ShadowClassifier):
    """One network for all classes tells members by the three largest probabilities; it learns from one shadow."""

    shadows = 1
    largest = 3
    by_class = False


Networks = tuple[Tensor, ...]  # weights and bias of the hidden layer, weights and bias of the answer


def _trained(rows: list[Tensor], inside: list[Tensor], rng: Streams) -> Networks:
    """Networks, stacked, that tell which of their rows (n, features), float64, are inside (n,)."""
    draws = rng.torch("networks")
    width, count = rows[0].shape[1], len(rows)

    def start(*shape: int, fan: int) -> Tensor:
        bound = 1 / math.sqrt(fan)
        drawn = bound * (2 * torch.rand(*shape, generator=draws, dtype=torch.float64) - 1)
        return drawn.requires_grad_()

    networks = (
        start(count, width, HIDDEN, fan=width),
        start(count, 1, HIDDEN, fan=width),
        start(count, HIDDEN, 1, fan=HIDDEN),
        start(count, 1, 1, fan=HIDDEN),
    )
    sizes = torch.tensor([len(x) for x in rows])
    first = sizes.cumsum(0) - sizes
    x, y = torch.cat(rows), torch.cat(inside).double()
    optimiser = torch.optim.Adam(networks, lr=RATE)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        drawn = torch.rand(count, BATCH, generator=draws, dtype=torch.float64)
        picked = first[:, None] + (drawn * sizes[:, None]).long()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            _log_odds(networks, x[picked]), y[picked], reduction="sum"
        )
        optimiser.zero_grad()
        (loss / BATCH).backward()
        optimiser.step()
    return networks


def _log_odds(networks: Networks, x: Tensor) -> Tensor:
    """What each network answers (count, n) to its own rows x (count, n, features)."""
    into, bias, out, shift = networks
    return torch.baddbmm(shift, torch.baddbmm(bias, x, into).relu(), out)[..., 0]
