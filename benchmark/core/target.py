"""The door that an attack gets: what the threat model grants, metered per sample, and nothing else."""

from collections.abc import Callable, Iterable
from copy import copy, deepcopy
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn

from firstline.benchmark.core.ascent import Slope
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import AccessDenied, BudgetExhausted, FirstlineError, SystemFailed
from firstline.benchmark.core.losses import Loss, cross_entropies, truth
from firstline.benchmark.core.memory import SAFE, batch_size
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED, Response, System
from firstline.benchmark.core.threat import Threat

DRAWS = 8  # draws of a stochastic system that one gradient averages over (EOT, Athalye et al. 2018)
REFUSAL = 64.0  # between the loss of a right answer and that of a wrong one which is refused
NO_GRADIENT = "the system gives no gradient; give it a differentiable surrogate (BPDA)"


def checked(
    answer: Callable[[Tensor, torch.Generator], Response], x: Tensor, noise: torch.Generator, classes: int
) -> Response:
    """Return answer(x, noise) for x (n, *shape). Raises SystemFailed where it raises, or answers in a wrong shape."""
    before = x._version
    try:
        response = answer(x, noise)
    except (FirstlineError, MemoryError, torch.OutOfMemoryError):
        raise  # a full memory is the machine's doing
    except (Exception, SystemExit) as error:
        raise SystemFailed(f"the system raised {type(error).__name__}: {error}") from error
    if x._version != before:
        raise SystemFailed("the system wrote to its inputs; work on a copy")
    if not isinstance(response, Response):
        raise SystemFailed(
            f"the system answered with a {type(response).__name__}; respond must return a Response"
        )
    if tuple(response.logits.shape) != (len(x), classes):
        raise SystemFailed(
            f"the system answered {len(x)} inputs with logits of shape {tuple(response.logits.shape)}; "
            f"it must be {(len(x), classes)}"
        )
    if response.acceptance is not None and tuple(response.acceptance.shape) != (len(x),):
        raise SystemFailed(f"acceptance has shape {tuple(response.acceptance.shape)}; it must be {(len(x),)}")
    return response


def asked(
    answer: Callable[[Tensor, torch.Generator], Response],
    parts: Iterable[Tensor],
    noise: torch.Generator,
    classes: int,
) -> Response:
    """Return the answers to all parts as one, without gradients. Raises SystemFailed as `checked` does."""
    with torch.no_grad():
        found = [checked(answer, part, noise, classes) for part in parts]
    acceptance = [part.acceptance for part in found if part.acceptance is not None]
    return Response(torch.cat([part.logits for part in found]), torch.cat(acceptance) if acceptance else None)


