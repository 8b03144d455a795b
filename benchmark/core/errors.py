"""What callers may catch. Every message says what was wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class FirstlineError(Exception):
    """Something that the user can put right; its text is printed as it is."""


class NotFound(FirstlineError):
    """A name that nothing is registered under."""


class AccessDenied(FirstlineError):
    """An attack reached for something that its threat model does not grant."""


class BudgetExhausted(FirstlineError):
    """An attack asked for more answers than its threat model grants."""


class ContractBroken(FirstlineError):
    """An item returned something that its contract forbids: NaN, a wrong shape, a point outside its ball."""


class SystemFailed(ContractBroken):
    """A deployed system raised, or answered in a wrong shape: the defense's doing, whoever asked."""


class DataProblem(FirstlineError):
    """Data is missing, damaged, or not what its fingerprint says."""


def not_found(what: str, name: str, known: Iterable[str]) -> NotFound:
    """Return the error for an unknown name, with the near misses or, failing these, all known names.

    >>> str(not_found("attack", "pdg", ["pgd", "fgsm"]))
    "no attack is called 'pdg'; did you mean 'pgd'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        hint = "did you mean " + " or ".join(repr(c) for c in close) + "?"
    elif names:
        hint = "known: " + ", ".join(names)
    else:
        hint = "none is known"
    return NotFound(f"no {what} is called {name!r}; {hint}")
