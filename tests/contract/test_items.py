"""Everything that is registered keeps the contract: every item, every check, no list to forget."""

from dataclasses import dataclass

import pytest
import torch

from firstline.benchmark.contract import attacks, defenses, tasks  # noqa: F401 - the last two for their checks
from firstline.benchmark.contract.checks import _checks
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import catalog
from firstline.benchmark.core.contracts import Evasion, Membership
from firstline.benchmark.core.corruptions import region_of
from firstline.benchmark.core.errors import DataProblem, FirstlineError
from firstline.benchmark.core.registry import registered
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import GOALS, Threat

assert catalog.discover([]) == {}
ITEMS = dict(sorted(registered().items()))
CASES = [
    pytest.param(cls, check, id=f"{kind} {name}: {title}")
    for (kind, name), cls in ITEMS.items()
    for applies, title, check in _checks
    if issubclass(cls, applies)
]


@pytest.mark.parametrize(("cls", "check"), CASES)
def test_an_item_keeps_the_contract(cls, check):
    try:
        item = cls()
    except FirstlineError as absent:  # an adapter of a library that is not installed
        pytest.skip(str(absent))
    try:
        check(item, None)
    except DataProblem as absent:
        pytest.skip(str(absent))


@dataclass(frozen=True)
class Narrow(Threat):
    """Grants what an attack declares, and nothing else."""

    granted: frozenset[str] = frozenset()

    @property
    def grants(self) -> frozenset[str]:
        return self.granted


@pytest.mark.parametrize(
    ("cls", "goal"),
    [
        pytest.param(cls, goal, id=f"{name} {goal}")
        for (_, name), cls in ITEMS.items()
        if issubclass(cls, Evasion | Membership)
        for goal in cls.goals
    ],
)
def test_an_attack_reaches_for_nothing_but_what_it_declares(cls, goal):
    try:
        cls()
    except FirstlineError as absent:
        pytest.skip(str(absent))
    amount = {"linf": 0.03, "l2": 0.3, "l1": 2.0, "l0": 4.0, "cost": 2.0, "corruption": 5.0}.get(goal)
    assert (amount is None) == (GOALS[cls.vector][goal] is None)
    threat = Narrow(cls.vector, "white", goal, amount, granted=frozenset(cls.needs))
    task = Blobs()
    splits, system = task.load(None), task.best()
    target = Target(
        system,
        threat,
        space=task.space,
        classes=2,
        rng=Streams(0),
        examples=16,
        build=task.default.build,
        train=splits.train,
        aux=splits.aux,
    )
    some = splits.test.rows(torch.arange(16))
    if issubclass(cls, Evasion):
        region = region_of(threat, some.x, task.space, Streams(0))
        cls().perturb(target, some.x, some.y, region, Streams(0))
    else:
        known = None
        if "architecture" in cls.needs:
            known = attacks.known_shadows(attacks.shadow_systems(some)[1:], some, splits.aux)
        cls().score(target, some, known, threat, Streams(0))


def test_there_are_items_of_every_kind():
    assert {kind for kind, _ in ITEMS} == {"attack", "defense", "task"}
    assert len(CASES) > 3 * len(ITEMS)
