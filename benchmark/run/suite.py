"""A TOML file becomes a Suite: which defenses meet which attacks, on which tasks, under which threats."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.ref import Ref, parse_stack, write_stack
from firstline.benchmark.core.threat import Threat

FOLDER = Path(__file__).resolve().parent.parent / "suites"


@dataclass(frozen=True)
class Block:
    """One product of the matrix: every task × defense × attack × threat that fit together."""

    tasks: tuple[Ref, ...]
    defenses: tuple[tuple[Ref, ...], ...]
    attacks: tuple[Ref, ...]
    threats: tuple[Threat, ...]


@dataclass(frozen=True)
class Suite:
    """A named, versioned list of blocks; examples is how many test examples a cell attacks at most."""

    name: str
    version: str
    summary: str
    seeds: tuple[int, ...]
    examples: int
    blocks: tuple[Block, ...]

    @property
    def label(self) -> str:
        """The name and version, as records carry them."""
        return f"{self.name}@{self.version}"


def embedded() -> dict[str, Path]:
    """Return the suites that come with firstline, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def find_suite(name: str) -> Suite:
    """Return an embedded suite by name, or the suite in a TOML file by path."""
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise FirstlineError(f"there is no suite file {name}")
        return read_suite(path)
    known = embedded()
    name, _, version = name.partition("@")
    if version and name in known and read_suite(known[name]).version != version:
        raise FirstlineError(
            f"suite {name} is at version {read_suite(known[name]).version} here, not {version}"
        )
    if name not in known:
        error = not_found("suite", name, known)
        raise FirstlineError(f"{error}; a suite of your own is given by its path, ending in .toml")
    return read_suite(known[name])


def read_suite(path: Path) -> Suite:
    """Return the suite in path. Raises FirstlineError naming the file, the entry, and what it should be."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FirstlineError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FirstlineError(f"{path} is not valid TOML: {error}") from None
    return parse_suite(raw, str(path))


def parse_suite(raw: dict[str, Any], where: str) -> Suite:
    """Return the suite in the plain data of a TOML file; where names it in errors."""
    known = ("name", "version", "summary", "seeds", "examples", "matrix")
    only(raw, known, where)
    seeds = want(raw, "seeds", list, where, "a list of whole numbers, such as [0, 1]")
    if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds):
        raise FirstlineError(
            f"{where}: seeds must be a list of whole numbers, such as [0, 1]; found {seeds!r}"
        )
    if len(set(seeds)) != len(seeds):
        raise FirstlineError(f"{where}: seeds names a seed twice: {seeds!r}")
    examples = want(raw, "examples", int, where, "a whole number, such as 500")
    if examples < 1:
        raise FirstlineError(f"{where}: examples must be at least 1; found {examples!r}")
    blocks = want(raw, "matrix", list, where, "one or more [[matrix]] tables")
    if not blocks:
        raise FirstlineError(f"{where}: matrix is empty; write one or more [[matrix]] tables")
    return Suite(
        name=want(raw, "name", str, where, "a text"),
        version=want(raw, "version", str, where, 'a text, such as "1.0.0"'),
        summary=want({"summary": "", **raw}, "summary", str, where, "a text"),
        seeds=tuple(seeds),
        examples=examples,
        blocks=tuple(_block(block, f"{where}: matrix {i + 1}") for i, block in enumerate(blocks)),
    )


def _block(raw: Any, where: str) -> Block:
    if not isinstance(raw, dict):
        raise FirstlineError(f"{where} must be a [[matrix]] table")
    only(raw, ("tasks", "defenses", "attacks", "threats"), where)
    texts = {name: _texts(raw, name, where) for name in ("tasks", "defenses", "attacks", "threats")}
    try:
        return Block(
            tasks=tuple(map(Ref.parse, texts["tasks"])),
            defenses=tuple(map(parse_stack, texts["defenses"])),
            attacks=tuple(map(Ref.parse, texts["attacks"])),
            threats=tuple(map(Threat.parse, texts["threats"])),
        )
    except FirstlineError as error:
        raise FirstlineError(f"{where}: {error}") from None


def _texts(raw: dict[str, Any], name: str, where: str) -> list[str]:
    values = want(raw, name, list, where, 'a list of texts, such as ["pgd"]')
    if not values or not all(isinstance(v, str) for v in values):
        raise FirstlineError(f'{where}: {name} must be a list of texts, such as ["pgd"]; found {values!r}')
    return list(values)


def want(raw: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str, form: str) -> Any:
    """Return the entry name of a TOML table. Raises FirstlineError where it is missing or not of its kind."""
    if name not in raw:
        raise FirstlineError(f"{where}: {name} is missing; it must be {form}")
    if not isinstance(raw[name], kind) or (isinstance(raw[name], bool) and kind is not bool):
        raise FirstlineError(f"{where}: {name} must be {form}; found {raw[name]!r}")
    return raw[name]


def only(raw: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise FirstlineError where a TOML table has an entry that is not known."""
    for name in raw:
        if name not in known:
            raise FirstlineError(f"{where}: {not_found('entry', name, known)}")


def describe(suite: Suite) -> dict[str, Any]:
    """Return the suite as plain data."""
    return {
        "name": suite.name,
        "version": suite.version,
        "summary": suite.summary,
        "seeds": list(suite.seeds),
        "examples": suite.examples,
        "matrix": [
            {
                "tasks": [str(t) for t in block.tasks],
                "defenses": [write_stack(d) for d in block.defenses],
                "attacks": [str(a) for a in block.attacks],
                "threats": [str(t) for t in block.threats],
            }
            for block in suite.blocks
        ],
    }
