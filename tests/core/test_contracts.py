"""What every item is: settings with defaults, a text form, equality, facts."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from firstline.benchmark.core.contracts import Defense, Task, initialise
from firstline.benchmark.core.errors import NotFound, not_found
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.core.rng import Streams


@dataclass(frozen=True)
class Shield(Defense):
    name = "shield"

    steps: int = 7
    norm: str = "linf"
    sides: tuple[int, ...] = (1, 2)

    def calibrate(self, *args: object) -> None: ...

    def recover(self, system, incident, ctx):
        return system


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Shield(), "shield"),
        (Shield(steps=3), "shield(steps=3)"),
        (Shield(steps=3, norm="l2"), "shield(norm='l2', steps=3)"),
        (Shield(sides=(4,)), "shield(sides=(4,))"),
        (Shield(steps=7, norm="linf"), "shield"),
    ],
)
def test_the_text_of_an_item_names_what_differs_from_its_defaults(item, text):
    assert str(item) == text
    ref = Ref.parse(text)
    assert Shield(**dict(ref.settings)) == item


def test_equal_settings_are_one_item():
    assert Shield(steps=7) == Shield()
    assert len({Shield(), Shield(7), Shield(8)}) == 2
    assert Shield(8).settings() == {"steps": 8, "norm": "linf", "sides": (1, 2)}


def test_the_facts_of_a_defense_are_the_hooks_that_it_has():
    assert Shield.facts()["hooks"] == ["calibrate", "recover"]
    assert Defense.facts()["hooks"] == []


def test_a_network_starts_from_its_stream_alone():
    before = torch.get_rng_state()
    first, again = (initialise(lambda: nn.Linear(3, 3), Streams(1)) for _ in range(2))
    other = initialise(lambda: nn.Linear(3, 3), Streams(2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_task_must_say_how_to_load_itself():
    with pytest.raises(TypeError, match="abstract"):
        Task()


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("pdg", ["pgd", "fgsm"], "no attack is called 'pdg'; did you mean 'pgd'?"),
        ("zzz", ["pgd", "fgsm"], "no attack is called 'zzz'; known: fgsm, pgd"),
        ("zzz", [], "no attack is called 'zzz'; none is known"),
    ],
)
def test_an_unknown_name_is_answered_with_what_might_have_been_meant(name, known, said):
    error = not_found("attack", name, known)
    assert isinstance(error, NotFound)
    assert str(error) == said
