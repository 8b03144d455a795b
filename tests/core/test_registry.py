"""Names to items: clashes, wrong classes, and what the decorators leave on a class."""

from dataclasses import dataclass

import pytest

from firstline.benchmark.core.contracts import Defense, Item
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack, defense, registered, task

pytestmark = pytest.mark.usefixtures("planted")


def test_a_decorator_registers_the_class_under_its_name_version_and_tags():
    @defense("shield", version=3, tags=["broken", "control"])
    @dataclass(frozen=True)
    class Shield(Defense):
        pass

    assert registered()["defense", "shield"] is Shield
    assert (Shield.name, Shield.version, Shield.tags) == ("shield", 3, {"broken", "control"})


def test_a_version_starts_at_1_and_tags_are_none():
    @defense("shield")
    class Shield(Defense):
        pass

    assert (Shield.version, Shield.tags) == (1, frozenset())


def test_a_clash_names_both_places():
    @defense("shield")
    class First(Defense):
        pass

    with pytest.raises(FirstlineError) as caught:

        @defense("shield")
        class Second(Defense):
            pass

    here = f"{__name__}.test_a_clash_names_both_places.<locals>"
    assert str(caught.value) == (
        f"the defense name 'shield' is taken by {here}.First; give {here}.Second another name"
    )
    assert registered()["defense", "shield"] is First


def test_a_module_that_is_loaded_again_takes_its_own_place():
    for _ in range(2):

        @defense("shield")
        class Shield(Defense):
            pass

    assert registered()["defense", "shield"] is Shield


def test_kinds_do_not_clash():
    @defense("none-of-both", version=2)
    class One(Defense):
        pass

    assert ("attack", "none-of-both") not in registered()


@pytest.mark.parametrize(("kind", "base"), [(task, "Task"), (attack, "Attack"), (defense, "Defense")])
def test_a_class_of_another_kind_is_refused(kind, base):
    with pytest.raises(
        FirstlineError, match=rf"@{kind.__name__}\('odd'\) is on .*Odd, which is not a {base}"
    ):

        @kind("odd")
        class Odd(Item):
            pass


def test_what_is_registered_can_not_be_changed_from_outside():
    registered().clear()
    assert registered()
