"""Fixed splits of data, and the check that they are the data that a task was defined on."""

import textwrap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from firstline.benchmark.core.data import Data, Splits
from firstline.benchmark.core.errors import DataProblem

ORDER = 20180801  # the shuffle is part of a task's identity: never derived from a run's seed


def shuffled(n: int) -> NDArray[np.int64]:
    """Return the numbers below n in the one order in which every task cuts n rows."""
    return np.random.Generator(np.random.Philox(ORDER)).permutation(n)


def split(
    x: NDArray[Any], y: NDArray[Any], *, train: int, test: int, dtype: type[np.generic] = np.float32
) -> Splits:
    """Return x (n, *shape) as dtype and y (n,), shuffled once and for all, cut into train, test and aux."""
    order = shuffled(len(x))
    xs = torch.from_numpy(np.ascontiguousarray(x[order], dtype=dtype))
    ys = torch.from_numpy(np.ascontiguousarray(y[order], dtype=np.int64))
    cuts = (slice(0, train), slice(train, train + test), slice(train + test, None))
    return Splits(*(Data.of(xs[cut], ys[cut]) for cut in cuts))


def verified(splits: Splits, fingerprint: str, what: str) -> Splits:
    """Return splits if they have this fingerprint, or if it is empty: then nothing is pinned.

    what names the task and the place that was read, for the message. Raises DataProblem when they differ.
    """
    if fingerprint and (found := splits.fingerprint()) != fingerprint:
        raise DataProblem(
            f"{what}: the splits have fingerprint {found} instead of {fingerprint}, so results on them would "
            "not compare; get the original files again, or reinstall the package that holds them"
        )
    return splits


def cause(error: BaseException) -> str:
    r"""Return the kind and the text of someone else's error, on one line and cut short.

    >>> cause(ValueError("row 3:\n  not a number"))
    'ValueError: row 3: not a number'
    """
    return textwrap.shorten(f"{type(error).__name__}: {error}", 240, placeholder=" …")
