"""The random search after an ascent: where slopes are lost it gets on, and it never loses what the ascent found."""

import torch
from torch import Tensor

from firstline.attacks.evasion.apgd_wide import APGDWide
from firstline.attacks.evasion.wide_search import WideSearch
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

TASK = Blobs(train=8, test=64)
EPS = 0.05


class Masked(System):
    """The best classifier, whose slope points nowhere."""

    def __init__(self) -> None:
        super().__init__(TASK.best())

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(self._inside().respond(x.detach(), rng).logits + 0 * x.flatten(1).sum(1)[:, None])


def broken(attack: Evasion, system: System) -> Tensor:
    data = TASK.load(None).test
    threat = Threat.parse(f"evasion/white/linf:{EPS}")
    target = Target(system, threat, space=TASK.space, classes=2, rng=Streams(0), examples=len(data))
    region = Region(data.x.clone(), TASK.space, "linf", EPS)
    found = attack.perturb(target, data.x.clone(), data.y.clone(), region, Streams(1))
    assert region.violation(found) is None
    return system.respond(found, torch.Generator()).labels != data.y


def test_it_gets_on_where_the_ascent_has_no_slope():
    climbed, searched = (
        broken(attack, Masked())
        for attack in (APGDWide(restarts=2, loss="ce"), WideSearch(restarts=2, queries=300))
    )
    assert int(searched.sum()) > int(climbed.sum())
    assert not bool((climbed & ~searched).any())


def test_it_breaks_all_that_can_be_broken_where_the_ascent_does():
    data = TASK.load(None).test
    assert torch.equal(broken(WideSearch(), TASK.best()), TASK.broken(data.x, data.y, "linf", EPS))
