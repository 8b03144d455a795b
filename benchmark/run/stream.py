"""Streams of a task, defenses and an attack over seeds: fitted anew, served, and summed up."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from firstline.benchmark.core.catalog import Catalog, create
from firstline.benchmark.core.contracts import NOBODY, Attack, Incident, PoisonedData
from firstline.benchmark.core.data import Splits
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.ref import Ref, parse_stack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols.bench import Bench, Look, Mended, Served, clean_rows
from firstline.benchmark.protocols.live import Shape, Told, serve
from firstline.benchmark.protocols.recovery import traced
from firstline.benchmark.protocols.stream import Course, Summary, course, oracle, summary
from firstline.benchmark.run.cell import Fit
from firstline.benchmark.run.keys import Use, only_repairs
from firstline.benchmark.run.matrix import mismatch, use
from firstline.benchmark.run.scorer import Blueprint

EXAMPLES = 100  # test examples on which relapse is looked at
NOTHING, ORACLE = "none", "instant oracle"


@dataclass(frozen=True)
class Run:
    """One stream: its course, and the steps, clean rows and CPU seconds of its repairs.

    relapse, and relapse_without_repair, are there for backdoors that were repaired.
    """

    defense: str
    seed: int
    course: Course
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    relapse: float | None = None
    relapse_without_repair: float | None = None


@dataclass(frozen=True)
class Line:
    """A defense over seeds: its summary, the means of what repairs took, and of what comes back where all repaired."""

    defense: str
    summary: Summary
    steps: float
    samples: float
    seconds: float
    relapse: float | None


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
    blueprints: Iterable[Blueprint],
    attack: Use,
    threat: Threat,
    seeds: Sequence[int],
    shape: Shape,
    folder: Path | None,
) -> list[Run]:
    """Return the runs of each defense, and those of the instant oracle after those of `none`.

    The oracle is what `none` is up to the first attacked window, and then what it is without the attack. All of it
    is computed by one thread, since the last digits depend on their number.
    """
    made = create("attack", attack.name, attack.settings)
    assert isinstance(made, Attack)
    found: list[Run] = []
    splits: Splits | None = None
    for blueprint in blueprints:
        splits = splits or blueprint.items()[0].load(folder)
        name = "+".join(layer.text for layer in blueprint.defense)
        for seed in seeds:
            costs: list[float] = []
            told = serve(_bench(blueprint, splits, made, threat, seed, costs), shape)
            found.append(_run(name, seed, told, sum(costs)))
            if name == NOTHING:
                found.append(Run(ORACLE, seed, course(oracle(told.windows))))
    return found


def blueprints(
    task: str, defenses: Iterable[str], attack: str, threat: Threat, device: str, catalog: Catalog
) -> tuple[list[Blueprint], Use]:
    """Return what `none` and each of the defenses are built from, and the attack.

    Raises FirstlineError for unknown names, and for what does not fit together.
    """
    about, attacking = Ref.parse(task), Ref.parse(attack)
    task_card, attack_card = catalog.get("task", about.name), catalog.get("attack", attacking.name)
    if attack_card.facts["vector"] != threat.vector or threat.vector not in ("evasion", "poisoning"):
        raise FirstlineError(f"{attack} under {threat} makes no stream: name an evasion or a backdoor")
    found = []
    for text in dict.fromkeys((NOTHING, *defenses)):
        layers = [(catalog.get("defense", ref.name), ref) for ref in parse_stack(text)]
        used = tuple(use(card, ref) for card, ref in layers)
        # A stream repairs after evasion too, where cells of the matrix don't.
        lasting = [card for (card, _), one in zip(layers, used, strict=True) if not only_repairs(one)]
        if reason := mismatch(task_card, lasting, attack_card, threat):
            raise FirstlineError(reason)
        found.append(Blueprint(use(task_card, about), used, device))
    return found, use(attack_card, attacking)


def lines(runs: Sequence[Run]) -> list[Line]:
    """Return a line per defense, in the order of the runs."""
    return [
        _line(name, [run for run in runs if run.defense == name])
        for name in dict.fromkeys(r.defense for r in runs)
    ]


def _line(name: str, runs: Sequence[Run]) -> Line:
    again = [run.relapse for run in runs if run.relapse is not None]
    return Line(
        defense=name,
        summary=summary([run.course for run in runs]),
        steps=mean(run.steps for run in runs),
        samples=mean(run.samples for run in runs),
        seconds=mean(run.seconds for run in runs),
        relapse=mean(again) if len(again) == len(runs) else None,
    )


def _run(name: str, seed: int, told: Told, seconds: float) -> Run:
    ends = [mended.trace[-1] for mended in told.repairs if mended.trace]
    return Run(
        name,
        seed,
        course(told.windows),
        steps=sum(end.steps for end in ends),
        samples=sum(end.samples for end in ends),
        seconds=seconds,
        relapse=told.relapse.get("relapse"),
        relapse_without_repair=told.relapse.get("relapse_without_repair"),
    )


def _bench(
    blueprint: Blueprint, splits: Splits, attack: Attack, threat: Threat, seed: int, costs: list[float]
) -> Bench:
    """A bench whose systems live in this process; the CPU seconds of each repair are added to costs."""
    task, stack = blueprint.items()
    rng, device = Streams(seed).child(task.name), torch.device(blueprint.device)

    def fit(poisoned: PoisonedData | None) -> Fit:
        given = poisoned or PoisonedData(splits.train, NOBODY)
        own = clean_rows(splits, rng)
        made = stack.fit(task, given.data, rng.child("fit"), device, given.poisoned, own)
        return Fit(made.system, made.kept, made.seconds, task.classes, blueprint.device, None)

    def repair(served: Served, incident: Incident, look: Look) -> Mended:
        trace, watch = traced(look)
        made = stack.repair(task, served.system, incident, rng.child("repair"), device, watch)
        costs.append(made.seconds)
        fixed = Fit(made.system, served.kept, made.seconds, task.classes, blueprint.device, None)
        return Mended(fixed, trace)

    return Bench(
        task=task,
        splits=splits,
        stack=stack,
        attack=attack,
        threat=threat,
        rng=rng,
        device=device,
        examples=EXAMPLES,
        fit=fit,
        repair=repair,
        stage=lambda name: None,
    )
