"""Records: one canonical text, nothing unknown, nothing that is no number."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from firstline.benchmark.core import record as module
from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import (
    VOLATILE,
    Cost,
    Environment,
    Failure,
    Gate,
    Isolation,
    ItemUse,
    Metric,
    OutcomeFile,
    Provenance,
    Record,
    json_schema,
    read_record,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMED = st.text("abc_", min_size=1, max_size=5)


def metric(value: float = 0.5, **more: Any) -> Metric:
    return Metric(**{"value": value, "n": 100, "method": "", "unit": "share", "better": "higher", **more})


def item(text: str = "pgd(steps=3)", settings: dict[str, Any] | None = None) -> ItemUse:
    return ItemUse(text=text, name=text.partition("(")[0], version=1, settings=settings or {}, code="c0de")


def make(**changes: Any) -> Record:
    given: dict[str, Any] = {
        "key": "0123456789abcdef" * 4,
        "preimage": {"seed": 0},
        "stages": {"fit": "f" * 64},
        "suite": "quick",
        "task": item("digits"),
        "defense": [item("none"), item("input-noise(sigma=0.2)", {"sigma": 0.2})],
        "attack": item(),
        "threat": "evasion/white/linf:0.1",
        "vector": "evasion",
        "seed": 0,
        "status": "ok",
        "metrics": {"robust_accuracy": metric(0.25, lo=0.2, hi=0.3, method="wilson")},
        "curves": {"accuracy": [(0.0, 0.9), (0.1, 0.25)]},
        "outcomes": OutcomeFile(path="a/b.npz", sha256="0" * 64, columns=["ids"]),
        "cost": Cost(fit_seconds=1.5, queries=7, peak_memory_mb=100.0),
        "environment": Environment(python="3", platform="p", cpu="c", device="cpu", threads=1, packages={}),
        "provenance": Provenance(
            firstline="0.1",
            commit="",
            dirty=True,
            started="2026-01-02T03:04:05Z",
            ended="2026-01-02T03:05:05Z",
        ),
        "isolation": Isolation(blind=True, backend="none"),
    }
    return Record(**{**given, **changes})


def failed(**changes: Any) -> Record:
    error = Failure(kind="attack", type="ContractBroken", message="left its ball", stage="craft")
    return make(
        **{"status": "failed", "error": error, "metrics": {}, "curves": {}, "outcomes": None, **changes}
    )


RECORDS = st.builds(
    make,
    preimage=st.dictionaries(NAMED, JSON, max_size=3),
    attack=st.builds(item, st.just("pgd"), st.dictionaries(NAMED, JSON, max_size=3)),
    metrics=st.dictionaries(NAMED, st.builds(metric, FINITE), max_size=3),
    curves=st.dictionaries(NAMED, st.lists(st.tuples(FINITE, FINITE), max_size=3), max_size=2),
    diagnostics=st.dictionaries(NAMED, FINITE, max_size=3),
    gate=st.builds(Gate, verdict=st.sampled_from(["pass", "warn", "fail"]), reasons=st.lists(st.text(st.characters(codec="utf-8")), max_size=2)),
    seed=st.integers(0, 2**53),
)  # fmt: skip


@given(RECORDS | st.just(failed()))
@settings(deadline=None, max_examples=60)
def test_a_record_is_the_same_after_json(record):
    text = record.to_json()
    again = Record.model_validate_json(text)
    assert again == record
    assert again.to_json() == text
    assert text.count("\n") == 1
    assert json.loads(text) == json.loads(canonical(json.loads(text)))


def test_the_order_of_building_does_not_show():
    assert (
        make(diagnostics={"a": 1.0, "b": 2.0}).to_json() == make(diagnostics={"b": 2.0, "a": 1.0}).to_json()
    )


def test_a_record_can_not_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        make().seed = 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "Extra inputs are not permitted"),
        ({"key": "0" * 63}, "should match pattern"),
        ({"defense": []}, "at least 1 item"),
        ({"vector": "theft"}, "Input should be 'evasion'"),
        ({"vector": "membership"}, "is not of the vector membership"),
        ({"status": "failed"}, "a failed record has an error, and no other has"),
        (
            {"error": Failure(kind="attack", type="E", message="m", stage="fit")},
            "a failed record has an error",
        ),
        ({"diagnostics": {"gap": float("nan")}}, "finite number"),
        ({"curves": {"c": [(0.0, float("inf"))]}}, "finite number"),
        ({"format": "firstline.record/2"}, "Input should be 'firstline.record/1'"),
    ],
)
def test_what_is_no_record_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        make(**changes)


def test_a_failed_record_has_no_metrics():
    with pytest.raises(ValidationError, match="a failed record has no metrics"):
        failed(metrics={"robust_accuracy": metric()})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_is_a_number(value):
    with pytest.raises(ValidationError, match="finite number"):
        metric(value)
    with pytest.raises(ValidationError, match="finite number"):
        metric(lo=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_written_anywhere(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        make(preimage={"deep": [value]}).to_json()


def test_canonical_text_refuses_what_is_not_plain():
    with pytest.raises(TypeError):
        canonical({"a": {1, 2}})


def test_a_record_is_read_from_its_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(make(suite="größer").to_json(), encoding="utf-8")
    assert read_record(path) == make(suite="größer")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a record: the file: Invalid JSON"),
        ("{}", "is not a record: key: Field required; delete the file and run the suite again"),
        (make().to_json()[:-20], "is not a record: the file: Invalid JSON"),
        (make().to_json().replace('"seed":0,', '"seed":0,"surprise":1,'), "surprise: Extra inputs are not permitted"),
        (make().to_json().replace('"value":0.25', '"value":NaN'), "metrics.robust_accuracy.value: .* finite number"),
        (make().to_json().replace('"value":0.25', '"value":"high"'), "metrics.robust_accuracy.value: "),
        (make().to_json().replace("record/1", "record/2"), "another record format than firstline.record/1; use the firstline that wrote it"),
        ("\udcff\udcfe", "it is not text; delete the file and run the suite again"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_record_is_refused_with_advice(tmp_path, text, said):
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FirstlineError, match=said) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FirstlineError, match=r"cannot read .*absent.json: No such file"):
        read_record(tmp_path / "absent.json")


def test_a_timeless_record_lacks_times_and_memory_and_nothing_else():
    whole, timeless = json.loads(make().to_json()), json.loads(canonical(make().timeless()))
    dropped = {(part, name) for part in VOLATILE for name in whole[part] if name not in timeless[part]}
    assert dropped == {
        ("cost", "fit_seconds"),
        ("cost", "repair_seconds"),
        ("cost", "craft_seconds"),
        ("cost", "score_seconds"),
        ("cost", "peak_memory_mb"),
        ("provenance", "started"),
        ("provenance", "ended"),
    }
    for part, name in dropped:
        del whole[part][name]
    assert timeless == whole


def test_two_runs_of_one_cell_differ_in_time_alone():
    later = make().provenance.model_copy(
        update={"started": "2027-01-01T00:00:00Z", "ended": "2027-01-01T00:00:01Z"}
    )
    again = make(
        cost=Cost(fit_seconds=9.0, craft_seconds=1.0, score_seconds=2.0, queries=7), provenance=later
    )
    assert again != make()
    assert again.timeless() == make().timeless()
    assert make(cost=Cost(queries=8)).timeless() != make().timeless()


def test_the_stack_is_written_innermost_first():
    assert make().defense_text == "none+input-noise(sigma=0.2)"


SCHEMA = Path(module.__file__).with_name("record.schema.json")


def test_the_committed_schema_is_that_of_the_code():
    expected = json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"
    assert SCHEMA.read_text() == expected, "write json_schema() to benchmark/core/record.schema.json again"


@pytest.mark.parametrize("record", [make(), failed(), make(curves={}, tags=["control"])])
def test_a_record_follows_the_committed_schema(record):
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    validator.check_schema(validator.schema)
    validator.validate(json.loads(record.to_json()))


def test_a_value_lies_in_its_interval_and_a_share_between_0_and_1():
    with pytest.raises(ValidationError, match="outside its interval"):
        metric(0.5, lo=0.6, hi=0.7)
    with pytest.raises(ValidationError, match="a share must lie in"):
        metric(1.5, method="wilson")


def test_robust_accuracy_is_never_above_clean_accuracy():
    with pytest.raises(ValidationError, match="above clean accuracy"):
        make(metrics={"clean_accuracy": metric(0.5), "robust_accuracy": metric(0.6)})


@pytest.mark.parametrize("missing", ["key", "threat", "metrics", "environment"])
def test_the_schema_refuses_what_the_code_refuses(missing):
    data = json.loads(make().to_json())
    if missing == "metrics":
        data["metrics"]["robust_accuracy"]["surprise"] = 1
    else:
        del data[missing]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(SCHEMA.read_text()))
