"""What moved between two sets of records, and what of it is more than chance."""

import numpy as np
import pytest

from firstline.leaderboard.changes import changes, markdown
from firstline.leaderboard.table import tables


def named(bench):
    return [("", table) for table in tables(bench.records, bench, resampled=False)]


@pytest.fixture
def board(bench_of):
    """Return what makes a board of one attack, in which each defense holds on the first so many of 100 examples."""

    def made(**shares):
        found = bench_of()
        for defense, held in {"none": 5, **shares}.items():
            found.add(defense, "pgd", np.arange(100) < held)
        return found

    return made


def test_nothing_changed_says_so(board):
    assert changes(named(board(trades=50)), named(board(trades=50))) == []
    assert "No rank and no score changed" in markdown([])


def test_a_change_on_the_same_examples_is_tested_example_by_example(board):
    (found,) = changes(named(board(trades=50)), named(board(trades=70)))
    assert (found.defense, found.is_real) == ("trades", True)
    assert found.p == 2 * 0.5**20  # twenty examples changed, all of them one way
    text = markdown([found])
    assert "1 moved by more than chance" in text
    assert "| 50.0% → 70.0% | +20.0 better | < 0.001 |" in text


def test_a_change_of_three_examples_may_be_chance(board):
    (found,) = changes(named(board(trades=50)), named(board(trades=53)))
    assert (found.p, found.is_real) == (0.25, False)
    assert "within chance" in markdown([found])


def test_tests_are_corrected_for_the_number_of_entries_that_moved(board):
    found = changes(named(board(a=50, b=20)), named(board(a=56, b=26)))
    assert [c.p for c in found] == [2 * 2 * 0.5**6] * 2
    assert not any(c.is_real for c in found)


def test_new_and_gone_entries_and_boards_are_told(board):
    new = board(trades=50)
    new.add("none", "pgd", np.arange(100) < 3, task="adult")
    found = changes(named(board(mart=50)), named(new))
    assert {(c.defense, c.old is None, c.new is None) for c in found} == {
        ("mart", False, True),
        ("trades", True, False),
        ("none", True, False),
    }
    assert "| 1 → absent |" in markdown(found)


def test_scores_without_examples_count_as_moved_where_intervals_do_not_overlap(new, new_metric):
    def membership(auc):
        metrics = {"auc": new_metric(auc, better="lower", unit="area")}
        records = [new("none", "lira", threat="membership/black/scores", metrics=metrics)]
        return [("", table) for table in tables(records, lambda r: {})]

    (near,) = changes(membership(0.70), membership(0.71))
    (far,) = changes(membership(0.70), membership(0.80))
    assert (near.is_real, far.is_real, far.p) == (False, True, None)
    assert "+0.100 worse" in markdown([far])


def test_names_in_markdown_are_code_that_ends_no_cell(board):
    text = markdown(changes(named(board()), named(board(**{"a|b`@all`<b>": 50}))))
    assert "`a\\|b'@all'<b>`" in text
    assert all(line.count("|") - line.count("\\|") == 7 for line in text.splitlines() if line.startswith("|"))
