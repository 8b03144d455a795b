"""What membership attacks read off answers: finite logits in float64, and enough shadows to compare them with.

Source: common ground of the attacks; each names its own.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstline.benchmark.core.contracts import Membership, Shadows
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.target import Target

LARGEST = 1e6  # of a logit: what a system that answers with infinities says, in numbers

Logits = NDArray[np.float64]


def numbers(logits: Tensor) -> Logits:
    """Return logits (..., classes) in float64, finite: 0 for NaN."""
    found = torch.nan_to_num(logits.detach().double(), nan=0.0, posinf=LARGEST, neginf=-LARGEST)
    return np.asarray(found.clamp(-LARGEST, LARGEST).cpu().numpy(), np.float64)


def told(target: Target, candidates: Data) -> tuple[Logits, NDArray[np.int64]]:
    """Return what the system answers to the candidates, logits (n, classes) and their labels (n,); one query each."""
    return numbers(target.scores(candidates.x).logits), candidates.y.cpu().numpy()


def enough(attack: Membership, shadows: Shadows | None, each: int) -> Shadows:
    """Return shadows. Raises FirstlineError unless every candidate has so many that saw it, and as many that didn't."""
    least = 0
    if shadows is not None and shadows.member.numel():
        seen = shadows.member.sum(0)
        least = int(torch.minimum(seen, len(shadows.member) - seen).min())
    if shadows is None or least < each:
        raise FirstlineError(
            f"{attack}: some candidates are in, or out of, {least} shadows, and {each} are needed; "
            f"raise shadows= in the threat model to at least {2 * each + 2}"
        )
    return shadows
