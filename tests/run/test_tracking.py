import hashlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import (
    Environment,
    Failure,
    Isolation,
    ItemUse,
    Metric,
    Provenance,
    Record,
)
from firstline.benchmark.run import tracking
from firstline.benchmark.run.tracking import sync


def item(name: str, **settings: Any) -> ItemUse:
    text = f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else name
    return ItemUse(text=text, name=name, version=2, settings=settings, code="c" * 64)


def share(value: float, lo: float | None = None, hi: float | None = None) -> Metric:
    method = "wilson" if lo is not None else ""
    return Metric(value=value, lo=lo, hi=hi, n=100, method=method, unit="share", better="higher")


def record(suite: str, attack: str = "pgd", defense: str = "none", **changes: Any) -> Record:
    cell = Record(
        key=hashlib.sha256(f"{suite}/{attack}/{defense}".encode()).hexdigest(),
        preimage={},
        stages={"data": "d" * 64, "fit": hashlib.sha256(defense.encode()).hexdigest()},
        suite=suite,
        task=item("blobs", dim=8, gap=0.4),
        defense=[item(defense)],
        attack=item(attack, steps=40, loss={"name": "ce"}, radii=[0.1, 0.2]),
        threat="evasion/white/linf:0.1",
        vector="evasion",
        seed=3,
        status="ok",
        metrics={"robust_accuracy": share(0.5, 0.4, 0.6), "queries": share(40.0)},
        curves={"accuracy_by_step": [(0.0, 0.9), (10.0, 0.7), (40.0, 0.5)]},
        environment=Environment(python="3", platform="p", cpu="c", device="cpu", threads=1, packages={}),
        provenance=Provenance(
            firstline="0.1",
            commit="",
            dirty=False,
            started="2026-01-02T03:04:05Z",
            ended="2026-01-02T03:05:05Z",
        ),
        isolation=Isolation(blind=True, backend="none"),
    )
    return cell.model_copy(update=changes)


def no_files(_: Record) -> list[Path]:
    return []


