"""The gate's verdict: which figures it is about, what counts, and that the docs say the same."""

import math
import re
from pathlib import Path

import pytest

from firstline.benchmark.core.limits import LIMITS, judge, judged

PROTOCOLS = Path(__file__).parents[2] / "docs" / "protocols.md"


def test_no_figure_and_unknown_figures_pass():
    assert judge({}).verdict == "pass"
    assert judge({"stochastic": 1.0, "made_up": math.nan}).reasons == []


@pytest.mark.parametrize("name", LIMITS)
def test_a_figure_on_its_limit_passes_and_beyond_it_does_not(name):
    limit = LIMITS[name]
    beyond = math.inf if limit.high else -math.inf
    for verdict, bound in (("warn", limit.warn), ("fail", limit.fail)):
        if bound is not None:
            assert limit.verdict(bound) != verdict
            assert limit.verdict(math.nextafter(bound, beyond)) == verdict


@pytest.mark.parametrize("name", LIMITS)
def test_the_reason_holds_the_check_the_value_and_the_limit(name):
    limit = LIMITS[name]
    bound = limit.warn if limit.fail is None else limit.fail
    value = bound + 0.07 if limit.high else bound - 0.07
    (reason,) = judge({name: value}).reasons
    assert reason.startswith(f"check {limit.check}: ")
    assert format(value, limit.form) in reason
    assert "{" not in reason
    if "{limit}" in limit.says:
        assert f"(limit {format(bound, limit.form)})" in reason


def test_a_warning_names_the_limit_of_warnings():
    gate = judge({"noise_gain": 0.03})
    assert gate.verdict == "warn"
    assert "3.0%" in gate.reasons[0]
    assert "(limit 2.0%)" in gate.reasons[0]


def test_low_values_are_bad_where_the_limit_says_so():
    assert [judge({"gradient_cosine": cosine}).verdict for cosine in (0.9, 0.4, 0.1, -1.0)] == [
        *("pass", "warn"),
        *("fail", "fail"),
    ]


def test_the_worst_figure_wins_and_its_reasons_come_first():
    gate = judge({"black_box_gain": 0.03, "invalid_answers": 0.5, "blind_gap": 0.9, "eps_rise": 0.0})
    assert gate.verdict == "fail"
    assert [reason[:8] for reason in gate.reasons] == ["check 7:", "check 1:", "check 7:"]
    assert "blind scoring" in gate.reasons[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LIMITS)
def test_a_figure_that_is_no_number_fails(name, value):
    gate = judge({name: value})
    assert gate.verdict == "fail"
    assert f"{name} could not be measured" in gate.reasons[0]


def test_figures_come_in_the_order_of_the_table_whatever_the_order_of_the_record():
    names = ["invalid_answers", "eps_rise", "black_box_gain"]
    rows = judged(dict.fromkeys([*names, "stochastic"], 0.0))
    assert [row.name for row in rows] == ["black_box_gain", "eps_rise", "invalid_answers"]
    assert [row.shown for row in rows] == ["0.0%"] * 3


def test_the_docs_hold_every_figure_with_its_meaning_limits_and_source():
    section = PROTOCOLS.read_text(encoding="utf-8").split("\n## The gate\n")[1].split("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in re.findall(r"^\| \d.*", section, re.M)
    ]
    assert rows == [
        (str(limit.check), f"`{name}`", limit.meaning, limit.shown(), limit.source) for name, limit in LIMITS.items()
    ]  # fmt: skip
