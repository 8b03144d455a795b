"""What the gate says of a row: the worst verdict of its records, and the worst of each figure."""

import math
from collections.abc import Iterable

from firstline.benchmark.core.limits import LIMITS, VERDICTS, Judged, Limit, judged
from firstline.benchmark.core.record import Gate, Record


def together(records: Iterable[Record]) -> Gate | None:
    """Return the worst verdict with all reasons, None without records."""
    gates = [record.gate for record in records]
    if not gates:
        return None
    verdict = max((gate.verdict for gate in gates), key=VERDICTS.index)
    return Gate(verdict=verdict, reasons=sorted({reason for gate in gates for reason in gate.reasons}))


def objection(records: Iterable[Record]) -> str:
    """Return why the gate of some record failed, empty if none did."""
    failed = [record.gate for record in records if record.gate.verdict == "fail"]
    worst = sorted(gate.reasons[0] for gate in failed if gate.reasons)  # the reasons of a fail come first
    reason = worst[0] if worst else "no reason was recorded"
    return f"gate failed: {reason}" if failed else ""


def figures(records: Iterable[Record]) -> dict[str, Judged]:
    """Return the worst that any record has of each figure, by name, in the order of LIMITS."""

    def badness(limit: Limit, value: float) -> tuple[bool, float]:
        return not math.isfinite(value), value if limit.high else -value

    worst: dict[str, float] = {}
    for record in records:
        for name, value in record.diagnostics.items():
            if name in LIMITS and badness(LIMITS[name], value) > badness(
                LIMITS[name], worst.get(name, value)
            ):
                worst[name] = value
            else:
                worst.setdefault(name, value)
    return {row.name: row for row in judged(worst)}
