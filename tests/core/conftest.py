"""A registry that forgets what a test registers."""

import pytest

from firstline.benchmark.core import catalog, registry


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register items that are gone after it; our own are there."""
    catalog.discover([])  # a module registers its items when it is imported, and that is once
    monkeypatch.setattr(registry, "_registered", registry.registered())
