"""Numbers that papers printed beside ours, as `firstline reproduce` left them in a results folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from firstline.benchmark.core.errors import FirstlineError
from firstline.leaderboard.about import link
from firstline.leaderboard.names import slug

FOLDER = "papers"


class Figure(BaseModel):
    """One number of a paper beside ours, in percent, with the limits of ours."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    what: str
    paper: float
    measured: float | None
    lo: float | None
    hi: float | None
    verdict: str


class Paper(BaseModel):
    """A recipe and what came of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    source: str
    read_at: str
    deviations: list[str] = []
    verdicts: list[Figure]


def read_papers(folder: Path) -> list[Paper]:
    """Return the papers of a results folder. Raises FirstlineError for a file that is none."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            found.append(Paper.model_validate_json(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise FirstlineError(
                f"{path} is not the result of a recipe; delete it and run firstline reproduce again"
            ) from error
    return found


def listed(papers: Iterable[Paper]) -> list[dict[str, Any]]:
    """Return papers as pages show them."""
    return [
        {
            **paper.model_dump(),
            "slug": slug(paper.name),
            "url": link(paper.source),
            "good": sum(one.verdict in ("reproduced", "within interval") for one in paper.verdicts),
            "command": paper.name
            if paper.name.replace("-", "").isalnum() and paper.name.isascii()
            else "RECIPE",
        }
        for paper in papers
    ]
