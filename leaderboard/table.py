"""From records to tables: one per vector, task and threat model; what is ranked, and why something is not."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.limits import LIMITS, Judged, Limit
from firstline.benchmark.core.record import Gate, Metric, Record
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.metrics.rates import wilson
from firstline.leaderboard import backdoor, curves, gate
from firstline.leaderboard.crossed import Met, outdone
from firstline.leaderboard.curves import Curve
from firstline.leaderboard.ranking import (
    PairTests,
    Place,
    examples,
    intervals,
    pair_tests,
    places,
    told_apart,
)
from firstline.leaderboard.recovery import Recovery, recovery
from firstline.leaderboard.worst_case import Bools, Floats, Verdicts, judge, warded, worst

if TYPE_CHECKING:
    from firstline.benchmark.metrics.ranks import Rank

Outcomes = Callable[[Record], Mapping[str, NDArray[Any]]]

VECTORS = ("evasion", "poisoning", "membership", "extraction", "inversion")
COLUMNS = {
    "poisoning": (
        "accuracy",
        "clean_accuracy",
        "accuracy_drop",
        "attack_success_rate",
        "clean_attack_success_rate",
        "robust_accuracy",
        "detection_tpr",
        "detection_fpr",
    ),
    "extraction": (
        "agreement",
        "uniform_agreement",
        "copy_accuracy",
        "accuracy",
        "variation",
        "transfer",
        "noise_error",
        "claimed",
        "false_claims",
        "queries",
    ),
    "inversion": (
        "evaluator_accuracy",
        "plain_evaluator_accuracy",
        "identification",
        "ncc",
        "ncc_other",
        "psnr",
        "ssim",
        "nearest_distance",
        "gain",
        "gain_members",
        "gain_others",
        "attribute_accuracy",
        "imputation_accuracy",
        "rebuilt",
        "label_recovery",
        "aux_psnr",
        "accuracy",
    ),
    "membership": (
        "tpr_at_0.1pct_fpr",
        "tpr_at_1pct_fpr",
        "auc",
        "balanced_accuracy",
        "canary_tpr_at_1pct_fpr",
        "canary_auc",
        "train_accuracy",
        "test_accuracy",
    ),
}
# The first that the records have: low rates are left out where examples are too few.
RANKED_BY = {
    "poisoning": ("accuracy",),
    "membership": ("tpr_at_0.1pct_fpr", "tpr_at_1pct_fpr", "auc"),
    "extraction": ("agreement",),
    "inversion": ("evaluator_accuracy", "gain", "rebuilt"),  # of classes, attributes and updates
}
BACKDOORS = "attack_success_rate"  # what tables of backdoors are ranked by
UNDEFENDED = "none"
LEAST_LOSS = 0.05  # of the undefended system under the worst case; less, and the attacks prove nothing
BESIDE_CURVES = ("curve_area", "median_minimal_distance")
DETECTION = {  # how well suspect inputs and queries are told apart, with units
    "detection_auc": "share",
    "detection_tpr_at_1pct_fpr": "share",
    "detection_tpr_at_5pct_fpr": "share",
    "detection_average_precision": "share",
    "inputs_until_refused": "inputs",
    "flagged_attacks": "share",
    "queries_until_flagged": "queries",
    "flagged_honest_queries": "share",
}


class Estimate(NamedTuple):
    """A value over n examples with the limits of its interval, None where there is none."""

    value: float
    lo: float | None
    hi: float | None
    n: int


class Measure(NamedTuple):
    """A metric as the records of one table declare it."""

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]


ROBUST = Measure("robust_accuracy", "share", "higher")
EFFECTIVENESS = Measure("defense_effectiveness", "share", "higher")


@dataclass(frozen=True)
class Cell:
    """One attack on one defense over the seeds: the estimates by metric, and what is wrong with the cell.

    unresolved holds the ends between which a metric lies that no record's sample can resolve; verdicts are those of
    evasion, by seed. A control takes nothing from the system.
    """

    attack: str
    estimates: Mapping[str, Estimate]
    problems: tuple[str, ...]
    records: tuple[Record, ...]
    curve: Curve | None = None
    unresolved: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    verdicts: Mapping[int, Verdicts] = field(default_factory=dict, compare=False)
    is_control: bool = False


@dataclass(frozen=True)
class Row:
    """One defense. place is None for a row that is shown and not ranked; objections say why.

    score is what the table ranks by, is_partial that it leaves something out. Of evasion alone: clean, warded, the
    share of single attacks that failed, and could_be, the ranks that other examples of the kind might give.
    figures holds the worst that any record has of each figure of the gate.
    """

    defense: str
    tags: tuple[str, ...]
    cells: tuple[Cell, ...]
    fit_seconds: float | None
    gate: Gate | None
    figures: Mapping[str, Judged]
    objections: tuple[str, ...]
    is_partial: bool
    score: Estimate | None = None
    clean: Estimate | None = None
    warded: Estimate | None = None
    place: Place | None = None
    could_be: "Rank | None" = None

    @property
    def records(self) -> tuple[Record, ...]:
        """The records behind the row."""
        return tuple(record for cell in self.cells for record in cell.records)

    @property
    def counted(self) -> tuple[Cell, ...]:
        """The cells that the worst case is taken over: all but those of controls."""
        return tuple(cell for cell in self.cells if not cell.is_control)


@dataclass(frozen=True)
class Table:
    """The defenses that were attacked on one task under one threat model, best first.

    score is what the ranks go by, None for a table without ranks. invalid says why nothing is ranked, and is
    empty for a valid table; warnings are what a reader should know about the whole table. Of evasion alone: systems
    are the verdicts on each defense in the worst case, by seed, and tests what parts the ranked ones two by two.
    """

    vector: str
    task: str
    threat: str
    seeds: tuple[int, ...]
    attacks: tuple[str, ...]
    measures: tuple[Measure, ...]
    score: Measure | None
    rows: tuple[Row, ...]
    invalid: str = ""
    warnings: tuple[str, ...] = ()
    systems: Mapping[str, Mapping[int, Verdicts]] = field(default_factory=dict, compare=False)
    tests: PairTests = field(default_factory=dict)

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows that have a rank."""
        return tuple(row for row in self.rows if row.place)

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits of the gate's figures that any row has."""
        measured = {name for row in self.rows for name in row.figures}
        return {name: limit for name, limit in LIMITS.items() if name in measured}

    @property
    def curves(self) -> list[tuple[Row, Cell]]:
        """The cells that have a security curve."""
        return [(row, cell) for row in self.rows for cell in row.cells if cell.curve]

    @property
    def detections(self) -> list[tuple[Row, Cell]]:
        """The cells of systems that refuse or watch."""
        return [(row, cell) for row in self.rows for cell in row.cells if cell.estimates.keys() & DETECTION]

    @property
    def detected(self) -> dict[str, str]:
        """The units of the figures of detection that any cell has, by name."""
        there = {name for _, cell in self.detections for name in cell.estimates}
        return {name: unit for name, unit in DETECTION.items() if name in there}

    @property
    def recoveries(self) -> list[tuple[Row, Cell, Recovery]]:
        """The cells of systems that were repaired, and what came of it."""
        cells = [(row, cell, recovery(cell.records)) for row in self.rows for cell in row.cells]
        return [(row, cell, found) for row, cell, found in cells if found]

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii at which curves are given as numbers, that of the threat model in the middle."""
        threat = _threat(self.threat)
        return curves.radii(threat) if threat and self.vector == "evasion" else ()


def tables(
    records: Iterable[Record],
    outcomes: Outcomes,
    *,
    resampled: bool = True,
    controls: Collection[str] = (),
) -> list[Table]:
    """Return the tables of all records, by vector, task, threat model and number of examples.

    outcomes(record) loads the per-example arrays of an evasion record; if it raises, that cell has a problem
    and its row no rank. The order of records doesn't matter. Without resampled, rows lack what is found by
    resampling, warded and could_be, and Numba is not loaded. controls are names of attacks that never make a worst case
    outside evasion.
    """
    groups: dict[tuple[str, str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.vector, record.task.text, record.threat, record.examples), []).append(
            record
        )
    ordered = sorted(groups, key=lambda at: (VECTORS.index(at[0]), *at[1:]))
    found = {at: _evasion(groups[at], outcomes, resampled) for at in ordered if at[0] == "evasion"}
    met = [one for _, one in found.values()]
    evasion = {
        at: replace(table, warnings=(*table.warnings, *outdone(one, met)))
        for at, (table, one) in found.items()
    }
    return [evasion[at] if at in evasion else metrics_table(groups[at], controls) for at in ordered]


def evasion_table(records: Sequence[Record], outcomes: Outcomes) -> Table:
    """Return the table of one task and threat model, ranked by the worst case per example over attacks."""
    return _evasion(records, outcomes, resampled=True)[0]


def _evasion(records: Sequence[Record], outcomes: Outcomes, resampled: bool) -> tuple[Table, Met]:
    grid = _Grid(records)
    systems: dict[str, dict[int, Verdicts]] = {}
    rows = []
    for defense in grid.defenses:
        row, systems[defense] = _evasion_row(grid, defense, outcomes, resampled)
        rows.append(row)
    invalid, warnings = _strength(rows)
    chosen = {} if invalid else {row.defense: row for row in rows if not row.objections and row.score}
    tests = pair_tests({defense: systems[defense] for defense in chosen})
    apart = told_apart(tests)
    ranks = places(_best_first(chosen.values(), ROBUST), lambda a, b: frozenset((a, b)) not in apart)
    if len({examples(systems[defense]) for defense in chosen}) > 1:
        warnings.append(
            "Not all defenses met the same examples; each pair is compared on those that it shares."
        )
    if resampled:
        could_be = intervals({defense: systems[defense] for defense in ranks})
        rows = [replace(row, could_be=could_be.get(row.defense)) for row in rows]
    table = grid.table([ROBUST], ROBUST, rows, ranks, invalid, warnings)
    table = replace(table, systems=systems, tests=tests)
    return table, Met(table.task, _threat(table.threat), records[0].examples, systems)


def metrics_table(records: Sequence[Record], controls: Collection[str] = ()) -> Table:
    """Return the table of the records' own metrics, ranked by the worst cell where the vector has a ranking.

    Cells of the attacks named in controls are shown, and are never the worst.
    Rows share a rank while their intervals overlap with that of the best row of their group.
    """
    grid = _Grid(records)
    vector = records[0].vector
    declared = _measures(grid.records)
    measures = [declared[name] for name in COLUMNS[vector] if name in declared]
    measures = measures or [declared[name] for name in sorted(declared)]
    threat = _threat(records[0].threat)
    is_backdoor = threat is not None and threat.goal == "backdoor"
    by = (BACKDOORS,) if is_backdoor else RANKED_BY.get(vector, ())
    score = next((declared[name] for name in by if name in declared), None)
    if score and score.better == "neither":
        score = None
    cells = {defense: _metrics_cells(grid, defense, measures, score, controls) for defense in grid.defenses}
    idle: dict[str, str] = {}
    if is_backdoor and UNDEFENDED in cells:
        bare = {cell.attack: _values(cell) for cell in cells[UNDEFENDED]}
        idle = backdoor.idle(bare)
        cells = {defense: [_rated(cell, bare[cell.attack]) for cell in own] for defense, own in cells.items()}
        measures.append(EFFECTIVENESS)
    rows = [_metrics_row(grid, defense, own, score, idle) for defense, own in cells.items()]
    chosen = {row.defense: row.score for row in rows if row.score and not row.objections}
    order = _best_first([row for row in rows if row.defense in chosen], score)
    ranks = places(order, lambda a, b: _overlap(chosen[a], chosen[b]))
    warnings = [*idle.values()]
    if is_backdoor and UNDEFENDED not in cells:
        warnings.append("There is no undefended system to show what the attacks are worth.")
    return grid.table(measures, score, rows, ranks, "", warnings)


class _Grid:
    """The records of one table by defense, attack and seed; of two for one place the newer counts."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._at: dict[tuple[str, str, int], Record] = {}
        for record in sorted(records, key=lambda r: (r.provenance.ended, r.key, r.model_dump_json())):
            self._at[record.defense_text, record.attack.text, record.seed] = record
        self._by_defense: dict[str, list[Record]] = {}
        for at in sorted(self._at):
            self._by_defense.setdefault(at[0], []).append(self._at[at])
        self.superseded = len({record.key for record in records} - {record.key for record in self.records})

    @cached_property
    def records(self) -> list[Record]:
        return [self._at[at] for at in sorted(self._at)]

    @cached_property
    def defenses(self) -> list[str]:
        return sorted({defense for defense, _, _ in self._at})

    @cached_property
    def attacks(self) -> list[str]:
        return sorted({attack for _, attack, _ in self._at})

    @cached_property
    def _places(self) -> set[tuple[str, int]]:
        return {(attack, seed) for _, attack, seed in self._at}

    def cell(self, defense: str, attack: str) -> tuple[list[Record], list[str]]:
        """Return one cell's records that have numbers, by seed, and the problems of the others."""
        seeds = sorted(seed for other, seed in self._places if other == attack)
        found = {seed: self._at.get((defense, attack, seed)) for seed in seeds}
        problems = []
        missing = [str(seed) for seed, record in found.items() if record is None]
        if missing:
            problems.append(f"incomplete: no record for {_plural('seed', missing)}")
        there = [record for record in found.values() if record]
        problems += [f"failed, seed {r.seed}: {failure(r)}" for r in there if r.status == "failed"]
        return [record for record in there if record.status == "ok"], problems

    def row(
        self,
        defense: str,
        cells: Sequence[Cell],
        *,
        objections: Sequence[str] = (),
        score: Estimate | None = None,
        clean: Estimate | None = None,
        warded: Estimate | None = None,
    ) -> Row:
        """Return the row of one defense; objections come on top of those that any row may have."""
        records = self._by_defense[defense]
        tags = tuple(sorted({tag for record in records for tag in record.tags}))
        measured = [record for record in records if record.status == "ok"]
        general = ["control: shown for reference"] if "control" in tags else []
        general += [failed] if (failed := gate.objection(measured)) else []
        gaps = [f"{cell.attack}: {problem}" for cell in cells for problem in cell.problems] + list(objections)
        return Row(
            defense,
            tags,
            tuple(cells),
            fit_seconds=_fit_seconds(records),
            gate=gate.together(measured),
            figures=gate.figures(measured),
            objections=(*general, *gaps),
            is_partial=bool(gaps),
            score=score,
            clean=clean,
            warded=warded,
        )

    def records_of(self, defense: str, attack: str) -> tuple[Record, ...]:
        """Return all records of one cell, failed ones too, by seed."""
        return tuple(r for r in self._by_defense[defense] if r.attack.text == attack)

    def records_on(self, defense: str) -> list[Record]:
        """Return all records of one defense, by attack and seed."""
        return self._by_defense[defense]

    def table(
        self,
        measures: Sequence[Measure],
        score: Measure | None,
        rows: Iterable[Row],
        ranks: Mapping[str, Place],
        invalid: str,
        warnings: Sequence[str],
    ) -> Table:
        """Return the table with its rows in order: ranked, then not ranked, and the best first in both."""
        placed = {row.defense: replace(row, place=ranks.get(row.defense)) for row in rows}
        order = sorted(_best_first(placed.values(), score), key=lambda name: name not in ranks)
        first = self.records[0]
        older = [f"Records left out, as newer ones of the same cells are there: {self.superseded}."]
        return Table(
            vector=first.vector,
            task=first.task.text,
            threat=first.threat,
            seeds=tuple(sorted({record.seed for record in self.records})),
            attacks=tuple(self.attacks),
            measures=tuple(measures),
            score=score,
            rows=tuple(placed[name] for name in order),
            invalid=invalid,
            warnings=(*warnings, *(older if self.superseded else [])),
        )


