"""What is registered, as plain cards, without importing torch: cached by a digest of the sources.

`load` answers from the cache while no source file of ours or of a plugin changed. After a change it imports
every item once (slow: torch) and writes the cache anew.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.places import cache_folder
from firstline.benchmark.core.ref import Ref

if TYPE_CHECKING:
    from firstline.benchmark.core.contracts import Item

GROUP = "firstline.plugins"
FORMAT = 1  # of the cached file
OURS = ("tasks", "defenses", "attacks")


@dataclass(frozen=True)
class Setting:
    """One setting of an item: its type as text, and its default."""

    name: str
    type: str
    default: Any


@dataclass(frozen=True)
class Card:
    """What is known of an item without importing it.

    code is a digest of the syntax trees of its module and of what that imports from its own folder (for a
    plugin: from its own package). Comments and docstrings don't count; everything else does.
    """

    kind: str
    name: str
    version: int
    tags: tuple[str, ...]
    summary: str
    doc: str
    module: str
    qualname: str
    origin: str
    line: int
    code: str
    settings: tuple[Setting, ...]
    facts: Mapping[str, Any]

    def resolve(self, ref: Ref) -> dict[str, Any]:
        """Return all settings: the defaults, overridden by ref's. Raises FirstlineError for a wrong one."""
        known = {s.name: s for s in self.settings}
        values = {s.name: s.default for s in self.settings}
        for name, value in ref.settings:
            if name not in known:
                raise FirstlineError(f"{self.kind} {self.name}: {not_found('setting', name, known)}")
            values[name] = _coerce(value, known[name], self)
        return values


@dataclass(frozen=True)
class Catalog:
    """All cards by kind and name, and the plugins that could not be imported, with the reason."""

    cards: Mapping[str, Mapping[str, Card]]
    broken: Mapping[str, str] = field(default_factory=dict)

    def get(self, kind: str, name: str) -> Card:
        """Return one card. Raises NotFound with the near misses, and names the plugins that failed to load."""
        found = self.cards[kind].get(name)
        if found is None:
            error = not_found(kind, name, self.cards[kind])
            if self.broken:
                error.args = (f"{error}; plugins that failed to load: {', '.join(sorted(self.broken))}",)
            raise error
        return found


def plugin_entries() -> list[EntryPoint]:
    """Return the entry points of outside plugins, sorted by name."""
    return sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value))


