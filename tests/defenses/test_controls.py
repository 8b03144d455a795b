"""Controls that are told the poison: what they leave out, and that nobody else is told."""

from dataclasses import dataclass, field

import pytest
import torch

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import NOBODY, Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.defenses.perfect_filter import PerfectFilter
from firstline.defenses.random_filter import RandomFilter

CPU = torch.device("cpu")
TASK = Blobs(train=64, test=8)
DATA = TASK.load(None).train
POISONED = DATA.ids[3::8]


@dataclass(frozen=True)
class Listener(Defense):
    """Writes down which rows it is told are poisoned."""

    name = "listener"

    heard: list[int] = field(default_factory=list)

    def collect(self, data: Data, ctx: Context) -> Data:
        self.heard.extend(ctx.poisoned.tolist())
        return data


@dataclass(frozen=True)
class Control(Listener):
    tags = frozenset({"control"})


def kept(defense: Defense, poisoned: torch.Tensor, seed: int = 0) -> list[int]:
    return Stack((defense,)).fit(TASK, DATA, Streams(seed), CPU, poisoned).kept.tolist()


def test_a_perfect_filter_keeps_what_is_not_poisoned_and_all_of_that():
    assert kept(PerfectFilter(), POISONED) == DATA.ids[~torch.isin(DATA.ids, POISONED)].tolist()


def test_a_random_filter_leaves_out_as_many_rows_whichever_they_are():
    draws = [kept(RandomFilter(), POISONED, seed) for seed in range(20)]
    assert {len(draw) for draw in draws} == {len(DATA) - len(POISONED)}
    assert all(draw == sorted(set(draw)) for draw in draws)
    lost = [sum(number not in draw for draw in draws) for number in DATA.ids.tolist()]
    assert max(lost) < 10  # of 20 draws of 1 in 8: no row is preferred
    assert draws[0] == kept(RandomFilter(), POISONED, 0)


@pytest.mark.parametrize("control", [PerfectFilter(), RandomFilter()], ids=str)
def test_without_poison_a_filter_leaves_everything(control):
    assert kept(control, NOBODY) == DATA.ids.tolist()


def test_controls_are_told_and_nobody_else():
    honest, control = Listener(), Control()
    Stack((honest, control)).fit(TASK, DATA, Streams(0), CPU, POISONED)
    assert honest.heard == []
    assert control.heard == POISONED.tolist()
