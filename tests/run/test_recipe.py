import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstline.benchmark.core.errors import FirstlineError, NotFound
from firstline.benchmark.core.record import Metric
from firstline.benchmark.run.matrix import Selection, expand
from firstline.benchmark.run.recipe import Expected, embedded, find_recipe, judge, render

GOOD = """
title = "On robustness"
source = "Someone 2020"
read_at = "table 1"
deviations = ["fewer epochs"]

[weights]
file = "net.pth"
sha256 = "00"
source = "example.org"

[suite]
name = "someone2020"
version = "1"
seeds = [0]
examples = 8

[[suite.matrix]]
tasks = ["digits"]
defenses = ["none"]
attacks = ["pgd"]
threats = ["evasion/white/linf:0.1"]

[[expected]]
what = "PGD error"
paper = 40
tolerance = 1.5
attack = "pgd"
metric = "robust_accuracy"
error = true
"""
EXPECTED = GOOD[GOOD.index("[[expected]]") :]


def read(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    return find_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", embedded())
def test_embedded_recipes_expect_what_their_cells_measure(name, catalogue):
    """A misspelt attack would be `missing` for ever."""
    paper = find_recipe(name)
    cells = expand(paper.suite, catalogue, Selection(), "cpu", None).cells
    stacks = {cell.defense_text for cell in cells}
    assert all(entry.defense in stacks for entry in paper.expected if entry.defense or len(stacks) > 1)
    assert {entry.attack for entry in paper.expected} == {cell.attack.text for cell in cells}
    assert len({(cell.attack.text, cell.defense_text) for cell in cells}) == len(cells), "which one is meant?"
    assert paper.deviations
    assert paper.read_at


def test_wong2018_is_the_published_table():
    paper = find_recipe("wong2018")
    assert [(e.what, e.paper, e.error) for e in paper.expected] == [
        ("clean error", 1.8, True),
        ("FGSM error", 3.9, True),
        ("PGD error", 4.1, True),
    ]
    assert len(paper.weights.sha256) == 64
    text = render(paper)
    for words in ("arXiv:1711.00851", paper.weights.sha256, "PGD error 4.1%", *paper.deviations):
        assert words in text


def test_a_recipe_holds_what_its_file_says(tmp_path):
    paper = read(tmp_path, GOOD)
    assert (paper.name, paper.title, paper.weights.file) == ("mine", "On robustness", "net.pth")
    assert paper.expected == (Expected("PGD error", 40, 1.5, "pgd", "robust_accuracy", True),)


def test_weights_and_deviations_may_be_left_out(tmp_path):
    raw = tomllib.loads(GOOD)
    text = GOOD.replace('deviations = ["fewer epochs"]', "").replace(GOOD[GOOD.index("[weights]") : GOOD.index("[suite]")], "")  # fmt: skip
    paper = read(tmp_path, text)
    assert raw["weights"]
    assert (paper.weights, paper.deviations) == (None, ())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param("title = ", "title = = ", "is not valid TOML", id="bad TOML"),
        pytest.param('title = "On robustness"', "", "title is missing", id="no title"),
        pytest.param('read_at = "table 1"', "", "read_at is missing", id="no place"),
        pytest.param('"Someone 2020"', "2020", "source must be a text; found 2020", id="source type"),
        pytest.param('["fewer epochs"]', '"fewer"', "deviations must be a list of texts", id="deviations"),
        pytest.param('["fewer epochs"]', "[1]", "deviations must be a list of texts", id="deviation type"),
        pytest.param("deviations", "deviation", "no entry is called 'deviation'; did you mean", id="near"),
        pytest.param("file = ", "fil = ", "weights: no entry is called 'fil'; did you mean 'file'", id="weights near"),
        pytest.param('file = "net.pth"', "", "weights: file is missing", id="no file"),
        pytest.param('sha256 = "00"', "sha256 = 0", "weights: sha256 must be a text", id="digest type"),
        pytest.param(EXPECTED, "", "expected is missing", id="nothing expected"),
        pytest.param(EXPECTED, "[expected]\n", "expected must be one or more [[expected]]", id="one bracket"),
        pytest.param("paper = 40", "", "expected 1: paper is missing; it must be a number", id="no number"),
        pytest.param("paper = 40", 'paper = "40"', "expected 1: paper must be a number; found '40'", id="number type"),
        pytest.param("paper = 40", "paper = true", "expected 1: paper must be a number; found True", id="bool"),
        pytest.param("error = true", "error = 1", "expected 1: error must be true or false; found 1", id="error"),
        pytest.param("metric = ", "metrics = ", "no entry is called 'metrics'; did you mean 'metric'", id="metric"),
        pytest.param("examples = 8", "", "suite: examples is missing", id="bad suite"),
        pytest.param('"pgd"]', '"p g d"]', "suite: matrix 1: cannot read 'p g d'", id="bad ref"),
    ],
)  # fmt: skip
def test_a_malformed_recipe_is_one_line_that_names_the_file_and_the_entry(tmp_path, old, new, words):
    assert old in GOOD
    with pytest.raises(FirstlineError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).startswith(str(tmp_path / "mine.toml"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_comes_with_the_near_misses():
    with pytest.raises(NotFound, match="no recipe is called 'wong2019'; did you mean 'wong2018'"):
        find_recipe("wong2019")
    with pytest.raises(FirstlineError, match=r"cannot read missing\.toml"):
        find_recipe("missing.toml")


@pytest.fixture
def verdict(tmp_path, new_cell, new_record, new_use):
    """Return the verdict on PGD accuracy in a record of these values, in percent."""

    def judged(value, lo, hi, *, paper=40.0, tolerance=1.5, error=False, **changes):
        metric = Metric(value=value, lo=lo, hi=hi, n=100, method="wilson", unit="share", better="higher")
        record = new_record(new_cell(attack=new_use("pgd"))).model_copy(
            update={"metrics": {"robust_accuracy": metric}, **changes}
        )
        entry = Expected("PGD", paper, tolerance, "pgd", "robust_accuracy", error)
        recipe = read(tmp_path, GOOD)
        (found,) = judge(type(recipe)(**{**recipe.__dict__, "expected": (entry,)}), [record])
        return found

    return judged


@pytest.mark.parametrize(
    ("value", "lo", "hi", "wanted"),
    [
        pytest.param(0.40, 0.3, 0.5, "reproduced", id="the very number"),
        pytest.param(0.415, 0.3, 0.5, "reproduced", id="just within the tolerance"),
        pytest.param(0.385, 0.385, 0.39, "reproduced", id="within the tolerance and outside the interval"),
        pytest.param(0.416, 0.3, 0.5, "within interval", id="just outside the tolerance"),
        pytest.param(0.45, 0.4, 0.5, "within interval", id="at the end of the interval"),
        pytest.param(0.45, 0.41, 0.5, "differs", id="outside both"),
        pytest.param(0.45, None, None, "differs", id="no interval"),
        pytest.param(0.40, None, None, "reproduced", id="no interval and no need"),
    ],
)
def test_a_number_is_reproduced_or_within_its_interval_or_differs(verdict, value, lo, hi, wanted):
    found = verdict(value, lo, hi)
    assert found.verdict == wanted
    assert found.measured == pytest.approx(100 * value)


def test_a_number_is_that_of_the_stack_it_names(tmp_path, new_cell, new_record, new_use):
    def record(name, value):
        metric = Metric(value=value, n=100, method="", unit="share", better="higher")
        cell = new_cell(attack=new_use("pgd"), defense=(new_use(name),))
        return new_record(cell).model_copy(update={"metrics": {"robust_accuracy": metric}})

    paper = read(tmp_path, GOOD.replace("error = true", 'defense = "second"'))
    both = [record("first", 0.4), record("second", 0.7)]
    assert [v.measured for v in judge(paper, both)] == [pytest.approx(70)]
    assert [v.verdict for v in judge(paper, both[:1])] == ["missing"]


def test_an_error_is_what_accuracy_leaves(verdict):
    found = verdict(0.6, 0.5, 0.65, error=True)
    assert (found.verdict, found.paper) == ("reproduced", 40)
    assert (found.measured, found.lo, found.hi) == pytest.approx((40, 35, 50))
    assert verdict(0.4, 0.3, 0.5, error=True).verdict == "differs"


@given(st.floats(0, 1), st.floats(0, 100), st.floats(0, 10))
def test_a_verdict_on_errors_is_the_one_on_successes(tmp_path_factory, new_cell, new_record, value, paper, tolerance):  # fmt: skip
    recipe = find_recipe("wong2018")
    metric = Metric(value=value, lo=value, hi=value, n=1, method="x", unit="share", better="higher")
    record = new_record(new_cell()).model_copy(update={"metrics": {"m": metric}})
    pair = tuple(
        Expected("x", number, tolerance, record.attack.text, "m", error)
        for number, error in ((paper, False), (100 - paper, True))
    )
    plain, error = judge(type(recipe)(**{**recipe.__dict__, "expected": pair}), [record])
    near = abs(abs(100 * value - paper) - tolerance) < 1e-6  # on the edge, rounding decides
    assert near or plain.verdict == error.verdict


def test_without_a_record_the_number_is_missing(tmp_path, verdict):
    assert [v.verdict for v in judge(read(tmp_path, GOOD), [])] == ["missing"]
    assert verdict(0.4, None, None, status="failed").verdict == "missing"
    assert verdict(0.4, None, None, metrics={}).verdict == "missing"
