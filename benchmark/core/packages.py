"""Packages that an item imports and that firstline doesn't bring: what is said where one is absent.

An item that needs one has `package`, the name to import, and `install`, the command that installs it, among its
facts, and calls `require` when it is made. So the planner leaves it out by its card alone, with the same reason.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from firstline.benchmark.core.errors import FirstlineError


def absent(name: str, facts: Mapping[str, Any]) -> str | None:
    """Return why the item of this name can't be used here, or None where its package is there or it needs none."""
    package = facts.get("package")
    if package is None or find_spec(package) is not None:
        return None
    return f"{name} needs {package}, which is not installed: {facts['install']}"


def require(name: str, facts: Mapping[str, Any]) -> None:
    """Raise FirstlineError, with the reason, where the item of this name can't be used here."""
    reason = absent(name, facts)
    if reason:
        raise FirstlineError(reason)
