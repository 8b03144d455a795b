"""From records to a folder of static pages that open from disk: no server, no outside request.

A site is made of parts. A part is a group of records whose tables depend on each other; its pages depend on nothing
else, so that a build keeps those of every part that did not change. What looks across parts is made from summaries.
"""

import hashlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from firstline.benchmark.core import png
from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import Record
from firstline.benchmark.core.stream_record import StreamRecord
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.metrics.stream import LASTING, TOLERANCE
from firstline.leaderboard import (
    boards,
    curves,
    downloads,
    frontier,
    overview,
    papers,
    recovery,
    streams,
    words,
    writing,
)
from firstline.leaderboard.about import about, bibtex
from firstline.leaderboard.boards import Page
from firstline.leaderboard.names import Cards, controls
from firstline.leaderboard.papers import Paper
from firstline.leaderboard.streams import StreamTable
from firstline.leaderboard.summary import Summary, summary
from firstline.leaderboard.table import VECTORS, Outcomes, tables

HERE = Path(__file__).parent
HEAVIEST = 1_000_000  # bytes of a picture
MANY = 2_000  # records: fewer are done before a second process has begun
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Collection:
    """The records of one results folder. outcomes(record) loads the per-example arrays of one, and may raise.

    Records of two collections never share a board: their suites may pair the same systems with other attacks.
    picture(record) is a PNG file of what inversion rebuilt, None where there is none.
    """

    name: str
    records: Sequence[Record]
    outcomes: Outcomes
    streams: Sequence[StreamRecord] = ()
    picture: Callable[[Record], bytes | None] = lambda record: None


@dataclass(frozen=True)
class Part:
    """Records whose tables depend on each other, their pictures by key, and a digest of all that their pages are made from."""

    collection: Collection
    records: Sequence[Record] = field(repr=False)
    pictures: Mapping[str, bytes] = field(repr=False)
    digest: str


def build(
    records: Iterable[Record],
    outcomes: Outcomes,
    out: Path,
    *,
    title: str = "firstline",
    streams: Iterable[StreamRecord] = (),
    cards: Cards | None = None,
    papers: Iterable[Paper] = (),
) -> Path:
    """Write the site of one collection of records and streams, as `build_site` does, and return its index.html."""
    one = Collection("results", list(records), outcomes, list(streams))
    return build_site([one], out, title=title, cards=cards, papers=papers)


def build_site(
    collections: Iterable[Collection],
    out: Path,
    *,
    title: str = "firstline",
    cards: Cards | None = None,
    papers: Iterable[Paper] = (),
) -> Path:
    """Write the site of collections into the folder out, in place of an older site, and return its index.html.

    cards describe the items by kind and name (benchmark.core.catalog). The same records, in any order, give the same
    bytes, whatever was in the folder before. Raises FirstlineError if out holds something that is not a site of ours.
    """
    together = sorted(collections, key=lambda one: one.name)
    known, folder = cards or {}, Path(os.path.realpath(out))
    shown = sorted(papers, key=lambda paper: paper.name)
    parts = [part for one in together for part in _parts(one)]
    served = _streams(together)
    site = _frame(title, parts, together, bool(shown), bool(served))
    jinja = environment()
    before = writing.last(folder, _engine(site, known))
    made, files, summaries = dict[str, Any](), dict[str, bytes | str](), list[tuple[Part, Summary]]()
    for part in parts:
        kept = before.parts.get(part.digest)
        if kept and all(before.holds(name) for name in kept["files"]):
            made[part.digest] = kept
            files |= {name: before.sums[name] for name in kept["files"]}
    stale = [part for part in parts if part.digest not in made]
    for part, (fresh, own) in zip(stale, _all_made(stale, known, jinja, site), strict=True):
        made[part.digest] = {"files": sorted(fresh), "boards": own}
        files |= fresh
    for part in parts:
        summaries += [(part, board) for board in made[part.digest]["boards"]]
    summaries.sort(key=lambda at: _order(at[1]))
    ordered = [board for _, board in summaries]
    tabled = streams.stream_tables(served)
    files |= _render(jinja, site, _across(ordered, tabled, shown, known))
    files |= _downloads(summaries, ordered, title, known)
    files |= {f"records/streams/{stream.key}.json": stream.to_json().encode() for stream in served}
    everything = [
        (file, files[file]) for file in sorted(files) if file.startswith("data/") and file.count("/") == 1
    ]
    files |= _render(jinja, site, [("data.html", "data.html.j2", _data_page(ordered, everything))])
    files |= {f"static/{name}": data for name, data in _static().items()}
    writing.replace(folder, files, before, made)
    return folder / "index.html"


