"""Training that shall leave less of single rows in a network, against closed forms and against plain training."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Architecture, Context, Defense, Task, initialise
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.training import Recipe, train
from firstline.defenses.dropout import Dropout
from firstline.defenses.early_stopping import EarlyStopping
from firstline.defenses.none import NoDefense
from firstline.defenses.weight_decay import WeightDecay

CPU = torch.device("cpu")


class Steps(Blobs):
    """The two clouds, with a recipe of plain gradient descent."""

    recipe = Recipe(epochs=10, batch=24, rate=0.1, momentum=0.9)

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        return {"mlp": Architecture(super().architectures["mlp"].build, self.recipe)}


class OneStep(Steps):
    """One step on all rows at once."""

    recipe = Recipe(epochs=1, batch=96, rate=0.1, momentum=0.9)


TASK = Steps(train=96, test=64)
ROWS = TASK.load(None).train


def fresh(task: Task = TASK) -> nn.Module:
    return initialise(task.default.build, Streams(0))


def fit(defense: Defense, task: Task = TASK) -> nn.Module:
    rng = Streams(0)
    module = initialise(lambda: defense.build(task), rng)
    return defense.train(module, ROWS, Context(task, rng.child("train"), CPU))


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(("share", "epochs"), [(0.1, 1), (0.04, 1), (0.3, 3), (1.0, 10)])
def test_early_stopping_is_what_plain_training_had_after_so_many_epochs(share, epochs):
    seen: list[list[torch.Tensor]] = []
    train(
        fresh(),
        ROWS,
        TASK.recipe,
        Streams(0).child("train"),
        watch=lambda module, steps, rows: seen.append(weights(module)),
    )
    assert same(weights(fit(EarlyStopping(share=share))), seen[epochs - 1])
    assert not same(seen[0], seen[2])


def test_weight_decay_takes_its_share_of_each_weight_in_a_step():
    task = OneStep()
    before, plain, decayed = fresh(task), fit(NoDefense(), task), fit(WeightDecay(decay=0.2), task)
    for was, one, other in zip(weights(before), weights(plain), weights(decayed), strict=True):
        torch.testing.assert_close(one - other, 0.1 * 0.2 * was, rtol=1e-4, atol=1e-7)
    assert same(weights(fit(WeightDecay(decay=0.0), task)), weights(plain))


def test_dropout_starts_from_the_same_weights_and_changes_no_answer():
    plain, dropping = fresh(), initialise(lambda: Dropout().build(TASK), Streams(0))
    assert same(weights(plain), weights(dropping))
    assert torch.equal(plain.eval()(ROWS.x), dropping.eval()(ROWS.x))


def test_dropout_in_training_silences_units_and_keeps_the_mean_of_the_logits():
    dropping = initialise(lambda: Dropout(rate=0.25).build(TASK), Streams(0)).train()
    inputs: list[torch.Tensor] = []
    layers = [layer for layer in dropping.modules() if isinstance(layer, nn.Linear)]
    layers[-1].register_forward_pre_hook(lambda layer, given: inputs.append(given[0].detach()))
    one = ROWS.x[:1]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        drawn = dropping(one.expand(20_000, *one.shape[1:]))
        usual = dropping.eval()(one)
    active = inputs[1][0] > 0  # in evaluation
    assert active.any()
    silent = (inputs[0][:, active] == 0).float().mean(0)
    assert silent == pytest.approx(0.25, abs=0.02)
    assert drawn.mean(0) == pytest.approx(usual[0], abs=0.02)


def test_dropout_fits_a_network_that_is_one_linear_layer_and_none_without():
    class Flat(Steps):
        @property
        def architectures(self) -> Mapping[str, Architecture]:
            return {"linear": Architecture(lambda: nn.Linear(64, 2), self.recipe)}

    class Bare(Steps):
        @property
        def architectures(self) -> Mapping[str, Architecture]:
            return {"flat": Architecture(nn.Flatten, self.recipe)}

    assert [type(layer) for layer in Dropout().build(Flat()).children()] == [nn.Dropout, nn.Linear]
    with pytest.raises(FirstlineError, match="needs an nn"):
        Dropout().build(Bare())


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (EarlyStopping(share=0.0), "share is a share of the epochs"),
        (EarlyStopping(share=1.1), "share is a share of the epochs"),
        (WeightDecay(decay=-1e-3), "decay must be at least 0"),
        (Dropout(rate=1.0), "rate is a probability"),
    ],
)
def test_settings_that_mean_nothing_are_named(defense, message):
    with pytest.raises(FirstlineError, match=message):
        Stack((defense,)).fit(TASK, ROWS, Streams(0), CPU)
