"""What a table of backdoors has to say beside its figures: attacks that don't take hold, systems that collapsed.

Sources: the accuracy floor is firstline's (a system that answers one class always has no attack success);
effectiveness is BackdoorBench's defense effectiveness rating (Wu et al. 2022, arXiv:2206.12654).
"""

from collections.abc import Mapping

LEAST_SUCCESS = 0.2  # of an attack on the undefended system, beyond what its trigger does without any poison
FLOOR = 0.1  # of accuracy below that of the undefended system without poison; more, and it is no defense

Values = Mapping[str, float]  # by metric


def idle(undefended: Mapping[str, Values]) -> dict[str, str]:
    """Return the attacks (undefended holds its values by attack) that do not take hold, and for each why, in words."""
    found = {}
    for attack, values in undefended.items():
        success, before = values.get("attack_success_rate"), values.get("clean_attack_success_rate", 0.0)
        if success is not None and success - before < LEAST_SUCCESS:
            found[attack] = (
                f"{attack} takes hold of the undefended system in {success:.1%} ({before:.1%} without poison), and "
                f"{100 * LEAST_SUCCESS:.0f} points more is the least that counts: nothing is ranked by it"
            )
    return found


def collapsed(values: Values, undefended: Values) -> str | None:
    """Return why a defended system is not of use any more, or None; undefended is of the same attack."""
    left, whole = values.get("accuracy"), undefended.get("clean_accuracy")
    if left is None or whole is None or whole - left <= FLOOR:
        return None
    return (
        f"collapsed: its accuracy of {left:.1%} is more than {100 * FLOOR:.0f} points below the {whole:.1%} "
        "of the undefended system without poison"
    )


def effectiveness(values: Values, undefended: Values) -> float | None:
    """Return the rating in [0, 1] of a defense against one attack; 0.5 is no defense, None is unknown.

    One half of 1 plus what it takes off the attack's success, less what it takes off the accuracy.

    >>> none = {"attack_success_rate": 1.0, "accuracy": 0.9}
    >>> effectiveness({"attack_success_rate": 0.1, "accuracy": 0.8}, none), effectiveness(none, none)
    (0.9, 0.5)
    """
    needed = ("attack_success_rate", "accuracy")
    if not all(name in values and name in undefended for name in needed):
        return None
    success, accuracy = (max(0.0, undefended[name] - values[name]) for name in needed)
    return (success - accuracy + 1) / 2