def _threat(text: str) -> Threat | None:
    """The threat model of a record, None where it is none that we know."""
    with suppress(FirstlineError):
        return Threat.parse(text)
    return None


def failure(record: Record) -> str:
    """Return why a record has no numbers, in one line."""
    if record.error is None:
        return "no reason was recorded"
    first = next(iter(record.error.message.strip().splitlines()), "")
    again = "; the machine's fault, run it again" if record.error.kind == "infra" else ""
    return f"{record.error.type}: {first} (the {record.error.kind}, at stage {record.error.stage}{again})"


def _evasion_row(
    grid: _Grid, defense: str, outcomes: Outcomes, resampled: bool
) -> tuple[Row, dict[int, Verdicts]]:
    cells, by_seed = [], dict[int, dict[str, Verdicts]]()
    for attack in grid.attacks:
        usable, problems = grid.cell(defense, attack)
        verdicts = {}
        for record in usable:
            try:
                verdicts[record.seed] = judge(outcomes(record))
            except Exception as error:  # one damaged file must not take the board with it
                reason = str(error) or type(error).__name__
                problems.append(f"unreadable, seed {record.seed}: its outcomes cannot be used: {reason}")
        for seed, one in verdicts.items():
            by_seed.setdefault(seed, {})[attack] = one
        estimates = {ROBUST.name: _share([one.held for one in verdicts.values()])} if verdicts else {}
        estimates |= _complete(usable, (*BESIDE_CURVES, *DETECTION))
        there = grid.records_of(defense, attack)
        cells.append(Cell(attack, estimates, tuple(problems), there, curves.curve(usable), verdicts=verdicts))
    together, objections = {}, _mixed_systems(grid, defense)
    for seed, attacks in sorted(by_seed.items()):
        try:
            together[seed] = worst(attacks)
        except FirstlineError as error:
            objections.append(f"seed {seed}: {error}")
    if not together:
        return grid.row(defense, cells, objections=objections), together
    # A random system may answer a clean input differently in each record: the first attack's is the sample.
    clean = _share([next(iter(by_seed[seed].values())).right for seed in together])
    score = _share([one.held for one in together.values()])
    attempts = _warded(warded(by_seed[seed] for seed in together)) if resampled else None
    row = grid.row(defense, cells, objections=objections, score=score, clean=clean, warded=attempts)
    return row, together


