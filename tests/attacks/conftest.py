"""What tests of attacks share: a small network that was trained on digits."""

import pytest
import torch

from firstline.benchmark.core.contracts import initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, System
from firstline.benchmark.core.training import Recipe, train
from firstline.tasks.digits import Digits


@pytest.fixture(scope="session")
def digits() -> tuple[System, Data]:
    """Return an undefended CNN and 200 test examples."""
    task = Digits()
    splits = task.load(None)
    module = train(initialise(task.default.build, Streams(0)), splits.train, Recipe(12, 64, 3e-3), Streams(0))
    return Bare(module).eval().requires_grad_(False), splits.test.rows(torch.arange(200))
