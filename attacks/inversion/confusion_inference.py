"""Prior times confusion. Source: Fredrikson et al. 2014, USENIX Security, and 2015, CCS, section 4 (black-box MAP)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import AttributeInference
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("confusion-inference")
@dataclass(frozen=True)
class ConfusionInference(AttributeInference):
    """Take the value that makes the system's answer, and the value itself, likeliest: labels are all it needs.

    A value is worth its share in the attacker's own data times how often the system gives the answer that it gives to
    the row with this value, where the row's label is the true one: the confusion matrix, counted on own data with one
    row more in each place.
    """

    needs = ("labels", "aux")
    goals = ("attribute",)
    inputs = ("real",)

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
        """Return the logarithms of these products (n, values)."""
        values, classes = options.shape[1], target.classes
        confusion = torch.ones(classes, classes, dtype=torch.float64)
        told = target.labels(aux.x).cpu()
        known = told >= 0
        places = (aux.y.cpu()[known], told[known])
        confusion.index_put_(places, torch.ones(int(known.sum()), dtype=torch.float64), accumulate=True)
        confusion /= confusion.sum(1, keepdim=True)
        answers = target.labels(options.flatten(0, 1)).cpu().reshape(len(options), values)
        likely = confusion[y.cpu()[:, None].expand_as(answers), answers.clamp_min(0)]
        likely = torch.where(answers < 0, 1 / classes, likely)
        return likely.log() + prior(aux, feature, values)


def prior(aux: Data, feature: int, values: int) -> Tensor:
    """Return the logarithms of the values' shares (values,) in aux, one more row counted for each."""
    count = torch.bincount(aux.x[:, feature].round().long().cpu(), minlength=values)[:values].double() + 1
    return (count / count.sum()).log()