def _metrics_cells(
    grid: _Grid, defense: str, measures: Sequence[Measure], score: Measure | None, controls: Collection[str]
) -> list[Cell]:
    cells = []
    for attack in grid.attacks:
        usable, problems = grid.cell(defense, attack)
        found = {m: [r.metrics[m.name] for r in usable if m.name in r.metrics] for m in measures}
        estimates = {m.name: _pool(metrics) for m, metrics in found.items() if metrics}
        estimates |= _complete(usable, DETECTION)
        if score and len(found[score]) < len(usable):
            problems.append(f"incomplete: a record without {score.name}")
        there = grid.records_of(defense, attack)
        unresolved = _unresolved(usable)
        is_control = any(record.attack.name in controls for record in there)
        cells.append(
            Cell(attack, estimates, tuple(problems), there, unresolved=unresolved, is_control=is_control)
        )
    return cells


def _metrics_row(
    grid: _Grid, defense: str, cells: Sequence[Cell], score: Measure | None, idle: Collection[str]
) -> Row:
    """The row of these cells, scored by the worst of them but for those of idle attacks and of controls."""
    met = [
        cell
        for cell in cells
        if score and score.name in cell.estimates and cell.attack not in idle and not cell.is_control
    ]
    if not (score and met):
        return grid.row(defense, cells)
    pick = min if score.better == "higher" else max
    return grid.row(defense, cells, score=pick((c.estimates[score.name] for c in met), key=lambda e: e.value))


