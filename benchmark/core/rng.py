"""One seed becomes many independent streams, by name. Nothing here reads or sets the global generators for good."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Streams:
    """Named random streams below one seed.

    The same seed and names give the same stream on every machine; different names give independent ones.
    """

    seed: int
    path: tuple[str, ...] = ()

    def child(self, *names: str) -> "Streams":
        """Return the streams below these names."""
        return Streams(self.seed, self.path + names)

    def integer(self, *names: str) -> int:
        """Return a number in [0, 2**63) derived from the seed and the names alone."""
        text = "/".join([str(self.seed), *self.path, *names])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def torch(self, *names: str) -> torch.Generator:
        """Return a fresh CPU generator for these names; draw on the CPU, then move, so that devices agree."""
        return torch.Generator().manual_seed(self.integer(*names))

    def numpy(self, *names: str) -> np.random.Generator:
        """Return a fresh NumPy generator for these names."""
        return np.random.Generator(np.random.Philox(self.integer(*names)))


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run code that insists on torch's global generator (module initialisation, dropout) from a seed of its own.

    The global state is put back afterwards.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
