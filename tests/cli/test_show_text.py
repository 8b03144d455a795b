import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstline.benchmark.cli import show_text
from firstline.benchmark.cli.show_text import count, duration, say_json, table

word = st.text("abcdefgh.-", min_size=1, max_size=12)
sentence = st.lists(word, max_size=40).map(" ".join)


@given(st.lists(st.tuples(word, word, sentence), min_size=1, max_size=5))
def test_a_table_fits_the_width_and_loses_no_word(rows):
    text = table(["A", "B", "C"], rows)
    assert all(len(line) <= show_text.width() for line in text.splitlines())
    assert text.split() == ["A", "B", "C", *" ".join(" ".join(row) for row in rows).split()]
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_columns_begin_under_each_other(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = table(
        ["NAME", "ABOUT"], [["a", "one two three four five six seven eight nine"], ["long-name", "x"]]
    )
    starts = [next(i for i, letter in enumerate(line) if letter != " ") for line in lines.splitlines()]
    assert starts == [0, 0, 11, 0]
    assert all(line[9:11] == "  " for line in lines.splitlines())


def test_a_narrow_terminal_still_shows_the_last_column(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    assert table(["NAME", "ABOUT"], [["a-rather-long-name", "x y z"]]).splitlines()[1].endswith("x y z")


def test_a_table_without_rows_is_its_head():
    assert table(["A", "B"], []) == "A  B"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (10.4, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (86400, "24 h 0 min")],
)  # fmt: skip
def test_durations_are_told_in_words(seconds, words):
    assert duration(seconds) == words


def test_counts_agree_with_their_noun():
    assert [count(n, "cell") for n in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


def test_json_keeps_letters_as_they_are(capsys):
    say_json({"name": "é · ß"})
    out = capsys.readouterr().out
    assert "é · ß" in out
    assert json.loads(out) == {"name": "é · ß"}