def _parts(collection: Collection) -> Iterator[Part]:
    """The parts of a collection. Of two records with one key the newer counts."""
    unique: dict[str, tuple[Record, str]] = {}
    for record in sorted(collection.records, key=lambda r: (r.key, r.provenance.ended)):
        text = record.model_dump_json()
        held = unique.get(record.key)
        if held is None or (held[0].provenance.ended, held[1]) <= (record.provenance.ended, text):
            unique[record.key] = (record, text)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for key in sorted(unique):
        groups.setdefault(_family(unique[key][0]), []).append(key)
    for at in sorted(groups, key=str):
        held_together = hashlib.sha256(canonical([collection.name]).encode())
        records = [unique[key][0] for key in groups[at]]
        pictures = {record.key: data for record in records if (data := _picture(collection, record))}
        for key in groups[at]:
            held_together.update(unique[key][1].encode())
            held_together.update(pictures.get(key, b""))
        yield Part(collection, records, pictures, held_together.hexdigest())


def _picture(collection: Collection, record: Record) -> bytes | None:
    """The picture of a record of inversion, None where it is none or too heavy for a page."""
    if record.vector != "inversion":
        return None
    data = collection.picture(record)
    return data if data and len(data) <= HEAVIEST and png.size(data) else None


def _family(record: Record) -> tuple[Any, ...]:
    """What the records of one part share: evasion tables of one task and budget warn of each other's attackers."""
    if record.vector == "evasion":
        with suppress(FirstlineError):
            threat = _threat(record.threat)
            return (record.vector, record.task.text, record.examples, threat.goal, threat.amount)
    return (record.vector, record.task.text, record.examples, record.threat)


@lru_cache(maxsize=4096)
def _threat(text: str) -> Threat:
    return Threat.parse(text)


def _order(board: Summary) -> tuple[Any, ...]:
    at = VECTORS.index(board["vector"])
    return (at, board["task"], board["threat"], board["collection"], board["examples"], board["id"])


Made = tuple[dict[str, bytes | str], list[Summary]]
Work = tuple[Sequence[Part], Cards, Environment, Mapping[str, Any]]

_inherited: list[Work] = []  # by forked processes: records are not sent to them


def _all_made(parts: Sequence[Part], cards: Cards, jinja: Environment, site: Mapping[str, Any]) -> list[Made]:
    """Return what `_made` makes of each part; of many records on every core, where processes can fork."""
    cores = min(os.cpu_count() or 1, len(parts))
    count = sum(len(part.records) for part in parts)
    if count < MANY or cores < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return [_made(part, cards, jinja, site) for part in parts]
    from firstline.benchmark.metrics import paired, ranks  # noqa: F401  # once here, and not in each process

    _inherited.append((parts, cards, jinja, site))
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads, such as those of BLAS, which are idle here.
            warnings.simplefilter("ignore", DeprecationWarning)
            with multiprocessing.get_context("fork").Pool(cores) as pool:
                return pool.map(_one_of_them, range(len(parts)), chunksize=1)
    finally:
        _inherited.pop()


def _one_of_them(number: int) -> Made:
    parts, cards, jinja, site = _inherited[-1]
    return _made(parts[number], cards, jinja, site)


def _made(part: Part, cards: Cards, jinja: Environment, site: Mapping[str, Any]) -> Made:
    """Return the files of one part, and the summaries of its boards."""
    loaded: dict[str, Mapping[str, NDArray[Any]] | Exception] = {}

    def load(record: Record) -> Mapping[str, NDArray[Any]]:
        if record.key not in loaded:
            try:
                loaded[record.key] = part.collection.outcomes(record)
            except Exception as error:  # a damaged file is told where it is used, and the others go on
                loaded[record.key] = error
        found = loaded[record.key]
        if isinstance(found, Exception):
            raise found
        return found

    files: dict[str, bytes | str] = {}
    own = []
    for table in tables(part.records, load, controls=controls(cards)):
        # Through JSON at once, so that a summary that was kept is no other than a fresh one.
        board: Summary = _plain(summary(table, part.collection.name, cards))
        own.append(board)
        files |= _render(jinja, site, boards.pages(table, board, load, part.pictures))
        files |= {name: text.encode() for name, text in boards.shards(table, board)}
        files[f"data/boards/{board['id']}.csv"] = downloads.board_csv(table, board).encode()
        files[f"data/boards/{board['id']}.json"] = downloads.board_json(board).encode()
    return files | {boards.picture_path(key): data for key, data in part.pictures.items()}, own


