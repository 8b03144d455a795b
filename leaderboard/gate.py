"""What the gate says of a row: the worst verdict of its records, and the worst of each figure."""

from collections.abc import Iterable

from firstline.benchmark.core.limits import VERDICTS, Judged, judged
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
    """Return the worst that any record has of each figure, by name."""

    def badness(row: Judged) -> tuple[int, float]:
        return VERDICTS.index(row.verdict), row.value if row.limit.high else -row.value

    found: dict[str, Judged] = {}
    for record in records:
        for row in judged(record.diagnostics):
            found[row.name] = max(found.get(row.name, row), row, key=badness)
    return found
