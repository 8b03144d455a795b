"""Paper recipes: a suite, plus the numbers that the paper printed and where they were read."""

import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.run.suite import Suite, describe, only, parse_suite, want

if TYPE_CHECKING:
    from firstline.benchmark.core.record import Record

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Weights:
    """A checkpoint that the user brings: its name, SHA-256, and where it is published."""

    file: str
    sha256: str
    source: str


@dataclass(frozen=True)
class Expected:
    """One number of the paper. error says that the paper counts errors where the metric counts successes.

    defense is the stack that it is of, where the recipe has several.
    """

    what: str
    paper: float
    tolerance: float
    attack: str
    metric: str
    error: bool = False
    defense: str = ""


T = TypeVar("T", Weights, Expected)
_KINDS: dict[Any, tuple[type | tuple[type, ...], str]] = {
    str: (str, "a text"),
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
}


@dataclass(frozen=True)
class PaperRecipe:
    """A reproduction: paper values are in percent, tolerance in percentage points."""

    name: str
    title: str
    source: str
    read_at: str
    deviations: tuple[str, ...]
    weights: Weights | None
    suite: Suite
    expected: tuple[Expected, ...]


@dataclass(frozen=True)
class Verdict:
    """One number of the paper beside ours, in percent, with ours' 95% interval."""

    what: str
    paper: float
    measured: float | None
    lo: float | None
    hi: float | None
    verdict: str


def embedded() -> dict[str, Path]:
    """Return the recipes that come with firstline, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def find_recipe(name: str) -> PaperRecipe:
    """Return a recipe by name, or from a TOML file by path. Raises FirstlineError."""
    known = embedded()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise not_found("recipe", name, known)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FirstlineError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FirstlineError(f"{path} is not valid TOML: {error}") from None
    return _parse(raw, str(path), path.stem)


def _parse(raw: dict[str, Any], where: str, name: str) -> PaperRecipe:
    only(raw, ("title", "source", "read_at", "deviations", "weights", "suite", "expected"), where)
    deviations = want({"deviations": [], **raw}, "deviations", list, where, "a list of texts")
    if not all(isinstance(deviation, str) for deviation in deviations):
        raise FirstlineError(f"{where}: deviations must be a list of texts; found {deviations!r}")
    expected = want(raw, "expected", list, where, "one or more [[expected]] tables")
    return PaperRecipe(
        name=name,
        **{part: want(raw, part, str, where, "a text") for part in ("title", "source", "read_at")},
        deviations=tuple(deviations),
        weights=_table(Weights, raw["weights"], f"{where}: weights") if "weights" in raw else None,
        suite=parse_suite(want(raw, "suite", dict, where, "a [suite] table"), f"{where}: suite"),
        expected=tuple(_table(Expected, one, f"{where}: expected {i + 1}") for i, one in enumerate(expected)),
    )


def _table(cls: type[T], raw: Any, where: str) -> T:
    if not isinstance(raw, dict):
        raise FirstlineError(f"{where} must be a table")
    only(raw, tuple(field.name for field in fields(cls)), where)
    values = {}
    for field in fields(cls):
        if field.name in raw or field.default is MISSING:
            kind, form = _KINDS[field.type]
            values[field.name] = want(raw, field.name, kind, where, form)
    return cls(**values)


def judge(recipe: PaperRecipe, records: Iterable["Record"]) -> list[Verdict]:
    """Return each of the paper's numbers beside the measured one.

    `reproduced` means within the tolerance, `within interval` that the paper's number lies in the measured
    95% interval, `differs` neither, and `missing` that there is no record.
    """
    found = {(record.attack.text, record.defense_text): record for record in records if record.status == "ok"}
    found |= {(attack, ""): record for (attack, _), record in found.items()}
    verdicts = []
    for entry in recipe.expected:
        record = found.get((entry.attack, entry.defense))
        metric = record.metrics.get(entry.metric) if record else None
        if metric is None:
            verdicts.append(Verdict(entry.what, entry.paper, None, None, None, "missing"))
            continue
        value, lo, hi = (
            None if v is None else 100 * (1 - v if entry.error else v)
            for v in (metric.value, metric.lo, metric.hi)
        )
        assert value is not None
        if entry.error:
            lo, hi = hi, lo
        if abs(value - entry.paper) <= entry.tolerance + 1e-9:
            verdict = "reproduced"
        elif lo is not None and hi is not None and lo <= entry.paper <= hi:
            verdict = "within interval"
        else:
            verdict = "differs"
        verdicts.append(Verdict(entry.what, entry.paper, value, lo, hi, verdict))
    return verdicts


def render(recipe: PaperRecipe) -> str:
    """Return the recipe as text."""
    lines = [
        f"recipe {recipe.name}: {recipe.title}",
        f"source: {recipe.source}",
        f"figures read at: {recipe.read_at}",
    ]
    if recipe.weights:
        lines.append(f"needs --weights {recipe.weights.file}, from {recipe.weights.source}")
        lines.append(f"  SHA-256 {recipe.weights.sha256}")
    lines += [f"deviation: {deviation}" for deviation in recipe.deviations]
    for block in describe(recipe.suite)["matrix"]:
        lines += [f"{part}: {', '.join(texts)}" for part, texts in block.items()]
    lines += [f"paper: {e.what} {e.paper:g}% (tolerance {e.tolerance:g} points)" for e in recipe.expected]
    return "\n".join(lines) + "\n"