def _plain(board: Summary) -> Any:
    import json

    return json.loads(canonical(board))


def _across(
    ordered: Sequence[Summary], served: Sequence[StreamTable], shown: Sequence[Paper], cards: Cards
) -> Iterator[Page]:
    """The pages that look across parts, but for that of the data."""
    yield "index.html", "index.html.j2", overview.index(ordered, served)
    yield from overview.vector_pages(ordered)
    if served:
        yield "streams.html", "streams.html.j2", {"page": "streams", "tables": served}
    if ordered:
        yield "compare.html", "comparisons.html.j2", {"page": "compare", "boards": ordered}
        defenses = overview.defenses(ordered)
        vectors = [vector for vector in VECTORS if any(vector in one["profile"] for one in defenses)]
        listed = {"page": "defenses", "defenses": defenses, "vectors": vectors}
        yield "defenses.html", "defenses.html.j2", listed
        for one in defenses:
            page = overview.defense_page(one, served, cards)
            yield f"defenses/{one['slug']}.html", "defense.html.j2", page
        attacks = overview.attacks(ordered)
        yield "attacks.html", "attacks.html.j2", {"page": "attacks", "attacks": attacks}
        for attack in attacks:
            yield f"attacks/{attack['slug']}.html", "attack.html.j2", overview.attack_page(attack, cards)
        tasks = overview.tasks(ordered, cards)
        yield "tasks.html", "tasks.html.j2", {"page": "tasks", "tasks": tasks}
        for task in tasks:
            yield f"tasks/{task['slug']}.html", "task.html.j2", {"page": "tasks", "one": task}
    if shown:
        yield "papers.html", "papers.html.j2", {"page": "papers", "papers": papers.listed(shown)}
        for paper in papers.listed(shown):
            yield f"papers/{paper['slug']}.html", "paper.html.j2", {"page": "papers", "paper": paper}
    yield "rules.html", "rules.html.j2", overview.rules()
    yield "about.html", "about.html.j2", _about(ordered)


def _about(ordered: Sequence[Summary]) -> dict[str, Any]:
    import firstline

    found: dict[str, int] = {}
    for board in ordered:
        name = f"{board['collection']} ({', '.join(board['suites'])})"
        found[name] = found.get(name, 0) + board["records"]
    rows = [(name, f"{count:,} records") for name, count in sorted(found.items())]
    return {"page": "about", "version": firstline.__version__, "made_from": rows[:40]}


def _downloads(
    summaries: Sequence[tuple[Part, Summary]], ordered: Sequence[Summary], title: str, cards: Cards
) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {downloads.INDEX: downloads.index_json(ordered, title).encode()}
    if not ordered:
        return files
    at = {(b["collection"], b["vector"], b["task"], b["threat"], b["examples"]): b for b in ordered}
    every = {id(part): part for part, _ in summaries}.values()
    rows = [
        (r, at[part.collection.name, r.vector, r.task.text, r.threat, r.examples])
        for part in every
        for r in part.records
    ]
    rows.sort(key=lambda row: (row[1]["id"], row[0].key))
    abouts = [("task", one["about"]) for one in overview.tasks(ordered, cards)]
    abouts += [("attack", overview.attack_page(one, cards)["about"]) for one in overview.attacks(ordered)]
    layers = {layer["name"]: layer for b in ordered for e in b["entries"] for layer in e["layers"]}
    abouts += [("defense", about("defense", name, {}, None, cards)) for name in sorted(layers)]
    return files | {
        "data/records.csv": downloads.records_csv(rows).encode(),
        "data/records.parquet": downloads.records_parquet(rows),
        "data/record.schema.json": downloads.schema_json().encode(),
        "data/citations.bib": bibtex(abouts).encode(),
        **{
            f"badges/{one['slug']}.svg": text.encode()
            for one in overview.defenses(ordered)
            if (text := overview.badge_file(one))
        },
    }


WHAT = {
    "data/records.csv": "a line for each record, and for each metric its value and limits",
    "data/records.parquet": "a row for each record and metric, with intervals",
    "data/record.schema.json": "the JSON Schema of records",
    "data/citations.bib": "the sources of tasks, attacks and defenses",
    "index.json": "the boards, and where their files are",
    writing.SUMS: "SHA-256 of every file of the site (sha256sum -c)",
}


