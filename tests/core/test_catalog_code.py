"""The code digest of an item covers the helpers that it imports from its own package, and nothing else."""

import importlib
import sys

import pytest

from firstline.benchmark.core.catalog import _code_of

ITEM = "from mine.helper import level\nimport json\n\ndef value():\n    return level\n"


@pytest.fixture
def digest(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "mine"
    package.mkdir()

    def of(helper: str, other: str = "") -> str:
        (package / "__init__.py").write_text("")
        (package / "item.py").write_text(ITEM)
        (package / "helper.py").write_text(helper)
        (package / "other.py").write_text(other)
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        importlib.import_module("mine.item")
        importlib.import_module("mine.other")
        return _code_of("mine.item")

    yield of
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_change_in_an_imported_helper_changes_the_code(digest):
    assert digest("level = 1\n") != digest("level = 22\n")


def test_comments_and_modules_that_are_not_imported_do_not_count(digest):
    assert digest("level = 1\n") == digest('"""Words."""\nlevel = 1  # one\n', other="level = 333\n")


def test_tasks_of_ours_cover_their_networks_and_splits():
    importlib.import_module("firstline.tasks.digits")
    networks = sys.modules["firstline.tasks.networks"]
    assert _code_of("firstline.tasks.digits") != _code_of("firstline.tasks.networks")
    before = _code_of("firstline.tasks.digits")
    file, networks.__file__ = networks.__file__, sys.modules["firstline.tasks.splits"].__file__
    try:
        assert _code_of("firstline.tasks.digits") != before
    finally:
        networks.__file__ = file