@dataclass(frozen=True)
class Store:
    """The one database of this module, since making one takes seconds; every test has a suite of its own."""

    uri: str
    root: Path

    def sync(self, *records: Any, files: Callable[[Any], list[Path]] = no_files, **options: Any) -> int:
        return sync(records, self.uri, files=files, artifacts=self.root, **options)

    def runs(self, suite: str) -> list[Any]:
        experiment = self.client.get_experiment_by_name(f"firstline/{suite}")
        return list(self.client.search_runs([experiment.experiment_id]))

    def cells(self, suite: str) -> list[Any]:
        return [run for run in self.runs(suite) if "firstline.key" in run.data.tags]

    def cell(self, suite: str) -> Any:
        (run,) = self.cells(suite)
        return run

    def parents(self, suite: str) -> list[Any]:
        return [run for run in self.runs(suite) if "firstline.fit" in run.data.tags]

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("tracking")
    store = Store(f"sqlite:///{folder}/deep/mlflow.db", folder / "artifacts")
    store.sync(record("warm-up"))
    return store


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as bound:  # bound and not listening: nobody else can take it, and nobody answers
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def error_of(uri: str, **options: Any) -> str:
    with pytest.raises(FirstlineError) as caught:
        sync([record("never")], uri, files=no_files, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fitted_system_is_the_parent_of_its_cells(store: Store) -> None:
    suite = "tree"
    cells = [record(suite, attack, defense) for defense in ("none", "at") for attack in ("pgd", "fgsm")]
    assert store.sync(*cells) == 4
    parents = {run.info.run_id: run for run in store.parents(suite)}
    names = {
        (parents[run.data.tags["mlflow.parentRunId"]].info.run_name, run.info.run_name)
        for run in store.cells(suite)
    }
    assert names == {
        (f"{cell.task.text} · {cell.defense_text} · seed 3", f"{cell.attack.text} · {cell.threat}")
        for cell in cells
    }
    assert len(parents) == 2
    assert {run.info.status for run in store.runs(suite)} == {"FINISHED"}


def test_the_parent_is_tagged_with_the_fit_and_its_data(store: Store) -> None:
    cell = record("parent")
    store.sync(cell)
    (parent,) = store.parents("parent")
    (data,) = parent.inputs.dataset_inputs
    assert parent.data.tags["firstline.fit"] == cell.stages["fit"]
    assert parent.data.params["task.dim"] == "8"
    assert (data.dataset.name, data.dataset.digest) == (cell.task.text, "d" * 36)


def test_systems_without_a_fit_key_are_told_apart(store: Store) -> None:
    store.sync(
        *(record("unfitted", attack, defense, stages={}) for defense in ("none", "at") for attack in "ab")
    )
    assert len(store.parents("unfitted")) == 2
    assert [run.inputs.dataset_inputs for run in store.parents("unfitted")] == [[], []]


def test_a_suite_is_an_experiment_with_a_place_for_its_artifacts(store: Store) -> None:
    store.sync(record("core@1"), record("other"))
    found = store.client.get_experiment_by_name("firstline/core@1")
    assert found.artifact_location.startswith(store.root.as_uri())
    assert len(store.cells("core@1")) == len(store.cells("other")) == 1


def test_settings_and_versions_are_params(store: Store) -> None:
    layers = [item("jpeg", quality=75), item("jpeg", quality=50), item("at", epochs=2)]
    store.sync(record("params").model_copy(update={"defense": layers}))
    params = store.cell("params").data.params
    assert params["attack.steps"] == "40"
    assert params["attack.loss.name"] == "ce"
    assert params["attack.radii"] == "[0.1,0.2]"
    assert (params["defense.jpeg.quality"], params["defense.jpeg.quality-2"]) == ("75", "50")
    assert (params["defense.at.epochs"], params["version.defense.at"]) == ("2", "2")
    assert (params["threat"], params["seed"]) == ("evasion/white/linf:0.1", "3")
    assert params["version.firstline"] == "0.1"


def test_metrics_carry_their_intervals(store: Store) -> None:
    store.sync(record("metrics", diagnostics={"zero_gradients": 0.25}))
    metrics = store.cell("metrics").data.metrics
    assert (metrics["robust_accuracy"], metrics["robust_accuracy.lo"], metrics["robust_accuracy.hi"]) == (
        0.5,
        0.4,
        0.6,
    )
    assert metrics["queries"] == 40.0
    assert "queries.lo" not in metrics
    assert metrics["diagnostics.zero_gradients"] == 0.25
    assert "cost.fit_seconds" in metrics


def test_curves_are_stepped_metrics(store: Store) -> None:
    store.sync(record("curves"))
    run_id = store.cell("curves").info.run_id
    height = store.client.get_metric_history(run_id, "accuracy_by_step")
    place = store.client.get_metric_history(run_id, "accuracy_by_step.x")
    assert [(point.step, point.value) for point in height] == [(0, 0.9), (1, 0.7), (2, 0.5)]
    assert [(point.step, point.value) for point in place] == [(0, 0.0), (1, 10.0), (2, 40.0)]


def test_a_curve_never_passes_for_the_metric_of_its_name(store: Store) -> None:
    store.sync(record("namesake", curves={"robust_accuracy": [(0.0, 0.9), (1.0, 0.1)]}))
    metrics = store.cell("namesake").data.metrics
    assert (metrics["robust_accuracy"], metrics["curve.robust_accuracy"]) == (0.5, 0.1)


def test_only_finite_numbers_are_sent(store: Store) -> None:
    curve = [(0.0, 1.0), (1.0, float("inf")), (2.0, 3.0)]
    store.sync(record("finite", curves={"loss": curve}, diagnostics={"ratio": float("nan")}))
    run = store.cell("finite")
    history = store.client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (2, 3.0)]
    assert "diagnostics.ratio" not in run.data.metrics


def test_a_cell_is_tagged_for_searching(store: Store) -> None:
    cell = record("tags")
    store.sync(cell)
    tags = store.cell("tags").data.tags
    assert {
        name: tags[f"firstline.{name}"] for name in ("key", "status", "vector", "suite", "task", "attack")
    } == {
        "key": cell.key,
        "status": "ok",
        "vector": "evasion",
        "suite": "tags",
        "task": cell.task.text,
        "attack": cell.attack.text,
    }
    assert (tags["firstline.defense"], tags["firstline.threat"]) == ("none", cell.threat)
    assert (tags["firstline.gate"], tags["firstline.blind"]) == ("pass", "true")
    assert "firstline.error" not in tags


def test_a_run_has_the_times_of_the_cell(store: Store) -> None:
    store.sync(record("times"))
    info = store.cell("times").info
    assert (info.start_time, info.end_time - info.start_time) == (1767323045000, 60_000)


