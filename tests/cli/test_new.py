"""From `firstline new` to a record: what a plugin's author does first."""

import json

import pytest

from firstline.benchmark.core import packages
from firstline.benchmark.run.store import Store


@pytest.fixture
def written(cli, tmp_path, monkeypatch):
    """Return a function that writes a plugin and returns its folder."""
    monkeypatch.chdir(tmp_path)

    def write(kind, name):
        ran = cli("new", kind, name)
        assert ran.code == 0, ran
        return tmp_path / name

    return write


@pytest.mark.parametrize("kind", ["defense", "attack"])
def test_a_new_plugin_passes_its_checks(cli, catalogue, registering, written, kind):
    folder = written(kind, f"my-{kind}")
    ran = cli("check", folder)
    assert ran.code == 0, ran
    assert ran.out.startswith("1 item: ")
    assert "0 failed, 0 skipped" in ran.out
    assert int(ran.out.split()[2]) >= 8


def test_a_name_that_looks_like_a_test_is_checked_too(cli, catalogue, registering, written):
    """Test-time defenses have such names."""
    ran = cli("check", written("defense", "test-time-rounding"))
    assert (ran.code, ran.out[:7]) == (0, "1 item:")


def test_a_new_defense_runs_in_a_suite_of_its_own(cli, catalogue, registering, written, plugin, suite_file, monkeypatch, tmp_path):  # fmt: skip
    folder = plugin(written("defense", "my-defense"), "my_defense")
    monkeypatch.syspath_prepend(folder)
    suite = suite_file((["none", "my-defense(levels=4)"], ["fgsm"], ["evasion/white/linf:0.05"]))
    assert cli("show", "my-defense", "--json").code == 0
    ran = cli("run", suite, "--jobs", 1, "--no-mlflow", "--results", tmp_path / "results")
    assert ran.code == 0, ran
    records = {record.defense_text: record for record in Store(tmp_path / "results").records()}
    assert records.keys() == {"none", "my-defense(levels=4)"}
    assert records["my-defense(levels=4)"].metrics["clean_accuracy"].value > 0.6
    assert records["my-defense(levels=4)"].defense[0].settings == {"levels": 4}
    assert "my-defense(levels=4)" in ran.out


def test_the_next_steps_are_told(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = cli("new", "attack", "my-attack", "--folder", "place")
    assert "firstline check place" in ran.out
    assert "pip install -e place" in ran.out
    assert {path.name for path in (tmp_path / "place").iterdir()} == {"my_attack.py", "pyproject.toml"}


def test_what_is_there_is_not_overwritten(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("precious")
    ran = cli("new", "attack", "mine")
    assert (ran.code, ran.err) == (2, "error: mine exists and is not empty; choose another --folder\n")
    assert (tmp_path / "mine" / "mine.py").read_text() == "precious"


HEAD = '''"""Mine. Source: mine."""

from dataclasses import dataclass

from firstline.benchmark.api import Evasion, attack

'''
ATTACK = '''
@attack("mine")
@dataclass(frozen=True)
class Mine(Evasion):
    """Mine."""

    needs, goals = (), ("linf",)
    k: int{default}

    def perturb(self, target, x, y, region, rng):
        return {returned}
'''


def source(returned="x", default=" = 1"):
    return HEAD + ATTACK.format(returned=returned, default=default)


BAD = {
    "leaves its ball": (source("x + 2 * threat.eps"), 1, "FAILED  attack mine: "),
    "raises": (source("1 / 0"), 1, "ZeroDivisionError"),
    "no default": (source(default=""), 1, "FAILED  attack mine: "),
    "not plain": (source(default=" = 1j"), 1, "FAILED  attack mine: "),
    "taken": (source().replace('"mine"', '"pgd"'), 2, "the attack name 'pgd' is taken"),
    "nothing": (HEAD, 2, "registers nothing"),
    "syntax": ("def", 2, "can't be imported: SyntaxError"),
    "leaves": ("import sys; sys.exit(0)", 2, "can't be imported: SystemExit"),
    "empty": ("", 2, "registers nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "code", "words"), BAD.values(), ids=BAD)
def test_a_bad_plugin_fails_its_checks_in_words(cli, catalogue, registering, tmp_path, text, code, words):
    (tmp_path / "mine.py").write_text(text)
    ran = cli("check", tmp_path / "mine.py")
    assert ran.code == code, ran
    assert words in ran.out + ran.err
    assert "Traceback" not in ran.out + ran.err


def test_only_the_plugins_own_modules_are_imported(cli, catalogue, registering, tmp_path):
    for name in (
        "setup.py",
        "conftest.py",
        "test_mine.py",
        "tests/helper.py",
        ".venv/lib/x.py",
        "build/lib/mine.py",
    ):
        path = tmp_path / "place" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('imported')")
    (tmp_path / "place" / "mine.py").write_text(source())
    ran = cli("check", tmp_path / "place")
    assert "1 item: " in ran.out
    assert "RuntimeError" not in ran.out + ran.err


def test_an_installed_plugin_that_does_not_load_is_a_failed_check(cli, registering, plugin, tmp_path, monkeypatch):  # fmt: skip
    monkeypatch.syspath_prepend(plugin(tmp_path / "plugin", "ill_plugin", "import no_such_module"))
    ran = cli("check", "fgsm", "--json")
    assert ran.code == 1
    found = [finding for finding in json.loads(ran.out) if finding["problem"]]
    assert [finding["item"] for finding in found] == ["plugin ill_plugin (ill_plugin)"]
    listed = cli("list")
    assert listed.code == 0
    assert "plugin ill_plugin (ill_plugin) failed to load: ModuleNotFoundError" in listed.out


@pytest.mark.parametrize("name", ["confident-learning", "foolbox:linf-pgd"])
def test_an_item_whose_package_is_absent_is_skipped_with_the_reason(cli, catalogue, monkeypatch, name):
    monkeypatch.setattr(packages, "find_spec", lambda package: None)
    ran = cli("check", name)
    assert ran.code == 0, ran
    assert f"{name} needs " in ran.out
    assert "which is not installed: pip install 'firstline[" in ran.out
    assert "0 passed, 0 failed, 1 skipped" in ran.out
