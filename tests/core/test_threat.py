"""The text form of threat models, and what each of them grants."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.threat import GOALS, KNOWLEDGE, SECRET, VECTORS, Threat

PIXELS = st.integers(0, 4096).map(lambda pixels: pixels / 255)
RADII = st.floats(0, 1e300) | PIXELS | PIXELS.map(lambda radius: math.nextafter(radius, math.inf))
SHARES = st.floats(0, 1) | st.integers(0, 1000).map(lambda mills: mills / 1000)
COUNTS = st.integers(0, 2**63 - 1) | st.integers(0, 9000).map(lambda thousands: thousands * 1000)


@st.composite
def threats(draw) -> Threat:
    vector, knowledge = draw(st.sampled_from(VECTORS)), draw(st.sampled_from(KNOWLEDGE))
    goal = draw(st.sampled_from(sorted(GOALS[vector])))
    amount = {"evasion": draw(RADII), "poisoning": draw(SHARES), "extraction": draw(COUNTS)}.get(vector)
    amount = draw(st.integers(1, 5)) if goal in ("corruption", "updates") else amount
    queries = amount if vector == "extraction" else draw(st.none() | COUNTS)
    answers = goal if vector in ("extraction", "membership") else draw(st.sampled_from(["scores", "labels"]))
    return Threat(
        vector,
        knowledge,
        goal,
        amount,
        answers,
        queries,
        0.0 if vector in SECRET else draw(SHARES),
        draw(st.booleans()),
        draw(st.sampled_from(["known", "unknown"])),
    )


@given(threats())
@settings(deadline=None)
def test_the_text_of_a_threat_is_read_back_as_the_same_threat(threat):
    text = str(threat)
    assert Threat.parse(text) == threat
    assert str(Threat.parse(text)) == text


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("evasion/white/linf:0.10", "evasion/white/linf:0.1"),
        ("evasion/white/linf:8/255", "evasion/white/linf:8/255"),
        (f"evasion/white/linf:{8 / 255!r}", "evasion/white/linf:8/255"),
        ("evasion/white/linf:255/255", "evasion/white/linf:1"),
        ("evasion/white/l2:1e-1", "evasion/white/l2:0.1"),
        ("evasion/white/l0:8.0", "evasion/white/l0:8"),
        ("evasion/white/l2:1e307", "evasion/white/l2:1e+307"),
        ("  evasion/white/linf:0\n", "evasion/white/linf:0"),
        ("evasion/black/l2:0.5,queries=5000", "evasion/black/l2:0.5,queries=5k"),
        ("evasion/black/l2:0.5,queries=2M, answers=labels", "evasion/black/l2:0.5,answers=labels,queries=2m"),
        ("evasion/black/l2:0.5,answers=scores", "evasion/black/l2:0.5"),
        ("evasion/white/linf:0,train=1,aux=yes,defense=known", "evasion/white/linf:0"),
        ("evasion/black/linf:0,aux=no,train=0%,defense=unknown", "evasion/black/linf:0"),
        ("poisoning/gray/availability:0.05,train=10%", "poisoning/gray/availability:5%"),
        ("poisoning/gray/availability:7%,train=100%", "poisoning/gray/availability:7%,train=100%"),
        ("evasion/black/corruption:3.0", "evasion/black/corruption:3"),
        ("extraction/black/scores:10000", "extraction/black/scores:10k"),
        ("extraction/black/labels:1.001m", "extraction/black/labels:1001k"),
        ("membership/black/labels", "membership/black/labels"),
    ],
)
def test_equal_threats_have_one_text(written, canonical):
    assert str(Threat.parse(written)) == canonical


@pytest.mark.parametrize(
    ("text", "grants"),
    [  # the table of the design: answers, architecture, training data, auxiliary data, defense, gradients
        ("evasion/white/linf:0.1", "labels scores architecture train aux defense gradients"),
        ("evasion/gray/linf:0.1", "labels scores architecture train aux"),
        ("evasion/black/linf:0.1", "labels scores"),
        ("evasion/white/linf:0.1,answers=labels", "labels architecture train aux defense gradients"),
        ("evasion/gray/linf:0.1,defense=known", "labels scores architecture train aux defense"),
        ("evasion/gray/linf:0.1,train=0,aux=no", "labels scores architecture"),
        ("evasion/black/linf:0.1,aux=yes", "labels scores aux"),
        ("evasion/black/linf:0.1,answers=labels", "labels"),
        ("membership/black/labels", "labels"),
        ("extraction/black/scores:10", "labels scores"),
    ],
)
def test_a_threat_grants_what_the_table_of_the_design_says(text, grants):
    assert Threat.parse(text).grants == frozenset(grants.split())


@pytest.mark.parametrize(("knowledge", "share"), [("white", 1.0), ("gray", 0.1), ("black", 0.0)])
def test_knowledge_decides_the_share_of_the_training_data(knowledge, share):
    assert Threat.parse(f"poisoning/{knowledge}/backdoor:1%").train == share


def test_the_amount_of_an_extraction_is_its_query_budget():
    threat = Threat.parse("extraction/black/labels:10k")
    assert (threat.queries, threat.answers) == (10_000, "labels")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1 of 3 parts"),
        ("evasion", "1 of 3 parts; write vector/knowledge/goal:amount"),
        ("evasion/white", "2 of 3 parts"),
        ("evasoin/white/linf:0.1", "no vector is called 'evasoin'; did you mean 'evasion'"),
        ("evasion/withe/linf:0.1", "no knowledge is called 'withe'; did you mean 'white'"),
        ("evasion/white/linfty:0.1", "no goal of evasion is called 'linfty'; did you mean 'linf'"),
        ("poisoning/white/linf:0.1", "no goal of poisoning is called 'linf'; known: availability"),
        ("evasion/white/linf", "linf needs a distance of at least 0.* found nothing"),
        ("evasion/white/linf:", "linf needs a distance.* found nothing"),
        ("evasion/white/linf:-0.1", "linf needs a distance.* found '-0.1'"),
        ("evasion/white/linf:nan", "linf needs a distance.* found 'nan'"),
        ("evasion/white/linf:inf", "linf needs a distance.* found 'inf'"),
        ("evasion/white/linf:8/0", "linf needs a distance.* found '8/0'"),
        ("evasion/white/linf:1e300/1e-300", "linf needs a distance"),
        ("evasion/white/linf:8/255/2", "linf needs a distance.* found '8/255/2'"),
        ("evasion/black/corruption:0", "corruption needs a severity of 1, 2, 3, 4 or 5; found '0'"),
        ("evasion/black/corruption:2.5", "corruption needs a severity"),
        ("evasion/black/corruption", "corruption needs a severity .* found nothing"),
        ("poisoning/gray/backdoor:101%", "backdoor needs a share between 0 and 1.* found '101%'"),
        ("poisoning/gray/backdoor:-1%", "backdoor needs a share"),
        ("poisoning/gray/backdoor:nan", "backdoor needs a share"),
        ("extraction/black/scores:1.5", "scores needs a whole number.* found '1.5'"),
        ("extraction/black/scores:-1", "scores needs a whole number"),
        ("extraction/black/scores:nan", "scores needs a whole number"),
        ("extraction/black/scores:1e400", "scores needs a whole number"),
        ("extraction/black/scores:1e999999", "scores needs a whole number"),
        ("extraction/black/scores:k", "scores needs a whole number"),
        ("membership/black/scores:", "membership/scores takes no amount"),
        ("membership/black/scores:5", "membership/scores takes no amount; write it without ':5'"),
        ("membership/black/scores,answers=labels", "the goal already says the answers"),
        ("extraction/black/scores:5,queries=5", "the amount already is the query budget"),
        ("evasion/white/linf:0.1,", "no option is called ''; known: answers"),
        ("evasion/white/linf:0.1,querys=5", "no option is called 'querys'; did you mean 'queries'"),
        ("evasion/white/linf:0.1,queries", "queries needs a whole number.* found nothing"),
        ("evasion/white/linf:0.1,queries=5,queries=6", "queries is given twice"),
        ("evasion/white/linf:0.1,answers=logits", "answers needs scores or labels; found 'logits'"),
        ("evasion/white/linf:0.1,aux=true", "aux needs yes or no; found 'true'"),
        ("evasion/white/linf:0.1,train=2", "train needs a share"),
        ("evasion/white/linf:0.1,defense=maybe", "defense needs known or unknown; found 'maybe'"),
    ],
)
def test_a_malformed_threat_is_answered_in_one_line_that_names_the_wrong_part(text, said):
    with pytest.raises(FirstlineError, match=said) as caught:
        Threat.parse(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=40) | st.text("evasion/whitlf:0.185,=%kqur", max_size=40))
@settings(deadline=None)
def test_any_text_is_a_threat_or_a_firstline_error(text):
    try:
        threat = Threat.parse(text)
    except FirstlineError:
        return
    assert Threat.parse(str(threat)) == threat


def test_only_evasion_threats_have_a_radius():
    assert Threat.parse("evasion/white/linf:8/255").eps == pytest.approx(0.0314, abs=1e-4)
    with pytest.raises(FirstlineError, match="membership/black/scores has no radius"):
        _ = Threat.parse("membership/black/scores").eps


@pytest.mark.parametrize("vector", SECRET)
@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_training_data_is_never_granted_to_who_is_after_it(vector, knowledge):
    goal = next(iter(GOALS[vector]))
    assert "train" not in Threat.parse(f"{vector}/{knowledge}/{goal}").grants
    with pytest.raises(FirstlineError, match="can't be granted"):
        Threat.parse(f"{vector}/{knowledge}/{goal},train=10%")
