"""Streams over seeds: brackets, figures, drawings, and the page."""

import pytest

from firstline.benchmark.core.stream_record import Shape, Window
from firstline.leaderboard.site import build
from firstline.leaderboard.streams import stream_tables

HELD = (10, 10, 9, 10, 10, 10, 10)
LOST = (10, 10, 5, 5, 5, 5, 5)


def test_the_brackets_come_first_and_then_who_loses_least(new_stream):
    records = [new_stream("bad", right=LOST), new_stream("good", right=HELD), new_stream(right=LOST)]
    (table,) = stream_tables(records)
    assert [row.line.defense for row in table.rows] == ["none", "instant oracle", "good", "bad"]
    assert (table.windows, table.first, table.last) == (7, 2, 4)
    assert list(table.brackets) == ["nothing", "oracle"]


def test_a_line_goes_through_the_middle_of_each_window(new_stream):
    (table,) = stream_tables([new_stream(right=(10, 10, 5, 5, 10, 0))])
    assert table.rows[0].drawn == "20.0,0.0 60.0,0.0 100.0,36.0 140.0,36.0 180.0,0.0 220.0,72.0"
    assert table.rows[1].drawn == "20.0,0.0 60.0,0.0 100.0,36.0 140.0,0.0 180.0,0.0 220.0,0.0"
    assert table.shaded == (80, 80)


def test_seeds_are_means_and_those_that_never_came_back_are_counted(new_stream):
    (table,) = stream_tables([new_stream(seed=0, right=HELD), new_stream(seed=1, right=LOST)])
    line = table.rows[0].line
    assert (line.seeds, line.lost, line.unseen) == (2, 1, 2)
    assert line.summary.service[2] == pytest.approx(0.7)
    assert line.summary.recovered.lo == pytest.approx(0.0945, abs=1e-4)  # Wilson's, 1 of 2
    assert line.summary.recovery == 2.5  # at once, and 5 windows without an end
    assert len(table.rows[0].records) == 2
    assert table.rows[1].records == ()


def test_alarms_are_counted_by_window(new_stream):
    windows = [w.model_copy(update={"alarm": i == 3}) for i, w in enumerate(new_stream().windows)]
    (table,) = stream_tables([new_stream(seed=seed, windows=windows) for seed in (0, 1)])
    assert table.rows[0].alarms == (0, 0, 0, 2, 0, 0)


def test_of_two_streams_for_one_defense_and_seed_the_newer_counts(new_stream):
    old = new_stream(right=LOST)
    later = old.provenance.model_copy(update={"ended": "2027-01-01T00:00:00Z"})
    new = new_stream(right=HELD, provenance=later)
    for records in ([old, new], [new, old]):
        (table,) = stream_tables(records)
        assert table.rows[0].records == (new,)


def test_another_shape_or_length_is_another_table(new_stream):
    records = [
        new_stream(),
        new_stream(right=HELD),
        new_stream(shape=Shape(size=10, before=2, during=2, fpr=0.05)),
        new_stream(threat="evasion/white/linf:0.2"),
    ]
    tables = stream_tables(records)
    assert len({table.anchor for table in tables}) == 4


def page(records, folder):
    return build([], lambda record: {}, folder, streams=records).parent / "streams.html"


def test_the_page_draws_the_defense_between_its_brackets_over_the_attacked_windows(new_stream, tmp_path):
    records = [new_stream(right=LOST), new_stream("held", right=HELD, seconds=1.5, samples=1200)]
    text = page(records, tmp_path / "board").read_text()
    assert text.count('<rect class="attacked" x="68.6" y="0" width="68.6" height="72"/>') == 3
    assert [text.count(f'class="line {kind}"') for kind in ("nothing", "oracle")] == [2, 2]
    words = " ".join(text.split())
    assert "1 of 1 never" in words
    assert "0 steps, 1,200 rows" in words
    assert words.count("attacked</small>") == 2
    assert f"streams/{records[1].key}.json" in words


def test_any_order_gives_the_same_bytes_and_each_record_is_there(new_stream, tmp_path):
    records = [new_stream(defense, seed) for defense in ("none", "a") for seed in (0, 1)]
    one, two = page(records, tmp_path / "one").parent, page(records[::-1] + records, tmp_path / "two").parent
    found = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (one, two)
    ]
    assert found[0] == found[1]
    for record in records:
        assert (one / "records" / "streams" / f"{record.key}.json").read_text() == record.to_json()
    assert "no record yet" not in (one / "index.html").read_text()


def test_without_the_undefended_system_the_page_says_so(new_stream, tmp_path):
    text = page([new_stream("a")], tmp_path / "board").read_text()
    assert "There is no undefended system" in text
    assert 'class="line oracle"' not in text


def test_without_streams_there_is_no_page(tmp_path):
    out = page([], tmp_path / "board")
    assert not out.exists()
    assert "streams.html" not in (out.parent / "index.html").read_text()


def test_a_stream_of_one_input_in_the_most_windows_is_drawn(new_stream):
    windows = [Window(attacked=i in (2, 3), inputs=1, right=i % 2, usual=1, alarm=False) for i in range(500)]
    (table,) = stream_tables([new_stream(windows=windows, shape=Shape(size=1, before=2, during=2))])
    assert table.rows[0].drawn.count(",") == 500
