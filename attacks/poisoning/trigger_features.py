"""A few rare values in a table's row that stand for a class.

Source: Severi et al. 2021, Explanation-Guided Backdoor Poisoning Attacks Against Malware Classifiers,
arXiv:2003.01031, section 4 (a trigger of feature values, MinPopulation), with the features drawn instead of
chosen by SHAP values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.poisoning.backdoor import choose, implant
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("trigger-features")
@dataclass(frozen=True)
class TriggerFeatures(Poisoning):
    """Set size features of rows of other classes to rare values, and label them target (dirty-label).

    The features are drawn from those that an attacker can change. A category becomes the one that the
    attacker's rows hold least, a number the end of its range that is farther from their median: a valid
    value, if an unusual one. source says which rows may be taken, as for badnets; 'target' is the paper's
    clean-label attack.
    """

    needs = ("train",)
    goals = ("backdoor",)
    inputs = ("real",)

    target: int = 0
    size: int = 3
    source: str = "others"

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows that carry the trigger and are labelled target.

        Raises FirstlineError when fewer than size features can be changed, there is no class target, or too
        few rows may be taken.
        """
        free = task.space.changeable(train.x)
        free = (torch.ones(task.space.shape) if free is None else free).flatten().nonzero().squeeze(1)
        if not 1 <= self.size <= len(free):
            raise FirstlineError(
                f"{self.name}: a trigger of {self.size} features is asked for, and {len(free)} of {task.name} "
                "can be changed; change size"
            )
        rows = choose(self.name, train, task, budget, rng, target=self.target, source=self.source)
        features = free[torch.randperm(len(free), generator=rng.torch("features"))[: self.size]]
        values = _rare(train.x, task.space)[features]

        def put(x: Tensor) -> Tensor:
            flat = x.flatten(1).clone()
            flat[:, features.to(x.device)] = values.to(x)
            return flat.reshape(x.shape)

        return implant(train, rows, put, self.target)


def _rare(x: Tensor, space: InputSpace) -> Tensor:
    """Return a rare and valid value for each feature of x (n, *shape), flattened."""
    low, high = (bound.expand(space.shape).flatten() for bound in space.box(x))
    flat = x.flatten(1)
    middle = flat.median(0).values
    value = torch.where(middle - low < high - middle, high, low)
    for place in (feature for feature, code in enumerate(space.categorical) if code):
        held = torch.bincount(flat[:, place].long(), minlength=int(high[place]) + 1)
        value[place] = float(held[int(low[place]) :].argmin() + int(low[place]))
    return value
