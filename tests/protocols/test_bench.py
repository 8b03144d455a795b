"""What protocols share: draws, the attack's door, and which vectors have a protocol."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Defense, Evasion
from firstline.benchmark.core.errors import AccessDenied, ContractBroken
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import INVALID, REFUSED
from firstline.benchmark.core.threat import VECTORS
from firstline.benchmark.protocols.bench import answered
from firstline.benchmark.protocols.table import PROTOCOLS
from firstline.benchmark.protocols.versions import VERSIONS


@dataclass(frozen=True)
class Idle(Evasion):
    name = "idle"
    needs = ()
    goals = ("linf",)

    def perturb(self, target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        return x


@dataclass(frozen=True)
class Shield(Defense):
    name = "shield"


def test_every_protocol_has_a_version_and_every_version_a_protocol():
    assert set(VERSIONS) == set(PROTOCOLS)
    assert set(PROTOCOLS) <= set(VECTORS)


def test_a_draw_is_without_replacement_sorted_and_by_the_seed_alone(make):
    first = make(Idle(), "evasion/white/linf:0.1").bench.draw("test", 64, 10)
    again = make(Idle(), "evasion/black/l2:0.3", layers=(Shield(),)).bench.draw("test", 64, 10)
    other = make(Idle(), "evasion/white/linf:0.1", seed=1).bench.draw("test", 64, 10)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.tolist() == sorted(set(first.tolist()))
    assert len(first) == 10


def test_a_larger_draw_holds_the_smaller_one(make):
    bench = make(Idle(), "evasion/white/linf:0.1").bench
    assert set(bench.draw("test", 64, 10).tolist()) < set(bench.draw("test", 64, 30).tolist())
    assert len(bench.draw("test", 64, 1000)) == 64


@pytest.mark.parametrize(("share", "rows"), [("100%", 64), ("25%", 16), ("10%", 6)])
def test_the_attacker_holds_its_share_of_the_training_data(make, share, rows):
    made = make(Idle(), f"evasion/gray/linf:0.1,train={share}")
    held = made.bench.target(made.served.system, 4, made.bench.rng).train
    train = made.bench.splits.train
    assert len(torch.unique(held.ids)) == rows
    assert torch.equal(held.x, train.x[held.ids])
    assert torch.equal(held.y, train.y[held.ids])


def test_a_black_box_attacker_holds_nothing(make):
    made = make(Idle(), "evasion/black/linf:0.1")
    target = made.bench.target(made.served.system, 4, made.bench.rng)
    for name in ("train", "aux", "system", "defense"):
        with pytest.raises(AccessDenied):
            getattr(target, name)


def test_the_door_tells_the_defense_the_space_and_the_classes(make):
    made = make(Idle(), "evasion/white/linf:0.1", layers=(Shield(), Shield()))
    target = made.bench.target(made.served.system, 4, made.bench.rng)
    assert target.defense == "shield+shield"
    assert (target.space, target.classes, len(target.queries)) == (Blobs.space, 2, 4)
    assert target.aux is made.bench.splits.aux


def test_the_architecture_comes_with_weights_of_the_streams_own(make):
    made = make(Idle(), "evasion/gray/linf:0.1")
    before = torch.get_rng_state()
    first, again = (
        made.bench.target(made.served.system, 4, made.bench.rng).architecture().state_dict() for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_system_that_never_answers_a_number_is_none():
    with pytest.raises(ContractBroken, match="answers every clean input with NaN or infinite logits"):
        answered(torch.tensor([INVALID, INVALID]))
    for fine in ([INVALID, 0], [REFUSED, REFUSED], []):
        answers = torch.tensor(fine, dtype=torch.int64)
        assert answered(answers) is answers
