"""Named streams, and the global generators that nobody touches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstline.benchmark.core.rng import Streams, isolated


def numbers(streams: Streams, *names: str) -> torch.Tensor:
    return torch.rand(8, generator=streams.torch(*names))


def test_the_same_seed_and_names_give_the_same_numbers():
    assert torch.equal(numbers(Streams(3), "a", "b"), numbers(Streams(3), "a", "b"))
    assert (Streams(3).numpy("a").random(8) == Streams(3).numpy("a").random(8)).all()


def test_the_numbers_of_a_stream_are_the_same_on_every_machine():
    assert Streams(0).child("digits").integer("draw", "test") == 5316527502146916035
    assert Streams(0).numpy("a").integers(1000, size=3).tolist() == [237, 177, 55]


def test_a_child_is_the_same_as_its_path():
    assert Streams(3).child("a").child("b").integer("c") == Streams(3).integer("a", "b", "c")


@given(
    st.lists(st.tuples(st.integers(0, 99), st.lists(st.text("abc", min_size=1), max_size=3)), unique_by=repr)
)
@settings(deadline=None)
def test_different_seeds_or_names_give_different_streams(paths):
    drawn = [Streams(seed).integer(*names) for seed, names in paths]
    assert len(set(drawn)) == len(paths)
    assert all(0 <= number < 2**63 for number in drawn)


def test_streams_of_different_names_do_not_correlate():
    a, b = (torch.randn(20_000, generator=Streams(0).torch(name)) for name in ("a", "b"))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03


def test_the_order_of_asking_changes_nothing():
    streams = Streams(5)
    alone = numbers(Streams(5), "late")
    numbers(streams, "early")
    streams.numpy("early").random(100)
    assert torch.equal(numbers(streams, "late"), alone)


def test_asking_for_streams_leaves_the_global_generators_alone():
    mine, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    numbers(Streams(0), "a")
    Streams(0).numpy("a").random(3)
    assert torch.equal(torch.get_rng_state(), mine)
    assert (np.random.get_state()[1] == numpys).all()  # noqa: NPY002


def test_isolated_code_draws_from_its_seed_and_the_global_state_comes_back():
    before = torch.get_rng_state()
    with isolated(7):
        first = torch.rand(4)
    with isolated(7):
        second = torch.rand(4)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_state_comes_back_after_an_error_too():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), isolated(7):
        _ = torch.rand(4) / (1 // 0)
    assert torch.equal(torch.get_rng_state(), before)
