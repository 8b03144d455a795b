"""Files of streams: read as they were written, or refused in one line."""

import json

import pytest

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.stream_record import Shape, read_stream


@pytest.fixture
def good(new_stream):
    return json.loads(new_stream().to_json())


def test_what_is_written_is_read(new_stream, tmp_path):
    stream = new_stream("strip+größer", seconds=0.5, relapse=-0.25)
    (tmp_path / "s.json").write_text(stream.to_json(), encoding="utf-8")
    assert read_stream(tmp_path / "s.json") == stream


def put(data, path, value):
    *way, last = path
    for step in way:
        data = data[step]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("windows", 2, "right"), 11, "11 and 10 right answers to 10 inputs"),
        (("windows", 2, "usual"), -1, "windows.2.usual"),
        (("windows", 2, "attacked"), False, "window 2 is none of its shape"),
        (("windows", 4, "attacked"), True, "window 4 is none of its shape"),
        (("windows", 4, "attacked"), 1, "windows.4.attacked"),
        (("windows", 0, "inputs"), 11, "window 0 is none of its shape"),
        (("windows", 0), None, "windows.0"),
        (("windows",), [], "windows"),
        (("shape", "before"), 3, "window 2 is none of its shape"),
        (("shape", "share"), 1.5, "shape.share"),
        (("shape", "during"), 10**400, "window 4 is none of its shape"),
        (("steps",), 10**400, "steps"),
        (("seconds",), "1", "seconds"),
        (("relapse",), 2.0, "relapse"),
        (("seed",), -1, "seed"),
        (("threat",), "membership/black/scores", "threat"),
        (("key",), "0" * 64, "its key is not that of its preimage"),
        (("preimage", "seed"), 5, "its key is not that of its preimage"),
        (("more\n\x1b[31m",), 5, "Extra inputs are not permitted"),
        (("format",), "firstline.stream/2", "another record format than firstline.stream/1"),
    ],
)
def test_an_edited_file_is_refused_in_one_line(good, tmp_path, path, value, words):
    put(good, path, value)
    refused(tmp_path / "s.json", json.dumps(good, separators=(",", ":")).encode(), words)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[]", b"null", b"\xff\x00", b"[" * 9999, b'{"key":"\\ud800"}', b'{"seconds":NaN}'],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    refused(tmp_path / "s.json", damage, "s.json is not a record")


def refused(path, data, words):
    path.write_bytes(data)
    with pytest.raises(FirstlineError) as caught:
        read_stream(path)
    message = str(caught.value)
    assert str(path) in message
    assert words in message
    assert message.isprintable()


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(FirstlineError, match="cannot read"):
        read_stream(tmp_path / "absent.json")


def test_a_stream_without_an_attack_is_none(new_stream):
    with pytest.raises(ValueError, match="no window is attacked"):
        new_stream(shape=Shape(size=10, before=2, during=2), windows=new_stream().windows[:2])


def test_a_backdoor_stays_to_the_end(new_stream):
    threat = "poisoning/gray/backdoor:10%"
    with pytest.raises(ValueError, match="window 4 is none of its shape"):
        new_stream(threat=threat)
    windows = [w.model_copy(update={"attacked": i > 1}) for i, w in enumerate(new_stream().windows)]
    assert new_stream(threat=threat, windows=windows).windows[-1].attacked
