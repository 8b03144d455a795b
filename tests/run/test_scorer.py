"""Blind scoring: what arrives in the scoring process, what comes back, and what happens when it fails."""

import gc
import os
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.errors import SystemFailed
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.run import scorer as module
from firstline.benchmark.run.keys import Use
from firstline.benchmark.run.matrix import use
from firstline.benchmark.run.scorer import BlindScorer, Blueprint, Nursery, answers, scoring

CLASSES, WIDTH, SEED = 2, 30, Streams(7)


@pytest.fixture(scope="module")
def task(catalogue):
    return use(catalogue.get("task", "breast-cancer"), Ref("breast-cancer"))


@pytest.fixture
def nursery(registering):
    """A nursery that is started, like a worker's, before there is any data. Ask for it last."""
    made = []

    def start():
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # newer Pythons warn of a fork beside threads, which pytest may have
            made.append(Nursery())
        return made[0]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def served(task, nursery, registering):
    """Return a function that serves a system: the answer of `respond`, given the inner one's."""
    held = []

    def serve(respond, **changes):
        class Odd(System):
            def respond(self, x, rng):
                return respond(self._inside(), x, rng)

        @defense("odd")
        @dataclass(frozen=True)
        class OddDefense(Defense):
            def deploy(self, system, task):
                return Odd(system)

        blueprint = Blueprint(task, (Use("odd", "odd", 1, {}, ""),), "cpu")
        state = blueprint.items()[1].skeleton(blueprint.items()[0]).state_dict()
        held.append(BlindScorer(nursery(), blueprint, {**state, **changes}))
        return held[-1]

    yield serve
    for one in held:
        one.close()


def plain(inside, x, rng):
    return inside.respond(x, rng)


