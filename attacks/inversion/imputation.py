"""A guess from one's own data alone. Source: Jayaraman & Evans 2022, arXiv:2209.01292 (imputation)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from firstline.benchmark.core.contracts import AttributeInference
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("imputation", tags=("control",))
@dataclass(frozen=True)
class Imputation(AttributeInference):
    """Learn the secret from the other features and the label in one's own data, by boosted trees, and ask nothing."""

    needs = ("aux",)
    goals = ("attribute",)
    inputs = ("real",)

    rounds: int = 60

    def infer(
        self,
        target: Target,
        options: Tensor,
        y: Tensor,
        aux: Data,
        feature: int,
        threat: Threat,
        rng: Streams,
    ) -> Tensor:
        """Return the trees' probabilities (n, values)."""
        own, theirs = others(aux.x, feature), others(options[:, 0], feature)
        own = np.concatenate([own, aux.y[:, None].cpu().numpy()], 1)
        theirs = np.concatenate([theirs, y[:, None].cpu().numpy()], 1)
        return learned(own, aux.x[:, feature], theirs, options.shape[1], self.rounds)


def others(x: Tensor, feature: int) -> NDArray[np.float32]:
    """Return x (n, features) without one of its columns."""
    return np.delete(x.cpu().numpy(), feature, axis=1)


def learned(
    own: NDArray[np.float32], value: Tensor, theirs: NDArray[np.float32], values: int, rounds: int
) -> Tensor:
    """Return probabilities (n, values) of the values of the rows theirs, by boosted trees that saw own and value."""
    known = value.round().long().cpu().numpy()
    found = torch.zeros(len(theirs), values, dtype=torch.float64)
    if len(np.unique(known)) < 2:
        found[:, known[:1]] = 1.0
        return found
    trees = HistGradientBoostingClassifier(max_iter=rounds, early_stopping=False, random_state=0)
    found[:, np.unique(known)] = torch.from_numpy(trees.fit(own, known).predict_proba(theirs))
    return found
