"""Equation solving: linear models come out as they are, others as far as their answers say."""

import pytest
import torch
from torch import nn

from firstline.attacks.extraction.equation_solving import EquationSolving, solve_linear
from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.tasks.small_tables import SmallTables


def stolen(task, queries, attack=None, wrap=lambda system: system):
    """The victim, untrained, and its copy."""
    victim = initialise(task.default.build, Streams(1))
    threat = Threat.parse(f"extraction/gray/scores:{queries}")
    target = Target(
        wrap(Bare(victim).eval()),
        threat,
        space=task.space,
        classes=task.classes,
        rng=Streams(0),
        build=task.default.build,
    )
    copy = (attack or EquationSolving()).extract(target, None, threat, Streams(0))
    x = task.space.uniform(torch.zeros(0), 500, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return target, torch.softmax(victim(x).double(), 1), torch.softmax(copy(x.double()), 1)


@pytest.mark.parametrize(("data", "queries"), [("breast-cancer", 31), ("iris", 5), ("digits", 65)])
def test_a_softmax_takes_one_query_more_than_it_has_features(data, queries):
    target, theirs, ours = stolen(SmallTables(data=data), queries)
    assert int(target.queries) == queries
    assert (theirs - ours).abs().max() < 1e-4


@pytest.mark.parametrize(("network", "queries"), [("one-versus-rest", 40), ("mlp", 400)])
def test_networks_without_a_closed_form_are_solved_by_descent(network, queries):
    _, theirs, ours = stolen(SmallTables(network=network), queries)
    assert (theirs.argmax(1) == ours.argmax(1)).double().mean() >= 0.99
    assert (theirs - ours).abs().sum(1).mean() / 2 < 0.01


def test_fewer_equations_than_unknowns_leave_a_gap():
    _, theirs, ours = stolen(SmallTables(data="digits"), 20)
    assert (theirs - ours).abs().max() > 0.01


def test_what_is_no_single_layer_is_left_alone():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    before = [p.clone() for p in network.parameters()]
    solve_linear(network, torch.ones(3, 2).double(), torch.ones(3, 2).double())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


class Silent(System):
    """Answers nothing that is a number."""

    def respond(self, x, rng):
        return Response(torch.full((len(x), 3), torch.nan))


def test_without_an_answer_it_says_so():
    with pytest.raises(FirstlineError, match="no query was answered"):
        stolen(SmallTables(), 10, wrap=Silent)
