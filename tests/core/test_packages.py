"""An item whose package is absent says so, and one that needs none, or has it, says nothing."""

import pytest

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.packages import absent, require

LENT = {"package": "no_such_package", "install": "pip install no-such-package"}
SAID = "lent needs no_such_package, which is not installed: pip install no-such-package"


def test_an_absent_package_is_named_with_the_command_that_installs_it():
    assert absent("lent", LENT) == SAID
    with pytest.raises(FirstlineError) as told:
        require("lent", LENT)
    assert str(told.value) == SAID


@pytest.mark.parametrize("facts", [{}, {"hooks": ["collect"]}, {**LENT, "package": "json"}], ids=str)
def test_without_a_need_or_with_the_package_there_is_nothing_to_say(facts):
    assert absent("own", facts) is None
    require("own", facts)
