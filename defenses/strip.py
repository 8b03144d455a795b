"""STRIP: triggers outlive what is laid over them. Source: Gao et al. 2019, arXiv:1902.06531, algorithm 1."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import Response, System
from firstline.defenses.detector import Detector, check_fpr, halves
from firstline.defenses.transformation import images_only


def entropies(logits: Tensor) -> Tensor:
    """Return the entropy (n,) in bits of each answer of logits (n, classes), over the classes."""
    logs = torch.log_softmax(logits, 1)
    return -(logs.exp() * logs).sum(1) / math.log(2)


class Superimposed(Detector):
    """Scores inputs by minus the mean entropy of the answers to them when other images are laid over them."""

    def __init__(self, inner: System, shape: tuple[int, ...], overlays: int) -> None:
        super().__init__(inner)
        self.register_buffer("overlays", torch.zeros(overlays, *shape))

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        """Return the answer to x (n, *shape), and minus the mean entropies (n,), in bits."""
        answer = self._inside().respond(x, rng)
        bits = [
            entropies(self._inside().respond((x + overlay) / 2, rng).logits)
            for overlay in self.get_buffer("overlays")
        ]
        return answer, -torch.stack(bits).mean(0)


@defense("strip", version=2)
@dataclass(frozen=True)
class Strip(Defense):
    """Refuse inputs whose class stays certain whatever is laid over them.

    Claims to refuse inputs with a trigger that brings one class whatever the image: the trigger outlives the
    blend, at half its strength, and other inputs don't. overlays images are laid over each input, half and half,
    in the units of the task; each query costs as many more answers (100 in the paper, which draws them anew for
    each input; here they are drawn once, so that answers are not random). fpr is the share of clean inputs that
    it may refuse, chosen on rows that are not laid over others. Both are clean rows of the defender's own, where it
    has any; else the collected data, of which a share of poison about as large as fpr makes the threshold useless.
    Known to miss triggers that work in one
    class only, that fade when blended, or that were trained not to (Tang et al. 2021, arXiv:1908.00686; Qi et al.
    2023, arXiv:2205.13613).
    """

    inputs = ("real",)

    fpr: float = 0.01
    overlays: int = 50

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the detector."""
        check_fpr(self, self.fpr)
        images_only(self, task)
        if self.overlays < 1:
            raise FirstlineError(f"{self}: overlays must be at least 1")
        return Superimposed(system, task.space.shape, self.overlays)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Take the overlays from one half of the clean rows, and the threshold from the other."""
        assert isinstance(system, Superimposed)
        known, fresh = halves(data if ctx.clean is None else ctx.clean, ctx)
        if len(known) < self.overlays:
            raise FirstlineError(f"{self}: half of the data is {len(known)} rows; lower overlays")
        system.get_buffer("overlays").copy_(known.x[: self.overlays])
        system.set_threshold(fresh.x, self.fpr, ctx.rng.torch("answers"))
