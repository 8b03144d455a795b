"""What the cards of tasks, attacks and defenses say of an item: its docstring, settings and sources."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from firstline.leaderboard.names import Cards, family

_SOURCE = re.compile(r"Sources?:\s+(.+?)(?:\n\n|\Z|\.\s+(?=[A-Z][a-z]+ [a-z]))", re.DOTALL)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})")
_DOI = re.compile(r"\bdoi:(10\.\d{4,9}/[A-Za-z0-9._()/-]+)")
FACTS = {
    "modality": "Modality",
    "classes": "Classes",
    "shape": "Shape of an input",
    "grid": "Grid of inputs",
    "licence": "Licence",
    "embedded": "Comes with firstline",
    "architectures": "Networks",
    "fingerprint": "SHA-256 of the data",
}


class Citation(TypedDict):
    """A source in words, and where it can be read, empty if that is not known."""

    text: str
    url: str


class About(TypedDict):
    """What is known of an item; summary and paragraphs are empty where it is not registered here."""

    name: str
    version: int | None
    family: str
    summary: str
    paragraphs: list[str]
    settings: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    needs: list[str]
    citations: list[Citation]


def about(kind: str, name: str, settings: Mapping[str, Any], version: int | None, cards: Cards) -> About:
    """Return what the card of an item in use with these settings says."""
    card = cards.get(kind, {}).get(name)
    facts: Mapping[str, Any] = card.facts if card else {}
    stages = family([name], cards) if kind == "defense" else ""
    return About(
        name=name,
        version=version,
        family={"several": "several stages", "none": "nothing", "unknown": "unknown"}.get(stages, stages),
        summary=card.summary if card else "",
        paragraphs=[" ".join(part.split()) for part in card.doc.split("\n\n") if part.strip()]
        if card
        else [],
        settings=[(key, _shown(value)) for key, value in sorted(settings.items())],
        facts=[
            (label, _shown(facts[key])) for key, label in FACTS.items() if facts.get(key) not in (None, "")
        ],
        needs=[str(need) for need in facts.get("needs", ())],
        citations=citations(card.doc) if card else [],
    )


def citations(doc: str) -> list[Citation]:
    """Return the sources that a docstring names after `Source:`.

    >>> citations("Ascent. Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.")
    [{'text': 'Madry et al. 2018, arXiv:1706.06083, section 2.1', 'url': 'https://arxiv.org/abs/1706.06083'}]
    """
    found = []
    for match in _SOURCE.finditer(doc):
        for part in " ".join(match.group(1).split()).split("; "):
            text = part.strip().removesuffix(".")
            if text and text != "a control":
                found.append(Citation(text=text, url=link(text)))
    return found


def link(text: str) -> str:
    """Return the address of the paper that a text names by arXiv number or DOI, empty if it names none.

    Nothing else is ever linked outside of the site, and an address is only made of what these numbers may hold.
    """
    if arxiv := _ARXIV.search(text):
        return f"https://arxiv.org/abs/{arxiv.group(1)}"
    if doi := _DOI.search(text):
        return f"https://doi.org/{doi.group(1).rstrip('.')}"
    return ""


def bibtex(abouts: Iterable[tuple[str, About]]) -> str:
    """Return the sources of items (kind and card) as BibTeX, each once, named by the item that it is first of."""
    entries: dict[str, str] = {}
    for kind, one in abouts:
        for number, citation in enumerate(one["citations"]):
            text = citation["text"]
            if text in entries:
                continue
            key = re.sub(r"[^a-z0-9-]+", "-", f"{kind}-{one['name']}".lower()) + (
                f"-{number + 1}" if number else ""
            )
            who = re.match(r"(.+?),? (\d{4})\b", text)
            arxiv = _ARXIV.search(text)
            lines = [f"  note = {{{_plain(text)}}}"]
            if who:
                names = who.group(1).replace(" & ", " and ").replace(", ", " and ")
                authors = re.sub(r" et al\.?$", " and others", names)
                lines = [f"  author = {{{_plain(authors)}}}", f"  year = {{{who.group(2)}}}", *lines]
            if arxiv:
                lines += [f"  eprint = {{{arxiv.group(1)}}}", "  archivePrefix = {arXiv}"]
            entries[text] = f"@misc{{{key},\n" + ",\n".join(lines) + "\n}\n"
    return "\n".join(entries.values())


def _plain(text: str) -> str:
    """Text that cannot leave the braces of a BibTeX field."""
    return re.sub(r"[{}\\%$#\x00-\x1f]", " ", text)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) if value else "none"
    return str(value)
