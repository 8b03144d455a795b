"""Privacy at matched utility: which systems make a frontier, and what a defense is to it."""

import pytest
from tests.leaderboard.conftest import make, metric

from firstline.leaderboard.frontier import compared, frontier, points
from firstline.leaderboard.table import metrics_table

THREAT = "membership/gray/scores,defense=known,shadows=64"


def record(defense, accuracy, risk, attack="lira", half=0.02):
    metrics = {
        "test_accuracy": metric(accuracy),
        "tpr_at_0.1pct_fpr": metric(risk, better="lower", half=min(half, risk, 1 - risk)),
    }
    return make(defense, attack, threat=THREAT, task="location-30", metrics=metrics)


def table(*rows):
    return metrics_table([record(*row) for row in rows])


NOISY = (("none", 0.65, 0.36), ("dp-sgd(noise=0.1)", 0.64, 0.07), ("dp-sgd(noise=1.0)", 0.53, 0.01))


def test_a_frontier_is_what_no_system_of_its_kind_beats():
    # noise=0.7 leaks more than noise=0.1 and answers worse: it is inside.
    line = frontier(points(table(*NOISY, ("dp-sgd(noise=0.7)", 0.6, 0.1), ("selena", 0.645, 0.0))), "dp-sgd")
    assert [point.defense for point in line] == ["none", "dp-sgd(noise=0.1)", "dp-sgd(noise=1.0)"]


def test_a_stack_with_more_than_the_defense_is_no_part_of_its_frontier():
    line = frontier(points(table(*NOISY, ("dp-sgd(noise=0.5)+labels-only", 0.6, 0.0))), "dp-sgd")
    assert "dp-sgd(noise=0.5)+labels-only" not in [point.defense for point in line]


def test_without_a_system_of_the_kind_there_is_no_frontier():
    assert compared(table(("none", 0.65, 0.36), ("selena", 0.64, 0.03))) == []


@pytest.mark.parametrize(
    ("accuracy", "risk", "match", "verdict"),
    [
        (0.64, 0.01, "dp-sgd(noise=0.1)", "better"),
        (0.50, 0.30, "dp-sgd(noise=1.0)", "worse"),
        (0.50, 0.02, "dp-sgd(noise=1.0)", "no difference"),
        (0.649, 0.01, "dp-sgd(noise=0.1)", "better"),  # a point of accuracy is no better utility
        (0.655, 0.01, "none", "better"),
        (0.90, 0.01, None, "out of reach"),
    ],
)
def test_a_defense_is_compared_at_its_own_accuracy(accuracy, risk, match, verdict):
    found = {one.point.defense: one for one in compared(table(*NOISY, ("selena", accuracy, risk)))}
    (against,) = found["selena"].against
    assert against.frontier == "dp-sgd"
    assert (against.match and against.match.defense, against.verdict) == (match, verdict)


def test_the_worst_attack_is_the_risk_and_a_row_that_lacks_one_is_left_out():
    rows = [record("none", 0.65, 0.1, "gap"), record("none", 0.65, 0.4), record("selena", 0.64, 0.1)]
    (point,) = points(metrics_table(rows))
    assert (point.defense, point.risk.value) == ("none", 0.4)
