"""Plain text for the terminal: aligned columns, wrapped to its width, and JSON."""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 100


def width() -> int:
    """Return how many columns to use: the terminal's, at most 100."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def say(text: str = "") -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """Print a value as JSON."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under head in aligned columns; the last column is wrapped to the width.

    >>> print(table(["a", "b"], [["1", "x"], ["22", "y"]]))
    a   b
    1   x
    22  y
    """
    if not rows:
        return "  ".join(head)
    wide = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    indent = sum(wide) + 2 * len(wide)
    lines = []
    for row in [head, *rows]:
        start = "".join(cell.ljust(w) + "  " for cell, w in zip(row, wide, strict=False))
        # Not at hyphens: names are copied from here.
        last = textwrap.wrap(row[-1], max(24, width() - indent), break_on_hyphens=False) or [""]
        lines.append((start + last[0]).rstrip())
        lines += [" " * indent + line for line in last[1:]]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return seconds in words.

    >>> duration(0.4), duration(75), duration(7200)
    ('0.4 s', '1 min 15 s', '2 h 0 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
    )


def count(number: int, what: str) -> str:
    """Return a number with its noun.

    >>> count(1, "cell"), count(2, "cell")
    ('1 cell', '2 cells')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
