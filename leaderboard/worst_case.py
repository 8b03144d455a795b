"""The worst case over attacks, example by example, and the pairs that a paired test needs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstline.benchmark.core.errors import FirstlineError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

NEEDED = ("ids", "label", "clean_answer", "adversarial_answer")
REFUSED = -1  # the answer of a system that declines, see benchmark.core.outcome


@dataclass(frozen=True)
class Verdicts:
    """Per example, by rising id: was the clean input answered right, and did the system hold under attack."""

    ids: Ints
    right: Bools
    held: Bools


def judge(arrays: Mapping[str, NDArray[Any]]) -> Verdicts:
    """Return the verdicts on one evasion cell from its per-example arrays.

    A clean input must be answered right; an adversarial one is defended if it is refused or answered right.
    Raises FirstlineError saying what is wrong with the arrays.
    """
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise FirstlineError(f"there is no array called {', '.join(missing)}")
    ids, label, clean, adversarial = (np.asarray(arrays[name]) for name in NEEDED)
    shapes = {array.shape for array in (ids, label, clean, adversarial)}
    if len(shapes) != 1 or ids.ndim != 1 or ids.size == 0:
        raise FirstlineError(
            f"the arrays should be flat, not empty and of one length, but are {sorted(shapes)}"
        )
    if not all(np.issubdtype(array.dtype, np.integer) for array in (ids, label, clean, adversarial)):
        raise FirstlineError("ids, labels and answers should be whole numbers")
    if label.min() < 0:
        raise FirstlineError("a label is negative, which only an answer may be")
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order]) == 0).any():
        raise FirstlineError("an example occurs twice")
    right = clean == label
    held = right & ((adversarial == label) | (adversarial == REFUSED))
    return Verdicts(ids[order].astype(np.int64), right[order], held[order])


def worst(attacks: Mapping[str, Verdicts]) -> Verdicts:
    """Return the verdicts under all attacks at once: an example holds if it holds under every one.

    Raises FirstlineError naming two attacks that were not run on the same examples.
    """
    (first, start), *rest = attacks.items()
    right, held = start.right, start.held
    for name, verdicts in rest:
        if not np.array_equal(start.ids, verdicts.ids):
            raise FirstlineError(f"{first} and {name} attacked different examples")
        right, held = right & verdicts.right, held & verdicts.held
    return Verdicts(start.ids, right, held)


def warded(attacks: Iterable[Mapping[str, Verdicts]]) -> Floats:
    """Return for each example that is right when clean the share of its attacks that failed, (n,), all seeds in a row.

    attacks holds, for each seed, the verdicts by attack, which `worst` found to be of the same examples.
    """
    shares = [np.zeros(0)]
    for seed in attacks:
        right = np.logical_and.reduce([one.right for one in seed.values()])
        shares.append(np.mean([one.held[right] for one in seed.values()], axis=0))
    return np.concatenate(shares)


def paired(a: Mapping[int, Verdicts], b: Mapping[int, Verdicts]) -> tuple[Verdicts, Verdicts]:
    """Return the verdicts of a and b (by seed) on the examples that both have under the same seed, one after another."""
    left, right = [_NONE], [_NONE]
    for seed in sorted(a.keys() & b.keys()):
        _, at, bt = np.intersect1d(a[seed].ids, b[seed].ids, assume_unique=True, return_indices=True)
        left.append(_rows(a[seed], at))
        right.append(_rows(b[seed], bt))
    return _joined(left), _joined(right)


_NONE = Verdicts(np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.bool_))


def _rows(verdicts: Verdicts, rows: Ints) -> Verdicts:
    return Verdicts(verdicts.ids[rows], verdicts.right[rows], verdicts.held[rows])


def _joined(parts: list[Verdicts]) -> Verdicts:
    return Verdicts(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "right", "held"))
    )
