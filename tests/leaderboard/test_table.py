"""What the tables rank, what they show without a rank, and why."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.metrics.rates import wilson
from firstline.leaderboard.table import evasion_table, metrics_table, tables
from firstline.leaderboard.worst_case import judge, worst

POISONING = "poisoning/gray/availability:10%"
MEMBERSHIP = "membership/black/scores"


def holds(count, n=100):
    """The first count of n examples hold."""
    return np.arange(n) < count


def evasion(bench):
    return evasion_table(bench.records, bench)


def row(table, defense):
    return next(r for r in table.rows if r.defense == defense)


def ranks(table):
    return {r.defense: r.place.rank if r.place else None for r in table.rows}


def answers(adversarial, clean, ids=None):
    ids = np.arange(len(clean)) if ids is None else np.asarray(ids)
    return {
        "ids": ids,
        "label": np.ones(len(ids), np.int64),
        "clean_answer": np.asarray(clean),
        "adversarial_answer": np.asarray(adversarial),
    }


# The worst case


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)
    )
)
def test_the_worst_case_is_never_above_an_attack_and_is_the_naive_one(attacks):
    clean = [1] * len(attacks[0])
    verdicts = {str(i): judge(answers(np.asarray(held, int), clean)) for i, held in enumerate(attacks)}
    together = worst(verdicts)
    assert together.held.sum() <= min(one.held.sum() for one in verdicts.values())
    assert together.held.tolist() == [all(example) for example in zip(*attacks, strict=True)]


@pytest.mark.parametrize(
    ("clean", "adversarial", "held"),
    [
        (1, 1, True),
        (1, -1, True),
        (1, 0, False),
        (1, -2, False),
        (0, 1, False),
        (-1, 1, False),
        (-1, -1, False),
    ],
)
def test_only_a_right_clean_answer_and_a_right_or_refused_adversarial_one_hold(clean, adversarial, held):
    assert judge(answers([adversarial], [clean])).held.tolist() == [held]


def test_examples_are_joined_by_id_and_not_by_position():
    forwards = judge(answers([1, 0], [1, 1], ids=[7, 9]))
    backwards = judge(answers([0, 1], [1, 1], ids=[9, 7]))
    assert worst({"a": forwards, "b": backwards}).held.tolist() == [True, False]


def test_the_score_is_the_share_that_holds_under_all_attacks_over_all_seeds(bench):
    for seed, count in ((0, 40), (1, 60)):
        bench.add("trades", "pgd", holds(count), seed=seed)
        bench.add("trades", "square", ~holds(20), seed=seed)
    found = row(evasion(bench), "trades")
    assert found.score == (*wilson(20 + 40, 200), 200)
    assert [cell.estimates["robust_accuracy"].value for cell in found.cells] == [0.5, 0.8]
    assert found.clean.value == 1.0


# Ranks


def test_the_attacks_held_count_each_attempt_on_what_is_right_when_clean(bench):
    right = holds(80)
    bench.add("trades", "pgd", holds(40), clean=right)
    bench.add("trades", "square", ~holds(20) & right, clean=right)
    found = row(evasion(bench), "trades").warded
    assert found is not None
    assert (found.value, found.n) == (pytest.approx((40 + 60) / (2 * 80)), 80)
    assert found.lo is not None
    assert found.hi is not None
    assert found.lo < found.value < found.hi
    assert found.value >= row(evasion(bench), "trades").score.value / 0.8


def test_a_system_that_is_always_wrong_has_no_attacks_to_ward_off(bench):
    bench.add("constant", "pgd", ~holds(100), clean=~holds(100))
    assert row(evasion(bench), "constant").warded is None


def test_ranks_have_the_range_that_other_examples_would_give(bench):
    bench.add("none", "pgd", ~holds(100))
    for defense, count in (("a", 50), ("b", 52), ("c", 95)):
        bench.add(defense, "pgd", holds(count) if defense != "b" else holds(100) & ~holds(48))
    could_be = {r.defense: r.could_be for r in evasion(bench).rows}
    assert {name: (r.rank, r.lo, r.hi) for name, r in could_be.items()} == {
        "c": (1, 1, 1), "b": (2, 2, 3), "a": (3, 2, 3), "none": (4, 4, 4)
    }  # fmt: skip


def test_ranks_have_no_range_where_examples_differ_or_there_is_no_rank(bench, new):
    bench.add("none", "pgd", ~holds(100))
    bench.add("constant", "pgd", holds(10), tags=["control"])
    bench.add("a", "pgd", holds(50))
    assert {r.defense for r in evasion(bench).rows if r.could_be} == {"none", "a"}
    bench.add("b", "pgd", holds(50), seed=1)
    assert not any(r.could_be for r in evasion(bench).rows)


def test_defenses_that_the_paired_test_cannot_tell_apart_share_a_rank(bench):
    bench.add("none", "pgd", holds(5))
    bench.add("a", "pgd", holds(60))
    bench.add("b", "pgd", holds(57))
    table = evasion(bench)
    assert ranks(table) == {"a": 1, "b": 1, "none": 3}
    assert [r.place.tied for r in table.rows] == [True, True, False]


def test_the_paired_test_sees_what_overlapping_intervals_hide(bench):
    bench.add("none", "pgd", holds(5))
    bench.add("a", "pgd", holds(60))
    bench.add("b", "pgd", holds(50))  # the same examples and ten less: p = 2 / 2**10
    table = evasion(bench)
    assert row(table, "b").score.hi > row(table, "a").score.lo
    assert ranks(table) == {"a": 1, "b": 2, "none": 3}


def test_many_pairs_ask_for_more_evidence(bench):
    bench.add("a", "pgd", holds(56))
    bench.add("b", "pgd", holds(50))  # p = 2 / 2**6 = 0.03
    assert ranks(evasion(bench)) == {"a": 1, "b": 2}
    bench.add("c", "pgd", holds(50))
    assert ranks(evasion(bench)) == {"a": 1, "b": 1, "c": 1}


def test_defenses_on_other_examples_are_compared_on_the_shared_ones_with_a_warning(bench, new):
    bench.add("none", "pgd", holds(5))
    bench.put(new("b"), answers([1] * 50, [1] * 50))
    assert any("same examples" in warning for warning in evasion(bench).warnings)


# Shown and not ranked


@pytest.fixture
def full(bench):
    """Two whole rows, so that a third one can be the odd one out."""
    for attack in ("pgd", "square"):
        bench.add("none", attack, holds(5))
        bench.add("trades", attack, holds(60))
    return bench


def assert_only_odd_is_unranked(table, reason):
    assert ranks(table) == {"trades": 1, "none": 2, "odd": None}
    assert any(reason in objection for objection in row(table, "odd").objections)


def test_a_row_that_misses_a_cell_names_it(full):
    full.add("odd", "pgd", holds(99))
    assert_only_odd_is_unranked(evasion(full), "square: incomplete: no record for seed 0")
    assert row(evasion(full), "odd").is_partial


def test_a_row_with_a_failed_cell_shows_the_first_line_of_the_error(full, new_failed):
    full.add("odd", "pgd", holds(99))
    full.records.append(new_failed("odd", "square"))
    table = evasion(full)
    assert_only_odd_is_unranked(
        table, "square: failed, seed 0: RuntimeError: boom (the attack, at stage craft)"
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"gate": "fail"}, "gate"), ({"tags": ["control"]}, "control")],
    ids=["gate", "control"],
)
def test_rows_that_are_not_to_be_trusted_or_compared_have_no_rank(full, more, reason):
    for attack in ("pgd", "square"):
        full.add("odd", attack, holds(99), **more)
    assert_only_odd_is_unranked(evasion(full), reason)


def test_a_warning_of_the_gate_keeps_the_rank_and_its_reason(full):
    for attack in ("pgd", "square"):
        full.add("odd", attack, holds(99), gate="warn")
    found = row(evasion(full), "odd")
    assert (found.place.rank, found.gate.verdict) == (1, "warn")
    assert found.gate.reasons == ["steps: more steps still help"]


GOOD = answers([1] * 100, [1] * 100)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (FirstlineError("outcomes/x.npz is not there"), "outcomes/x.npz is not there"),
        (KeyError(), "KeyError"),
        (None, "NoneType"),
        ({}, "no array called ids, label"),
        (GOOD | {"label": np.ones(99, np.int64)}, "one length"),
        (GOOD | {"ids": np.zeros(100, np.int64)}, "twice"),
        (GOOD | {"adversarial_answer": np.ones(100)}, "whole numbers"),
        (GOOD | {"label": -np.ones(100, np.int64)}, "negative"),
        ({name: array[:0] for name, array in GOOD.items()}, "not empty"),
    ],
)
def test_a_row_with_unreadable_outcomes_says_why_and_takes_nobody_with_it(full, new, arrays, reason):
    full.add("odd", "pgd", holds(99))
    full.put(new("odd", "square"), arrays)
    assert_only_odd_is_unranked(evasion(full), reason)


def test_a_row_whose_attacks_met_different_examples_has_no_worst_case(full, new):
    full.add("odd", "pgd", holds(99))
    full.put(new("odd", "square"), GOOD | {"ids": np.arange(100) + 1})
    table = evasion(full)
    assert_only_odd_is_unranked(table, "seed 0: pgd and square attacked different examples")
    assert row(table, "odd").score is None


def test_a_row_whose_attacks_met_different_systems_has_no_rank(full):
    full.add("odd", "pgd", holds(99))
    full.add("odd", "square", holds(99), stages={"fit": "another"})
    assert_only_odd_is_unranked(evasion(full), "seed 0: the attacks met different fitted systems")


def test_a_failed_gate_is_told_in_the_words_of_its_first_reason(full):
    reasons = ["check 2: the worse one", "check 4: a warning"]
    for attack in ("pgd", "square"):
        full.add("odd", attack, holds(99), gate={"verdict": "fail", "reasons": reasons})
    found = row(evasion(full), "odd")
    assert found.objections == ("gate failed: check 2: the worse one",)
    assert found.gate.reasons == reasons


def test_a_row_has_the_worst_of_each_figure_over_its_records(full):
    for seed, (gain, cosine) in enumerate(((0.01, 0.1), (0.2, 0.9))):
        figures = {"black_box_gain": gain, "gradient_cosine": cosine, "stochastic": 0.0}
        full.add("odd", "pgd", holds(99), seed=seed, diagnostics=figures)
    found = row(evasion(full), "odd").figures
    assert {name: figure.value for name, figure in found.items()} == {
        "black_box_gain": 0.2,
        "gradient_cosine": 0.1,
    }
    assert [figure.verdict for figure in found.values()] == ["fail", "fail"]
    assert list(evasion(full).limits) == ["black_box_gain", "gradient_cosine"]


def test_the_median_distance_needs_every_seed(bench, new_metric):
    distances = {"median_minimal_distance": new_metric(0.3, unit="input units")}
    bench.add("none", "ddn", holds(5), metrics=distances)
    assert row(evasion(bench), "none").cells[0].estimates["median_minimal_distance"].value == 0.3
    bench.add("none", "ddn", holds(5), seed=1)
    assert "median_minimal_distance" not in row(evasion(bench), "none").cells[0].estimates


def test_what_a_detector_tells_apart_stands_beside_the_scores_where_every_seed_has_it(bench, new, new_metric):
    for seed in (0, 1):
        found = {"detection_auc": new_metric(0.7 + 0.1 * seed)}
        found |= {"inputs_until_refused": new_metric(3, unit="inputs")} if seed else {}
        bench.add("mahalanobis", "pgd", holds(50), seed=seed, metrics=found)
        bench.add("none", "pgd", holds(5), seed=seed)
    ((who, cell),) = evasion(bench).detections
    assert (who.defense, cell.attack) == ("mahalanobis", "pgd")
    assert cell.estimates["detection_auc"].value == pytest.approx(0.75)
    assert "inputs_until_refused" not in cell.estimates
    poisoned = new("strip", "badnets", threat=POISONING, metrics={"detection_auc": new_metric(0.9)})
    ((who, cell),) = metrics_table([poisoned]).detections
    assert (who.defense, cell.estimates["detection_auc"].value) == ("strip", 0.9)


# The whole table


@pytest.mark.parametrize(
    ("right", "left", "is_valid"), [(100, 95, True), (95, 90, True), (100, 96, False), (100, 100, False)]
)
def test_a_table_whose_attacks_do_not_break_the_undefended_system_ranks_nothing(bench, right, left, is_valid):
    bench.add("none", "pgd", holds(left), clean=holds(right))
    bench.add("trades", "pgd", holds(99))
    table = evasion(bench)
    assert bool(table.ranked) == is_valid
    assert ("the attacks do not break the undefended system" in table.invalid) != is_valid


def test_a_table_without_the_undefended_system_says_so(bench):
    bench.add("trades", "pgd", holds(60))
    table = evasion(bench)
    assert ranks(table) == {"trades": 1}
    assert "no undefended system" in table.warnings[0]


def test_of_two_records_of_one_cell_the_newer_counts_and_the_table_says_so(bench):
    bench.add("none", "pgd", holds(5))
    bench.add("trades", "pgd", holds(30), ended="2026-01-03T00:00:00Z")
    bench.add("trades", "pgd", holds(99), ended="2026-01-02T00:00:00Z")
    table = evasion(bench)
    assert row(table, "trades").score.value == 0.3
    assert table.warnings == ("Records left out, as newer ones of the same cells are there: 1.",)


def test_fit_seconds_are_those_of_a_fit_and_not_of_a_cell_that_found_it_stored(bench):
    for seed, cost in ((0, 2.0), (1, 4.0), (2, 0.0)):
        bench.add("none", "pgd", holds(5), seed=seed, cost={"fit_seconds": cost})
        bench.add("none", "square", holds(5), seed=seed, cost={"fit_seconds": 0.0})
    assert row(evasion(bench), "none").fit_seconds == 3.0


def test_tables_do_not_depend_on_the_order_of_records(full, new, new_metric):
    full.records.append(
        new("none", "lira", threat=MEMBERSHIP, metrics={"auc": new_metric(0.7, better="lower")})
    )
    full.records.append(new("none", "flip", threat=POISONING, metrics={"accuracy": new_metric(0.7)}))
    straight = tables(full.records, full)
    random.Random(0).shuffle(full.records)
    assert tables(full.records, full) == straight
    assert [table.vector for table in straight] == ["evasion", "poisoning", "membership"]


# The other vectors


def test_poisoning_is_ranked_by_the_lowest_accuracy_over_attacks(new, new_metric):
    values = {"filter": (0.9, 0.8), "none": (0.95, 0.5)}
    records = [
        new(defense, attack, threat=POISONING, metrics={"accuracy": new_metric(value)})
        for defense, both in values.items()
        for attack, value in zip(("flip", "match"), both, strict=True)
    ]
    table = metrics_table(records)
    assert ranks(table) == {"filter": 1, "none": 2}
    assert [r.score.value for r in table.rows] == [0.8, 0.5]


def test_membership_is_ranked_by_the_highest_auc_and_lower_is_better(new, new_metric):
    values = {"dp-sgd": (0.52, 0.55), "none": (0.51, 0.8)}
    records = [
        new(defense, attack, threat=MEMBERSHIP, metrics={"auc": new_metric(value, better="lower")})
        for defense, both in values.items()
        for attack, value in zip(("loss", "lira"), both, strict=True)
    ]
    table = metrics_table(records)
    assert ranks(table) == {"dp-sgd": 1, "none": 2}
    assert [r.score.value for r in table.rows] == [0.55, 0.8]


def test_a_thief_with_labels_of_its_own_is_shown_and_never_the_worst(new, new_metric):
    records = [
        new(
            defense,
            attack,
            threat="extraction/black/scores:100",
            metrics={"agreement": new_metric(value, better="lower")},
        )
        for defense, both in {"none": (0.9, 0.8), "rounding": (0.9, 0.6)}.items()
        for attack, value in zip(("own-labels(epochs=3)", "retraining"), both, strict=True)
    ]
    table = metrics_table(records, controls={"own-labels"})
    assert [r.score.value for r in table.rows] == [0.6, 0.8]
    assert [len(r.cells) for r in table.rows] == [2, 2]
    assert [cell.attack for cell in table.rows[0].counted] == ["retraining"]
    assert [r.score.value for r in metrics_table(records).rows] == [0.9, 0.9]
    only = metrics_table([r for r in records if r.attack.name == "own-labels"], controls={"own-labels"})
    assert ranks(only) == {"none": None, "rounding": None}


@pytest.mark.parametrize(
    ("metrics", "by"),
    [
        ({"accuracy": 0.9, "evaluator_accuracy": 0.5, "ncc": 0.1}, "evaluator_accuracy"),
        ({"accuracy": 0.9, "gain": 0.1, "gain_members": 0.2}, "gain"),
        ({"rebuilt": 0.5, "psnr": 20.0}, "rebuilt"),
    ],
)
def test_inversion_is_ranked_by_what_it_is_after(new, new_metric, metrics, by):
    found = {name: new_metric(value, better="lower") for name, value in metrics.items()}
    table = metrics_table([new("none", "some", threat="inversion/white/classes", metrics=found)])
    assert table.score.name == by
    assert {m.name for m in table.measures} == set(metrics)


def test_rows_whose_intervals_overlap_with_the_leader_share_its_rank(new, new_metric):
    values = {"a": 0.9, "b": 0.87, "c": 0.84}  # each 0.02 wide to both sides: b reaches a, c reaches only b
    records = [
        new(d, "flip", threat=POISONING, metrics={"accuracy": new_metric(v)}) for d, v in values.items()
    ]
    assert ranks(metrics_table(records)) == {"a": 1, "b": 1, "c": 3}


def test_seeds_are_pooled_to_their_mean_between_the_outermost_limits(new, new_metric):
    records = [
        new("none", "flip", seed, threat=POISONING, metrics={"accuracy": new_metric(value)})
        for seed, value in enumerate((0.8, 0.9))
    ]
    pooled = metrics_table(records).rows[0].cells[0].estimates["accuracy"]
    assert pooled == (pytest.approx(0.85), pytest.approx(0.78), pytest.approx(0.92), 200)


def test_a_record_without_the_ranking_metric_costs_the_rank(new, new_metric):
    records = [
        new("none", "flip", threat=POISONING, metrics={"accuracy": new_metric(0.5)}),
        new("odd", "flip", threat=POISONING, metrics={"clean_accuracy": new_metric(0.9)}),
    ]
    table = metrics_table(records)
    assert ranks(table) == {"none": 1, "odd": None}
    assert row(table, "odd").objections == ("flip: incomplete: a record without accuracy",)


def test_only_known_columns_that_exist_are_shown_in_their_order(new, new_metric):
    metrics = {name: new_metric(0.5) for name in ("detection_tpr", "accuracy", "something_else")}
    table = metrics_table([new("none", "flip", threat=POISONING, metrics=metrics)])
    assert [measure.name for measure in table.measures] == ["accuracy", "detection_tpr"]


def test_records_with_other_metrics_show_all_of_them_and_rank_nothing(new, new_metric):
    metrics = {"fidelity": new_metric(0.9, better="lower"), "queries": new_metric(10, better="neither")}
    table = metrics_table([new("none", "mi-face", threat="inversion/white/classes", metrics=metrics)])
    assert [measure.name for measure in table.measures] == ["fidelity", "queries"]
    assert ranks(table) == {"none": None}
