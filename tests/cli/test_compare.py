"""Two defenses on records made by hand, against SciPy's own test."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from firstline.benchmark.core.record import Cost
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run.keys import Cell, Use
from firstline.benchmark.run.recording import Job, make_record
from firstline.benchmark.run.store import Store

N = 200
LINF, L2 = "evasion/white/linf:0.1", "evasion/white/l2:0.5"


def use(name):
    return Use(name, name, 1, {}, f"code of {name}")


@pytest.fixture
def put(tmp_path):
    """Return a function that stores the record of a cell in which these examples held."""
    store = Store(tmp_path)

    def add(defense, attack, held, *, threat=LINF, seed=0, ids=None, code="", ended="2026-01-01T00:00:00Z"):
        ids = np.arange(len(held)) if ids is None else ids
        layer = replace(use(defense), code=f"code of {defense} {code}")
        cell = Cell("s@1", use("dots"), "f", (layer,), use(attack), Threat.parse(threat), seed, N, "cpu")
        record = make_record(cell, Job(Path(), None), "2026-01-01T00:00:00Z", Cost())
        record = record.model_copy(
            update={"provenance": record.provenance.model_copy(update={"ended": ended})}
        )
        label = np.ones(len(held), np.int64)
        arrays = {
            "ids": ids,
            "label": label,
            "clean_answer": label,
            "adversarial_answer": np.where(held, 1, 0),
        }
        return store.write(record, arrays)

    return add


@pytest.fixture
def compare(cli, tmp_path):
    return lambda *names: json.loads(cli("compare", *names, "--results", tmp_path, "--json").out)


def drawn(seed, share):
    return np.random.default_rng(seed).random(N) < share


def exact(a, b):
    """McNemar's exact test: of the examples on which two defenses differ, does each win half?"""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0


@pytest.mark.parametrize("seed", range(4))
def test_p_is_that_of_mcnemars_exact_test(put, compare, seed):
    a, b = drawn(seed, 0.6), drawn(seed + 100, 0.5 + 0.03 * seed)
    put("old", "pgd", a)
    put("new", "pgd", b)
    (row,) = compare("old", "new")
    assert row["p"] == pytest.approx(exact(a, b), rel=1e-9)
    assert (row["old"], row["new"]) == pytest.approx((a.mean(), b.mean()))
    assert (row["only_first"], row["only_second"]) == ((a & ~b).sum(), (b & ~a).sum())
    assert row["n"] == N
    (turned,) = compare("new", "old")
    assert turned["p"] == pytest.approx(row["p"])


def test_several_threats_are_corrected_by_holm(put, compare):
    pairs = {LINF: (drawn(1, 0.6), drawn(2, 0.45)), L2: (drawn(3, 0.5), drawn(4, 0.52))}
    for threat, (a, b) in pairs.items():
        put("old", "pgd", a, threat=threat)
        put("new", "pgd", b, threat=threat)
    raw = {threat: exact(a, b) for threat, (a, b) in pairs.items()}
    low, high = sorted(raw, key=raw.get)
    wanted = {low: min(1, 2 * raw[low])}
    wanted[high] = min(1, max(wanted[low], raw[high]))
    assert {row["threat"]: row["p"] for row in compare("old", "new")} == pytest.approx(wanted)


def test_the_worst_attack_counts_example_by_example(put, compare):
    first, second, other = drawn(1, 0.8), drawn(2, 0.8), drawn(3, 0.6)
    put("old", "pgd", first)
    put("old", "fgsm", second)
    put("new", "pgd", other)
    (row,) = compare("old", "new")
    assert row["old"] == pytest.approx((first & second).mean())
    assert row["p"] == pytest.approx(exact(first & second, other))


def test_seeds_are_paired_with_themselves_and_joined(put, compare):
    a, b = [drawn(1, 0.6), drawn(2, 0.6)], [drawn(3, 0.5), drawn(4, 0.5)]
    for seed in (0, 1):
        put("old", "pgd", a[seed], seed=seed)
        put("new", "pgd", b[seed], seed=seed)
    put("old", "pgd", drawn(5, 0.1), seed=2)  # without a partner
    (row,) = compare("old", "new")
    assert row["n"] == 2 * N
    assert row["p"] == pytest.approx(exact(np.concatenate(a), np.concatenate(b)))


def test_only_examples_that_both_met_are_compared(put, compare):
    a, b = drawn(1, 0.6), drawn(2, 0.5)
    put("old", "pgd", a[:150], ids=np.arange(150))
    put("new", "pgd", b[50:], ids=np.arange(50, 200))
    (row,) = compare("old", "new")
    assert row["n"] == 100
    assert row["p"] == pytest.approx(exact(a[50:150], b[50:150]))


def test_of_two_records_for_one_place_the_newer_counts(put, compare):
    a, b = drawn(1, 0.6), drawn(2, 0.5)
    put("old", "pgd", drawn(3, 0.9), code="before an edit", ended="2026-01-01T00:00:00Z")
    put("old", "pgd", a, code="now", ended="2026-01-01T00:00:02Z")
    put("old", "pgd", drawn(4, 0.1), code="long before", ended="2026-01-01T00:00:01Z")
    put("new", "pgd", b)
    (row,) = compare("old", "new")
    assert row["old"] == pytest.approx(a.mean())
    assert row["p"] == pytest.approx(exact(a, b))


def test_a_threat_that_one_never_met_is_no_line(put, compare):
    put("old", "pgd", drawn(1, 0.5), threat=L2)
    put("old", "pgd", drawn(1, 0.5))
    put("new", "pgd", drawn(2, 0.5))
    assert [row["threat"] for row in compare("old", "new")] == [LINF]


def test_the_table_says_what_the_numbers_do(put, compare, cli, tmp_path):
    put("old", "pgd", drawn(1, 0.9))
    put("new", "pgd", drawn(2, 0.2))
    (row,) = compare("old", "new")
    ran = cli("compare", "old", "new", "--results", tmp_path)
    line = ran.out.splitlines()[-1]
    assert line.split()[:6] == [
        f"{row['old']:.1%}", f"{row['new']:.1%}", str(row["only_first"]), str(row["only_second"]), f"{row['p']:.2g}", "200",
    ]  # fmt: skip
    assert line.endswith(f"dots · {LINF}")