def load() -> Catalog:
    """Return the catalogue, from the cache if no source changed since."""
    plugins = plugin_entries()
    path = cache_folder() / f"catalog-{_digest(plugins)}.json"
    try:
        raw = json.loads(path.read_text())
        return Catalog(
            {
                kind: {name: _card(card) for name, card in cards.items()}
                for kind, cards in raw["cards"].items()
            },
            raw["broken"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # absent, unreadable or damaged: build it again
    catalog = build(plugins)
    if not catalog.broken:  # a plugin may be mended outside the files that we watch
        _write(path, catalog)
    return catalog


def build(plugins: Iterable[EntryPoint] | None = None) -> Catalog:
    """Import every item of ours and of the plugins, and return their cards."""
    broken = discover(plugin_entries() if plugins is None else plugins)
    from firstline.benchmark.core.registry import KINDS, registered

    cards: dict[str, dict[str, Card]] = {kind: {} for kind in KINDS}
    for (kind, name), cls in sorted(registered().items()):
        if cls.__module__ not in sys.modules:
            continue  # its plugin failed after this class, and is among the broken ones
        try:
            cards[kind][name] = card_of(kind, cls)
        except Exception as error:
            if cls.__module__.startswith("firstline."):
                raise
            broken[f"{kind} {name} ({cls.__module__})"] = f"{type(error).__name__}: {error}"
    return Catalog(cards, broken)


def discover(plugins: Iterable[EntryPoint]) -> dict[str, str]:
    """Import the modules of all items, so that they register. Returns plugins that failed, and why."""
    for folder in OURS:
        package = importlib.import_module(f"firstline.{folder}")
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(found.name)
    broken = {}
    for entry in plugins:
        try:
            _import_all(entry.module)
        except (Exception, SystemExit) as error:  # it may fail in any way, and must not take others with it
            broken[f"{entry.name} ({entry.module})"] = f"{type(error).__name__}: {error}"
    return broken


def _import_all(name: str) -> ModuleType:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
    return module


def create(kind: str, name: str, settings: Mapping[str, Any]) -> "Item":
    """Return the item with these settings, importing its module alone if need be."""
    from firstline.benchmark.core.registry import registered

    if (kind, name) not in registered():
        importlib.import_module(load().get(kind, name).module)
    return registered()[kind, name](**{k: _tuples(v) for k, v in settings.items()})


def card_of(kind: str, cls: "type[Item]") -> Card:
    """Return the card of an item class. Raises FirstlineError if a setting has no default or is not plain data."""
    import dataclasses

    if not dataclasses.is_dataclass(cls):
        raise FirstlineError(
            f"{kind} {cls.name}: {cls.__qualname__} is not a dataclass; write @dataclass(frozen=True)"
        )
    settings = []
    for f in dataclasses.fields(cls):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if default is dataclasses.MISSING:
            raise FirstlineError(f"{kind} {cls.name}: the setting {f.name!r} has no default; give it one")
        try:
            json.dumps(default, allow_nan=False)
        except (TypeError, ValueError):
            raise FirstlineError(
                f"{kind} {cls.name}: the default of {f.name!r} must be plain data, got {default!r}"
            ) from None
        settings.append(Setting(f.name, f.type if isinstance(f.type, str) else _type_name(f.type), default))
    doc = inspect.cleandoc(cls.__doc__ or "")
    heading = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    file = Path(inspect.getfile(cls)).resolve()
    return Card(
        kind=kind,
        name=cls.name,
        version=cls.version,
        tags=tuple(sorted(cls.tags)),
        summary=doc.partition("\n")[0],
        doc=f"{heading}\n\n{doc}".strip(),
        module=cls.__module__,
        qualname=cls.__qualname__,
        origin=str(file),
        line=inspect.getsourcelines(cls)[1],
        code=_code_of(cls.__module__),
        settings=tuple(settings),
        facts=json.loads(json.dumps(cls.facts())),  # as the cache gives it back
    )


def code_digest(source: str) -> str:
    """Return a digest of what source does: comments, blank lines and docstrings don't count, literals do."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _code_of(module: str) -> str:
    """Return a digest of a module and of what it imports from its own folder: for plugins, its own package."""
    parts = module.split(".")
    home = ".".join(parts[:2]) if parts[0] == "firstline" else parts[0]
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in found or file is None or not (name in (home, module) or name.startswith(home + ".")):
            continue
        source = Path(file).read_text()
        found[name] = code_digest(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = name.split(".") if Path(file).name == "__init__.py" else name.split(".")[:-1]
                base = package[: len(package) - node.level + 1] if node.level else []
                start = ".".join([*base, *([node.module] if node.module else [])])
                waiting += [start, *(f"{start}.{alias.name}" for alias in node.names)]
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()[:16]


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type) and not hasattr(annotation, "__args__")
        else str(annotation)
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bool": (bool,),
    "tuple": (tuple, list),
}


def _coerce(value: Any, setting: Setting, card: Card) -> Any:
    words = setting.type.replace("|", " ").split("[")[0].split()
    if value is None and "None" in setting.type:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise FirstlineError(f"{card.kind} {card.name}: {setting.name} must be finite, got {value!r}")
    for word in words:
        if word in _TYPES and isinstance(value, _TYPES[word]) and isinstance(value, bool) == (word == "bool"):
            # 1 and 1.0 are one setting: equal settings must have equal keys.
            return float(value) if word == "float" and isinstance(value, int) else _tuples(value)
    raise FirstlineError(f"{card.kind} {card.name}: {setting.name} must be {setting.type}, got {value!r}")


def _sources(plugins: Iterable[EntryPoint]) -> list[Path]:
    import firstline

    root = Path(firstline.__file__).parent
    files = [p for folder in (*OURS, "benchmark/core") for p in (root / folder).resolve().rglob("*.py")]
    for entry in plugins:
        top = importlib.util.find_spec(entry.module.partition(".")[0])
        if top is not None and top.submodule_search_locations:
            files += [p for place in top.submodule_search_locations for p in Path(place).rglob("*.py")]
        elif top is not None and top.origin:
            files.append(Path(top.origin))
    return sorted(files)


def _digest(plugins: list[EntryPoint]) -> str:
    digest = hashlib.sha256(
        f"{FORMAT} {sys.version_info[:2]} {[(e.name, e.value) for e in plugins]}".encode()
    )
    for path in _sources(plugins):
        digest.update(str(path).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def _write(path: Path, catalog: Catalog) -> None:
    text = json.dumps(asdict(catalog))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        new.write_text(text)
        new.replace(path)
        for old in sorted(path.parent.glob("catalog-*.json"), key=lambda p: p.stat().st_mtime)[:-8]:
            old.unlink(missing_ok=True)
    except OSError:
        pass  # no place for a cache: the next call is slow again, and nothing else is lost


def _card(raw: dict[str, Any]) -> Card:
    settings = tuple(Setting(s["name"], s["type"], _tuples(s["default"])) for s in raw["settings"])
    return Card(**{**raw, "tags": tuple(raw["tags"]), "settings": settings})
