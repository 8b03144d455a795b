"""Answers that tell members from others no more. Source: Jia et al. 2019, CCS, arXiv:1909.10594, section 4.

Phase I looks for noise in the logits that takes a classifier of members to a coin toss (algorithm 1); phase II adds
it with a probability that keeps the expected distortion within a budget. One-time randomness makes both depend on
the input alone.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from firstline.benchmark.core.contracts import Context, Defense, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import TINY
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.training import Recipe, train
from firstline.defenses.confidence_masking import FLOOR, Masked
from firstline.defenses.detector import halves
from firstline.defenses.judges import judge, logits_of

WIDTHS = (256, 128, 64)  # of the classifier's hidden layers, as in the authors' code
STEP = 0.1  # length of a step in the logits, as there
KEEP = 10.0  # c2, the weight of keeping the class, as there
WEIGHTS = tuple(10.0**power for power in range(-1, 6))  # c3, the weight of the distortion, as there
SURE = 1e-5  # from one half: the classifier is tossing a coin already, as there
SECRET = 32  # bytes


class MemberClassifier(nn.Module):
    """Says from the sorted probabilities of an answer whether its input was trained on: above 0 if so."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        sizes = (classes, *WIDTHS)
        layers = [
            layer
            for wide, narrow in zip(sizes, WIDTHS, strict=False)
            for layer in (nn.Linear(wide, narrow), nn.ReLU())
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 1))

    def forward(self, shares: Tensor) -> Tensor:
        """Return the log odds (n,) of membership for probabilities (n, classes)."""
        found: Tensor = self.layers(shares.sort(1).values)
        return found.squeeze(1)


class Guarded(Masked):
    """Tells probabilities that the classifier can't judge, as often as the budget allows."""

    def __init__(self, inner: System, classifier: nn.Module, budget: float, steps: int) -> None:
        super().__init__(inner)
        self.classifier, self.budget, self.steps = classifier, budget, steps
        self.register_buffer("secret", torch.zeros(SECRET, dtype=torch.uint8))

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer x (n, *shape), whose rows the inner system is asked one by one.

        The search makes much of a rounding error, and a row's rounding errors depend on its batch.
        """
        answers = [self._inside().respond(row, rng) for row in x.split(1)]
        acceptance = [answer.acceptance for answer in answers if answer.acceptance is not None]
        logits = torch.cat([answer.logits for answer in answers])
        return self.masked(Response(logits, torch.cat(acceptance) if acceptance else None), x, rng)

    def told(self, shares: Tensor, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return shares (n, classes), those of `noisy` in their place where the coin of the input says so."""
        shares = shares.detach()
        noisy = self.noisy(shares)
        return torch.where((self.coins(x) < self.chance(shares, noisy))[:, None], noisy, shares)

    def chance(self, shares: Tensor, noisy: Tensor) -> Tensor:
        """Return how probable noisy (n, classes) is to be told instead of shares, (n,): the paper's equation for p.

        0 where the classifier is no less sure of it, else what spends the budget on their distance in l1.
        """
        sure = [(torch.sigmoid(self.classifier(told)) - 0.5).abs() for told in (shares, noisy)]
        spent = self.budget / (noisy - shares).abs().sum(1).clamp_min(TINY)
        return torch.where(sure[1] < sure[0], spent.clamp_max(1), 0)

    def coins(self, x: Tensor) -> Tensor:
        """Return a number in [0, 1) for each row of x (n, *shape), always the same for the same row."""
        key = bytes(self.get_buffer("secret").tolist())
        rows = x.detach().cpu().contiguous().numpy()
        drawn = [
            int.from_bytes(hashlib.blake2b(row.tobytes(), key=key, digest_size=6).digest()) for row in rows
        ]
        return torch.tensor(drawn, dtype=torch.float64, device=x.device) / 2**48

    def noisy(self, shares: Tensor) -> Tensor:
        """Return probabilities (n, classes) near shares of which the classifier says the opposite, by a little.

        The class stays. Of the weights of the distortion the largest counts at which the search succeeds: rows
        without one, and rows that the classifier can't judge anyway, come back as they are.
        """
        found, logits = shares.clone(), shares.clamp_min(FLOOR).log()
        open_rows = ((torch.sigmoid(self.classifier(shares)) - 0.5).abs() > SURE).nonzero().squeeze(1)
        for weight in WEIGHTS:
            ends, reached = self._search(logits[open_rows], shares[open_rows], weight)
            open_rows = open_rows[reached]
            found[open_rows] = torch.softmax(ends[reached], 1)
            if len(open_rows) == 0:
                break
        return found

    def _search(self, start: Tensor, shares: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) where the paper's algorithm 1 ends for one weight, and whether it succeeded, (n,)."""
        own = one_hot(shares.argmax(1), shares.shape[1]).bool()
        side = self.classifier(shares).sign()
        ends, reached = start.clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)
        rows = torch.arange(len(start), device=start.device)
        for _ in range(self.steps):
            if len(rows) == 0:
                break
            with torch.enable_grad():
                logits = ends[rows].requires_grad_()
                told = torch.softmax(logits, 1)
                best = torch.where(own[rows], -torch.inf, logits).amax(1)
                behind = (best - logits[own[rows]]).clamp_min(0)
                distortion = (told - shares[rows]).abs().sum(1)
                loss = self.classifier(told).abs() + KEEP * behind + weight * distortion
                (gradient,) = torch.autograd.grad(loss.sum(), logits)
            moved = logits.detach() - STEP * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(TINY)
            ends[rows] = moved
            kept = moved.argmax(1) == shares[rows].argmax(1)
            done = kept & (self.classifier(torch.softmax(moved, 1)) * side[rows] <= 0)
            reached[rows[done]] = True
            rows = rows[~done]
        return ends, reached