def _values(cell: Cell) -> dict[str, float]:
    return {name: estimate.value for name, estimate in cell.estimates.items()}


def _rated(cell: Cell, undefended: Mapping[str, float]) -> Cell:
    """The cell of a backdoor with the defense's effectiveness, and with the problem that it collapsed, if it did."""
    rating = backdoor.effectiveness(_values(cell), undefended)
    problem = backdoor.collapsed(_values(cell), undefended)
    estimates = dict(cell.estimates)
    if rating is not None:
        estimates[EFFECTIVENESS.name] = Estimate(rating, None, None, cell.estimates["accuracy"].n)
    return replace(cell, estimates=estimates, problems=(*cell.problems, *([problem] if problem else [])))


def _strength(rows: Iterable[Row]) -> tuple[str, list[str]]:
    """Return why the attacks prove nothing (empty if they do), and warnings where that cannot be said."""
    bare = next((row for row in rows if row.defense == UNDEFENDED), None)
    if bare is None or bare.clean is None or bare.score is None:
        return "", ["There is no undefended system to show what the attacks are worth."]
    if bare.clean.value - bare.score.value >= LEAST_LOSS - 1e-12:
        return "", []
    if bare.is_partial:
        return "", ["The undefended system was not attacked in full, so the attacks' worth is not known."]
    return (
        "the attacks do not break the undefended system: "
        f"they take it from {bare.clean.value:.1%} to {bare.score.value:.1%}, "
        f"and {100 * LEAST_LOSS:.0f} points is the least that counts",
        [],
    )


