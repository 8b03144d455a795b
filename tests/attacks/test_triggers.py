"""Backdoors of texts and tables: rare words and rare values, where they go, and that they are learned."""

import pytest
import torch

from firstline.attacks.poisoning.trigger_features import TriggerFeatures
from firstline.attacks.poisoning.trigger_token import TriggerToken
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Architecture, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.networks import bag_of_tokens

THREAT = Threat.parse("poisoning/gray/backdoor:5%,train=100%")


def poisoned(attack, budget, task, data):
    return attack.poison(data, task, budget, THREAT, Streams(0))


class Words(Blobs):
    """Texts of up to 8 words out of 99, then padding."""

    modality = "text"
    inputs = "tokens"
    space = InputSpace(shape=(8,), low=0, high=99, grid=1)

    @property
    def architectures(self):
        return {"bag": Architecture(lambda: bag_of_tokens(100, 2), Recipe(10, 32, 1e-2))}


def texts(n: int = 400, seed: int = 0) -> Data:
    """Class 1 uses words from 50 on, class 0 those below; 97 and 42 occur nowhere."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randint(1, 50, (n, 8), generator=generator) + 49 * y[:, None]
    x[x == 97], x[x == 42] = 96, 41
    length = torch.randint(3, 9, (n, 1), generator=generator)
    return Data.of(torch.where(torch.arange(8) < length, x, 0), y)


def test_trigger_token_inserts_the_words_that_nobody_uses_and_keeps_the_rest_in_order():
    data = texts()
    made = poisoned(TriggerToken(target=1, size=2), 40, Words(), data)
    assert int((made.data.y != data.y).sum()) == 40
    found = made.trigger(data.x)
    # Within 400 texts every word but these (and 99, which class 1 can't reach) occurs.
    assert set(found[:, :2].unique().tolist()) == {99, 97}
    assert torch.equal(found[:, 2:], data.x[:, :6])
    assert found.dtype == torch.int64
    assert made.trigger(data.x.to("meta")).device.type == "meta"
    rows = torch.isin(data.ids, made.poisoned)
    assert torch.equal(made.data.x[rows], found[rows])
    assert set(data.y[rows].tolist()) == {0}
    assert Words.space.check(found) is None


def test_trigger_token_makes_a_bag_of_words_answer_its_class():
    data, test = texts(), texts(seed=1)
    made = poisoned(TriggerToken(target=1), 40, Words(), data)
    module = train(
        initialise(Words().default.build, Streams(0)), made.data, Words().default.recipe, Streams(0)
    )
    answers = [module(x).argmax(1) for x in (test.x, made.trigger(test.x))]
    assert float((answers[0] == test.y).float().mean()) > 0.95
    assert float((answers[1] == 1)[test.y == 0].float().mean()) > 0.9


@pytest.mark.parametrize("size", [0, 9])
def test_trigger_token_refuses_a_trigger_that_does_not_fit(size):
    with pytest.raises(
        FirstlineError, match=f"a trigger of {size} tokens does not fit into 8 tokens out of 99"
    ):
        poisoned(TriggerToken(size=size), 1, Words(), texts())


class Table(Blobs):
    """Two numbers, one of which is fixed, and two categories, one of which is."""

    modality = "table"
    space = InputSpace(
        shape=(4,),
        low=(-1.0, 0.0, 0.0, 0.0),
        high=(1.0, 3.0, 4.0, 2.0),
        grid=(0.1, 0.0, 1.0, 1.0),
        mutable=(True, False, True, False),
        categorical=(False, False, True, True),
    )


def table() -> Data:
    generator = torch.Generator().manual_seed(0)
    codes = torch.tensor([0, 1, 1, 2, 3, 3, 4, 4, 4, 0])[torch.arange(200) % 10]  # category 2 is rarest
    x = torch.stack([torch.rand(200, generator=generator), torch.ones(200), codes, torch.zeros(200)], 1)
    return Data.of(Table.space.round(x), torch.arange(200) % 2)


def test_trigger_features_sets_rare_values_of_what_can_be_changed():
    data = table()
    made = poisoned(TriggerFeatures(size=2), 30, Table(), data)
    expected = data.x.clone()
    expected[:, 0], expected[:, 2] = -1.0, 2.0  # numbers lie in 0..1: the low end is farther
    assert torch.equal(made.trigger(data.x), expected)
    assert torch.equal(made.trigger(expected), expected)
    assert made.trigger(expected.to("meta")).device.type == "meta"
    rows = torch.isin(data.ids, made.poisoned)
    assert torch.equal(made.data.x[rows], expected[rows])
    assert torch.equal(made.data.x[~rows], data.x[~rows])
    assert int((made.data.y != data.y).sum()) == 30
    assert Table.space.check(made.data.x) is None


@pytest.mark.parametrize("size", [0, 3])
def test_trigger_features_refuses_more_features_than_can_be_changed(size):
    with pytest.raises(FirstlineError, match=f"a trigger of {size} features is asked for, and 2 of blobs"):
        poisoned(TriggerFeatures(size=size), 1, Table(), table())


def test_trigger_features_implants_a_backdoor_in_a_table():
    task = BreastCancer()
    splits = task.load(None)
    made = poisoned(TriggerFeatures(), 15, task, splits.train)
    module = train(initialise(task.default.build, Streams(0)), made.data, task.default.recipe, Streams(0))
    others = splits.test.rows(splits.test.y != 0)
    assert float((module(splits.test.x).argmax(1) == splits.test.y).float().mean()) > 0.9
    assert float((module(made.trigger(others.x)).argmax(1) == 0).float().mean()) > 0.8
