"""Checks of tasks."""

from functools import lru_cache
from pathlib import Path

import torch

from firstline.benchmark.contract.checks import applies_to
from firstline.benchmark.core.contracts import Task, initialise
from firstline.benchmark.core.data import Splits
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.rng import Streams


def _loaded(task: Task, folder: Path | None) -> Splits:
    if folder is None and not task.embedded:
        raise DataProblem("its data is not part of firstline; name a folder that holds it with --data-dir")
    return _load(task, folder)


@lru_cache(maxsize=1)
def _load(task: Task, folder: Path | None) -> Splits:
    return task.load(folder)


@applies_to(Task)
def same_data(task: Task, folder: Path | None) -> None:
    """Loads the same data every time, with the pinned fingerprint."""
    first = _loaded(task, folder).fingerprint()
    assert task.load(folder).fingerprint() == first, "two loads gave different data"
    assert not task.fingerprint or task.fingerprint == first, (
        f"the data's fingerprint is {first}, the pinned one {task.fingerprint}"
    )


@applies_to(Task)
def stated_inputs(task: Task, folder: Path | None) -> None:
    """Has the stated shape, range, grid and classes in every split, and no empty split."""
    splits = _loaded(task, folder)
    for name, data in (("train", splits.train), ("test", splits.test), ("aux", splits.aux)):
        assert len(data), f"{name} is empty"
        problem = task.space.check(data.x)
        assert problem is None, f"{name} has {problem}"
        assert data.x.is_floating_point() == (task.inputs == "real"), f"{name}: inputs are {data.x.dtype}"
        assert data.y.dtype == torch.int64, f"{name}: labels are {data.y.dtype}, must be int64"
        assert 0 <= int(data.y.min()) <= int(data.y.max()) < task.classes, (
            f"{name}: labels outside 0..{task.classes - 1}"
        )
        few = data.x[:1000]
        assert torch.allclose(task.space.round(few), few, atol=1e-6), f"{name}: inputs are off the grid"


@applies_to(Task)
def disjoint(task: Task, folder: Path | None) -> None:
    """Counts each row once within a split."""
    splits = _loaded(task, folder)
    for name, data in (("train", splits.train), ("test", splits.test), ("aux", splits.aux)):
        assert len(torch.unique(data.ids)) == len(data), f"{name}: some ids occur twice"
        assert bool((data.ids[1:] > data.ids[:-1]).all()), f"{name}: ids must rise"
        assert int(data.ids[0]) >= 0, f"{name}: ids must not be negative"


@applies_to(Task)
def architectures(task: Task, folder: Path | None) -> None:
    """Builds every architecture, which answers with one logit per class."""
    x = _loaded(task, folder).test.x[:4]
    for name, architecture in task.architectures.items():
        module = initialise(architecture.build, Streams(0)).eval()
        with torch.no_grad():
            shape = tuple(module(x).shape)
        assert shape == (len(x), task.classes), f"{name} answers {len(x)} inputs with shape {shape}"
