"""The record of one cell: immutable, versioned, canonical JSON. Imports no torch."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError

SCHEMA = "firstline.record/1"
VOLATILE = {
    "cost": {"fit_seconds", "repair_seconds", "craft_seconds", "score_seconds", "peak_memory_mb"},
    "provenance": {"started", "ended"},
}


class Part(BaseModel):
    """Base of all parts: no unknown fields, no NaN, unchangeable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


Model = TypeVar("Model", bound=Part)


class Metric(Part):
    """One number with its 95% interval. better says which direction the defender wants."""

    value: float
    lo: float | None = None
    hi: float | None = None
    n: int = Field(ge=0, description="examples behind the number")
    method: str = Field(
        description="how the interval was made: wilson, bootstrap, or empty where there is none"
    )
    unit: str = Field(description="what the value counts: share, input units, queries, seconds, ...")
    better: Literal["higher", "lower", "neither"]

    @model_validator(mode="after")
    def _ordered(self) -> "Metric":
        lo, hi = self.lo, self.hi
        if (lo is not None and lo > self.value) or (hi is not None and hi < self.value):
            raise ValueError(f"the value {self.value} lies outside its interval, {lo} to {hi}")
        if self.method and not 0 <= self.value <= 1:
            raise ValueError(f"a share must lie in [0, 1], got {self.value}")
        return self


class ItemUse(Part):
    """An item as it was used: its text form, version, all settings, and the digest of its code."""

    text: str
    name: str
    version: int
    settings: dict[str, Any]
    code: str


class Failure(Part):
    """Why a cell has no numbers. kind: attack, defense, task, budget, or infra (the machine; run again)."""

    kind: Literal["attack", "defense", "task", "budget", "infra"]
    type: str
    message: str
    stage: str


class OutcomeFile(Part):
    """The file of per-example arrays: path below the results folder, SHA-256, array names."""

    path: str
    sha256: str
    columns: list[str]


class Gate(Part):
    """The verdict of the evaluation's own checks, with each reason in words."""

    verdict: Literal["pass", "warn", "fail"]
    reasons: list[str]


class Cost(Part):
    """Seconds per stage, totals of the attack's queries and gradients, and the worker's peak memory.

    Fitting and crafting count CPU seconds (wall time on a GPU), scoring wall time, as it runs elsewhere.
    fit_seconds is the fit of the attacked system, whether it was made for this cell or found in the store, or the
    mean of all that membership inference attacks; repair_seconds is its repair.
    """

    fit_seconds: float = 0.0
    repair_seconds: float = 0.0
    craft_seconds: float = 0.0
    score_seconds: float = 0.0
    queries: int = 0
    gradients: int = 0
    peak_memory_mb: float = 0.0


class Environment(Part):
    """Where the number was measured."""

    python: str
    platform: str
    cpu: str
    device: str
    threads: int
    packages: dict[str, str]


class Provenance(Part):
    """Which code measured it, and when (UTC)."""

    firstline: str
    commit: str
    dirty: bool
    started: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    ended: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")


class Isolation(Part):
    """Whether scoring was blind (a process without labels and gradients), and what else held plugins back."""

    blind: bool
    backend: str


class Record(Part):
    """The result of one cell: task × defense × attack × threat model × seed."""

    format: Literal["firstline.record/1"] = "firstline.record/1"
    key: str = Field(pattern="^[0-9a-f]{64}$")
    preimage: dict[str, Any] = Field(description="everything that the key is the SHA-256 of")
    stages: dict[str, str] = Field(description="the content key of each stage")
    suite: str
    task: ItemUse
    defense: list[ItemUse] = Field(min_length=1, description="the layers of the stack, innermost first")
    attack: ItemUse
    threat: str
    vector: Literal["evasion", "poisoning", "extraction", "membership", "inversion"]
    seed: int
    status: Literal["ok", "failed"]
    error: Failure | None = None
    metrics: dict[str, Metric] = {}
    unresolved: dict[str, tuple[float, float]] = Field(
        default={}, description="what the sample is too small for: the ends between which it lies"
    )
    curves: dict[str, list[tuple[float, float]]] = {}
    diagnostics: dict[str, float] = {}
    gate: Gate = Gate(verdict="pass", reasons=[])
    outcomes: OutcomeFile | None = None
    cost: Cost = Cost()
    environment: Environment
    provenance: Provenance
    isolation: Isolation
    tags: list[str] = Field(default=[], description="tags of the defense's layers: control, broken, ...")

    @model_validator(mode="after")
    def _consistent(self) -> "Record":
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("a failed record has an error, and no other has")
        if self.status == "failed" and self.metrics:
            raise ValueError("a failed record has no metrics")
        if not self.threat.startswith(f"{self.vector}/"):
            raise ValueError(f"threat {self.threat!r} is not of the vector {self.vector}")
        clean, robust = self.metrics.get("clean_accuracy"), self.metrics.get("robust_accuracy")
        if self.vector == "evasion" and clean and robust and robust.value > clean.value:
            raise ValueError(f"robust accuracy {robust.value} is above clean accuracy {clean.value}")
        return self

    @property
    def defense_text(self) -> str:
        """The text form of the stack."""
        return "+".join(layer.text for layer in self.defense)

    @property
    def examples(self) -> int:
        """How many examples the cell was to attack at most, from the preimage; 0 where it doesn't say."""
        part: Any = self.preimage
        for name in ("score", "craft", "examples"):
            part = part.get(name) if isinstance(part, dict) else None
        return part if isinstance(part, int) else 0

    def to_json(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces, one line."""
        return canonical(self.model_dump(mode="json")) + "\n"

    def timeless(self) -> dict[str, Any]:
        """Return the record's data without times and memory: what two runs of one cell must agree on."""
        data = self.model_dump(mode="json")
        for part, names in VOLATILE.items():
            data[part] = {k: v for k, v in data[part].items() if k not in names}
        return data


def read_record(path: Path) -> Record:
    """Return the record in a file. Raises FirstlineError naming the file and what to do."""
    return read_model(path, Record, SCHEMA, "delete the file and run the suite again")


def read_model(path: Path, model: type[Model], schema: str, advice: str) -> Model:
    """Return the record of a kind in a file. Raises FirstlineError naming the file, and giving the advice."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FirstlineError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FirstlineError(f"{path} is not a record: it is not text; {advice}") from None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:100] or "the file"
        place = place if place.isprintable() else ascii(place)  # the file names its own fields
        kind = schema.partition("/")[0]
        if f'"format":"{kind}/' in text and f'"format":"{schema}"' not in text:
            raise FirstlineError(
                f"{path} has another record format than {schema}; use the firstline that wrote it"
            ) from None
        raise FirstlineError(f"{path} is not a record: {place}: {first['msg']}; {advice}") from None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of records."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        **Record.model_json_schema(),
    }
