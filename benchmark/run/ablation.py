"""What each layer of a defense stack adds: the stack beside itself with one layer left out."""

from collections.abc import Sequence

from firstline.benchmark.core.catalog import Catalog
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.ref import Ref
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.run.suite import Block, Suite

Layers = tuple[Ref, ...]
NOTHING: Layers = (Ref("none"),)


def without(stack: Layers) -> list[tuple[Ref, Layers]]:
    """Return for each layer of stack the stack that is left without it: `none` where nothing is.

    >>> from firstline.benchmark.core.ref import parse_stack, write_stack
    >>> [(str(layer), write_stack(rest)) for layer, rest in without(parse_stack("a+b(k=2)+c"))]
    [('a', 'b(k=2)+c'), ('b(k=2)', 'a+c'), ('c', 'a+b(k=2)')]
    """
    return [(layer, stack[:i] + stack[i + 1 :] or NOTHING) for i, layer in enumerate(stack)]


def ablation(
    stack: Layers,
    tasks: Sequence[str],
    attacks: Sequence[str],
    threats: Sequence[str],
    seeds: Sequence[int],
    examples: int,
    catalog: Catalog,
) -> Suite:
    """Return the suite that pairs stack and all its leave-one-out sub-stacks with attacks.

    Without threats each task is attacked white-box in linf and l2, at its customary radii. Raises
    FirstlineError where a task has none, and for a stack with nothing to leave out.
    """
    if stack == NOTHING:
        raise FirstlineError("there is nothing to leave out of none; name a defense, or a stack such as a+b")
    stacks = tuple(dict.fromkeys((stack, *(rest for _, rest in without(stack)))))
    blocks = [
        Block(
            tasks=(Ref.parse(task),),
            defenses=stacks,
            attacks=tuple(map(Ref.parse, attacks)),
            threats=tuple(map(Threat.parse, threats)) or _customary(task, catalog),
        )
        for task in tasks
    ]
    return Suite("ablation", "1.0.0", "", tuple(seeds), examples, tuple(blocks))


def _customary(task: str, catalog: Catalog) -> tuple[Threat, ...]:
    radii = catalog.get("task", Ref.parse(task).name).facts["eps"]
    found = tuple(
        Threat.parse(f"evasion/white/{norm}:{radii[norm]}") for norm in ("linf", "l2") if norm in radii
    )
    if not found:
        raise FirstlineError(f"task {task} has no customary radius; name threat models with --threat")
    return found