def _mixed_systems(grid: _Grid, defense: str) -> list[str]:
    fits: dict[int, set[str]] = {}
    for record in grid.records_on(defense):
        if "fit" in record.stages:
            fits.setdefault(record.seed, set()).add(record.stages["fit"])
    mixed = [str(seed) for seed, keys in sorted(fits.items()) if len(keys) > 1]
    advice = "the attacks met different fitted systems; run the suite again"
    return [f"{_plural('seed', mixed)}: {advice}"] if mixed else []


def _fit_seconds(records: Iterable[Record]) -> float | None:
    """Return the seconds of one fit: the longest of each seed, as a mean over seeds."""
    seconds: dict[int, float] = {}
    for record in records:
        seconds[record.seed] = max(seconds.get(record.seed, 0.0), record.cost.fit_seconds)
    known = [value for _, value in sorted(seconds.items()) if value > 0]
    return math.fsum(known) / len(known) if known else None


def _share(parts: Sequence[Bools]) -> Estimate:
    flat = np.concatenate(parts)
    value, lo, hi = wilson(int(flat.sum()), flat.size)
    return Estimate(value, lo, hi, flat.size)


def _warded(shares: Floats) -> Estimate | None:
    """The mean of shares (n,), one per example that could be attacked, None without any; it is always resampled alike."""
    if len(shares) == 0:
        return None
    from firstline.benchmark.metrics.paired import mean_difference  # Numba, which a summary doesn't wait for

    rng = np.random.Generator(np.random.Philox(0))
    return Estimate(*mean_difference(shares, np.zeros(len(shares)), rng), len(shares))


