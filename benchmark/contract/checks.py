"""The checks behind `firstline check`: plain functions that raise AssertionError saying what is wrong.

Each takes an item with its default settings. `findings` runs all that apply to one item.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.catalog import card_of, create
from firstline.benchmark.core.contracts import Defense, Item, Task
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.ref import Ref

Check = Callable[[Any, Path | None], None]
_checks: list[tuple[type[Item], str, Check]] = []


@dataclass(frozen=True)
class Finding:
    """The result of one check. problem is empty where it passed; skipped says why it could not be run."""

    item: str
    check: str
    problem: str = ""
    skipped: str = ""


def applies_to(kind: type[Item]) -> Callable[[Check], Check]:
    """Mark a function as a check of all items of a class. Its first docstring line is its name."""

    def add(check: Check) -> Check:
        _checks.append((kind, (check.__doc__ or check.__name__).partition("\n")[0].rstrip("."), check))
        return check

    return add


def findings(item: Item, kind: str, folder: Path | None) -> Iterator[Finding]:
    """Run every check that applies to item; an exception of any kind is a problem, told in one line."""
    # Imported for their registrations.
    from firstline.benchmark.contract import attacks, defenses, tasks  # noqa: F401

    for cls, name, check in _checks:
        if not isinstance(item, cls):
            continue
        where = f"{kind} {item.name}"
        try:
            check(item, folder)
        except DataProblem as error:
            yield Finding(where, name, skipped=str(error))
        except AssertionError as error:
            yield Finding(where, name, problem=str(error) or "the check failed")
        except Exception as error:
            yield Finding(where, name, problem=f"{type(error).__name__}: {' '.join(str(error).split())}")
        else:
            yield Finding(where, name)


def kind_of(item: Item) -> str:
    """Return task, defense or attack."""
    return "task" if isinstance(item, Task) else "defense" if isinstance(item, Defense) else "attack"


@applies_to(Item)
def documented(item: Item, folder: Path | None) -> None:
    """Has a summary, and names its source."""
    doc = card_of(kind_of(item), type(item)).doc
    written = (type(item).__doc__ or "").strip()
    generated = written.startswith(f"{type(item).__name__}(")  # what @dataclass writes where there is none
    assert written and not generated, "the class has no docstring; say in one line what it does"
    assert "Source:" in doc or "Sources:" in doc, (
        "neither the module nor the class names a source; write 'Source: authors year, arXiv:…'"
    )


@applies_to(Item)
def plain_settings(item: Item, folder: Path | None) -> None:
    """Is a frozen dataclass of plain settings."""
    assert dataclasses.is_dataclass(item), "write @dataclass(frozen=True)"
    assert type(item).__dataclass_params__.frozen, "write @dataclass(frozen=True): settings never change"
    canonical(item.settings())


@applies_to(Item)
def rebuilt(item: Item, folder: Path | None) -> None:
    """Is rebuilt from its settings and from its text form."""
    again = create(kind_of(item), item.name, item.settings())
    assert again == item, f"{again} differs from {item} though the settings are the same"
    assert Ref.parse(str(item)).name == item.name, f"the text form {item} does not name {item.name!r}"
    assert item.version >= 1, "version must be at least 1"
