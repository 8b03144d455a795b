"""What a defense deploys, and what is attacked and scored: a model with its processing, refusals and monitor."""

from copy import copy, deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.benchmark.core.errors import FirstlineError

REFUSED = -1  # the label of an input that the system refuses to answer
INVALID = -2  # the label of an answer that is not a number


@dataclass(frozen=True)
class Response:
    """Answers to n inputs: logits (n, classes), and acceptance (n,), at least 0 where the input is answered.

    acceptance None means that everything is answered. Its value is a score, so that an attack can climb it.
    """

    logits: Tensor
    acceptance: Tensor | None = None

    @property
    def accepted(self) -> Tensor:
        """Which inputs are answered, (n,) bool."""
        if self.acceptance is None:
            return torch.ones(len(self.logits), dtype=torch.bool, device=self.logits.device)
        return self.acceptance >= 0

    @property
    def labels(self) -> Tensor:
        """The predicted classes, (n,) int64: REFUSED where refused, INVALID where the logits are not numbers."""
        labels = self.logits.argmax(1)
        labels = torch.where(torch.isfinite(self.logits).all(1), labels, INVALID)
        return labels if self.acceptance is None else torch.where(self.accepted, labels, REFUSED)


@dataclass(frozen=True)
class Certificate:
    """What a system proves about n inputs: no point within radii (n,) of an input gets another answer than labels (n,).

    Radii are in the norm that was asked about, and 0 where nothing is proved; labels may be REFUSED there.
    """

    labels: Tensor
    radii: Tensor


class System(nn.Module):
    """A deployed model. Subclass it to change what goes in or comes out; its parameters and buffers are its state.

    inner is the system that this one wraps. Everything that a system has learned must be a parameter or a
    buffer: systems are stored as tensors and rebuilt by `deploy`.
    """

    stochastic: bool = False  # answers differ from call to call; attacks then average over draws
    inner: "System | None"

    def __init__(self, inner: "System | None" = None) -> None:
        super().__init__()
        self.inner = inner
        if inner is not None:
            self.stochastic = inner.stochastic

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer inputs x (n, *shape); rng is the only source of randomness."""
        return self._inside().respond(x, rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer like `respond`, but differentiably: what a BPDA adversary uses (Athalye et al. 2018).

        The default is `respond`, put around the inner system's stand-in where that has one.
        """
        if self.inner is None or not self.inner.stands_in:
            return self.respond(x, rng)
        twin = copy(self)  # shares all tensors
        twin.__dict__["_modules"] = {**self._modules, "inner": _StandIn(self.inner)}
        return twin.respond(x, rng)

    @property
    def stands_in(self) -> bool:
        """Whether `surrogate` may answer otherwise than `respond`, here or further inside."""
        here = type(self).surrogate is not System.surrogate
        return here or (self.inner is not None and self.inner.stands_in)

    @property
    def monitors(self) -> bool:
        """Whether `observe` may flag anything, here or further inside."""
        here = type(self).observe is not System.observe
        return here or (self.inner is not None and self.inner.monitors)

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        """Return what is proved of the answers around inputs x (n, *shape), None where nothing is in this norm.

        The default is None, also around a system that certifies: what a layer changes, its proof doesn't know.
        """
        return None

    def observe(self, queries: Tensor) -> Tensor:
        """See a batch of queries (n, *shape) as they come; return which are flagged, (n,) bool.

        Only what an attacker asks of the deployed system comes here, in order, and a flagged query gets no answer.
        What a monitor remembers is no part of its state: each cell begins with a copy that has seen nothing.
        """
        if self.inner is not None:
            return self.inner.observe(queries)
        return torch.zeros(len(queries), dtype=torch.bool, device=queries.device)

    def forward(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the logits of `respond`."""
        return self.respond(x, rng).logits

    def _inside(self) -> "System":
        if self.inner is None:
            raise NotImplementedError(f"{type(self).__name__} wraps nothing: implement respond")
        return self.inner


class _StandIn(System):
    """Answers with the surrogate of the system inside."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return self._inside().surrogate(x, rng)


class Bare(System):
    """A module and nothing else: logits = module(x)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Return the module's logits."""
        return Response(self.module(x))


def innermost(system: System) -> System:
    """Return what the layers of system are around."""
    while system.inner is not None:
        system = system.inner
    return system


def opened(system: System) -> tuple[System, nn.Module]:
    """Return a copy of system that shares no tensor with it, and the network inside, whose parameters can be trained.

    Raises FirstlineError where the innermost system is not a bare network.
    """
    copied = deepcopy(system).requires_grad_(True)
    inside = innermost(copied)
    if not isinstance(inside, Bare):
        raise FirstlineError(
            f"a repair trains the network inside a system; {type(inside).__name__} holds none"
        )
    return copied, inside.module