def _pool(metrics: Sequence[Metric]) -> Estimate:
    """Return the mean over seeds, weighted by examples, between the lowest and the highest limit."""
    n = sum(metric.n for metric in metrics)
    weights = [metric.n / n if n else 1 / len(metrics) for metric in metrics]
    value = math.fsum(metric.value * weight for metric, weight in zip(metrics, weights, strict=True))
    lows = [metric.lo for metric in metrics if metric.lo is not None]
    highs = [metric.hi for metric in metrics if metric.hi is not None]
    if len(lows) < len(metrics) or len(highs) < len(metrics):
        return Estimate(value, None, None, n)
    return Estimate(value, min(lows), max(highs), n)


def _complete(records: Sequence[Record], names: Iterable[str]) -> dict[str, Estimate]:
    """The estimates of metrics that every record has: a median or a wait is absent where it never comes."""
    found = {name: [r.metrics[name] for r in records if name in r.metrics] for name in names}
    return {name: _pool(metrics) for name, metrics in found.items() if 0 < len(records) == len(metrics)}


def _unresolved(records: Iterable[Record]) -> dict[str, tuple[float, float]]:
    """The widest ends of each metric that the sample of some record cannot resolve."""
    found: dict[str, tuple[float, float]] = {}
    for record in records:
        for name, (lo, hi) in record.unresolved.items():
            least, most = found.get(name, (lo, hi))
            found[name] = (min(least, lo), max(most, hi))
    return found


def _measures(records: Iterable[Record]) -> dict[str, Measure]:
    """Return the metrics that the records have; one that they don't agree on has no better direction."""
    found: dict[str, list[Metric]] = {}
    for record in records:
        for name, metric in record.metrics.items():
            found.setdefault(name, []).append(metric)
    return {
        name: Measure(
            name,
            metrics[0].unit,
            metrics[0].better if len({metric.better for metric in metrics}) == 1 else "neither",
        )
        for name, metrics in found.items()
    }


def _best_first(rows: Iterable[Row], score: Measure | None) -> list[str]:
    sign = -1 if score is None or score.better == "higher" else 1
    ordered = sorted(rows, key=lambda row: (sign * row.score.value if row.score else math.inf, row.defense))
    return [row.defense for row in ordered]


def _overlap(a: Estimate | None, b: Estimate | None) -> bool:
    if a is None or b is None:
        return False
    if a.lo is None or a.hi is None or b.lo is None or b.hi is None:
        return a.value == b.value
    return a.lo <= b.hi and b.lo <= a.hi


def _plural(word: str, items: Sequence[str]) -> str:
    return f"{word}{'s' if len(items) > 1 else ''} {', '.join(items)}"
