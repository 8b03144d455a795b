"""A guess from one's own data alone. Source: Jayaraman & Evans 2022, arXiv:2209.01292 (imputation)."""

from dataclasses import dataclass

import numpy as np
import torch
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
        rest = [place for place in range(aux.x.shape[1]) if place != feature]
        own = np.concatenate([aux.x[:, rest].cpu().numpy(), aux.y[:, None].cpu().numpy()], 1)
        theirs = np.concatenate([options[:, 0, rest].cpu().numpy(), y[:, None].cpu().numpy()], 1)
        value = aux.x[:, feature].round().long().cpu().numpy()
        found = torch.zeros(len(options), options.shape[1], dtype=torch.float64)
        if len(np.unique(value)) < 2:
            found[:, value[:1]] = 1.0
            return found
        trees = HistGradientBoostingClassifier(max_iter=self.rounds, early_stopping=False, random_state=0)
        found[:, np.unique(value)] = torch.from_numpy(trees.fit(own, value).predict_proba(theirs))
        return found
