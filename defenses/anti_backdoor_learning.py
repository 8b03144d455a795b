"""Anti-backdoor learning. Source: Li et al. 2021, arXiv:2110.11571 (local and global gradient ascent)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.losses import cross_entropies, margins
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.training import Recipe, train
from firstline.defenses.judges import logits_of

SLOWER = 0.3  # the rate of unlearning, as a share of the recipe's: ours, the paper lowers its own by far more


def part_of(recipe: Recipe, share: float) -> Recipe:
    """Return recipe with this share of its epochs, at least one."""
    return replace(recipe, epochs=max(1, round(share * recipe.epochs)))


@defense("anti-backdoor-learning")
@dataclass(frozen=True)
class AntiBackdoorLearning(Defense):
    """Isolate the rows that are learned first, train without them, then unlearn them.

    Claims to train a clean network on poisoned data: triggers are learned faster than anything else, so that
    the rows of lowest loss after a few epochs are poison. In those epochs a loss below `flood` is climbed again,
    which only the easiest rows withstand. share of the rows are isolated, after `isolation` of the recipe's
    epochs; the network then learns the other rows by the recipe, and for `unlearning` of its epochs climbs the
    loss of the isolated ones while it descends that of the others. The paper isolates after 20 of 100 epochs and
    unlearns in the last 40 or fewer. Known to isolate clean rows where triggers are blended or warped, and are
    learned no faster than the rest; unlearning then costs accuracy and nothing else.
    """

    flood: float = 0.5
    share: float = 0.01
    isolation: float = 0.2
    unlearning: float = 0.2

    def isolate(self, module: nn.Module, data: Data, ctx: Context) -> Tensor:
        """Train module on data for a while, with the loss held up, and return which rows (n,) it fits best."""

        def held_up(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            losses = cross_entropies(module(x), y)
            return (torch.sign(losses - self.flood) * losses).mean()

        recipe = part_of(ctx.task.default.recipe, self.isolation)
        train(module, data, recipe, ctx.rng.child("isolate"), loss=held_up)
        losses = cross_entropies(logits_of(module, data, ctx), data.y.cpu())
        isolated = torch.zeros(len(data), dtype=torch.bool)
        isolated[losses.argsort(stable=True)[: round(self.share * len(data))]] = True
        return isolated.to(data.x.device)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained on the rows that are not isolated, and away from those that are."""
        shares = (self.share, self.isolation, self.unlearning)
        if self.flood < 0 or not all(0 < share < 1 for share in shares) or self.share > 0.5:
            raise FirstlineError(
                f"{self}: flood must be at least 0, isolation and unlearning between 0 and 1, and share at most 0.5"
            )
        isolated = self.isolate(module, data, ctx)
        recipe = ctx.task.default.recipe
        train(module, data.rows(~isolated), recipe, ctx.rng)
        return self.unlearn(module, data.rows(~isolated), data.rows(isolated), ctx)

    def unlearn(self, module: nn.Module, rest: Data, isolated: Data, ctx: Context) -> nn.Module:
        """Return module after steps that fit rest better and isolated worse.

        Where the paper climbs the cross-entropy, the margin is climbed here, up to 0: the cross-entropy has no
        slope left where a network is certain, which it is of a trigger, and has no bound elsewhere.
        """
        if len(isolated) == 0:
            return module
        recipe = part_of(ctx.task.default.recipe, self.unlearning)
        draw = ctx.rng.torch("isolated")

        def apart(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            rows = torch.randint(len(isolated), (len(x),), generator=draw).to(x.device)
            bad = isolated.rows(rows)
            return cross_entropy(module(x), y) - margins(module(bad.x), bad.y).clamp_max(0).mean()

        slow = replace(recipe, rate=SLOWER * recipe.rate)
        return train(module, rest, slow, ctx.rng.child("unlearn"), loss=apart)
