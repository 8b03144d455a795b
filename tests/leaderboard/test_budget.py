"""How long a large site takes and how heavy its pages are: ten thousand records, like those of an evasion suite."""

import gzip
import hashlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from firstline.benchmark.core.limits import LIMITS
from firstline.benchmark.core.record import Metric, OutcomeFile, Record
from firstline.leaderboard import site

TASKS = ("digits", "adult", "breast-cancer", "mnist", "fashion-mnist")
THREATS = tuple(f"evasion/{knowledge}/{ball}" for knowledge in ("white", "black") for ball in ("linf:0.1", "linf:0.3", "l2:0.5", "l2:1.5"))  # fmt: skip
DEFENSES = ("none", *(f"defense-{number:02}(strength={number}, kind='some')" for number in range(20)))
ATTACKS = ("pgd", "apgd(steps=100)", "square(queries=5000)", "fab")
SEEDS = (0, 1, 2)
EXAMPLES = 100


class Many:
    """Records, and a call that gives the arrays of one, as the leaderboard's `outcomes`."""

    def __init__(self, base: Record, tasks: tuple[str, ...] = TASKS, defenses: int = 21) -> None:
        self._base, self._tasks, self._defenses = base, tasks, DEFENSES[:defenses]
        self.records = list(self._cells())

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(int(record.key[:8], 16)))
        held = rng.random(EXAMPLES) < record.metrics["robust_accuracy"].value
        ones = np.ones(EXAMPLES, np.int64)
        return {
            "ids": np.arange(EXAMPLES),
            "label": ones,
            "clean_answer": ones,
            "adversarial_answer": held.astype(np.int64),
            "distance": rng.random(EXAMPLES),
            "queries": rng.integers(1, 5000, EXAMPLES),
            "gradients": rng.integers(0, 100, EXAMPLES),
        }

    def _cells(self) -> Iterator[Record]:
        for task in self._tasks:
            for threat in THREATS:
                for number, defense in enumerate(self._defenses):
                    for attack in ATTACKS:
                        for seed in SEEDS:
                            yield self._record(
                                task, threat, defense, attack, seed, number / len(self._defenses)
                            )

    def _record(self, task: str, threat: str, defense: str, attack: str, seed: int, share: float) -> Record:
        key = hashlib.sha256(repr((task, threat, defense, attack, seed)).encode()).hexdigest()
        robust = Metric(
            value=share, lo=share, hi=share, n=100, method="wilson", unit="share", better="higher"
        )
        plain = robust.model_copy(update={"value": 1.0, "hi": 1.0})
        names = ("accuracy_drop", "attack_success_rate", "clean_accuracy", "clean_rejection_rate", "mean_distance", "queries_per_example", "gradients_per_example")  # fmt: skip
        item = self._base.task
        return self._base.model_copy(
            update={
                "key": key,
                "preimage": {"score": {"craft": {"examples": EXAMPLES}}},
                "stages": {"fit": f"{task} {defense} {seed}"},
                "task": item.model_copy(update={"text": task, "name": task}),
                "defense": [item.model_copy(update={"text": defense, "name": defense.partition("(")[0]})],
                "attack": item.model_copy(update={"text": attack, "name": attack.partition("(")[0]}),
                "threat": threat,
                "seed": seed,
                "metrics": {"robust_accuracy": robust, **dict.fromkeys(names, plain)},
                "diagnostics": {**dict.fromkeys(LIMITS, 0.0), "gradient_cosine": 1.0},
                "outcomes": OutcomeFile(path="", sha256=key, columns=[]),
            }
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_many_processes_give_what_one_gives(new: Callable[..., Record], tmp_path, monkeypatch):
    few = Many(new(), tasks=("digits", "adult"), defenses=3)
    monkeypatch.setattr(site, "MANY", len(few.records) + 1)
    one = site.build(few.records, few, tmp_path / "one").parent
    monkeypatch.setattr(site, "MANY", 1)
    several = site.build(few.records, few, tmp_path / "several").parent
    assert contents(one) == contents(several)


@pytest.mark.slow
def test_ten_thousand_records_stay_within_the_budget(new: Callable[..., Record], tmp_path):
    many = Many(new())
    assert len(many.records) >= 10_000
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = os.times()
    out = site.build(many.records, many, tmp_path / "board").parent
    after = os.times()
    # Computing time of all processes, which half a dozen other processes on the machine change little; two cores
    # have it done in half.
    spent = sum(after[:4]) - sum(before[:4])
    assert spent < 20, spent
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 1_000_000
    )  # kilobytes, besides torch and such
    pages = {name: data for name, data in contents(out).items() if name.endswith((".html", ".css", ".js"))}
    assert max(len(data) for data in pages.values()) < 1_000_000
    shared = sum(len(gzip.compress(data)) for name, data in pages.items() if name.startswith("static/"))
    for name, data in pages.items():
        if name.endswith(".html"):
            assert shared + len(gzip.compress(data)) < 150_000, name
    assert len(gzip.compress((out / "index.json").read_bytes())) < 60_000
    before = os.times()
    site.build(many.records, many, out)
    after = os.times()
    assert sum(after[:4]) - sum(before[:4]) < spent / 2