def inputs(n=300, seed=0):
    """Return different inputs, more than one batch of them."""
    return torch.rand(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def told(scorer, x=None):
    with pytest.raises(SystemFailed) as caught:
        scorer.score(inputs() if x is None else x, CLASSES, SEED)
    return str(caught.value)


def gone(pid):
    """Whether a process ends within two seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("stack", [["none"], ["input-noise"], ["none", "input-noise"]], ids="+".join)
def test_blind_answers_are_those_given_here(task, catalogue, nursery, stack):
    layers = tuple(use(catalogue.get("defense", name), Ref(name)) for name in stack)
    blueprint = Blueprint(task, layers, "cpu")
    made, defenses = blueprint.items()
    system, x = defenses.skeleton(made).eval().requires_grad_(False), inputs()
    logits = system.respond(x, SEED.torch()).logits
    list(system.parameters())[-1][1] += (logits[:, 0] - logits[:, 1]).median()  # both classes are answered
    with scoring(nursery(), blueprint, system.state_dict()) as scorer:
        blind = scorer.score(x, CLASSES, SEED)
        again = scorer.score(x, CLASSES, SEED)
    here = answers(system, x, CLASSES, SEED, "cpu")
    assert torch.equal(blind, here)
    assert torch.equal(again, here)
    assert len(set(blind.tolist())) == 2, "all answers are one class: nothing is tested"


def test_answers_belong_to_their_inputs_though_asked_in_another_order(served):
    def first_feature(inside, x, rng):
        return Response(torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1))

    x = inputs()
    assert torch.equal(served(first_feature).score(x, CLASSES, SEED), (x[:, 0] > 0.5).long())


def test_only_shuffled_inputs_arrive(served, tmp_path):
    def spy(inside, x, rng):
        n = len(list(tmp_path.iterdir()))
        np.save(tmp_path / f"{n}.npy", x.numpy())
        return inside.respond(x, rng)

    x = inputs()
    served(spy).score(x, CLASSES, SEED)
    seen = np.concatenate([np.load(tmp_path / f"{n}.npy") for n in range(len(list(tmp_path.iterdir())))])
    assert seen.shape == (300, WIDTH)
    order = [int(np.flatnonzero((x.numpy() == row).all(1))[0]) for row in seen]
    assert sorted(order) == list(range(300))
    assert abs(np.corrcoef(order, range(300))[0, 1]) < 0.5
    assert sum(at == place for place, at in enumerate(order)) < 30


def frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


@pytest.mark.parametrize(
    "known_before", [False, True], ids=["as in a run", "to see that the search finds them"]
)
def test_labels_are_nowhere_in_the_scoring_process(served, tmp_path, known_before):
    """A system searches its whole process for them. A worker forks its nursery before it reads any data."""

    def search(inside, batch, rng):
        values = [value for frame in frames() for value in frame.f_locals.values()] + gc.get_objects()
        tensors = [v for v in values if issubclass(type(v), torch.Tensor | np.ndarray) and v.shape == (64,)]
        torch.save((batch, [torch.as_tensor(v) for v in tensors]), tmp_path / "found")
        return inside.respond(batch, rng)

    def make_labels():
        return torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(1))

    x = inputs(64)
    y = make_labels() if known_before else None
    scorer = served(search)
    y = make_labels() if y is None else y
    scorer.score(x, CLASSES, SEED)
    batch, found = torch.load(tmp_path / "found")
    in_the_order_of_arrival = y[(batch[:, None] == x[None]).all(2).int().argmax(1)]
    leaked = any(torch.equal(v, y) or torch.equal(v, in_the_order_of_arrival) for v in found)
    assert found, "not even the order of the questions was found"
    assert leaked is known_before


def test_the_randomness_of_a_system_comes_from_the_request_alone(served):
    def coin(inside, x, rng):
        return Response(torch.rand(len(x), CLASSES, generator=rng))

    scorer, x = served(coin), inputs()
    found = [scorer.score(x, CLASSES, seed).tolist() for seed in (SEED, SEED, Streams(8))]
    assert found[0] == found[1]
    assert found[0] != found[2]


def boom(inside, x, rng):
    raise ValueError("boom")


def wrong_shape(inside, x, rng):
    return Response(torch.zeros(len(x), CLASSES + 1))


def bare_tensor(inside, x, rng):
    return torch.zeros(len(x), CLASSES)


def leave(inside, x, rng):
    sys.exit(0)


def die(inside, x, rng):
    os._exit(0)


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        (boom, "the system raised ValueError: boom"),
        (wrong_shape, "logits of shape (256, 3); it must be (256, 2)"),
        (bare_tensor, "respond must return a Response"),
        (leave, "the system raised SystemExit: 0"),
        (die, "the system ended its process while it was scored"),
    ],
)
def test_a_system_that_fails_is_told_and_gets_a_fresh_process(served, respond, words):
    """Each failure costs one cell: what is scored next does not depend on it."""

    def once_in_a_while(inside, x, rng):
        return respond(inside, x, rng) if float(x.max()) > 1 else plain(inside, x, rng)

    scorer, bad, good = served(once_in_a_while), inputs() + 1, inputs()
    before = scorer.score(good, CLASSES, SEED)
    assert words in told(scorer, bad)
    assert torch.equal(scorer.score(good, CLASSES, SEED), before)
    assert words in told(scorer, bad)


def test_nothing_learnt_before_a_failure_is_left_after_it(served):
    seen = []

    def count(inside, x, rng):
        seen.append(1)
        if len(seen) > 2:
            raise ValueError(f"asked {len(seen)} times")
        return plain(inside, x, rng)

    scorer, x = served(count), inputs(8)
    for _ in range(2):
        scorer.score(x, CLASSES, SEED)
        scorer.score(x, CLASSES, SEED)
        assert "asked 3 times" in told(scorer, x)
    assert seen == []


def test_a_system_that_hangs_is_ended_at_the_deadline(served, monkeypatch):
    def hang(inside, x, rng):
        while float(x.max()) > 1:
            pass
        return plain(inside, x, rng)

    scorer = served(hang)
    before = scorer.score(inputs(8), CLASSES, SEED)
    pid = scorer._pid
    monkeypatch.setattr(module, "DEADLINE", 0.3)
    assert "did not answer within 0 s" in told(scorer, inputs(8) + 1)
    assert gone(pid)
    monkeypatch.setattr(module, "DEADLINE", 60.0)
    assert torch.equal(scorer.score(inputs(8), CLASSES, SEED), before)


def test_a_system_that_hangs_while_it_is_rebuilt_is_ended_too(task, nursery, monkeypatch):
    @defense("slow")
    @dataclass(frozen=True)
    class Slow(Defense):
        def deploy(self, system, task):
            time.sleep(3600)

    monkeypatch.setattr(module, "DEADLINE", 0.3)
    blueprint = Blueprint(task, (Use("slow", "slow", 1, {}, ""),), "cpu")
    with scoring(nursery(), blueprint, {}) as scorer:
        pid = scorer._pid
        assert "did not answer" in told(scorer)
    assert gone(pid)


def test_tensors_that_do_not_fit_are_told(served):
    assert "the stored tensors don't fit what build and deploy make" in told(
        served(plain, extra=torch.ones(1))
    )


class Touch:
    """What a pickle may hold: code that runs when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_the_scoring_process_sends_is_never_unpickled(served, tmp_path):
    def lie(inside, x, rng):
        door = next(f.f_locals["door"] for f in frames() if f.f_code.co_name == "serve")
        door.send(Touch(tmp_path / "touched"))
        return plain(inside, x, rng)

    told(served(lie))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("count", [0, 299, 301])
def test_another_number_of_answers_than_of_inputs_is_a_failure(served, count):
    def lie(inside, x, rng):
        door = next(f.f_locals["door"] for f in frames() if f.f_code.co_name == "serve")
        door.send_bytes(module.OK + bytes(8 * count))
        return plain(inside, x, rng)

    assert f"returned {count} answers to 300 inputs" in told(served(lie))


def test_scoring_processes_end_with_their_scorer_and_the_nursery_with_its_own(task, nursery):
    one = nursery()
    blueprint = Blueprint(task, (Use("none", "none", 1, {}, ""),), "cpu")
    made, stack = blueprint.items()
    with scoring(one, blueprint, stack.skeleton(made).state_dict()) as scorer:
        scorer.score(inputs(8), CLASSES, SEED)
        pid = scorer._pid
        os.kill(pid, 0)
    assert gone(pid)
    one.close()
    assert gone(one._pid)
