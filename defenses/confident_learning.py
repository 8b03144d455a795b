"""Leave out rows whose label a cross-fitted network confidently contradicts, as cleanlab finds them.

Source: Northcutt, Jiang & Chuang 2021, arXiv:1911.00068 (prune by noise rate).
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.packages import require
from firstline.benchmark.core.registry import defense
from firstline.defenses.judges import held_out_logits


@defense("confident-learning")
@dataclass(frozen=True)
class ConfidentLearning(Defense):
    """Count label errors per pair of classes by held-out probabilities, and leave out that many of the worst.

    Claims to find mislabelled rows, with no share to guess: the counts come from the data. The algorithm is
    cleanlab's, with its defaults; five networks of the task give the probabilities. Known to find nothing where
    poison fits well, as triggers and clean-label poison do, and to need networks whose mistakes are fewer than
    the flips.
    """

    folds: int = 5

    def __post_init__(self) -> None:
        require(self.name, self.facts())

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """Return the facts of a defense, the package that it needs, and how to install it."""
        return {**super().facts(), "package": "cleanlab", "install": "pip install 'firstline[poisoning]'"}

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data without the rows that cleanlab takes for mislabelled."""
        present, labels = torch.unique(data.y, return_inverse=True)  # cleanlab wants each class to have rows
        probabilities = held_out_logits(data, self.folds, ctx)[:, present].double().softmax(1)
        ctx.suspect(data.ids, 1 - probabilities.gather(1, labels[:, None]).squeeze(1))
        find = import_module("cleanlab.filter").find_label_issues
        wrong = find(labels.numpy(), probabilities.numpy(), n_jobs=1)
        return data.rows(~torch.from_numpy(wrong))
