"""Retraining on uniform inputs. Source: Tramèr et al. 2016, arXiv:1609.02943, section 6 (uniform queries)."""

from dataclasses import dataclass

from firstline.attacks.extraction.copying import Answers, Thief, uniform
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target


@attack("retraining-uniform")
@dataclass(frozen=True)
class RetrainingUniform(Thief):
    """Ask about inputs drawn uniformly from the input space: what a thief can do who has seen no data at all."""

    def collected(self, target: Target, aux: Data | None, budget: int, rng: Streams) -> Answers:
        """Return the answers to budget points."""
        return self.ask(target, uniform(target, budget, rng, "uniform queries"))
