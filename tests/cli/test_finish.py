"""What follows a run: the board, the MLflow store, a paper's numbers beside ours."""

import json
import shutil

import pytest

from firstline.benchmark.cli.finish import export
from firstline.benchmark.core.record import Failure, Metric
from firstline.benchmark.run.store import Store


@pytest.fixture
def copy(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "copy")


def pages(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_board_is_built_from_records_and_the_same_each_time(cli, smoke, tmp_path):
    for name in ("one", "two"):
        ran = cli("leaderboard", "build", "--results", smoke, "--out", tmp_path / name)
        assert (ran.code, ran.out) == (0, f"{tmp_path / name / 'index.html'}\n")
    found = pages(tmp_path / "one")
    assert b"breast-cancer" in found["index.html"]
    assert found == pages(tmp_path / "two")


def test_a_folder_of_results_folders_gives_one_site(cli, smoke, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(smoke, tmp_path / "all" / name)
    assert cli("leaderboard", "build", "--results", tmp_path / "all", "--out", tmp_path / "site").code == 0
    index = json.loads((tmp_path / "site" / "index.json").read_text())
    counted = [board["collection"] for board in index["boards"]]
    assert counted.count("one") == counted.count("two") > 0


def test_two_results_folders_are_compared_in_markdown(cli, copy, smoke):
    ran = cli("leaderboard", "diff", smoke, copy)
    assert (ran.code, ran.out) == (0, "### Leaderboard\n\nNo rank and no score changed.\n\n")
    for path in (copy / "records").rglob("*.json"):
        if '"name":"input-noise"' in path.read_text():
            path.unlink()
    ran = cli("leaderboard", "diff", smoke, copy)
    assert ran.code == 0
    assert "→ absent" in ran.out
    assert cli("leaderboard", "diff", smoke, copy / "none").code == 2


def test_a_run_builds_its_board(cli, copy):
    shutil.rmtree(copy / "board")
    ran = cli("run", "smoke", "--results", copy, "--no-mlflow")
    assert f"leaderboard  {copy / 'board' / 'index.html'}" in ran.out
    assert (copy / "board" / "index.html").is_file()


def test_the_summary_ranks_by_the_worst_case(cli, smoke):
    ran = cli("run", "smoke", "--results", smoke, "--no-mlflow", "--no-board")
    assert "breast-cancer · evasion/white/linf:0.05" in ran.out
    assert "WORST CASE" in ran.out
    worst = {
        defense: min(
            record.metrics["robust_accuracy"].value
            for record in Store(smoke).records()
            if record.vector == "evasion" and record.defense_text == defense
        )
        for defense in ("none", "input-noise(sigma=0.05)")
    }
    for defense, value in worst.items():
        (line,) = [x for x in ran.out.splitlines() if x.endswith(f"  {defense}") and "%" in x and "[" in x][
            :1
        ]
        assert float(line.split()[1].rstrip("%")) <= 100 * value + 0.05


def recipe(path, paper, tolerance=1.0):
    path.write_text(path.read_text().replace("paper = 200", f"paper = {paper}").replace("tolerance = 1", f"tolerance = {tolerance}"))  # fmt: skip
    return path


@pytest.fixture
def measured(smoke):
    """What the recipe of these tests measures, in percent."""
    (found,) = [
        record.metrics["robust_accuracy"]
        for record in Store(smoke).records()
        if record.attack.text == "pgd(steps=10)" and record.defense_text == "none"
    ]
    assert isinstance(found, Metric)
    return found


@pytest.mark.parametrize(
    ("paper", "code", "verdict"),
    [
        (lambda m: 100 * m.value + 0.5, 0, "reproduced"),
        (lambda m: 100 * m.hi - 0.1, 0, "within interval"),
        (lambda m: 100 * m.hi + 5, 1, "differs"),
    ],
    ids=["reproduced", "within", "differs"],
)
def test_a_paper_is_reproduced_or_not(cli, catalogue, smoke, own_recipe, measured, paper, code, verdict):
    ran = cli("reproduce", recipe(own_recipe, paper(measured)), "--results", smoke)
    assert ran.code == code, ran
    assert f"  {verdict}" in ran.out
    assert f"{100 * measured.value:.2f}%" in ran.out
    assert "deviation: none of note" in ran.out


def test_a_number_without_a_cell_is_missing(cli, catalogue, smoke, own_recipe):
    own_recipe.write_text(own_recipe.read_text().replace('metric = "robust_accuracy"', 'metric = "misspelt"'))
    ran = cli("reproduce", own_recipe, "--results", smoke, "--json")
    assert ran.code == 1
    assert [v["verdict"] for v in json.loads(ran.out)] == ["missing"]


@pytest.mark.slow
def test_exporting_twice_changes_nothing(cli, copy):
    """A fresh MLflow store takes seconds to make."""
    ran = cli("mlflow", "sync", "--results", copy)
    assert ran.code == 0, ran
    assert ran.out.startswith("8 new runs in sqlite:///")
    assert cli("mlflow", "sync", "--results", copy).out.startswith("0 new runs in ")
    again = cli("run", "smoke", "--results", copy, "--no-board")
    assert "(0 new runs; see it with: mlflow ui --backend-store-uri " in again.out


def test_a_run_exports_only_what_its_ledger_does_not_hold(cli, copy, monkeypatch):
    exported = []

    def sync(records, uri, **_):
        exported.append([record.key for record in records])
        return len(exported[-1])

    monkeypatch.setattr("firstline.benchmark.run.tracking.sync", sync)
    uri = f"sqlite:///{copy}/mlflow.db"
    (copy / "mlflow.db").touch()
    for _ in range(2):
        assert cli("run", "smoke", "--results", copy, "--no-board", "--mlflow", uri).code == 0
    assert [len(keys) for keys in exported] == [8]
    assert cli("mlflow", "sync", "--results", copy, "--uri", uri).code == 0
    assert [len(keys) for keys in exported] == [8, 8]
    (copy / "mlflow.db").unlink()
    assert cli("run", "smoke", "--results", copy, "--no-board", "--mlflow", uri).code == 0
    assert [len(keys) for keys in exported] == [8, 8, 8], "the store is gone: all is new to the next one"


def test_a_failed_cell_that_was_mended_is_exported_again(smoke, tmp_path, monkeypatch):
    exported = []
    monkeypatch.setattr("firstline.benchmark.run.tracking.sync", lambda records, *_, **__: exported.append([r.status for r in records]))  # fmt: skip
    (mended,) = [r for r in Store(smoke).records() if r.attack.text == "pgd(steps=10)" and r.defense_text == "none"]  # fmt: skip
    error = Failure(kind="infra", type="WorkerDied", message="boom", stage="cell")
    failed = mended.model_copy(update={"status": "failed", "error": error, "metrics": {}})
    for record in (failed, failed, mended, mended):
        export(Store(tmp_path), [record], "http://localhost")
    assert exported == [["failed"], ["ok"]]


@pytest.mark.parametrize("name", ["plain", "50% off", "what?", "a b", "é"])
def test_the_default_store_lies_in_the_results_whatever_their_name(tmp_path, name):
    from sqlalchemy import create_engine

    from firstline.benchmark.cli.finish import default_uri

    (tmp_path / name).mkdir()
    engine = create_engine(default_uri(tmp_path / name))
    with engine.connect():
        pass
    engine.dispose()
    assert [path.name for path in (tmp_path / name).iterdir()] == ["mlflow.db"]
