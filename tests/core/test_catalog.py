"""Cards without imports: what they say, the cache that holds them, and plugins that fail."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from firstline.benchmark.core import catalog
from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.errors import FirstlineError, NotFound
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.core.registry import registered

pytestmark = pytest.mark.usefixtures("planted")

GOOD = '''
"""A shield. Source: nobody."""
from dataclasses import dataclass
from firstline.benchmark.api import Defense, defense

@defense("{name}", version={version})
@dataclass(frozen=True)
class Shield(Defense):
    """Shields."""

    strength: float = 1.0
    sides: tuple[int, ...] = (1, 2)
'''

Plugin = Callable[..., EntryPoint]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache in a folder of the test's own, and install no plugins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "plugin_entries", list)
    return tmp_path / "cache" / "firstline"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    """Return a function that writes a plugin, once or anew, and installs its entry point."""
    entries: dict[str, EntryPoint] = {}
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog, "plugin_entries", lambda: sorted(entries.values(), key=lambda e: e.name))

    def add(name: str, text: str = GOOD, **more: object) -> EntryPoint:
        module = f"planted_{name}"
        filled = text.format(**{"name": name, "version": 1, **more}) if text is GOOD else text
        (tmp_path / f"{module}.py").write_text(filled)
        sys.modules.pop(module, None)
        entries[name] = EntryPoint(name, module, catalog.GROUP)
        return entries[name]

    yield add
    for entry in entries.values():
        sys.modules.pop(entry.module, None)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[catalog.Catalog]:
    """Return a list that grows with every catalogue that is built rather than read."""
    made: list[catalog.Catalog] = []
    build = catalog.build

    def spy(plugins: object) -> catalog.Catalog:
        made.append(build(plugins))
        return made[-1]

    monkeypatch.setattr(catalog, "build", spy)
    return made


def test_the_catalogue_holds_everything_that_is_registered():
    found = catalog.load()
    assert {(kind, name) for kind, cards in found.cards.items() for name in cards} == set(registered())
    assert found.broken == {}


def test_a_card_is_the_same_after_the_cache(builds, install):
    install("shield")
    first, again = catalog.load(), catalog.load()
    assert len(builds) == 1
    assert again == first
    assert again.cards["defense"]["shield"].settings[1].default == (1, 2)


def test_the_cache_is_built_anew_when_a_source_changes(builds, install):
    install("shield")
    assert catalog.load().cards["defense"]["shield"].version == 1
    install("shield", version=2)
    assert catalog.load().cards["defense"]["shield"].version == 2
    assert len(builds) == 2


def test_the_cache_is_built_anew_when_a_plugin_comes(builds, install):
    catalog.load()
    install("shield")
    assert "shield" in catalog.load().cards["defense"]
    assert len(builds) == 2


def test_every_source_of_ours_is_watched():
    watched = {path.as_posix() for path in catalog._sources([])}
    for file in (
        "attacks/evasion/pgd.py",
        "defenses/none.py",
        "tasks/digits.py",
        "benchmark/core/contracts.py",
    ):
        assert any(path.endswith(file) for path in watched), file


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"cards": []}', '{"cards": null, "broken": {}}', '{"cards": {"task": {"x": 5}}}',
     '{"cards": {"task": {"x": {"kind": "task"}}}}', "\udcff"],
)  # fmt: skip
def test_a_damaged_cache_is_built_anew(builds, cache, text):
    first = catalog.load()
    (file,) = cache.glob("catalog-*.json")
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert catalog.load() == first
    assert len(builds) == 2
    assert catalog.load() == first  # and mended
    assert len(builds) == 2


def test_without_a_place_for_the_cache_nothing_else_is_lost(cache, builds):
    cache.parent.write_text("a file where the folder should be")
    assert catalog.load() == catalog.load()
    assert len(builds) == 2


def test_an_interrupted_write_leaves_no_half_a_cache(cache, monkeypatch):
    def full(path: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    catalog.load()
    assert list(cache.glob("catalog-*.json")) == []


def test_only_the_latest_caches_are_kept(cache):
    cache.mkdir(parents=True)
    for age in range(12):
        (cache / f"catalog-{age}.json").write_text("{}")
        os.utime(cache / f"catalog-{age}.json", (age, age))
    catalog.load()
    assert len(list(cache.glob("catalog-*.json"))) == 8
    assert not (cache / "catalog-0.json").exists()


def test_from_the_cache_no_torch_is_imported():
    catalog.load()
    code = (
        "import sys; from firstline.benchmark.core import catalog, threat, ref, record, errors, places; "
        "assert catalog.load().cards['attack']['pgd']; assert 'torch' not in sys.modules"
    )
    # Plugins that happen to be installed here would ask for another cache.
    code = code.replace("assert catalog.load()", "catalog.plugin_entries = list; assert catalog.load()")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise RuntimeError('out of order')", "RuntimeError: out of order"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("def broken(:", "SyntaxError"),
        (GOOD.format(name="half", version=1) + "\nraise RuntimeError('too late')", "RuntimeError: too late"),
        (GOOD.format(name="none", version=1), "FirstlineError: the defense name 'none' is taken by firstline.defenses"),
        (GOOD.format(name="odd", version=1).replace("float = 1.0", "float"), "the setting 'strength' has no default"),
        (GOOD.format(name="odd", version=1).replace("(1, 2)", "({1}, 2)"), "default of 'sides' must be plain data"),
        (GOOD.format(name="odd", version=1).replace("1.0", "float('nan')"), "'strength' must be plain data, got nan"),
        (GOOD.format(name="odd", version=1).replace("@dataclass(frozen=True)\n", ""), "Shield is not a dataclass"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_reported_and_the_others_are_kept(install, cache, text, reason):
    install("a_bad_one", text)
    install("good")
    found = catalog.load()
    (said,) = found.broken.values()
    assert reason in said
    assert "planted_a_bad_one" in next(iter(found.broken))
    assert {"good", "none"} <= set(found.cards["defense"])
    assert found.cards["defense"]["none"].module == "firstline.defenses.none"
    assert list(cache.glob("catalog-*.json")) == []  # it may be mended at any time


def test_a_plugin_that_is_not_there_is_reported(install, monkeypatch):
    monkeypatch.setattr(
        catalog, "plugin_entries", lambda: [EntryPoint("lost", "no_such_plugin.x", catalog.GROUP)]
    )
    assert catalog.load().broken == {
        "lost (no_such_plugin.x)": "ModuleNotFoundError: No module named 'no_such_plugin'"
    }


def test_all_modules_of_a_plugin_package_are_imported(tmp_path, install, monkeypatch):
    package = tmp_path / "planted_package" / "deep"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "shield.py").write_text(GOOD.format(name="deep-shield", version=1))
    entries = [EntryPoint("p", "planted_package", catalog.GROUP)]
    monkeypatch.setattr(catalog, "plugin_entries", lambda: entries)
    assert catalog.load().cards["defense"]["deep-shield"].module == "planted_package.deep.shield"
    for name in [name for name in sys.modules if name.startswith("planted_package")]:
        del sys.modules[name]


def test_an_unknown_name_is_answered_with_near_misses_and_the_plugins_that_failed(install):
    install("bad", "raise ValueError('no')")
    with pytest.raises(NotFound, match=r"no attack is called 'pdg'; did you mean .*'pgd'") as caught:
        catalog.load().get("attack", "pdg")
    assert "plugins that failed to load: bad (planted_bad)" in str(caught.value)


def test_entry_points_of_the_group_are_found(monkeypatch):
    monkeypatch.undo()
    entries = [EntryPoint("b", "x", catalog.GROUP), EntryPoint("a", "y", catalog.GROUP)]
    monkeypatch.setattr(
        catalog, "entry_points", lambda group: entries if group == "firstline.plugins" else []
    )
    assert [e.name for e in catalog.plugin_entries()] == ["a", "b"]


@dataclass(frozen=True)
class Shield(Defense):
    """Shields.

    For a while.
    """

    name, version, tags = "shield", 2, frozenset({"b", "a"})

    steps: int = 7
    rate: float = 0.5
    norm: str = "linf"
    hard: bool = False
    sides: tuple[int, ...] = (1, 2)
    limit: int | None = None
    either: float | str = 1.0
    listed: tuple[str, ...] = field(default_factory=lambda: ("x",))


CARD = catalog.card_of("defense", Shield)


def test_a_card_says_what_the_class_says():
    assert (CARD.kind, CARD.name, CARD.version, CARD.tags) == ("defense", "shield", 2, ("a", "b"))
    assert CARD.summary == "Shields."
    assert CARD.doc.startswith("Cards without imports")
    assert CARD.doc.endswith("For a while.")
    assert (CARD.qualname, Path(CARD.origin).name) == ("Shield", "test_catalog.py")
    assert Path(CARD.origin).read_text().splitlines()[CARD.line - 1] == "@dataclass(frozen=True)"
    assert [(s.name, s.type, s.default) for s in CARD.settings[:2]] == [
        ("steps", "int", 7),
        ("rate", "float", 0.5),
    ]
    assert CARD.settings[-1].default == ("x",)
    assert CARD.facts == {"hooks": [], "inputs": ["real", "tokens"]}
    json.dumps(CARD.facts)


@pytest.mark.parametrize(
    ("setting", "given", "becomes"),
    [
        ("rate", 1, 1.0),
        ("rate", 0.25, 0.25),
        ("steps", 3, 3),
        ("norm", "l2", "l2"),
        ("hard", True, True),
        ("sides", [3, 4], (3, 4)),
        ("sides", ([1], 2), ((1,), 2)),
        ("limit", None, None),
        ("limit", 5, 5),
        ("either", 2, 2.0),
        ("either", "two", "two"),
    ],
)
def test_a_setting_is_brought_to_its_type(setting, given, becomes):
    found = CARD.resolve(Ref("shield", ((setting, given),)))[setting]
    assert found == becomes
    assert type(found) is type(becomes)


@pytest.mark.parametrize(
    ("setting", "given"),
    [
        ("steps", 3.0),
        ("steps", True),
        ("steps", "3"),
        ("steps", None),
        ("rate", False),
        ("rate", "0.5"),
        ("hard", 1),
        ("hard", "yes"),
        ("norm", 2),
        ("sides", 3),
        ("sides", "12"),
        ("limit", 1.5),
        ("either", None),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_with_the_right_one(setting, given):
    wanted = next(s.type for s in CARD.settings if s.name == setting)
    with pytest.raises(FirstlineError) as caught:
        CARD.resolve(Ref("shield", ((setting, given),)))
    assert str(caught.value) == f"defense shield: {setting} must be {wanted}, got {given!r}"


def test_a_setting_must_be_finite():
    with pytest.raises(FirstlineError, match="defense shield: rate must be finite, got inf"):
        CARD.resolve(Ref.parse("shield(rate=1e999)"))


def test_an_unknown_setting_is_answered_with_near_misses():
    with pytest.raises(
        FirstlineError, match="defense shield: no setting is called 'step'; did you mean 'steps'"
    ):
        CARD.resolve(Ref.parse("shield(step=3)"))


def test_settings_that_are_not_given_have_their_defaults():
    assert CARD.resolve(Ref.parse("shield(steps=3)")) == {**Shield().settings(), "steps": 3}


def test_an_item_is_made_from_its_card_alone():
    item = catalog.create(
        "attack", "pgd", catalog.load().get("attack", "pgd").resolve(Ref.parse("pgd(steps=3)"))
    )
    assert str(item) == "pgd(steps=3)"
    with pytest.raises(NotFound, match=r"did you mean .*'pgd'"):
        catalog.create("attack", "pdg", {})


SOURCE = '''
"""Heading."""
class A:
    """What it is."""
    k = "text"
    def f(self, x):
        """Return it."""
        return x + 1  # why
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Heading.", "Another heading."),
        ('    """What it is."""\n', ""),
        ('        """Return it."""\n', "\n\n        # a comment\n"),
        ("  # why", ""),
        ("x + 1", "(x   +   1)"),
        ('"text"', "'text'"),
    ],
)
def test_the_code_digest_ignores_comments_docstrings_and_layout(old, new):
    assert SOURCE.count(old) == 1
    assert catalog.code_digest(SOURCE.replace(old, new)) == catalog.code_digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x + 2"),
        ("x + 1", "x - 1"),
        ("x + 1", "x + 1.0"),
        ('"text"', '"test"'),
        ("class A", "class B"),
        ("def f(self, x)", "def f(self, x=1)"),
        ("def f(self, x)", "def f(self, x: int)"),
        ("    k = ", "    l = "),
        ('    k = "text"\n', ""),
        ('    k = "text"\n', '    k = "text"\n    "a string that is no docstring"\n'),
        ("    def f", "    @property\n    def f"),
    ],
)
def test_the_code_digest_notices_everything_else(old, new):
    assert SOURCE.count(old) == 1
    assert catalog.code_digest(SOURCE.replace(old, new)) != catalog.code_digest(SOURCE)
