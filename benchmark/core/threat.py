"""Threat models and their text form: who attacks, knowing what, within which budget.

The text form is ``vector/knowledge/goal[:amount][,option=value...]``:

    evasion/white/linf:8/255            poisoning/gray/availability:10%,train=100%
    evasion/black/l2:0.5,queries=5k     membership/black/scores
    evasion/white/cost:2.5              evasion/black/corruption:3
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from firstline.benchmark.core.errors import FirstlineError, not_found

VECTORS = ("evasion", "poisoning", "extraction", "membership", "inversion")
KNOWLEDGE = ("white", "gray", "black")
NORMS = ("linf", "l2", "l1", "l0")


def _number(text: str) -> float:
    top, _, bottom = text.partition("/")
    value = float(top) / (float(bottom) if bottom else 1.0)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _radius(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise ValueError(text)
    return value


def _share(text: str) -> float:
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    value = Decimal(text[:-1] if factor > 1 else text) * factor  # exact: 1.001m is a whole number
    if not 0 <= value < 2**63 or value != int(value):
        raise ValueError(text)
    return int(value)


def _batch(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise ValueError(text)
    return value


def _severity(text: str) -> float:
    value = _number(text)
    if value not in (1, 2, 3, 4, 5):
        raise ValueError(text)
    return value


def _pairs(text: str) -> int:
    value = int(text)
    if value < 2 or value % 2:
        raise ValueError(text)
    return value


def _yes(text: str) -> bool:
    return {"yes": True, "no": False}[text]


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return read


def _short(value: float) -> str:
    return repr(int(value)) if value == int(value) and value < 1e16 else repr(value)


def _write_radius(value: float) -> str:
    plain, pixels = _short(value), round(min(value, 1e6) * 255)
    fraction = f"{pixels}/255"
    return fraction if pixels / 255 == value and len(fraction) < len(plain) else plain


def _write_share(value: float) -> str:
    percent = _short(round(value * 100, 10)) + "%"
    return percent if _share(percent) == value else repr(value)


def _write_count(value: int) -> str:
    for letter, factor in (("m", 1_000_000), ("k", 1_000)):
        if value and value % factor == 0:
            return f"{value // factor}{letter}"
    return str(value)


@dataclass(frozen=True)
class _Form:
    """How one kind of value is read and written, and an example for error messages."""

    read: Callable[[str], Any]
    write: Callable[[Any], str]
    example: str


_RADIUS = _Form(_radius, _write_radius, "a distance of at least 0 in input units, such as 0.1 or 8/255")
_COST = _Form(_radius, _short, "a budget of at least 0 in units of the task's costs, such as 2.5")
_SEVERITY = _Form(_severity, _short, "a severity of 1, 2, 3, 4 or 5")
_SHARE = _Form(_share, _write_share, "a share between 0 and 1, such as 5% or 0.05")
_COUNT = _Form(_count, _write_count, "a whole number, such as 500 or 10k")
_BATCH = _Form(_batch, _write_count, "a whole number of at least 1, such as 8")
_YES = _Form(_yes, lambda v: "yes" if v else "no", "yes or no")

GOALS: dict[str, dict[str, _Form | None]] = {
    "evasion": {**dict.fromkeys(NORMS, _RADIUS), "cost": _COST, "corruption": _SEVERITY},
    "poisoning": dict.fromkeys(("availability", "integrity", "backdoor"), _SHARE),
    "extraction": dict.fromkeys(("scores", "labels"), _COUNT),
    "membership": dict.fromkeys(("scores", "labels"), None),
    "inversion": {"classes": None, "attribute": None, "updates": _BATCH},
}

SECRET = ("membership", "inversion")  # vectors whose attacker is after the training data

OPTIONS: dict[str, _Form] = {
    "answers": _Form(_one_of("scores", "labels"), str, "scores or labels"),
    "queries": _COUNT,
    "train": _SHARE,
    "aux": _YES,
    "defense": _Form(_one_of("known", "unknown"), str, "known or unknown"),
    "shadows": _Form(_pairs, str, "an even number of at least 2, such as 16 or 64"),
    "canaries": _COUNT,
}
SHADOWS = 16  # systems of a bank


@dataclass(frozen=True)
class Threat:
    """One threat model. Build it with `Threat.parse`; `str` gives the canonical text back.

    amount is the radius (evasion, input units), the share of the training set (poisoning), the query budget
    (extraction) or the rows of a client's batch (inversion of updates), and None elsewhere. queries is a budget per attacked example for evasion and
    membership, None meaning unlimited. train is the share of the training rows that the attacker holds. For
    membership, shadows is how many systems are fitted to halves of the rows, each of them a target, and a shadow of
    the others; canaries is how many of the rows get a wrong label first, and are asked about apart.
    """

    vector: str
    knowledge: str
    goal: str
    amount: float | None = None
    answers: str = "scores"
    queries: int | None = None
    train: float = 0.0
    aux: bool = False
    defense: str = "unknown"
    shadows: int = SHADOWS
    canaries: int = 0

    @classmethod
    def parse(cls, text: str) -> "Threat":
        """Return the threat model that text names.

        >>> str(Threat.parse("evasion/white/linf:0.10"))
        'evasion/white/linf:0.1'

        Raises FirstlineError saying which part is wrong and what it may be.
        """
        parts = text.strip().split("/", 2)
        if len(parts) != 3:
            raise FirstlineError(
                f"threat {text!r} has {len(parts)} of 3 parts; write vector/knowledge/goal:amount, "
                "such as evasion/white/linf:8/255"
            )
        vector, knowledge, rest = parts
        if vector not in VECTORS:
            raise FirstlineError(f"threat {text!r}: {not_found('vector', vector, VECTORS)}")
        if knowledge not in KNOWLEDGE:
            raise FirstlineError(f"threat {text!r}: {not_found('knowledge', knowledge, KNOWLEDGE)}")
        head, *options = rest.split(",")
        goal, colon, amount_text = head.partition(":")
        if goal not in GOALS[vector]:
            raise FirstlineError(f"threat {text!r}: {not_found(f'goal of {vector}', goal, GOALS[vector])}")
        form = GOALS[vector][goal]
        if form is None and colon:
            raise FirstlineError(
                f"threat {text!r}: {vector}/{goal} takes no amount; write it without ':{amount_text}'"
            )
        amount = _read(text, goal, form, amount_text) if form else None
        given = _read_options(text, options)
        if vector in ("extraction", "membership"):
            if "answers" in given:
                raise FirstlineError(
                    f"threat {text!r}: the goal already says the answers; leave out answers="
                )
            given["answers"] = goal
        if vector == "extraction":
            if "queries" in given:
                raise FirstlineError(
                    f"threat {text!r}: the amount already is the query budget; leave out queries="
                )
            given["queries"] = amount
        if vector != "membership" and (odd := sorted({"shadows", "canaries"} & set(given))):
            raise FirstlineError(f"threat {text!r}: only membership has {odd[0]}=")
        if vector in SECRET and given.get("train"):
            raise FirstlineError(
                f"threat {text!r}: {vector} is about the training data, which can't be granted"
            )
        return cls(vector, knowledge, goal, amount, **{**_defaults(vector, knowledge), **given})

    def __str__(self) -> str:
        form = GOALS[self.vector][self.goal]
        text = f"{self.vector}/{self.knowledge}/{self.goal}"
        if form is not None:
            text += ":" + form.write(self.amount)
        implied: dict[str, Any] = {
            "answers": "scores",
            "queries": None,
            "shadows": SHADOWS,
            "canaries": 0,
            **_defaults(self.vector, self.knowledge),
        }
        if self.vector in ("extraction", "membership"):
            implied["answers"] = self.goal
        if self.vector == "extraction":
            implied["queries"] = self.amount
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if value != implied[name]:
                text += f",{name}={option.write(value)}"
        return text

    @property
    def grants(self) -> frozenset[str]:
        """What an attack may use: some of labels, scores, architecture, train, aux, defense, gradients."""
        held = {"labels"}
        if self.answers == "scores":
            held.add("scores")
        if self.knowledge != "black":
            held.add("architecture")
        if self.train > 0:
            held.add("train")
        if self.aux:
            held.add("aux")
        if self.defense == "known":
            held.add("defense")
        if self.knowledge == "white":
            held.add("gradients")
        return frozenset(held)

    @property
    def eps(self) -> float:
        """The radius of an evasion threat, in input units; under a cost budget the budget, of corruptions the severity."""
        if self.vector != "evasion" or self.amount is None:
            raise FirstlineError(f"{self} has no radius; only evasion threats have one")
        return self.amount


def _defaults(vector: str, knowledge: str) -> dict[str, Any]:
    white = knowledge == "white"
    share = {"white": 1.0, "gray": 0.1, "black": 0.0}[knowledge]
    return {
        "train": 0.0 if vector in SECRET else share,
        "aux": knowledge != "black",
        "defense": "known" if white else "unknown",
    }


def _read(text: str, name: str, form: _Form, value: str) -> Any:
    try:
        return form.read(value)
    except (ValueError, KeyError, ArithmeticError):
        found = repr(value) if value else "nothing"
        raise FirstlineError(f"threat {text!r}: {name} needs {form.example}; found {found}") from None


def _read_options(text: str, options: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for option in options:
        name, _, value = option.strip().partition("=")
        if name not in OPTIONS:
            raise FirstlineError(f"threat {text!r}: {not_found('option', name, OPTIONS)}")
        if name in given:
            raise FirstlineError(f"threat {text!r}: {name} is given twice")
        given[name] = _read(text, name, OPTIONS[name], value)
    return given
