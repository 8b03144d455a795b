"""What the per-example arrays of a cell look like: how many held, and a histogram of how far or how sure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
BINS = 16
REFUSED = -1


class Histogram(NamedTuple):
    """Counts per bin between edges, one series for each kind of example; of says what is counted."""

    of: str
    edges: tuple[float, ...]
    series: tuple[tuple[str, tuple[int, ...]], ...]


class Examples(NamedTuple):
    """How many examples came out how, the best first, and a histogram where there is something to bin."""

    outcomes: tuple[tuple[str, int], ...]
    histogram: Histogram | None


def examples(vector: str, arrays: Sequence[Arrays]) -> Examples | None:
    """Return what the arrays of one cell's records say, None where they hold nothing that is known."""
    there = [one for one in arrays if one]
    try:
        if vector == "evasion" and there:
            return _evasion(there)
        if vector == "poisoning" and there:
            return _poisoning(there)
        if vector == "membership" and there:
            return _membership(there)
    except (KeyError, ValueError, TypeError, IndexError):
        return None  # arrays of another shape than ours: the cell's figures stand without them
    return None


def _joined(arrays: Sequence[Arrays], name: str) -> NDArray[Any]:
    return np.concatenate([np.asarray(one[name]) for one in arrays])


def _evasion(arrays: Sequence[Arrays]) -> Examples:
    label, clean, adversarial = (_joined(arrays, n) for n in ("label", "clean_answer", "adversarial_answer"))
    right = clean == label
    refused = right & (adversarial == REFUSED)
    held = right & (adversarial == label)
    broken = right & ~held & ~refused
    counts = (
        ("held", int(held.sum())),
        ("refused under attack", int(refused.sum())),
        ("broken", int(broken.sum())),
        ("wrong unattacked", int((~right).sum())),
    )
    for name, of in (
        ("minimal_distance", "smallest distance that breaks an example, input units"),
        ("distance", "distance of the adversarial example, input units"),
        ("queries", "queries spent on an example"),
    ):
        if all(name in one for one in arrays):
            values = _joined(arrays, name).astype(float)
            chosen = broken if name != "queries" else right
            values = values[chosen & np.isfinite(values)]
            if values.size and np.ptp(values) > 0:
                return Examples(counts, _binned(of, [("examples", values)]))
    return Examples(counts, None)


def _poisoning(arrays: Sequence[Arrays]) -> Examples:
    if all("triggered_answer" in one and "target_class" in one for one in arrays):
        hit = np.concatenate([one["triggered_answer"] == one["target_class"][0] for one in arrays])
        right = np.concatenate([one["triggered_answer"] == one["triggered_label"] for one in arrays])
        refused = _joined(arrays, "triggered_answer") == REFUSED
        counts = (
            ("right with the trigger", int((right & ~hit).sum())),
            ("refused", int((refused & ~hit & ~right).sum())),
            ("wrong, but not as the attacker wants", int((~right & ~hit & ~refused).sum())),
            ("the attacker's answer", int(hit.sum())),
        )
        if all("triggered_acceptance" in one and "clean_acceptance" in one for one in arrays):
            series = [("with trigger", "triggered_acceptance"), ("clean", "clean_acceptance")]
            return Examples(
                counts, _binned("acceptance by the system", [(n, _joined(arrays, of)) for n, of in series])
            )
        return Examples(counts, None)
    right, before = (
        np.concatenate([one[name] == one["label"] for one in arrays]) for name in ("answer", "clean_answer")
    )
    return Examples(
        (
            ("right", int((right & before).sum())),
            ("right only when poisoned", int((right & ~before).sum())),
            ("wrong only when poisoned", int((~right & before).sum())),
            ("wrong in either case", int((~right & ~before).sum())),
        ),
        None,
    )


def _membership(arrays: Sequence[Arrays]) -> Examples:
    member, score = _joined(arrays, "member").astype(bool), _joined(arrays, "score").astype(float)
    counts = (("others", int((~member).sum())), ("members", int(member.sum())))
    known = np.isfinite(score)
    series = [("others", score[known & ~member]), ("members", score[known & member])]
    return Examples(counts, _binned("the attack's score", series))


def _binned(of: str, series: Sequence[tuple[str, NDArray[Any]]]) -> Histogram | None:
    values = np.concatenate([one for _, one in series]).astype(float)
    values = values[np.isfinite(values)]
    if values.size == 0 or values.min() == values.max():
        return None
    # The far tails of scores would leave everything else in one bin.
    lo, hi = np.quantile(values, [0.005, 0.995]) if values.size >= 400 else (values.min(), values.max())
    if not lo < hi or not np.isfinite(hi - lo):
        return None
    edges = np.linspace(lo, hi, BINS + 1)
    counted = [
        (name, tuple(int(c) for c in np.histogram(np.clip(one, lo, hi), edges)[0])) for name, one in series
    ]
    return Histogram(of, tuple(float(edge) for edge in edges), tuple(counted))
