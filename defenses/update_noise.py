"""Clipped and noisy updates. Source: Abadi et al. 2016, arXiv:1607.00133; Zhu et al. 2019, arXiv:1906.08935, section 5.1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from firstline.benchmark.core.contracts import Context, Defense, Gradients
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense


@defense("update-noise")
@dataclass(frozen=True)
class UpdateNoise(Defense):
    """Cut a client's update to an l2 norm of clip, and add Gaussian noise of standard deviation noise times clip.

    Claims to hide a batch as far as the noise drowns it; the training that goes on with such updates loses accuracy. One
    update is clipped as a whole, not row by row: that is no DP-SGD, and no epsilon is claimed.
    """

    clip: float = 1.0
    noise: float = 0.01

    def transmit(self, updates: Sequence[Gradients], ctx: Context) -> Gradients:
        """Return the first update, clipped and with noise."""
        if self.clip <= 0 or self.noise < 0:
            raise FirstlineError(f"{self}: clip is above 0 and noise at least 0")
        own, draw = updates[0], ctx.rng.torch("update noise")
        norm = torch.cat([g.flatten() for g in own]).norm()
        scale = torch.clamp(self.clip / norm.clamp_min(TINY), max=1.0)
        spread = self.noise * self.clip
        return tuple(g * scale + spread * torch.randn(g.shape, generator=draw).to(g) for g in own)
