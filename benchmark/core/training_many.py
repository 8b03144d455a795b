"""Many networks of one architecture, each trained on rows of its own. Source: common ground of attacks with shadow systems."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from firstline.benchmark.core.data import Data
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import Network, Recipe, plain_loss, train


def train_many(
    modules: Sequence[nn.Module],
    data: Data,
    rows: Tensor,
    recipe: Recipe,
    rngs: Sequence[Streams],
    *,
    objective: Callable[[Network, Tensor, Tensor], Tensor] = plain_loss,
) -> list[nn.Module]:
    """Fit each module to data at its rows (k, m) as `train` does, in place, and return them in evaluation mode."""
    return [
        train(module, data.rows(mine), recipe, rng, loss=objective)
        for module, mine, rng in zip(modules, rows, rngs, strict=True)
    ]
