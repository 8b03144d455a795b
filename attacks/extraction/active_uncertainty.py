"""Active learning by uncertainty. Source: Pal et al. 2020, ActiveThief, AAAI 34(01), section 4 (uncertainty strategy)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.active_thief import ActiveThief
from firstline.benchmark.core.registry import attack


@attack("active-uncertainty")
@dataclass(frozen=True)
class ActiveUncertainty(ActiveThief):
    """Ask about the rows whose answer by the copy has the highest entropy."""

    def chosen(self, copy: nn.Module, free: Tensor, asked: Tensor, count: int) -> Tensor:
        """Return the rows by falling entropy."""
        with torch.no_grad():
            logs = torch.log_softmax(copy(free), 1)
        return (logs.exp() * logs).sum(1).argsort(stable=True)
