"""SELENA: who answers for a row, and what the last network learns."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import train
from firstline.defenses.selena import Selena, blind_models

TASK = Blobs(train=48, test=64)
ROWS = TASK.load(None).train
CTX = Context(TASK, Streams(0), torch.device("cpu"))


def test_as_many_models_as_asked_are_blind_to_each_row():
    blind = blind_models(2000, 25, 10, torch.Generator().manual_seed(0))
    assert (blind.sum(1) == 10).all()
    assert blind.float().mean(0) == pytest.approx(0.4, abs=0.05)  # and no model is favoured


class Says(nn.Module):
    """Gives the first class this probability, and remembers what it was asked."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.logits = torch.tensor([share, 1 - share]).log()
        self.asked = []

    def forward(self, x):
        self.asked.append(x)
        return self.logits.expand(len(x), 2)


@dataclass(frozen=True)
class Watched(Selena):
    """Selena with models that say what they are told, and a list of them with the rows that each saw."""

    def part(self, seen, ctx, number):
        network = Says((number + 1) / (self.models + 2))
        PARTS.append((seen.ids, network))
        return network


PARTS: list[tuple[torch.Tensor, Says]] = []


def test_a_target_is_the_mean_of_the_models_that_did_not_see_the_row():
    PARTS.clear()
    targets = Watched(models=7, blind=3).targets(ROWS, CTX)
    shares = torch.tensor([(number + 1) / 9 for number in range(7)])
    saw = torch.stack([torch.isin(ROWS.ids, ids) for ids, _ in PARTS], 1)
    for row in range(len(ROWS)):
        assert targets[row, 0] == pytest.approx(float(shares[~saw[row]].mean()), rel=1e-5)
    for (_, network), seen in zip(PARTS, saw.T, strict=True):
        assert torch.equal(torch.cat(network.asked), ROWS.x[~seen])


def test_no_label_of_a_row_counts_for_its_own_target():
    defense = Selena(models=4, blind=2)
    row = 5
    flipped = ROWS.y.clone()
    flipped[row] = 1 - flipped[row]
    before, after = (defense.targets(replace(ROWS, y=y), CTX) for y in (ROWS.y, flipped))
    assert torch.equal(before[row], after[row])
    assert not torch.equal(before, after)  # it counts for others


@dataclass(frozen=True)
class Told(Selena):
    """Selena whose targets are the labels."""

    def targets(self, data: Data, ctx: Context) -> torch.Tensor:
        return nn.functional.one_hot(data.y, 2).float()


def test_the_last_network_learns_the_targets_of_its_rows():
    plain, distilled = (initialise(TASK.default.build, Streams(0)) for _ in range(2))
    train(plain, ROWS, TASK.default.recipe, CTX.rng)
    Told().train(distilled, ROWS, CTX)
    for one, other in zip(plain.parameters(), distilled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("defense", [Selena(blind=0), Selena(models=10, blind=10)])
def test_settings_that_mean_nothing_are_named(defense):
    with pytest.raises(FirstlineError, match="blind must be at least 1"):
        defense.targets(ROWS, CTX)
