"""Spectral signatures of backdoors. Source: Tran, Li & Madry 2018, arXiv:1811.00636, algorithm 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import defense
from firstline.defenses.judges import described
from firstline.defenses.sanitising import check_share, within_share

EXCESS = 1.5  # times eps are left out, algorithm 1


def signatures(features: Tensor, centred: bool = True) -> Tensor:
    """Return the squared projections (n,) of features (n, width) on the direction in which they vary most.

    That direction is the top singular vector of the centred features. centred says what is projected on it:
    the centred features, as in the paper, or the features as they are.
    """
    apart = features - features.mean(0)
    direction: Tensor = torch.linalg.eigh(apart.T @ apart).eigenvectors[:, -1]
    return ((apart if centred else features) @ direction).square()


@defense("spectral-signatures")
@dataclass(frozen=True)
class SpectralSignatures(Defense):
    """Leave out of each class the rows that stand out along the main direction of a network's features.

    Claims that poison with a trigger shifts the features of a small part of its class, and is found by the
    correlation with the top singular vector. eps is the greatest share of a class that the defender expects to
    be poisoned; half as much again is left out of every class, clean ones too. centred=False projects
    features that are not centred, as the authors' published code and much that follows it do: another
    algorithm, which finds other rows. Known to fail where poison is half of its class, or little of it (Hayase et
    al. 2021, arXiv:2104.11315), and where its features are kept near those of the class (Qi et al. 2023,
    arXiv:2205.13613).
    """

    eps: float = 0.05
    centred: bool = True

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return data without the rows of each class with the largest signatures."""
        check_share(self, EXCESS * self.eps, "1.5 eps")
        features = described(data, ctx)
        scores = torch.zeros(len(data), dtype=features.dtype)
        for label in torch.unique(data.y):
            members = data.y == label
            scores[members] = signatures(features[members], self.centred)
        ctx.suspect(data.ids, scores)
        return data.rows(within_share(scores, data.y, EXCESS * self.eps))