def observed(system: System, queries: Tensor) -> Tensor:
    """Return which of the queries (n, *shape) the system's monitor flags, (n,) bool. Raises SystemFailed where it can't say."""
    try:
        flagged = system.observe(queries)
    except (FirstlineError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise SystemFailed(f"observe raised {type(error).__name__}: {error}") from error
    if (
        not isinstance(flagged, Tensor)
        or flagged.dtype != torch.bool
        or tuple(flagged.shape) != (len(queries),)
    ):
        raise SystemFailed(f"observe must return {len(queries)} truth values, one per query")
    return flagged


class Target:
    """A system behind its threat model.

    examples is how many examples are attacked: queries and gradients (n,) count per example, and a query
    budget holds for each. Without examples there is one counter for all. space and classes are public.
    batch is how many inputs go through the system at once; without it, as many as a memory budget allows.
    notes is what the attack told about itself, see `tell`.

    Queries of a monitored system pass a monitor that has seen nothing before: what it flags gets no answer, logits
    of 0 and a refusal. flagged_at (n,) is the number of the first such query of each example, 0 without one. An
    attacker who holds the gradients asks a copy of its own, which nobody watches.
    """

    def __init__(
        self,
        system: System,
        threat: Threat,
        *,
        space: InputSpace,
        classes: int,
        rng: Streams,
        examples: int | None = None,
        build: Callable[[], nn.Module] | None = None,
        train: Data | None = None,
        aux: Data | None = None,
        defense: str | None = None,
        batch: int | None = None,
    ) -> None:
        self.threat, self.space, self.classes = threat, space, classes
        self.notes: dict[str, float] = {}
        self.queries = torch.zeros(examples if examples is not None else 1, dtype=torch.int64)
        self.gradients = torch.zeros_like(self.queries)
        self.flagged_at = torch.zeros_like(self.queries)
        self._monitor = deepcopy(system) if system.monitors and "gradients" not in threat.grants else None
        self._single = examples is None
        self._rows: Tensor | None = None
        self._system, self._build, self._batch = system, build, batch
        self._train, self._aux, self._defense = train, aux, defense
        self._noise, self._trial = rng.torch("answers"), rng.torch("batch")

    @property
    def watched(self) -> bool:
        """Whether a monitor sees the queries."""
        return self._monitor is not None

    @property
    def device(self) -> torch.device:
        """Where the system computes, and queries are wanted."""
        held = next(chain(self._system.parameters(), self._system.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    def keep(self, rows: Tensor) -> Self:
        """Return the same door for the examples at rows (k,) alone: row i there is row rows[i] here.

        Counters and budgets are shared, so that an attack can hand on what still stands to another.
        """
        narrow = copy(self)
        narrow._rows = rows.cpu() if self._rows is None else self._rows[rows.cpu()]
        return narrow

    def tell(self, name: str, value: float) -> None:
        """Leave a figure about the attack's own course for the record's diagnostics."""
        self.notes[name] = float(value)

    def _need(self, grant: str) -> None:
        if grant not in self.threat.grants:
            held = ", ".join(sorted(self.threat.grants))
            raise AccessDenied(
                f"the attack asked for {grant}, which {self.threat} does not grant (it grants {held}); "
                f"list {grant!r} in the attack's needs, or attack under a threat model that grants it"
            )

    def _owners(self, count: int, rows: Tensor | None) -> Tensor:
        """The counters (count,) that so many inputs are charged to."""
        if self._single:
            return torch.zeros(count, dtype=torch.int64)
        if rows is not None:
            return rows.cpu() if self._rows is None else self._rows[rows.cpu()]
        mine = torch.arange(len(self.queries)) if self._rows is None else self._rows
        if count != len(mine):
            raise ValueError(f"{count} inputs for {len(mine)} examples: pass rows to say whose they are")
        return mine

    def _charge(self, counter: Tensor, owners: Tensor, limit: int | None) -> None:
        spent = counter.index_add(0, owners, torch.ones_like(owners))
        if limit is not None and int(spent.max()) > limit:
            per = "in all" if self._single else "per example"
            raise BudgetExhausted(
                f"{self.threat} grants {limit} queries {per}; the attack asked for {int(spent.max())}"
            )
        counter.copy_(spent)

    def left(self, row: int = 0) -> float:
        """Return how many queries are left for an example; infinity where there is no limit."""
        if self.threat.queries is None:
            return float("inf")
        return self.threat.queries - int(self.queries[row if self._rows is None else self._rows[row]])

    def afford(self, queries: int) -> int:
        """Return how many of so many queries every example here can still pay for."""
        if self.threat.queries is None:
            return queries
        spent = self.queries if self._rows is None else self.queries[self._rows]
        most = int(spent.max()) if len(spent) else 0
        return max(0, min(queries, self.threat.queries - most))

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        if self._batch is None and len(x) > SAFE:
            self._batch = batch_size(self._system, x, self._trial)
        parts: tuple[Tensor, ...] = x.split(self._batch or SAFE)
        return parts

    def _respond(self, answer: Callable[[Tensor, torch.Generator], Response], x: Tensor) -> Response:
        return checked(answer, x, self._noise, self.classes)

    def _ask(self, x: Tensor, rows: Tensor | None) -> Response:
        owners = self._owners(len(x), rows)
        self._charge(self.queries, owners, self.threat.queries)
        answer = asked(self._system.respond, self._split(x), self._noise, self.classes)
        return answer if self._monitor is None else self._passed(self._monitor, x, owners, answer)

    def _passed(self, monitor: System, x: Tensor, owners: Tensor, answer: Response) -> Response:
        """The answers that a monitor lets through."""
        flagged = observed(monitor, x)
        for place in flagged.nonzero().squeeze(1).tolist():
            owner = owners[place]
            if self.flagged_at[owner] == 0:
                self.flagged_at[owner] = self.queries[owner] - (owners[place + 1 :] == owner).sum()
        acceptance = torch.ones_like(answer.logits[:, 0]) if answer.acceptance is None else answer.acceptance
        return Response(
            torch.where(flagged[:, None], 0.0, answer.logits), torch.where(flagged, -1.0, acceptance)
        )

    def scores(self, x: Tensor, rows: Tensor | None = None) -> Response:
        """Return logits and acceptance for x (k, *shape). rows (k,) says which examples they belong to."""
        self._need("scores")
        return self._ask(x, rows)

    def labels(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the predicted classes (k,), -1 where the system refuses."""
        return self._ask(x, rows).labels

    def slope(
        self, x: Tensor, y: Tensor, rows: Tensor | None = None, *, loss: Loss = cross_entropies
    ) -> Slope:
        """Return the gradient of the per-example loss at x (k, *shape), the loss, and which points are broken.

        y is (k,), the true classes, or (k, 2), true and target class. The gradient is that of the whole
        system: through its differentiable stand-in where it has one (BPDA), averaged over DRAWS draws where
        it is stochastic (EOT), and where a wrong answer is refused, that of the acceptance score instead
        (Bryniarski et al. 2021, arXiv:2106.15023, section 4.1). Whether a point is broken is up to the
        system itself, never to its stand-in. A stochastic system is never called broken: a point at which a
        few draws err is a coin toss for the next one, so the ascent goes on.
        """
        self._need("gradients")
        draws = DRAWS if self._system.stochastic else 1
        owners = self._owners(len(x), rows)
        for _ in range(draws):  # every draw is a gradient
            self._charge(self.gradients, owners, None)
        parts = self._split(x)
        slopes = [
            self._slope(points, labels, loss, draws)
            for points, labels in zip(parts, y.split([len(part) for part in parts]), strict=True)
        ]
        if len(slopes) == 1:
            return slopes[0]
        if not slopes:
            return Slope(torch.zeros_like(x), None, x.new_zeros(0))
        broken = [slope.broken for slope in slopes if slope.broken is not None]
        return Slope(
            torch.cat([slope.gradient for slope in slopes]),
            torch.cat(broken) if broken else None,
            torch.cat([slope.loss for slope in slopes]),
        )

    def _slope(self, x: Tensor, y: Tensor, loss: Loss, draws: int) -> Slope:
        total, height = None, None
        for _ in range(draws):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                answer = self._respond(self._system.surrogate, leaf)
                losses = heed_refusals(loss(answer.logits, y), answer, truth(y))
                if not losses.requires_grad:
                    raise SystemFailed(NO_GRADIENT)
                (gradient,) = torch.autograd.grad(losses.sum(), leaf)
            losses = losses.detach()
            total, height = (
                (gradient, losses) if total is None or height is None else (total + gradient, height + losses)
            )
        assert total is not None
        assert height is not None
        if self._system.stochastic:
            return Slope(total / draws, None, height / draws)
        with torch.no_grad():
            labels = (self._respond(self._system.respond, x) if self._system.stands_in else answer).labels
        return Slope(total, (labels != truth(y)) & (labels != REFUSED), height)

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits (k, classes) of x (k, *shape), for an attack that goes back through them by itself.

        Where x asks for a gradient they are those of the differentiable stand-in, and every way back through
        them is charged as one gradient, the first of them at once; elsewhere they are the system's own, at a
        query. A system that refuses or is random answers as it is: no acceptance, and one draw. Raises
        SystemFailed where there is no gradient.
        """
        self._need("gradients")
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._ask(x, rows).logits
        owners = self._owners(len(x), rows)
        self._charge(self.gradients, owners, None)
        logits = self._respond(self._system.surrogate, x).logits
        if not logits.requires_grad:
            raise SystemFailed(NO_GRADIENT)
        paid = True

        def back(gradient: Tensor) -> None:
            nonlocal paid
            if not paid:
                self._charge(self.gradients, owners, None)
            paid = False

        logits.register_hook(back)
        return logits

    @property
    def system(self) -> System:
        """The system itself, parameters and activations: white-box only, and not metered."""
        self._need("gradients")
        return self._system

    @property
    def defense(self) -> str:
        """The text form of the defense stack."""
        self._need("defense")
        return self._defense or ""

    @property
    def train(self) -> Data:
        """The share of the training data that the threat model grants."""
        self._need("train")
        assert self._train is not None
        return self._train

    @property
    def aux(self) -> Data:
        """The attacker's own data of the same population."""
        self._need("aux")
        assert self._aux is not None
        return self._aux

    def architecture(self) -> nn.Module:
        """Return an untrained copy of the network."""
        self._need("architecture")
        assert self._build is not None
        return self._build()


def heed_refusals(losses: Tensor, answer: Response, y: Tensor) -> Tensor:
    """Let a wrong answer that is refused climb towards acceptance, and rank it between right and broken.

    For a loss whose sign says whether the answer is wrong, the sign then says whether the point is broken.
    """
    if answer.acceptance is None:
        return losses
    wrong, score = answer.logits.argmax(1) != y, answer.acceptance
    refused = score / (1 + score.abs())
    return torch.where(wrong, torch.where(answer.accepted, losses, refused), losses - REFUSAL)
