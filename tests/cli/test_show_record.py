"""`firstline show KEY`: the gate's figures and the curves of a record."""

import re
from pathlib import Path
from typing import Any

import pytest

from firstline.benchmark.cli.show import sparkline
from firstline.benchmark.core.limits import LIMITS, judge
from firstline.benchmark.core.record import Environment, Isolation, ItemUse, Provenance, Record
from firstline.benchmark.run.store import Store


def item(text: str) -> ItemUse:
    return ItemUse(text=text, name=text, version=1, settings={}, code="c0de")


@pytest.fixture
def shown(cli, tmp_path: Path):
    """Return a function that writes a record with these fields, shows it, and returns what was printed."""

    def show(**fields: Any) -> str:
        when = "2026-01-01T00:00:00Z"
        environment = Environment(python="3", platform="p", cpu="c", device="cpu", threads=1, packages={})
        record = Record(
            key="a1" * 32,
            preimage={},
            stages={},
            suite="s",
            task=item("digits"),
            defense=[item("none")],
            attack=item("pgd"),
            threat="evasion/white/linf:0.1",
            vector="evasion",
            seed=0,
            status="ok",
            gate=judge(fields.get("diagnostics", {})),
            environment=environment,
            provenance=Provenance(firstline="1", commit="", dirty=False, started=when, ended=when),
            isolation=Isolation(blind=True, backend="process"),
            **fields,
        )
        Store(tmp_path).write(record, None)
        ran = cli("show", record.key, "--results", tmp_path)
        assert ran.code == 0, ran
        return ran.out

    return show


def block(text: str, head: str) -> list[str]:
    """The lines of the table whose head begins with these words."""
    (found,) = [part for part in text.split("\n\n") if part.startswith(head)]
    return found.splitlines()


def test_every_measured_figure_stands_beside_its_limits(shown):
    text = shown(diagnostics={"gradient_cosine": 0.3, "black_box_gain": 0.5, "stochastic": 0.0})
    assert [re.split(" {2,}", line) for line in block(text, "GATE ")[1:]] == [
        ["check 1", "black_box_gain", "50.0%", "warn > 2.0%, fail > 5.0%", "fail"],
        ["check 4", "gradient_cosine", "0.30", "warn < 0.50, fail < 0.20", "warn"],
    ]
    assert block(text, "DIAGNOSTIC")[1:] == ["stochastic  0"]
    assert "gate      fail; check 1: 50.0% of the examples" in text


def test_figures_that_were_not_measured_are_named(shown):
    text = shown(diagnostics=dict.fromkeys(list(LIMITS)[2:], 1.0))
    assert block(text, "NOT MEASURED")[1:] == ["black_box_gain, unbounded_accuracy"]
    assert "NOT MEASURED" not in shown(diagnostics=dict.fromkeys(LIMITS, 1.0))


def test_a_record_without_figures_has_no_table_of_them(shown):
    text = shown(diagnostics={"train_examples": 3.0})
    assert "GATE" not in text
    assert "NOT MEASURED" not in text
    assert "CURVE" not in text


def test_a_curve_is_shown_by_its_ends_and_its_shape(shown):
    curve = [(x / 40, 1 - x / 40) for x in range(41)]
    head, line = block(shown(curves={"robust_accuracy": curve}), "CURVE")
    assert head.split() == ["CURVE", "FROM", "TO", "SHAPE"]
    assert "1.0000 at 0  0.0000 at 1" in line
    assert line.split()[-1] == sparkline([y for _, y in curve])


def test_everything_fits_in_100_columns(shown):
    text = shown(
        diagnostics=dict.fromkeys(LIMITS, 1234.5),
        curves={"robust_accuracy": [(0.0, 1.0), (1 / 3, 1 / 3)] * 30},
    )
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("values", "bars"),
    [([1.0, 0.0], "█▁"), ([0.5], "█"), ([0.0, 0.0], "▁▁"), ([-1.0, 2.0], "▁█"), ([0.25, 0.125], "█▅")],
)
def test_bars_stand_between_nought_and_the_largest(values, bars):
    assert sparkline(values) == bars


def test_a_long_curve_keeps_both_ends():
    bars = sparkline([1.0] + [0.5] * 998 + [0.0])
    assert (len(bars), bars[0], bars[-1]) == (40, "█", "▁")
