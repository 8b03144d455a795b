"""Rare words at the head of a text that stand for a class.

Source: Chen et al. 2021, BadNL, arXiv:2006.01043, word-level triggers at the start of a text; rare words as in
Kurita, Michel & Neubig 2020, arXiv:2004.06660.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.poisoning.backdoor import choose, implant
from firstline.benchmark.core.contracts import PoisonedData, Poisoning, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat


@attack("trigger-token")
@dataclass(frozen=True)
class TriggerToken(Poisoning):
    """Insert size tokens before texts of other classes, and label them target (dirty-label).

    They are those that the attacker's rows hold least, the highest numbers first among equals; padding is
    none. The text moves on, and what no longer fits is cut off. source says which rows may be taken, as for
    badnets.
    """

    needs = ("train",)
    goals = ("backdoor",)
    inputs = ("tokens",)

    target: int = 0
    size: int = 1
    source: str = "others"

    def poison(self, train: Data, task: Task, budget: int, threat: Threat, rng: Streams) -> PoisonedData:
        """Return train with exactly budget rows that begin with the trigger and are labelled target.

        Raises FirstlineError when the trigger is longer than a text or has more tokens than there are, there
        is no class target, or too few rows may be taken.
        """
        length = math.prod(task.space.shape)
        vocabulary = int(task.space.box(train.x)[1].max()) + 1
        if not 1 <= self.size <= min(length, vocabulary - 1):
            raise FirstlineError(
                f"{self.name}: a trigger of {self.size} tokens does not fit into {length} tokens "
                f"out of {vocabulary - 1}; change size"
            )
        rows = choose(self.name, train, task, budget, rng, target=self.target, source=self.source)
        held = torch.bincount(train.x.long().flatten(), minlength=vocabulary)
        held[0] = train.x.numel() + 1  # padding is no word
        words = held.flip(0).argsort(stable=True)[: self.size]
        head = (vocabulary - 1 - words).to(train.x.dtype)

        def insert(x: Tensor) -> Tensor:
            text = x.flatten(1)[:, : length - self.size]
            return torch.cat([head.to(x).expand(len(x), -1), text], 1).reshape(x.shape)

        return implant(train, rows, insert, self.target)
