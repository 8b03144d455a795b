"""What backdoors by data alone share: which rows are taken, and how a trigger and a label are put on them.

Source: Gu, Dolan-Gavitt & Garg 2017, arXiv:1708.06733, section 4 (training-set poisoning, all to one class).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from firstline.attacks.poisoning.budget import enough
from firstline.benchmark.core.contracts import PoisonedData, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.rng import Streams

Trigger = Callable[[Tensor], Tensor]

# Which rows may be taken: labels (n,) and the target class to a mask (n,).
SOURCES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "others": lambda y, target: y != target,
    "target": lambda y, target: y == target,
    "all": lambda y, target: torch.ones_like(y, dtype=torch.bool),
}


def image_shape(attack: str, task: Task) -> tuple[int, int, int]:
    """Return channels, height and width of the task's images. Raises FirstlineError where it has none."""
    if task.modality != "image" or len(task.space.shape) != 3:
        raise FirstlineError(f"{attack} needs images; {task.name} holds {task.modality} inputs")
    channels, height, width = task.space.shape
    return channels, height, width


def choose(
    attack: str, train: Data, task: Task, budget: int, rng: Streams, *, target: int, source: str
) -> Tensor:
    """Return budget positions in train, drawn evenly from the rows that source allows, in the order drawn.

    A smaller budget takes the first of them. source is a key of SOURCES. Raises FirstlineError when the task
    has no such class, or fewer rows are there than the budget says: a poison share is never cut in silence.
    """
    if source not in SOURCES:
        raise not_found("source of poisoned rows", source, SOURCES)
    if not 0 <= target < task.classes:
        raise FirstlineError(f"{attack}: {task.name} has classes 0..{task.classes - 1}, so none is {target}")
    allowed = SOURCES[source](train.y, target).nonzero().squeeze(1)
    enough(attack, budget, len(allowed), f"{source!r} rows for target class {target}")
    return allowed[torch.randperm(len(allowed), generator=rng.torch("rows"))[:budget]]


def implant(train: Data, rows: Tensor, trigger: Trigger, target: int) -> PoisonedData:
    """Return train with the trigger and the label target on rows (k,), a copy; ids stay."""
    x, y = train.x.clone(), train.y.clone()
    x[rows], y[rows] = trigger(train.x[rows]), target
    return PoisonedData(Data(x, y, train.ids), train.ids[rows], trigger, target)
