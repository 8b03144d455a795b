import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.run.suite import describe, embedded, find_suite, parse_suite, read_suite

GOOD = """
name = "mine"
version = "1.0.0"
summary = "A suite."
seeds = [0, 1]
examples = 8

[[matrix]]
tasks = ["digits"]
defenses = ["none", "adversarial-training(steps=3)+input-noise"]
attacks = ["pgd(steps=2)"]
threats = ["evasion/white/linf:8/255"]
"""
MATRIX = "\n[[matrix]]\n" + GOOD.partition("[[matrix]]\n")[2]


@pytest.mark.parametrize("name", embedded())
def test_embedded_suites_parse_and_describe_themselves_completely(name):
    suite = find_suite(name)
    assert suite.name == name
    assert suite.summary
    assert parse_suite(describe(suite), "described") == suite


def test_a_suite_holds_what_its_file_says(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    suite = find_suite(str(tmp_path / "mine.toml"))
    (block,) = suite.blocks
    assert (suite.label, suite.seeds, suite.examples) == ("mine@1.0.0", (0, 1), 8)
    assert [layer.name for layer in block.defenses[1]] == ["adversarial-training", "input-noise"]
    assert block.attacks[0].settings == (("steps", 2),)
    assert block.threats[0].eps == 8 / 255


def test_the_summary_may_be_left_out():
    raw = tomllib.loads(GOOD)
    del raw["summary"]
    assert parse_suite(raw, "x").summary == ""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param("seeds = [0, 1]", "seeds = [0,", "is not valid TOML", id="bad TOML"),
        pytest.param('name = "mine"', "", "name is missing", id="no name"),
        pytest.param('version = "1.0.0"', "", "version is missing", id="no version"),
        pytest.param("seeds = [0, 1]", "", "seeds is missing; it must be a list", id="no seeds"),
        pytest.param("examples = 8", "", "examples is missing", id="no examples"),
        pytest.param(MATRIX, "", "matrix is missing; it must be one or more [[matrix]]", id="no matrix"),
        pytest.param('tasks = ["digits"]', "", "matrix 1: tasks is missing", id="no tasks"),
        pytest.param('attacks = ["pgd(steps=2)"]', "", "matrix 1: attacks is missing", id="no attacks"),
        pytest.param("seeds", "seed", "no entry is called 'seed'; did you mean 'seeds'", id="near seeds"),
        pytest.param("attacks", "attack", "matrix 1: no entry is called 'attack'; did you mean", id="near"),
        pytest.param("seeds = [0, 1]", "seeds = []", "seeds must be a list of whole numbers", id="[] seeds"),
        pytest.param('["digits"]', "[]", "matrix 1: tasks must be a list of texts", id="[] tasks"),
        pytest.param(MATRIX, "\nmatrix = []\n", "matrix is empty", id="[] matrix"),
        pytest.param(MATRIX, "\nmatrix = [3]\n", "matrix 1 must be a [[matrix]] table", id="no table"),
        pytest.param(MATRIX, "\n[matrix]\nx = 1\n", "matrix must be one or more", id="one bracket"),
        pytest.param("[0, 1]", "0", "seeds must be a list", id="seeds type"),
        pytest.param("[0, 1]", '["0"]', "seeds must be a list of whole numbers", id="seed type"),
        pytest.param("[0, 1]", "[true]", "seeds must be a list of whole numbers", id="seed bool"),
        pytest.param("[0, 1]", "[-1]", "seeds must be a list of whole numbers", id="seed below 0"),
        pytest.param("[0, 1]", "[1, 1]", "seeds names a seed twice: [1, 1]", id="seed twice"),
        pytest.param("examples = 8", "examples = 8.0", "examples must be a whole number", id="float"),
        pytest.param("examples = 8", "examples = true", "found True", id="examples bool"),
        pytest.param(
            "examples = 8", "examples = 0", "examples must be at least 1; found 0", id="none at all"
        ),
        pytest.param('"mine"', "3", "name must be a text; found 3", id="name type"),
        pytest.param('"A suite."', "3", "summary must be a text; found 3", id="summary type"),
        pytest.param('["digits"]', '"digits"', "matrix 1: tasks must be a list of texts", id="tasks type"),
        pytest.param('["digits"]', "[1]", "matrix 1: tasks must be a list of texts", id="task type"),
        pytest.param("white", "whit", "matrix 1: threat 'evasion/whit/linf:8/255'", id="bad threat"),
        pytest.param("8/255", "-1", "linf needs a distance of at least 0", id="bad radius"),
        pytest.param("pgd(steps=2)", "pgd(2)", "cannot read the settings in 'pgd(2)'", id="bad ref"),
        pytest.param('"none"', '"none+"', "matrix 1: cannot read ''", id="bad stack"),
    ],
)
def test_a_malformed_suite_is_one_line_that_names_the_file_and_the_entry(tmp_path, old, new, words):
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(FirstlineError) as caught:
        read_suite(path)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert words in told
    assert "\n" not in told


def test_the_second_block_is_named_where_it_is_wrong():
    raw = tomllib.loads(GOOD + MATRIX.replace("pgd(steps=2)", "p g d"))
    with pytest.raises(FirstlineError, match="mine: matrix 2: cannot read 'p g d'"):
        parse_suite(raw, "mine")


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(FirstlineError, match=r"mine\.toml is not valid TOML"):
        read_suite(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smok", r"no suite is called 'smok'; did you mean 'smoke'\?.*ending in \.toml"),
        ("missing.toml", r"there is no suite file missing\.toml"),
        ("smoke@9", r"suite smoke is at version [\d.]+ here, not 9"),
    ],
)
def test_an_unknown_suite_says_what_there_is(name, words):
    with pytest.raises(FirstlineError, match=words):
        find_suite(name)


def test_a_suite_may_be_named_with_its_version():
    suite = find_suite("smoke")
    assert find_suite(suite.label) == suite


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Yield the path of every entry in plain data."""
    for at in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, at)
        yield from places(value[at], (*path, at))


@given(st.sampled_from(list(places(tomllib.loads(GOOD)))), plain)
def test_whatever_stands_in_an_entry_the_suite_is_read_or_explained(place, value):
    raw = tomllib.loads(GOOD)
    inside = raw
    for at in place[:-1]:
        inside = inside[at]
    inside[place[-1]] = value
    told = "mine: read"
    try:
        parse_suite(raw, "mine")
    except FirstlineError as error:
        told = str(error)
    assert told.startswith("mine: ")
    assert "\n" not in told
