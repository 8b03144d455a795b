"""Prior times confidence.

Source: Yeom, Giacomelli, Fredrikson & Jha 2018, arXiv:1709.01604, section 5, with the probability of the true label in
place of their density of errors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.inversion.confusion_inference import prior
from firstline.benchmark.core.contracts import AttributeInference
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

LEAST = 1e-12  # of a probability under the logarithm


@attack("confidence-inference")
@dataclass(frozen=True)
class ConfidenceInference(AttributeInference):
    """Take the value under which the system is surest of the true label, weighed by how frequent the value is.

    A system that fits its training rows closely is surest of them as they are: what this finds about members more
    than about others is what it remembers.
    """

    needs = ("scores", "aux")
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
        """Return log probabilities plus log priors (n, values)."""
        return confidences(target, options, y) + prior(aux, feature, options.shape[1])


def confidences(target: Target, options: Tensor, y: Tensor) -> Tensor:
    """Return log probabilities (n, values) of the labels y (n,) under each of the options (n, values, features)."""
    n, values = options.shape[:2]
    shares = torch.softmax(target.scores(options.flatten(0, 1)).logits.double(), 1).reshape(n, values, -1)
    own = shares.gather(2, y[:, None, None].expand(n, values, 1))[:, :, 0].nan_to_num(nan=0.0)
    return own.clamp_min(LEAST).log().cpu()
