"""A suite becomes cells; what does not fit together is left out, with the reason."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from firstline.benchmark.core.catalog import Card, Catalog, create, load
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.packages import absent
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run.keys import Cell, Use, only_repairs
from firstline.benchmark.run.suite import Suite


@dataclass(frozen=True)
class Selection:
    """Globs on text forms; empty means all. exclude holds part=glob pairs, such as attack=pgd*."""

    task: tuple[str, ...] = ()
    defense: tuple[str, ...] = ()
    attack: tuple[str, ...] = ()
    threat: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skip:
    """A combination that is not run, and why."""

    what: str
    reason: str


@dataclass
class Matrix:
    """The cells of a suite, in the order in which they should run, and what was skipped."""

    cells: list[Cell] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)


def expand(suite: Suite, catalog: Catalog, selection: Selection, device: str, folder: Path | None) -> Matrix:
    """Return the cells that the selection leaves of a suite.

    Seeds come first in the order, so that every system has its first seed before any has its second.
    Raises FirstlineError for unknown names or settings, and for a selection that matches nothing.
    """
    matrix, seen = Matrix(), set()
    prints: dict[str, str] = {}
    for block in suite.blocks:
        tasks = [(card := catalog.get("task", ref.name), use(card, ref)) for ref in block.tasks]
        stacks = [
            [(card := catalog.get("defense", r.name), use(card, r)) for r in stack]
            for stack in block.defenses
        ]
        attacks = [(card := catalog.get("attack", ref.name), use(card, ref)) for ref in block.attacks]
        for (task_card, task), stack, (attack_card, attack), threat in product(
            tasks, stacks, attacks, block.threats
        ):
            defense = "+".join(layer.text for _, layer in stack)
            fits = attack_card.facts["vector"] == threat.vector
            if not fits or not _chosen(selection, task.text, defense, attack.text, str(threat)):
                continue
            reason = mismatch(task_card, [card for card, _ in stack], attack_card, threat)
            if reason:
                matrix.skips.append(Skip(f"{task.text} · {defense} · {attack.text} · {threat}", reason))
                continue
            if task.text not in prints:
                prints[task.text] = fingerprint(task_card, task, folder)
            layers = tuple(layer for _, layer in stack)
            for seed in selection.seeds or suite.seeds:
                about = (suite.label, task, prints[task.text], layers, attack, threat)
                cell = Cell(*about, seed, suite.examples, device, fitted(layers, catalog))
                if cell.label not in seen:
                    seen.add(cell.label)
                    matrix.cells.append(cell)
    if not matrix.cells and not matrix.skips:
        if selection == Selection(seeds=selection.seeds):
            raise FirstlineError(f"{suite.label} pairs no attack with a threat model of its vector")
        raise FirstlineError(
            f"nothing in {suite.label} matches the selection; `firstline show` with the suite lists what is in it"
        )
    matrix.cells.sort(key=lambda cell: cell.seed)  # stable: the suite's order within a seed
    return matrix


def use(card: Card, ref: Ref) -> Use:
    """Return an item with its settings expanded. Its text form leaves out settings equal to the default."""
    settings = card.resolve(ref)
    changed = {s.name: settings[s.name] for s in card.settings if settings[s.name] != s.default}
    text = str(Ref(card.name, tuple(sorted(changed.items()))))
    return Use(
        text, card.name, card.version, settings, card.code, card.tags, tuple(card.facts.get("hooks", ()))
    )


def fitted(stack: tuple[Use, ...], catalog: Catalog) -> tuple[Use, ...]:
    """Return the layers of stack that its fit depends on, `none` where no layer is one of them.

    Empty where that is the whole stack.
    """
    if not any(map(only_repairs, stack)):
        return ()
    rest = tuple(layer for layer in stack if not only_repairs(layer))
    return rest or undefended(catalog)


def undefended(catalog: Catalog | None = None) -> tuple[Use, ...]:
    """Return the stack that does nothing."""
    return (use((catalog or load()).get("defense", "none"), Ref("none")),)


def mismatch(task: Card, stack: list[Card], attack: Card, threat: Threat) -> str | None:
    """Return why these don't fit together, or can't run here, or None."""
    if threat.goal not in attack.facts["goals"]:
        return f"{attack.name} handles {', '.join(attack.facts['goals'])}, not {threat.goal}"
    missing = sorted(set(attack.facts["needs"]) - threat.grants)
    if missing:
        return f"{attack.name} needs {', '.join(missing)}, which {threat} does not grant"
    for item in [attack, *stack]:
        if task.facts["inputs"] not in item.facts["inputs"]:
            return f"{item.name} handles {', '.join(item.facts['inputs'])} inputs; {task.name} has {task.facts['inputs']}"
    idle = [card.name for card in stack if tuple(card.facts["hooks"]) == ("recover",)]
    if idle and threat.vector != "poisoning":
        return f"{idle[0]} repairs after a poisoning, and {threat.vector} cells have none"
    for item in [attack, *stack]:
        if reason := absent(item.name, item.facts):
            return reason
    trainers = [card.name for card in stack if {"build", "train"} & set(card.facts["hooks"])]
    if len(trainers) > 1:
        return f"{' and '.join(trainers)} both train the network; a stack has one trainer"
    return None


def _chosen(selection: Selection, task: str, defense: str, attack: str, threat: str) -> bool:
    parts = {"task": task, "defense": defense, "attack": attack, "threat": threat}
    wanted: dict[str, tuple[str, ...]] = {name: getattr(selection, name) for name in parts}
    for name, text in parts.items():
        if wanted[name] and not any(fnmatchcase(text, glob) for glob in wanted[name]):
            return False
    for rule in selection.exclude:
        name, _, glob = rule.partition("=")
        if name not in parts or not glob:
            raise FirstlineError(
                f"--exclude {rule!r}: write part=glob with one of {', '.join(parts)}, such as attack=pgd*"
            )
        if fnmatchcase(parts[name], glob):
            return False
    return True


def fingerprint(card: Card, task: Use, folder: Path | None) -> str:
    """Return the pinned fingerprint, or that of the data itself where none is pinned (slow: the data is loaded)."""
    pinned: Any = task.settings.get("fingerprint") or card.facts["fingerprint"]
    if pinned:
        return str(pinned)
    try:
        item = create("task", task.name, task.settings)
        return item.load(folder).fingerprint()  # type: ignore[attr-defined, no-any-return]
    except FirstlineError:
        raise
    except Exception as error:  # a plugin's, which may fail in any way
        raise FirstlineError(f"task {task.text} can't be loaded: {type(error).__name__}: {error}") from None
