"""A server that sees a sum and nothing else. Source: Bonawitz et al. 2017, CCS, Practical Secure Aggregation, section 4.

Clients add masks that they share in pairs, one adds what the other takes off, modulo a power of two: the sum of all is
that of the unmasked updates, to the last bit of their fixed-point form, and any part of them looks uniform. All clients
are in one process here, honest, and none drops out: keys, secret sharing and recovery are left to a protocol on a wire.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstline.benchmark.core.contracts import Context, Defense, Gradients
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams

Words = NDArray[np.uint64]  # arithmetic on these is modulo 2^64


def quantised(values: Tensor, bits: int) -> Words:
    """Return values in fixed point with so many bits behind the point, two's complement, (n,)."""
    return np.round(values.double().cpu().numpy() * 2.0**bits).astype(np.int64).view(np.uint64)


def restored(words: Words, bits: int) -> NDArray[np.float64]:
    """Return the numbers that words stand for."""
    return words.view(np.int64).astype(np.float64) / 2.0**bits


def masked(words: Sequence[Words], rng: Streams) -> list[Words]:
    """Return what each client sends: its words plus the masks that it shares with later clients, less those with earlier."""
    sent = [own.copy() for own in words]
    for first in range(len(words)):
        for second in range(first + 1, len(words)):
            mask = rng.numpy("mask", f"{first} {second}").integers(0, 2**64, len(words[first]), np.uint64)
            sent[first] += mask
            sent[second] -= mask
    return sent


def total(sent: Sequence[Words]) -> Words:
    """Return the sum modulo 2^64, in which the masks of all clients are gone."""
    found = np.zeros_like(sent[0])
    for words in sent:
        found += words
    return found


@defense("secure-aggregation")
@dataclass(frozen=True)
class SecureAggregation(Defense):
    """Let the server see the mean over all clients' updates, exact to 2^-bits, and no single one.

    Claims that a server learns nothing but the sum. Known to hide a client only in the crowd of its round: the batch
    of all clients together is what can be rebuilt, and a server that picks the clients (Fowl et al. 2022,
    arXiv:2110.13057) or the network (Boenisch et al. 2023, arXiv:2112.02918) gets around it.
    """

    bits: int = 24

    def transmit(self, updates: Sequence[Gradients], ctx: Context) -> Gradients:
        """Return the mean of all updates, through masks."""
        if not 1 <= self.bits <= 40:
            raise FirstlineError(f"{self}: bits must be from 1 to 40")
        flat = [torch.cat([g.flatten() for g in own]) for own in updates]
        sent = masked([quantised(own, self.bits) for own in flat], ctx.rng.child("secure aggregation"))
        mean = torch.from_numpy(restored(total(sent), self.bits) / len(updates)).to(flat[0])
        shapes = [g.shape for g in updates[0]]
        parts = mean.split([shape.numel() for shape in shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