@defense("memguard")
@dataclass(frozen=True)
class MemGuard(Defense):
    """Add noise to answers so that a classifier of members can't tell whether their input was trained on.

    Claims that attackers' classifiers, of which the defender's own is an example, are left with a coin toss, that no
    answer changes its class, and that the told probabilities are off by no more than `budget` (in l1, at most 2) on
    average over the coin of each input. The classifier learns from the answers of two networks of the task's kind,
    each to the half of the training data that it knows and to the other. Known to leave attacks that ask for the
    class alone as they were, and to fall to attackers who take a metric per class (Song & Mittal 2021,
    arXiv:2003.10595) or know the classifier: what is told lies just beyond its boundary, and may be read backwards.
    steps is how long the search for noise may take, 300 in the authors' code; answers take as long as the search.
    """

    budget: float = 1.0
    steps: int = 300
    epochs: int = 20

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind a classifier that knows nothing."""
        if self.budget < 0 or self.steps < 1 or self.epochs < 1:
            raise FirstlineError(f"{self}: budget must be at least 0, steps and epochs at least 1")
        return Guarded(system, self._untrained(task, Streams(0)), self.budget, self.steps)

    def calibrate(self, system: System, data: Data, ctx: Context) -> None:
        """Train the classifier on the answers of two networks, each to its half of data and to the other's."""
        assert isinstance(system, Guarded)
        parts = halves(data, ctx)
        with torch.enable_grad():
            networks = [judge(part, ctx, ctx.rng.child(str(number))) for number, part in enumerate(parts)]
        known = [
            (torch.softmax(logits_of(network, part, ctx).double(), 1), float(part is own))
            for network, own in zip(networks, parts, strict=True)
            for part in parts
        ]
        answers = torch.cat([shares for shares, _ in known])
        member = torch.cat([torch.full((len(shares),), inside) for shares, inside in known]).long()
        classifier = self._untrained(ctx.task, ctx.rng).to(ctx.device)

        def loss(classifier: nn.Module, shares: Tensor, member: Tensor) -> Tensor:
            return binary_cross_entropy_with_logits(classifier(shares), member.double())

        rows = Data.of(answers, member).to(ctx.device)
        with torch.enable_grad():
            train(classifier, rows, Recipe(self.epochs, batch=64), ctx.rng, loss=loss)
        system.classifier.load_state_dict(classifier.state_dict())
        secret = torch.randint(256, (SECRET,), generator=ctx.rng.torch("secret"), dtype=torch.uint8)
        system.get_buffer("secret").copy_(secret)

    def _untrained(self, task: Task, rng: Streams) -> nn.Module:
        return initialise(lambda: MemberClassifier(task.classes), rng).double()
