"""Adversarial regularisation, against plain training, and against an adversary that is known."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context, Defense, initialise
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import train
from firstline.defenses import adversarial_regularisation
from firstline.defenses.adversarial_regularisation import AdversarialRegularisation, Adversary

TASK = Blobs(train=96, test=64)
ROWS = TASK.load(None).train
CTX = Context(TASK, Streams(0), torch.device("cpu"))


def normalised() -> nn.Module:
    """A network whose answers depend on dropout and on running statistics."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)
    )


def state(module: nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(one, other) for one, other in zip(state(first), state(second), strict=True))


@pytest.mark.parametrize("build", [TASK.default.build, normalised])
def test_without_weight_it_is_plain_training_on_what_is_not_held_out(build):
    defense = AdversarialRegularisation(alpha=0.0)
    members, _ = defense.parts(ROWS, CTX)
    plain, mine, weighed = (initialise(build, Streams(0)) for _ in range(3))
    train(plain, members, TASK.default.recipe, CTX.rng)
    assert same(defense.train(mine, ROWS, CTX), plain)
    assert not same(AdversarialRegularisation().train(weighed, ROWS, CTX), plain)


def test_the_parts_are_all_rows_and_share_none():
    members, others = AdversarialRegularisation(held_out=0.25).parts(ROWS, CTX)
    assert (len(members), len(others)) == (72, 24)
    assert torch.equal(torch.cat([members.ids, others.ids]).sort().values, ROWS.ids)


class Fixed(Adversary):
    """Says that a row is a member by the probability of class 0 alone, and can't learn otherwise."""

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 4 * logits.softmax(1)[:, 0] - 2 + 0 * sum(p.sum() for p in self.parameters())


def test_the_loss_is_the_cross_entropy_and_the_weighted_gain(monkeypatch):
    seen = {}
    monkeypatch.setattr(adversarial_regularisation, "Adversary", Fixed)
    monkeypatch.setattr(adversarial_regularisation, "train", lambda *given, **named: seen.update(named))
    AdversarialRegularisation(alpha=3.0).train(nn.Identity(), ROWS, CTX)
    module = initialise(TASK.default.build, Streams(1))
    x, y = ROWS.x[:8], ROWS.y[:8]
    logits = module(x)
    gain = torch.sigmoid(4 * logits.softmax(1)[:, 0] - 2).mean()
    torch.testing.assert_close(seen["loss"](module, x, y), cross_entropy(logits, y) + 3 * gain)


def test_the_adversary_learns_to_tell_members_that_are_answered_otherwise(monkeypatch):
    made: list[Adversary] = []

    class Kept(Adversary):
        def __init__(self, classes: int) -> None:
            super().__init__(classes)
            made.append(self)

    seen = {}
    monkeypatch.setattr(adversarial_regularisation, "Adversary", Kept)
    monkeypatch.setattr(adversarial_regularisation, "train", lambda *given, **named: seen.update(named))
    defense = AdversarialRegularisation()
    defense.train(nn.Identity(), ROWS, CTX)
    members, others = defense.parts(ROWS, CTX)

    class Leaks(nn.Module):
        """Sure of its members, in doubt of all other rows."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            known = (x[:, None] == members.x[None]).flatten(2).all(2).any(1)
            return torch.where(known[:, None], 5.0, 0.5) * torch.tensor([1.0, -1.0])

    for _ in range(200):
        seen["loss"](Leaks(), members.x, members.y)
    with torch.no_grad():
        inside = made[0](Leaks()(members.x), members.y).sigmoid()
        outside = made[0](Leaks()(others.x), others.y).sigmoid()
    assert inside.min() > 0.9
    assert outside.max() < 0.1


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (AdversarialRegularisation(alpha=-1.0), "alpha must be"),
        (AdversarialRegularisation(held_out=1.0), "held_out a share"),
        (AdversarialRegularisation(held_out=0.001), "0 of 96 rows would be held out"),
        (AdversarialRegularisation(share=2.0), "share is a share"),
    ],
)
def test_settings_that_mean_nothing_are_named(defense: Defense, message: str):
    with pytest.raises(FirstlineError, match=message):
        defense.train(initialise(TASK.default.build, Streams(0)), ROWS, CTX)