def test_files_are_attached_and_missing_ones_left_out(store: Store, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    store.sync(record("files"), files=lambda _: [tmp_path / "record.json", tmp_path / "gone.parquet"])
    run = store.cell("files")
    assert [file.path for file in store.client.list_artifacts(run.info.run_id)] == ["record.json"]
    assert list(store.root.rglob("record.json"))


def test_a_failed_cell_is_a_failed_run(store: Store) -> None:
    failure = Failure(kind="attack", type="ContractBroken", message="left its ball", stage="craft")
    store.sync(record("failed", status="failed", error=failure, metrics={}, curves={}))
    run = store.cell("failed")
    assert run.info.status == "FAILED"
    assert run.data.tags["firstline.error"] == "attack: ContractBroken in craft: left its ball"


def test_a_stream_is_a_run_with_its_service_by_window(store: Store, new_stream: Callable[..., Any]) -> None:
    stream = new_stream("mend", seed=7, steps=3, relapse=0.25)
    assert store.sync(stream) == 1
    (run,) = [run for run in store.cells("streams") if run.data.tags["firstline.key"] == stream.key]
    history = store.client.get_metric_history(run.info.run_id, "service")
    assert [(point.step, point.value) for point in history] == list(enumerate([1, 1, 0.5, 0.5, 1, 1]))
    metrics, params = run.data.metrics, run.data.params
    assert (metrics["drop"], metrics["recovered"], metrics["recovery"]) == (
        0.5,
        0,
        4,
    )  # two windows don't last
    assert (metrics["steps"], metrics["relapse"], metrics["service.usual"]) == (3, 0.25, 1)
    assert "oracle.loss" not in metrics
    assert (params["shape.size"], params["seed"], params["defense.mend"]) == ("10", "7", "mend")
    assert run.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in run.data.tags


def test_the_stream_of_nothing_carries_the_instant_oracle(
    store: Store, new_stream: Callable[..., Any]
) -> None:
    stream = new_stream(seed=8)
    store.sync(stream)
    (run,) = [run for run in store.cells("streams") if run.data.tags["firstline.key"] == stream.key]
    history = store.client.get_metric_history(run.info.run_id, "oracle.service")
    assert [point.value for point in history] == [1, 1, 0.5, 1, 1, 1]
    assert run.data.metrics["oracle.loss"] < run.data.metrics["loss"]


def test_streams_are_exported_once_and_beside_cells(store: Store, new_stream: Callable[..., Any]) -> None:
    both = [new_stream(seed=9), record("beside")]
    assert store.sync(*both, *both) == 2
    assert store.sync(*both) == 0


HOSTILE = {
    "path": "../../etc/passwd",
    "signs": "a=b,c",
    "dots": "..",
    "empty": "",
    "blank": " ",
    "sql": "'; DROP TABLE runs; --",
    "html": "<script>",
    "unicode": "名前",
    "long": "k" * 9000,
    "control": "a\nb\0c",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_any_text_can_be_exported(store: Store, text: str) -> None:
    attack = item("x").model_copy(update={"text": text, "settings": {text: text, "n": {text: 1}}})
    cell = record(
        f"hostile {text}",
        error=Failure(kind="attack", type="E", message=text * 9000, stage="craft"),
        metrics={text: share(0.5), f"{text}?": share(0.6)},
        curves={text: [(0.0, 1.0)]},
    ).model_copy(update={"attack": attack})
    assert store.sync(cell) == 1
    assert store.sync(cell) == 0


def test_names_that_become_one_key_keep_both_values(store: Store) -> None:
    store.sync(record("clash", metrics={"acc@eps=1": share(0.1), "acc@eps,1": share(0.2)}, curves={}))
    metrics = store.cell("clash").data.metrics
    assert (metrics["acc_eps_1"], metrics["acc_eps_1-2"]) == (0.1, 0.2)


def test_long_values_are_cut_visibly(store: Store) -> None:
    store.sync(record("long").model_copy(update={"attack": item("pgd", note="n" * 7000)}))
    note = store.cell("long").data.params["attack.note"]
    assert (len(note), note[-1]) == (6000, "…")


@pytest.mark.parametrize("moment", ["", "yesterday", "0001-01-01T00:00:00"])
def test_a_time_that_is_none_does_not_stop_the_export(store: Store, moment: str) -> None:
    clock = record("x").provenance.model_copy(update={"started": moment, "ended": moment})
    assert store.sync(record(f"clock-{moment}", provenance=clock)) == 1


def test_exporting_twice_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAGE", 2)  # so that the search for known cells takes several pages
    cells = [
        record("twice", attack, status=status)
        for attack, status in zip("abcde", ["ok", "failed"] * 3, strict=False)
    ]
    assert store.sync(*cells) == 5
    before = [run.to_dictionary() for run in store.runs("twice")]
    assert store.sync(*cells, *cells) == 0
    assert [run.to_dictionary() for run in store.runs("twice")] == before


def test_only_new_cells_are_exported_and_counted(store: Store) -> None:
    told: list[tuple[int, int]] = []
    store.sync(record("more", "a"))
    new = [record("more", attack) for attack in "abc"]
    assert store.sync(*new, *new, progress=lambda done, total: told.append((done, total))) == 2
    assert told == [(1, 2), (2, 2)]
    assert len(store.parents("more")) == 1


def test_a_killed_export_is_resumed(store: Store) -> None:
    cells = [record("killed", attack) for attack in "abcd"]

    def killed(cell: Record) -> list[Path]:
        if cell is cells[2]:
            raise KeyboardInterrupt
        return []

    with pytest.raises(KeyboardInterrupt):
        store.sync(*cells, files=killed)
    assert sorted(run.info.status for run in store.cells("killed")) == ["FINISHED", "FINISHED", "RUNNING"]
    assert store.sync(*cells) == 2
    assert [run.info.status for run in store.runs("killed")] == ["FINISHED"] * 5
    assert {run.data.tags["firstline.key"] for run in store.cells("killed")} == {cell.key for cell in cells}


def test_a_half_written_parent_is_made_anew(store: Store) -> None:
    store.sync(record("orphan", "a", "at"))
    experiment = store.client.get_experiment_by_name("firstline/orphan").experiment_id
    half = store.client.create_run(experiment, tags={"firstline.fit": record("orphan").stages["fit"]})
    store.sync(record("orphan"))
    assert half.info.run_id not in [run.info.run_id for run in store.runs("orphan")]
    assert [run.info.status for run in store.parents("orphan")] == ["FINISHED"] * 2


def test_the_runs_of_others_are_left_alone(store: Store) -> None:
    store.sync(record("guests"))
    experiment = store.client.get_experiment_by_name("firstline/guests").experiment_id
    guest = store.client.create_run(experiment, run_name="a person's own")
    store.sync(record("guests"))
    assert store.client.get_run(guest.info.run_id).info.lifecycle_stage == "active"


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, firstline.benchmark.run.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_export_is_silent_and_leaves_no_trace_in_the_process(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    def state() -> Any:
        levels = [logging.getLogger(name).level for name in ("", "mlflow", "alembic", "urllib3")]
        return dict(os.environ), levels, mlflow.get_tracking_uri(), mlflow.active_run()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before = state()
    store.sync(record("guest"))
    assert state() == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_unreachable_server_is_one_line_and_fast(closed_port: int) -> None:
    start = time.perf_counter()
    message = error_of(f"http://someone:secret@127.0.0.1:{closed_port}")
    assert time.perf_counter() - start < 10
    assert message.startswith(f"nothing answers at http://…@127.0.0.1:{closed_port} (Connection refused)")


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("foo://bar", "unsupported URI 'foo://bar'"),
        ("http://[::1", "is not a tracking URI"),
        ("http://host:port", "is not a tracking URI"),
        ("sqlite://", "names no database file"),
        ("sqlite:///:memory:", "names no database file"),
        ("postgresql://u:secret@host/db", "database postgresql://…@host/db keeps no files"),
        ("", "MLflow no longer tracks in folders"),
        ("mlflow.db", "MLflow no longer tracks in folders"),
        ("file:///tmp/mlruns", "MLflow no longer tracks in folders"),
    ],
)
def test_a_uri_that_cannot_be_used_says_why(uri: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    assert part in error_of(uri)


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but long enough to be taken for one\n" * 100)
    assert "file is not a database" in error_of(f"sqlite:///{tmp_path}/notes.db")


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    assert f"cannot write to {tmp_path}: unable to open database file" in error_of(f"sqlite:///{tmp_path}")


def test_a_read_only_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch(mode=0o444)
    if os.access(tmp_path / "mlflow.db", os.W_OK):
        pytest.skip("this user may write to read-only files")
    assert "attempt to write a readonly database" in error_of(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_deleted_experiment_says_how_to_bring_it_back(store: Store) -> None:
    store.sync(record("deleted"))
    store.client.delete_experiment(store.client.get_experiment_by_name("firstline/deleted").experiment_id)
    with pytest.raises(FirstlineError, match="mlflow experiments restore"):
        store.sync(record("deleted"))


def test_a_store_that_fails_on_the_way_is_one_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "record.json").touch()
    with pytest.raises(FirstlineError, match=r"the export to sqlite.* stopped: .*; run it again"):
        sync(
            [record("blocked")],
            store.uri,
            files=lambda _: [tmp_path / "record.json"],
            artifacts=tmp_path / "file",
        )


def test_nothing_to_export_touches_nothing(tmp_path: Path) -> None:
    assert sync([], f"sqlite:///{tmp_path}/mlflow.db", files=no_files) == 0
    assert "mlflow.db" not in [path.name for path in tmp_path.iterdir() if path.stat().st_size]
