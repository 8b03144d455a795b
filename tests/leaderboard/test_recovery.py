"""Recoveries over seeds: counted, averaged with censoring, and drawn."""

import pytest

from firstline.benchmark.core.record import Metric
from firstline.leaderboard.recovery import MEANS, recovery
from firstline.leaderboard.site import build
from firstline.leaderboard.table import metrics_table

THREAT = "poisoning/gray/backdoor:5%"
BACK = [(0.0, 1.0), (50.0, 0.5), (100.0, 0.0)]


def number(value, unit="share"):
    return Metric(value=value, n=10, method="", unit=unit, better="lower")


@pytest.fixture
def add(new):
    """Return a function that adds the record of a repair: after is when it recovered, None if it never did."""
    records = []

    def put(defense="mend", *, after=None, length=100.0, healthy=False, curve=None, repaired=True, **more):
        values = {"accuracy": 0.9, "attack_success_rate": 0.2, "clean_accuracy": 0.95} | more
        if repaired:
            values |= {"accuracy_before_repair": 0.8, "repair_samples": length}
        if repaired and not healthy:
            values |= {"recovered": float(after is not None)} | (
                {} if after is None else {"recovery_samples": after}
            )
        metrics = {name: number(value) for name, value in values.items()}
        curves = {} if curve is None else {"recovery_attack_success_rate": curve}
        seed = sum(r.defense_text == defense for r in records)
        records.append(new(defense, "badnets", seed, threat=THREAT, metrics=metrics, curves=curves))
        return records

    return put


def test_recoveries_are_counted_with_wilsons_interval(add):
    add(after=10.0)
    add(after=None)
    found = recovery(add(after=30.0))
    assert (found.recovered.value, found.cases) == (pytest.approx(2 / 3), 3)
    assert found.recovered.lo == pytest.approx(0.2077, abs=1e-4)


def test_a_repair_that_never_recovered_is_no_short_one(add):
    add(after=10.0)
    add(after=None, length=20.0)
    found = recovery(add(after=40.0, length=100.0))
    assert found.horizon == 100
    assert found.samples == pytest.approx(10 + 10 * 2 / 3 + 20 * 2 / 3)  # 10 left after 1 of 3, 40 the last
    assert recovery(add(after=None, length=100.0)).samples > found.samples


def test_systems_that_were_healthy_do_not_count(add):
    add(healthy=True)
    assert recovery(add(healthy=True)).recovered is None
    found = recovery(add(after=10.0))
    assert (found.cases, found.samples) == (1, 10)


def test_figures_are_means_and_shown_only_where_all_seeds_have_them(add):
    add(after=10.0, relapse=0.2, accuracy=0.8)
    found = recovery(add(after=10.0, accuracy=0.9))
    assert found.means["accuracy"] == pytest.approx(0.85)
    assert "relapse" not in found.means
    assert found.means.keys() <= MEANS.keys()


def test_without_a_repair_there_is_none(add):
    assert recovery([]) is None
    assert recovery(add(repaired=False)) is None


def test_a_curve_is_the_mean_and_stays_where_a_repair_ended(add):
    add(curve=BACK)
    lines = recovery(add(curve=[(0.0, 1.0), (50.0, 1.0)])).lines
    assert lines == {"attack": "0.0,0.0 80.0,12.0 160.0,24.0"}


@pytest.mark.parametrize(
    "curve",
    [
        [(0.0, 1.0)],
        [(0.0, 1.0), (0.0, 0.5)],
        [(5.0, 1.0), (10.0, 0.5)],
        [(0.0, 1.0), (10.0, 1.5)],
    ],
    ids=["a point", "upright", "late", "no share"],
)
def test_what_is_no_curve_is_not_drawn(add, curve):
    add(curve=BACK)
    assert recovery(add(curve=curve)).lines == {}


@pytest.mark.parametrize("more", [{"length": 0.0}, {"length": -5.0}, {"after": -1.0}])
def test_times_that_can_not_be_are_unknown(add, more):
    assert recovery(add(**more)).samples is None


def test_a_board_shows_recoveries_below_their_table(add, tmp_path):
    add("none", repaired=False)
    add(after=25.0, curve=BACK, resilience_loss=0.25, relapse=0.125)
    records = add("sleep", after=None, curve=BACK)
    assert [row.defense for row, _, _ in metrics_table(records).recoveries] == ["mend", "sleep"]
    page = next(build(records, lambda r: {}, tmp_path / "board").parent.glob("boards/*.html"))
    text = page.read_text()
    assert text.count('<polyline class="line attack"') == 2
    assert ">25<" in text
    assert "12.5%" in text
    for word in ("Recovery", "Relapse", "Loss"):
        assert word in text


def test_a_board_without_repairs_has_no_such_table(add, tmp_path):
    page = next(build(add(repaired=False), lambda r: {}, tmp_path / "board").parent.glob("boards/*.html"))
    assert "Recovery" not in page.read_text()
