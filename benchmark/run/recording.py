"""From a cell and what was found to its record. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstline import __version__
from firstline.benchmark.core.catalog import Catalog
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import Cost, Failure, Isolation, ItemUse, Provenance, Record
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run import keys
from firstline.benchmark.run.environment import commit, environment, now
from firstline.benchmark.run.keys import Cell, Use
from firstline.benchmark.run.matrix import fitted


@dataclass(frozen=True)
class Job:
    """What the cells of a run have in common: where results go, where data lies, how scoring is done."""

    root: Path
    folder: Path | None
    blind: bool = True
    threads: int = 1


def make_record(
    cell: Cell, job: Job, started: str, cost: Cost, *, error: Failure | None = None, **found: Any
) -> Record:
    """Return the record of a cell that failed with error, or in which metrics, diagnostics and a gate were found."""
    preimage = keys.cell_preimage(cell, blind=job.blind)
    revision, dirty = commit()
    return Record(
        key=keys.key(preimage),
        preimage=preimage,
        stages=keys.stage_keys(cell, blind=job.blind),
        suite=cell.suite,
        task=item_use(cell.task),
        defense=[item_use(layer) for layer in cell.defense],
        attack=item_use(cell.attack),
        threat=str(cell.threat),
        vector=cell.threat.vector,  # type: ignore[arg-type]
        seed=cell.seed,
        status="failed" if error else "ok",
        error=error,
        cost=cost,
        environment=environment(cell.device, job.threads),
        provenance=Provenance(
            firstline=__version__, commit=revision, dirty=dirty, started=started, ended=now()
        ),
        isolation=Isolation(blind=job.blind, backend="process" if job.blind else "none"),
        tags=sorted({tag for layer in cell.defense for tag in layer.tags}),
        **found,
    )


def item_use(use: Use) -> ItemUse:
    """Return an item as a record names it."""
    return ItemUse(text=use.text, name=use.name, version=use.version, settings=use.settings, code=use.code)


def cell_of(record: Record, catalog: Catalog) -> Cell:
    """Return the cell of a record, ready to run again.

    Raises FirstlineError where an item, its version or its code, or the numeric environment is another one now: what
    would be measured is another cell.
    """

    def use(kind: str, item: ItemUse) -> Use:
        card = catalog.get(kind, item.name)
        for what, then, now_ in (("version", item.version, card.version), ("code", item.code, card.code)):
            if then != now_:
                raise FirstlineError(
                    f"{kind} {item.name}: the record has {what} {then}, here it is {now_}; "
                    f"use the firstline and plugins that wrote it ({record.provenance.firstline}, "
                    f"commit {record.provenance.commit or 'unknown'})"
                )
        hooks = tuple(card.facts.get("hooks", ()))
        return Use(item.text, item.name, item.version, item.settings, item.code, card.tags, hooks)

    if keys.key(record.preimage) != record.key:
        raise FirstlineError(
            f"record {record.key[:12]} was edited: its key is not that of its preimage; delete it and run the suite again"
        )
    fit = record.preimage["score"]["craft"]["fit"]
    stack = tuple(use("defense", layer) for layer in record.defense)
    cell = Cell(
        suite=record.suite,
        task=use("task", record.task),
        fingerprint=fit["data"]["fingerprint"],
        defense=stack,
        attack=use("attack", record.attack),
        threat=Threat.parse(record.threat),
        seed=record.seed,
        examples=record.examples,
        device=fit["numeric"]["device"],
        fitted=fitted(stack, catalog),
    )
    if keys.key(keys.cell_preimage(cell, blind=record.isolation.blind)) != record.key:
        raise FirstlineError(
            f"record {record.key[:12]} was measured with {fit['numeric']}; here it would be {keys.numeric(cell.device)}, "
            "which is another cell"
        )
    return cell
