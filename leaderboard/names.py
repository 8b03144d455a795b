"""What pages are called, and by what entries are filtered: knowledge, norm, family, trust."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import Record
from firstline.benchmark.core.threat import Threat

Cards = Mapping[str, Mapping[str, Any]]  # benchmark.core.catalog.Card by kind and name

STAGES = {"collect": "data", "train": "training", "deploy": "deployment", "recover": "repair"}
TRUST = {
    "blind": "Every record was scored blind, by committed code.",
    "uncommitted": "Scored blind, by code with changes that were not committed.",
    "unblinded": "Some record was scored by the process that attacked.",
}


def slug(text: str, *identity: Any) -> str:
    """Return a file name for what is called text: its letters, and a digest of it and of identity.

    >>> slug("PGD(steps=40)")
    'pgd-steps-40-8d4d59c2'
    """
    readable = re.sub(r"[^a-z0-9]+", "-", text[:200].lower()).strip("-")[:48].strip("-")
    digest = hashlib.sha256(canonical([text, *identity]).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{readable}-{digest}" if readable else digest


def facets(threat: str) -> dict[str, str]:
    """Return the vector, knowledge, goal and norm of a threat model; what its text doesn't say is empty."""
    with suppress(FirstlineError):
        model = Threat.parse(threat)
        return {
            "vector": model.vector,
            "knowledge": model.knowledge,
            "goal": model.goal,
            "norm": model.goal if model.vector == "evasion" else "",
        }
    return {"vector": threat.partition("/")[0], "knowledge": "", "goal": "", "norm": ""}


def controls(cards: Cards) -> frozenset[str]:
    """Return the names of the attacks that take nothing from the system."""
    return frozenset(name for name, card in cards.get("attack", {}).items() if "control" in card.tags)


def family(layers: Iterable[str], cards: Cards) -> str:
    """Return at which stage of the life of a system the named layers act: one of STAGES, several, none or unknown."""
    names = list(layers)
    known = cards.get("defense", {})
    if names == ["none"]:
        return "undefended"
    if not all(name in known for name in names):
        return "unknown"
    hooks = {hook for name in names for hook in known[name].facts.get("hooks", ())}
    stages = [stage for hook, stage in STAGES.items() if hook in hooks]
    return stages[0] if len(stages) == 1 else "several" if stages else "none"


def trust(records: Iterable[Record]) -> str:
    """Return how far the records of an entry can be trusted: the key of TRUST that holds for all of them."""
    there = list(records)
    if not all(record.isolation.blind for record in there):
        return "unblinded"
    return "uncommitted" if any(record.provenance.dirty for record in there) else "blind"
