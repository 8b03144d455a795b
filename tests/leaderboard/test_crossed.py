"""Check 1 across tables: whoever sees less should not break more."""

import numpy as np
import pytest

from firstline.leaderboard.table import tables

WHITE = "evasion/white/linf:0.1"
BLACK = "evasion/black/linf:0.1,queries=500"


def holds(count, n=100):
    return np.arange(n) < count


def notes(bench):
    """The warnings of all tables that are about masked gradients, by threat model."""
    found = {
        table.threat: [w for w in table.warnings if "masked" in w] for table in tables(bench.records, bench)
    }
    return {threat: warnings for threat, warnings in found.items() if warnings}


@pytest.fixture
def masked(bench):
    """A defense that keeps 90 of 100 under gradients and 60 under queries; the undefended one is honest."""
    bench.add("none", "pgd", holds(5), threat=WHITE)
    bench.add("none", "square", holds(20), threat=BLACK)
    bench.add("masked", "pgd", holds(90), threat=WHITE)
    bench.add("masked", "square", holds(60), threat=BLACK)
    return bench


def test_the_white_box_table_names_the_defense_the_threat_and_the_share(masked):
    (warnings,) = notes(masked).values()
    assert list(notes(masked)) == [WHITE]
    (warning,) = warnings
    assert warning.startswith(
        f"masked: 30.0% of the examples break under {BLACK} and under no white-box attack"
    )


def test_gray_boxes_count_too(bench):
    bench.add("masked", "pgd", holds(90), threat=WHITE)
    bench.add("masked", "transfer", holds(60), threat="evasion/gray/linf:0.1")
    assert "evasion/gray/linf:0.1" in notes(bench)[WHITE][0]


def test_all_white_box_attacks_and_tables_count_together(masked):
    masked.add("masked", "apgd", holds(70), threat=WHITE)
    assert "masked: 10.0%" in notes(masked)[WHITE][0]
    masked.add("masked", "pgd", holds(65), threat=f"{WHITE},defense=unknown")
    both = notes(masked)
    assert "masked: 5.0%" in both[WHITE][0]
    assert "masked: 5.0%" in both[f"{WHITE},defense=unknown"][0]


def test_few_examples_are_no_sign(masked):
    masked.add("masked", "apgd", holds(62), threat=WHITE)
    assert notes(masked) == {}


def test_an_input_that_was_wrong_when_clean_was_broken_by_nobody(bench):
    bench.add("noisy", "pgd", holds(90), threat=WHITE)
    bench.add("noisy", "square", holds(60), clean=holds(60), threat=BLACK)
    assert notes(bench) == {}


@pytest.mark.parametrize(
    "more",
    [
        {"threat": "evasion/black/linf:0.2"},
        {"threat": "evasion/black/l2:0.1"},
        {"threat": BLACK, "task": "other"},
        {"threat": BLACK, "seed": 1},
        {"threat": BLACK, "preimage": {"score": {"craft": {"examples": 9}}}},
        {"threat": "evasion/black/of our own"},
    ],
    ids=["radius", "norm", "task", "seed", "examples", "unknown threat"],
)
def test_other_questions_are_not_compared(bench, more):
    bench.add("masked", "pgd", holds(90), threat=WHITE)
    bench.add("masked", "square", holds(60), **more)
    assert notes(bench) == {}


def test_seeds_are_pooled(masked):
    masked.add("masked", "pgd", holds(90), threat=WHITE, seed=1)
    masked.add("masked", "square", holds(90), threat=BLACK, seed=1)
    assert "masked: 15.0%" in notes(masked)[WHITE][0]


def test_a_defense_without_a_white_box_number_is_not_accused(bench, new_failed):
    bench.add("none", "pgd", holds(5), threat=WHITE)
    bench.records.append(new_failed("masked", "pgd", threat=WHITE))
    bench.add("masked", "square", holds(60), threat=BLACK)
    assert notes(bench) == {}
