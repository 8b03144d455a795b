"""Names to items. One decorator per kind; a clash is an error that names both places."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from firstline.benchmark.core.contracts import Attack, Defense, Item, Task
from firstline.benchmark.core.errors import FirstlineError

I = TypeVar("I", bound=Item)  # noqa: E741 - the item's own class

KINDS: dict[str, type[Item]] = {"task": Task, "defense": Defense, "attack": Attack}
_registered: dict[tuple[str, str], type[Item]] = {}


def _register(kind: str, name: str, version: int, tags: Iterable[str]) -> Callable[[type[I]], type[I]]:
    def add(cls: type[I]) -> type[I]:
        if not issubclass(cls, KINDS[kind]):
            raise FirstlineError(
                f"@{kind}({name!r}) is on {cls.__qualname__}, which is not a {KINDS[kind].__name__}"
            )
        here = f"{cls.__module__}.{cls.__qualname__}"
        old = _registered.get((kind, name))
        if old is not None and f"{old.__module__}.{old.__qualname__}" != here:
            there = f"{old.__module__}.{old.__qualname__}"
            raise FirstlineError(f"the {kind} name {name!r} is taken by {there}; give {here} another name")
        cls.name, cls.version, cls.tags = name, version, frozenset(tags)
        _registered[kind, name] = cls
        return cls

    return add


def task(name: str, *, version: int = 1, tags: Iterable[str] = ()) -> Callable[[type[I]], type[I]]:
    """Register a Task class under name. version rises when its numbers change."""
    return _register("task", name, version, tags)


def defense(name: str, *, version: int = 1, tags: Iterable[str] = ()) -> Callable[[type[I]], type[I]]:
    """Register a Defense class under name. Common tags: `control`, `reference`, `broken`."""
    return _register("defense", name, version, tags)


def attack(name: str, *, version: int = 1, tags: Iterable[str] = ()) -> Callable[[type[I]], type[I]]:
    """Register an attack class (of any vector) under name."""
    return _register("attack", name, version, tags)


def registered() -> dict[tuple[str, str], type[Item]]:
    """Return what was registered in this process so far, by (kind, name)."""
    return dict(_registered)
