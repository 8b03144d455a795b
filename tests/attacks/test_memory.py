"""What an attack holds while the system answers grows with its batch, not with how long it goes on."""

import gc
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import catalog
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.registry import registered
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

TASK = Blobs()
TEST = TASK.load(None).test.rows(torch.arange(64))
EPS = {"linf": 0.03, "l2": 0.3, "l1": 2.0, "l0": 8.0}

assert catalog.discover([]) == {}
LENGTHS = [
    (cls, setting)
    for _, cls in sorted(registered().items())
    if issubclass(cls, Evasion) and "peer" not in cls.tags and set(cls.needs) <= {"gradients", "labels"}
    for setting in ("steps", "restarts")
    if setting in {field.name for field in fields(cls)} and set(cls.goals) & set(EPS)
]


class Watched(System):
    """Notes how many bytes of tensors are alive whenever it is asked."""

    def __init__(self) -> None:
        super().__init__(TASK.best())
        self.most = 0

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        gc.collect()
        alive = {
            thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
            for thing in gc.get_objects()
            if type(thing) is Tensor
        }
        self.most = max(self.most, sum(alive.values()))
        return self._inside().respond(x, rng)


def held(cls: type[Evasion], **settings: int) -> int:
    """Return the most bytes that were alive while the system was asked."""
    goal = next(goal for goal in cls.goals if goal in EPS)
    threat = Threat.parse(f"evasion/white/{goal}:{EPS[goal]}")
    system = Watched()
    target = Target(system, threat, space=TASK.space, classes=2, rng=Streams(0), examples=len(TEST))
    region = Region(TEST.x.clone(), TASK.space, goal, EPS[goal])
    gc.collect()
    gc.freeze()  # what was there before does not count, and is not looked at
    try:
        cls(**settings).perturb(target, TEST.x.clone(), TEST.y.clone(), region, Streams(0))
    finally:
        gc.unfreeze()
    return system.most


@pytest.mark.parametrize(("cls", "setting"), LENGTHS, ids=lambda part: getattr(part, "name", part))
def test_four_times_as_long_takes_no_more_memory(cls, setting):
    others = {"steps": 12} if setting == "restarts" and "steps" in {f.name for f in fields(cls)} else {}
    once, longer = (held(cls, **{**others, setting: count}) for count in (16, 64))
    assert 0 < longer <= 1.1 * once


def test_what_an_attack_hoards_is_seen():
    class Hoarder(Evasion):
        name, goals, needs = "hoarder", ("linf",), ("gradients",)

        def __init__(self, steps: int) -> None:
            self.steps = steps

        def perturb(self, target, x, y, region, rng):
            met = [x]
            for _ in range(self.steps):
                met.append(x + target.slope(met[-1], y).gradient)
            return met[-1]

    assert held(Hoarder, steps=16) > 2 * held(Hoarder, steps=4)
