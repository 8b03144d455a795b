"""A poison's size is exactly what its threat model says, or an error: a smaller one would look like a strong defense."""

from firstline.benchmark.core.errors import FirstlineError


def enough(attack: str, budget: int, held: int, what: str) -> None:
    """Raise FirstlineError when the budget is more rows than the attacker holds of what it can use."""
    if held < budget:
        raise FirstlineError(
            f"{attack}: the budget is {budget} rows, and the attacker holds {held} {what}; "
            "lower the amount of the threat, or raise its train="
        )
