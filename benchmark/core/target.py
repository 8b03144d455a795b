"""The door that an attack gets: what the threat model grants, metered per sample, and nothing else."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.ascent import PerExampleLoss, Slope
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import AccessDenied, BudgetExhausted, FirstlineError, SystemFailed
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import REFUSED, Response, System
from firstline.benchmark.core.threat import Threat

DRAWS = (
    8  # draws of a stochastic system that one gradient averages over (EOT, Athalye et al. 2018, section 4)
)


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy (n,) of each row."""
    return cross_entropy(logits, y, reduction="none")


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


class Target:
    """A system behind its threat model.

    examples is how many examples are attacked: queries and gradients (n,) count per example, and a query
    budget holds for each. Without examples there is one counter for all. space and classes are public.
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
        batch: int = 512,
    ) -> None:
        self.threat, self.space, self.classes = threat, space, classes
        self.queries = torch.zeros(examples if examples is not None else 1, dtype=torch.int64)
        self.gradients = torch.zeros_like(self.queries)
        self._single = examples is None
        self._system, self._build, self._batch = system, build, batch
        self._train, self._aux, self._defense = train, aux, defense
        self._noise = rng.torch("answers")

    def _need(self, grant: str) -> None:
        if grant not in self.threat.grants:
            held = ", ".join(sorted(self.threat.grants))
            raise AccessDenied(
                f"the attack asked for {grant}, which {self.threat} does not grant (it grants {held}); "
                f"list {grant!r} in the attack's needs, or attack under a threat model that grants it"
            )

    def _charge(self, counter: Tensor, count: int, rows: Tensor | None, limit: int | None) -> None:
        if self._single:
            spent = counter + count
        elif rows is None:
            if count != len(counter):
                raise ValueError(
                    f"{count} inputs for {len(counter)} examples: pass rows to say whose they are"
                )
            spent = counter + 1
        else:
            spent = counter.index_add(0, rows.cpu(), torch.ones(count, dtype=torch.int64))
        if limit is not None and int(spent.max()) > limit:
            per = "in all" if self._single else "per example"
            raise BudgetExhausted(
                f"{self.threat} grants {limit} queries {per}; the attack asked for {int(spent.max())}"
            )
        counter.copy_(spent)

    def left(self, row: int = 0) -> float:
        """Return how many queries are left for an example; infinity where there is no limit."""
        return float("inf") if self.threat.queries is None else self.threat.queries - int(self.queries[row])

    def _respond(self, answer: Callable[[Tensor, torch.Generator], Response], x: Tensor) -> Response:
        return checked(answer, x, self._noise, self.classes)

    @torch.no_grad()
    def _ask(self, x: Tensor, rows: Tensor | None) -> Response:
        self._charge(self.queries, len(x), rows, self.threat.queries)
        parts = [self._respond(self._system.respond, chunk) for chunk in x.split(self._batch)]
        acceptance = [p.acceptance for p in parts if p.acceptance is not None]
        return Response(torch.cat([p.logits for p in parts]), torch.cat(acceptance) if acceptance else None)

    def scores(self, x: Tensor, rows: Tensor | None = None) -> Response:
        """Return logits and acceptance for x (k, *shape). rows (k,) says which examples they belong to."""
        self._need("scores")
        return self._ask(x, rows)

    def labels(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the predicted classes (k,), -1 where the system refuses."""
        return self._ask(x, rows).labels

    def slope(
        self, x: Tensor, y: Tensor, rows: Tensor | None = None, *, loss: PerExampleLoss = cross_entropies
    ) -> Slope:
        """Return the gradient of the per-example loss at x (k, *shape), and which points are answered wrongly.

        The gradient is that of the whole system: through its differentiable stand-in where it has one (BPDA),
        averaged over DRAWS draws where it is stochastic (EOT). Whether a point is answered wrongly is up to the
        system itself, never to its stand-in. A stochastic system is never called broken: a point at which a few
        draws err is a coin toss for the next one, so the ascent goes on.
        """
        self._need("gradients")
        draws = DRAWS if self._system.stochastic else 1
        for _ in range(draws):  # every draw is a gradient
            self._charge(self.gradients, len(x), rows, None)
        slopes = [
            self._slope(points, labels, loss, draws)
            for points, labels in zip(x.split(self._batch), y.split(self._batch), strict=True)
        ]
        if len(slopes) == 1:
            return slopes[0]
        broken = [slope.broken for slope in slopes if slope.broken is not None]
        return Slope(torch.cat([slope.gradient for slope in slopes]), torch.cat(broken) if broken else None)

    def _slope(self, x: Tensor, y: Tensor, loss: PerExampleLoss, draws: int) -> Slope:
        total = None
        for _ in range(draws):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                answer = self._respond(self._system.surrogate, leaf)
                value = loss(answer.logits, y).sum()
                if not value.requires_grad:
                    raise SystemFailed(
                        "the system gives no gradient; give it a differentiable surrogate (BPDA)"
                    )
                (gradient,) = torch.autograd.grad(value, leaf)
            total = gradient if total is None else total + gradient
        assert total is not None
        if self._system.stochastic:
            return Slope(total / draws, None)
        with torch.no_grad():
            labels = (self._respond(self._system.respond, x) if self._system.stands_in else answer).labels
        return Slope(total, (labels != y) & (labels != REFUSED))

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
