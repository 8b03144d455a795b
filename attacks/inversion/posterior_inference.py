"""What the other features say, times confidence.

Source: Bayes' rule, as Yeom et al. 2018, arXiv:1709.01604, section 5, with the prior that Jayaraman & Evans 2022,
arXiv:2209.01292, ask for: what imputation knows of each person, not how frequent a value is among all.
"""

from dataclasses import dataclass

from torch import Tensor

from firstline.attacks.inversion.confidence_inference import LEAST, confidences
from firstline.attacks.inversion.imputation import learned, others
from firstline.benchmark.core.contracts import AttributeInference
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("posterior-inference")
@dataclass(frozen=True)
class PosteriorInference(AttributeInference):
    """Learn the secret from the other features in one's own data, and let the system tell what the label adds.

    `confidence-inference` forgets what the other features say of a person, and loses to imputation wherever they say
    much. This one starts from there. rounds are those of the boosted trees.
    """

    needs = ("scores", "aux")
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
        """Return log probabilities of the true label plus those of the values (n, values)."""
        own, theirs = others(aux.x, feature), others(options[:, 0], feature)
        before = learned(own, aux.x[:, feature], theirs, options.shape[1], self.rounds)
        return confidences(target, options, y) + before.clamp_min(LEAST).log()
