"""Streams of a task, defenses and an attack over seeds: fitted anew, served, and stored as records."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from firstline import __version__
from firstline.benchmark.core.catalog import Catalog, create
from firstline.benchmark.core.contracts import NOBODY, Attack, Incident, PoisonedData
from firstline.benchmark.core.data import Splits
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.record import Provenance
from firstline.benchmark.core.ref import Ref, parse_stack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stream_record import Shape, StreamRecord
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.metrics.stream import NOTHING
from firstline.benchmark.protocols.bench import Bench, Look, Mended, Served, clean_rows
from firstline.benchmark.protocols.live import serve
from firstline.benchmark.protocols.recovery import traced
from firstline.benchmark.run import keys
from firstline.benchmark.run.cell import Fit
from firstline.benchmark.run.environment import commit, environment, now
from firstline.benchmark.run.keys import Cell, only_repairs
from firstline.benchmark.run.matrix import fingerprint, mismatch, use
from firstline.benchmark.run.recording import item_use
from firstline.benchmark.run.scorer import Blueprint
from firstline.benchmark.run.store import Store

EXAMPLES = 100  # test examples on which relapse is looked at


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def streams(
    cells: Iterable[Cell], shape: Shape, store: Store, folder: Path | None, tell: Callable[[str], None]
) -> list[StreamRecord]:
    """Return the record of each cell's stream: that of the store, or else of a stream served now, and stored at once.

    tell hears of stored files that are damaged, and made anew. All of it is computed by one thread, since the last
    digits depend on their number.
    """
    store.prepare()
    found: list[StreamRecord] = []
    splits: Splits | None = None
    for cell in cells:
        key = keys.key(keys.stream_preimage(cell, shape.model_dump()))
        if store.stream_path(key).exists():
            try:
                found.append(store.read_stream(key))
                continue
            except FirstlineError as error:
                tell(f"served again: {error}")
        splits = splits or _blueprint(cell).items()[0].load(folder)
        found.append(_served(cell, shape, splits))
        store.write_stream(found[-1])
    return found


def cells(
    task: str,
    defenses: Iterable[str],
    attack: str,
    threat: Threat,
    seeds: Sequence[int],
    device: str,
    catalog: Catalog,
    folder: Path | None,
) -> list[Cell]:
    """Return the cells of `none` and each of the defenses, by seed.

    Raises FirstlineError for unknown names, and for what does not fit together.
    """
    about, attacking = Ref.parse(task), Ref.parse(attack)
    task_card, attack_card = catalog.get("task", about.name), catalog.get("attack", attacking.name)
    if attack_card.facts["vector"] != threat.vector or threat.vector not in ("evasion", "poisoning"):
        raise FirstlineError(f"{attack} under {threat} makes no stream: name an evasion or a backdoor")
    stacks = {}
    for text in dict.fromkeys((NOTHING, *defenses)):
        layers = [(catalog.get("defense", ref.name), ref) for ref in parse_stack(text)]
        used = tuple(use(card, ref) for card, ref in layers)
        # A stream repairs after evasion too, where cells of the matrix don't.
        lasting = [card for (card, _), one in zip(layers, used, strict=True) if not only_repairs(one)]
        if reason := mismatch(task_card, lasting, attack_card, threat):
            raise FirstlineError(reason)
        stacks["+".join(layer.text for layer in used)] = used
    on, by = use(task_card, about), use(attack_card, attacking)
    data = fingerprint(task_card, on, folder)
    return [
        Cell("streams", on, data, stack, by, threat, seed, EXAMPLES, device)
        for stack in stacks.values()
        for seed in seeds
    ]


def _blueprint(cell: Cell) -> Blueprint:
    return Blueprint(cell.task, cell.defense, cell.device)


def _served(cell: Cell, shape: Shape, splits: Splits) -> StreamRecord:
    started, seconds = now(), list[float]()
    told = serve(_bench(cell, splits, seconds), shape)
    ends = [mended.trace[-1] for mended in told.repairs if mended.trace]
    preimage = keys.stream_preimage(cell, shape.model_dump())
    revision, dirty = commit()
    return StreamRecord(
        key=keys.key(preimage),
        preimage=preimage,
        task=item_use(cell.task),
        defense=[item_use(layer) for layer in cell.defense],
        attack=item_use(cell.attack),
        threat=str(cell.threat),
        seed=cell.seed,
        shape=shape,
        windows=told.windows,
        steps=sum(end.steps for end in ends),
        samples=sum(end.samples for end in ends),
        seconds=sum(seconds),
        relapse=told.relapse.get("relapse"),
        relapse_without_repair=told.relapse.get("relapse_without_repair"),
        environment=environment(cell.device, 1),
        provenance=Provenance(
            firstline=__version__, commit=revision, dirty=dirty, started=started, ended=now()
        ),
        tags=sorted({tag for layer in cell.defense for tag in layer.tags}),
    )


def _bench(cell: Cell, splits: Splits, seconds: list[float]) -> Bench:
    """A bench whose systems live in this process; the CPU seconds of each repair are added to seconds."""
    task, stack = _blueprint(cell).items()
    attack = create("attack", cell.attack.name, cell.attack.settings)
    assert isinstance(attack, Attack)
    rng, device = Streams(cell.seed).child(task.name), torch.device(cell.device)

    def fit(poisoned: PoisonedData | None) -> Fit:
        given = poisoned or PoisonedData(splits.train, NOBODY)
        own = clean_rows(splits, rng)
        made = stack.fit(task, given.data, rng.child("fit"), device, given.poisoned, own)
        return Fit(made.system, made.kept, made.seconds, task.classes, cell.device, None)

    def repair(served: Served, incident: Incident, look: Look) -> Mended:
        trace, watch = traced(look)
        made = stack.repair(task, served.system, incident, rng.child("repair"), device, watch)
        seconds.append(made.seconds)
        fixed = Fit(made.system, served.kept, made.seconds, task.classes, cell.device, None)
        return Mended(fixed, trace)

    return Bench(
        task=task,
        splits=splits,
        stack=stack,
        attack=attack,
        threat=cell.threat,
        rng=rng,
        device=device,
        examples=cell.examples,
        fit=fit,
        repair=repair,
        stage=lambda name: None,
    )
