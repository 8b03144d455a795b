"""Certified accuracy: what a system proves about its answers, and whether an attack proves it wrong.

An example counts as certified when its clean input is answered rightly and the system proves that no point
within the threat's radius changes that. A proof may hold with some probability only, as its defense says. Of
poison, what is proved is how many changes of the training data leave the answer as it is.
"""

import numpy as np
import torch
from torch import Tensor

from firstline.benchmark.core.errors import FirstlineError, SystemFailed
from firstline.benchmark.core.outcome import Bools, EvasionOutcome, Floats, Ints, PoisoningOutcome
from firstline.benchmark.core.system import REFUSED, Certificate, System

BATCH = 256  # inputs that are certified at once


def certified(system: System, x: Tensor, norm: str, chance: torch.Generator) -> Certificate | None:
    """Return what system proves about inputs x (n, *shape) in norm, None where it proves nothing.

    Raises SystemFailed where the system raises, or gives another number of answers or a radius that is none.
    """
    try:
        with torch.no_grad():
            parts = [system.certify(part.clone(), norm, chance) for part in x.split(BATCH)]
    except (FirstlineError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SystemFailed(f"certify raised {type(error).__name__}: {error}") from error
    found = [part for part in parts if part is not None]
    if not found:
        return None
    labels, radii = torch.cat([part.labels for part in found]), torch.cat([part.radii for part in found])
    if not tuple(labels.shape) == tuple(radii.shape) == (len(x),) or not bool((radii >= 0).all()):
        raise SystemFailed(
            f"certify answered {len(x)} inputs with labels of shape {tuple(labels.shape)} and radii of shape "
            f"{tuple(radii.shape)}; it must be one each, and radii at least 0"
        )
    return Certificate(labels, radii)


def proven(outcome: EvasionOutcome) -> Floats:
    """Return the radius (n,) within which each example is proved to be right, -1 where it is answered wrongly."""
    radius, answer = outcome.certified_radius, outcome.certified_answer
    assert radius is not None
    assert answer is not None
    return np.where((answer == outcome.label) & (outcome.clean_answer == outcome.label), radius, -1.0)


def broken_certificates(outcome: EvasionOutcome) -> Bools:
    """Return which examples are answered wrongly within the radius for which they are proved to be right, (n,)."""
    if outcome.minimal_distance is not None:
        return np.asarray(outcome.minimal_distance < proven(outcome))
    wrong = (outcome.adversarial_answer != outcome.label) & (outcome.adversarial_answer != REFUSED)
    return np.asarray(wrong & (outcome.distance < proven(outcome)))


def proven_rows(outcome: PoisoningOutcome) -> Ints:
    """Return how many changes of the training data each right clean answer (n,) withstands, -1 for wrong ones."""
    assert outcome.certified_rows is not None
    return np.where(outcome.clean_answer == outcome.label, outcome.certified_rows, -1)


def disproved(outcome: PoisoningOutcome) -> Bools:
    """Return whose answer (n,) the poison changed although fewer changes were proved to leave it."""
    assert outcome.certified_rows is not None
    assert outcome.certified_against is not None
    proved = outcome.certified_rows >= outcome.certified_against[0]
    return np.asarray(proved & (outcome.answer != outcome.clean_answer))


def certified_curve(outcome: PoisoningOutcome) -> dict[str, list[tuple[float, float]]]:
    """Return the certified accuracy at each number of changed rows, up to the largest that something withstands."""
    if outcome.certified_rows is None:
        return {}
    rows = proven_rows(outcome)
    levels = np.unique(np.concatenate([[0], rows[rows >= 0]]))
    return {"certified_accuracy": [(float(level), float((rows >= level).mean())) for level in levels]}
