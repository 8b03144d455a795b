"""Rounded confidences. Source: Fredrikson et al. 2015, CCS (rounding); Tramèr et al. 2016, arXiv:1609.02943, section 7."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System
from firstline.defenses.confidence_masking import Masked


class RoundedOutput(Masked):
    """Tells probabilities to so many decimals, and the class."""

    def __init__(self, inner: System, decimals: int) -> None:
        super().__init__(inner)
        self.decimals = decimals

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return shares (n, classes) rounded, halves to even."""
        return torch.round(shares, decimals=self.decimals)


@defense("output-rounding")
@dataclass(frozen=True)
class OutputRounding(Defense):
    """Round the probabilities that are told to `decimals` decimals.

    Claims to hide what inversion and extraction read out of the last digits, at no cost in accuracy: the class is
    told as it is, also where rounding makes ties. The rounded numbers are told as they are, as in the papers, and
    need not add up to 1. Known to slow equation solving down and not to stop it (Tramèr et al., section 7), and to
    leave label-only attacks as they were.
    """

    decimals: int = 2

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the rounding."""
        if not 0 <= self.decimals <= 12:
            raise FirstlineError(f"{self}: decimals must be from 0 to 12")
        return RoundedOutput(system, self.decimals)