def _data_page(ordered: Sequence[Summary], files: Sequence[tuple[str, bytes | str]]) -> dict[str, Any]:
    sizes = {name: downloads.size(len(data)) for name, data in files}
    there = [name for name in WHAT if name in sizes or name in (downloads.INDEX, writing.SUMS)]
    return {
        "page": "data",
        "boards": ordered,
        "files": [
            {"path": name, "name": name.rpartition("/")[2], "what": WHAT[name], "size": sizes.get(name, "")}
            for name in there
        ],
    }


def _streams(collections: Iterable[Collection]) -> list[StreamRecord]:
    found = {s.key: s for one in collections for s in sorted(one.streams, key=StreamRecord.to_json)}
    return [found[key] for key in sorted(found)]


def _frame(
    title: str, parts: Sequence[Part], together: Sequence[Collection], has_papers: bool, has_streams: bool
) -> dict[str, Any]:
    """What every page has around its content."""
    there = {record.vector for part in parts for record in part.records}
    named = [(vector, words.VECTORS[vector][0]) for vector in VECTORS if vector in there]
    css, js = (next(name for name in _static() if name.endswith(end)) for end in (".css", ".js"))
    others = [("defenses", "Defenses"), ("attacks", "Attacks"), ("tasks", "Tasks"), ("compare", "Compare")]
    return {
        "title": title,
        "css": css,
        "js": js,
        "collections": len(together),
        "boards": [("index", "Overview"), *named, *([("streams", "Streams")] if has_streams else [])],
        "others": [
            *(others if parts else []),
            *([("papers", "Papers")] if has_papers else []),
            *[("data", "Data"), ("rules", "Rules"), ("about", "About")],
        ],
    }


@lru_cache(maxsize=1)
def _static() -> dict[str, bytes]:
    """The style sheet and the script, their names with a digest, so that no browser shows old ones."""
    found = {}
    for path in sorted((HERE / "static").iterdir()):
        data = path.read_bytes()
        found[f"{path.stem}.{hashlib.sha256(data).hexdigest()[:8]}{path.suffix}"] = data
    return found


def _engine(site: Mapping[str, Any], cards: Cards) -> str:
    """A digest of all that pages are made from besides records: code, templates, cards, frame."""
    found = hashlib.sha256(canonical(site).encode())
    core, metrics = (
        HERE.resolve().parent / "benchmark" / "core",
        HERE.resolve().parent / "benchmark" / "metrics",
    )
    own = [*HERE.glob("*.py"), *(HERE / "templates").iterdir(), *core.glob("*.py"), *metrics.glob("*.py")]
    for path in sorted(own):
        found.update(path.name.encode() + path.read_bytes())
    for kind, named in sorted(cards.items()):
        for name, card in sorted(named.items()):
            found.update(canonical([kind, name, card.summary, card.doc, card.facts]).encode())
    return found.hexdigest()


def _render(jinja: Environment, site: Mapping[str, Any], pages: Iterable[Page]) -> dict[str, bytes | str]:
    return {
        path: jinja.get_template(template).render(site=site, root="../" * path.count("/"), **shown).encode()
        for path, template, shown in pages
    }


def environment() -> Environment:
    """Return the Jinja environment of the pages: everything escaped, nothing unseen, no undefined name."""
    jinja = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,  # for every template: by file name, Jinja would not escape *.html.j2
        undefined=StrictUndefined,
        finalize=_tamed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters |= {
        "breakable": words.breakable,
        "brief": words.brief,
        "explanation": words.explanation,
        "heading": words.heading,
        "heat": words.heat,
        "interval": words.interval,
        "meaning": words.meaning,
        "number": words.number,
        "points": words.points,
        "shade": words.shade,
    }
    jinja.globals |= {
        "at_matched_utility": frontier.compared,
        "POLICY": POLICY,
        "VECTORS": words.VECTORS,
        "DIRECTIONS": words.DIRECTIONS,
        "RECOVERY": recovery.MEANS,
        "CURVE": (curves.WIDTH, curves.HEIGHT),
        "SERVICE": (streams.WIDTH, streams.HEIGHT),
        "TOLERANCE": TOLERANCE,
        "LASTING": LASTING,
    }
    return jinja


def _tamed(value: Any) -> Any:
    """Make unseen letters visible in whatever a template prints; what our own macros made is left alone."""
    return words.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
