"""Tables of backdoors: attacks that don't take hold, systems that collapsed, and the rating of a defense."""

import pytest

from firstline.leaderboard.backdoor import collapsed, effectiveness, idle
from firstline.leaderboard.table import metrics_table

THREAT = "poisoning/gray/backdoor:5%"


@pytest.fixture
def add(new, new_metric):
    records = []

    def put(defense, attack="badnets", *, success, accuracy=0.95, before=0.01, seed=0):
        values = {"attack_success_rate": success, "clean_attack_success_rate": before, "accuracy": accuracy, "clean_accuracy": 0.96}  # fmt: skip
        better = {"accuracy": "higher", "clean_accuracy": "higher", "clean_attack_success_rate": "neither"}
        metrics = {name: new_metric(v, better=better.get(name, "lower")) for name, v in values.items()}
        records.append(new(defense, attack, seed, threat=THREAT, metrics=metrics))
        return records

    return put


def rows(records):
    return {row.defense: row for row in metrics_table(records).rows}


def test_backdoors_are_ranked_by_the_highest_success_over_attacks(add):
    add("none", success=1.0)
    add("none", "blended", success=0.9)
    add("strip", success=0.2)
    records = add("strip", "blended", success=0.6)
    found = rows(records)
    assert found["strip"].score.value == 0.6
    assert {name: row.place.rank for name, row in found.items()} == {"strip": 1, "none": 2}


def test_an_attack_that_does_not_take_hold_ranks_nothing_and_is_named(add):
    add("none", success=1.0)
    add("none", "sig", success=0.3, before=0.15)
    add("strip", success=0.2)
    records = add("strip", "sig", success=0.9)
    assert rows(records)["strip"].score.value == 0.2
    (warning,) = metrics_table(records).warnings
    assert warning.startswith("sig takes hold of the undefended system in 30.0% (15.0% without poison)")


def test_a_collapsed_system_is_shown_and_not_ranked(add):
    add("none", success=1.0)
    records = add("sam", success=0.0, accuracy=0.1)
    found = rows(records)["sam"]
    assert found.place is None
    assert any("collapsed: its accuracy of 10.0%" in objection for objection in found.objections)
    assert found.cells[0].estimates["defense_effectiveness"].value == pytest.approx((1 - 0.85 + 1) / 2)


def test_without_an_undefended_system_nothing_is_rated_and_the_table_says_so(add):
    table = metrics_table(add("strip", success=0.1))
    assert [w for w in table.warnings if "no undefended system" in w]
    assert "defense_effectiveness" not in {measure.name for measure in table.measures}


@pytest.mark.parametrize(("accuracy", "says"), [(0.86, False), (0.85, True), (0.0, True), (1.0, False)])
def test_the_floor_is_ten_points_below_the_undefended_system_without_poison(accuracy, says):
    assert bool(collapsed({"accuracy": accuracy}, {"clean_accuracy": 0.955})) == says
    assert collapsed({}, {}) is None


def test_the_rating_is_one_half_without_a_defense_and_never_rewards_more_accuracy():
    none = {"attack_success_rate": 0.9, "accuracy": 0.9}
    assert effectiveness(none, none) == 0.5
    assert effectiveness({"attack_success_rate": 0.95, "accuracy": 0.99}, none) == 0.5
    assert effectiveness({"attack_success_rate": 0.0, "accuracy": 0.9}, none) == pytest.approx(0.95)
    assert effectiveness({"accuracy": 0.9}, none) is None


def test_only_success_beyond_the_trigger_s_own_counts():
    assert idle({"a": {"attack_success_rate": 0.5, "clean_attack_success_rate": 0.25}, "b": {}}) == {}
    assert set(idle({"a": {"attack_success_rate": 0.5, "clean_attack_success_rate": 0.35}})) == {"a"}
