"""The text form of items with settings, and of stacks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.ref import Ref, parse_stack, write_stack

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,12}", fullmatch=True)
SETTING_NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True).map(lambda name: f"s_{name}")
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = PLAIN | st.lists(PLAIN, max_size=3).map(tuple)
REFS = st.builds(
    lambda name, chosen: Ref(name, tuple(sorted(chosen.items()))),
    NAMES,
    st.dictionaries(SETTING_NAMES, VALUES, max_size=3),
)


@given(st.lists(REFS, min_size=1, max_size=3).map(tuple))
@settings(deadline=None)
def test_the_text_of_a_stack_is_read_back_as_the_same_stack(layers):
    assert parse_stack(write_stack(layers)) == layers
    assert Ref.parse(str(layers[0])) == layers[0]


def test_settings_are_sorted_so_that_their_order_does_not_matter():
    assert Ref.parse("pgd(steps=5, restarts=2)") == Ref.parse("pgd(restarts=2, steps=5)")
    assert str(Ref.parse("pgd(steps=5, restarts=2)")) == "pgd(restarts=2, steps=5)"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("-2/255", -2 / 255),
        ("(1, 'x')", (1, "x")),
        ("None", None),
        ("True", True),
        ("1e-3", 1e-3),
    ],
)
def test_a_setting_is_a_literal_or_a_fraction(text, value):
    assert Ref.parse(f"pgd(k={text})").settings == (("k", value),)


def test_a_name_alone_has_no_settings():
    assert Ref.parse(" pgd ") == Ref.parse("pgd()") == Ref("pgd")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(k=1)",
        "a/b",
        "pgd(",
        "pgd)",
        "pgd(5)",
        "pgd(*[5])",
        "pgd(**{})",
        "pgd(k)",
        "pgd(k=)",
        "pgd(k=other)",
        "pgd(k=open('x'))",
        "pgd(k=1+1)",
        "pgd(k=1/0)",
        "pgd(k='x'/2)",
        "pgd(k={[]: 1})",
        "pgd(k=1, k=2)",
        "pgd(k=1)(steps=2)",
        "pgd(k=1).x(steps=2)",
        f"pgd(k={'9' * 400}/1)",
        f"pgd(k={'-' * 3000}1)",
        "pgd(k=\0)",
    ],
)
def test_what_is_no_reference_is_answered_in_one_line_that_says_how_to_write_it(text):
    with pytest.raises(
        FirstlineError, match=r"^cannot read .*write (a name, or )?name\(setting=value"
    ) as caught:
        Ref.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a+", "+a", "a++b", ""])
def test_a_stack_has_no_empty_layer(text):
    with pytest.raises(FirstlineError, match="cannot read ''"):
        parse_stack(text)


def test_a_plus_inside_settings_separates_nothing():
    assert len(parse_stack("a(s='x)+(y')+b(t=\"+\")")) == 2


@given(st.text(max_size=30) | st.text("pgd(k=1,'\"+)/[]{} .*-", max_size=30))
@settings(deadline=None)
def test_any_text_is_a_stack_or_a_firstline_error(text):
    try:
        layers = parse_stack(text)
    except FirstlineError:
        return
    assert all(layer.name and layer.name in text for layer in layers)
