"""Equations from probabilities. Source: Tramèr et al. 2016, arXiv:1609.02943, section 4.1."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firstline.attacks.extraction.copying import reset, uniform
from firstline.benchmark.core.contracts import Extraction, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat


@attack("equation-solving")
@dataclass(frozen=True)
class EquationSolving(Extraction):
    """Ask about uniform inputs and find weights of the system's own architecture that give the same probabilities.

    Each answer is as many equations as there are classes less one: a softmax regression of k unknowns takes k over
    that many queries. For one linear layer they are linear, and solved as such first. Then, as the paper does for all
    others, the cross-entropy with what was told goes down to its least value, here by L-BFGS with a strong Wolfe line
    search in float64, for `steps` steps at most, from `restarts` starts, of which the best is kept.
    """

    needs = ("scores", "architecture")
    goals = ("scores",)
    inputs = ("real",)

    steps: int = 2000
    restarts: int = 1
    history: int = 20

    def extract(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> nn.Module:
        """Return the copy, in float64. Raises FirstlineError where no answer has finite probabilities."""
        x = uniform(target, int(target.left()), rng, "queries")
        answer = target.scores(x)
        shares = torch.softmax(answer.logits.double(), 1)
        good = (answer.labels >= 0) & torch.isfinite(shares).all(1)
        if not good.any():
            raise FirstlineError(f"{self}: no query was answered under {threat}; raise its budget")
        x, logits, shares = x[good].double(), answer.logits[good].double(), shares[good]
        found: list[tuple[float, nn.Module]] = []
        for start in range(max(1, self.restarts)):
            network = initialise(lambda: reset(target.architecture()), rng.child(str(start)))
            network = network.double().to(x.device).eval()
            solve_linear(network, x, logits)
            found.append((self._descended(network, x, shares), network))
        gap, copy = min(found, key=lambda one: one[0])
        target.tell("equation_gap", gap)
        return copy.requires_grad_(False)

    def _descended(self, network: nn.Module, x: Tensor, shares: Tensor) -> float:
        """Fit network to shares, and return how much more than the least cross-entropy is left, in nats."""
        optimiser = torch.optim.LBFGS(
            network.parameters(),
            max_iter=self.steps,
            max_eval=2 * self.steps,
            history_size=self.history,
            tolerance_grad=1e-12,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )
        least = -torch.special.xlogy(shares, shares).sum(1).mean()

        def gap() -> Tensor:
            value: Tensor = -(shares * torch.log_softmax(network(x), 1)).sum(1).mean() - least
            return value

        def closure() -> Tensor:
            optimiser.zero_grad()
            value = gap()
            value.backward()
            return value

        with torch.enable_grad():
            optimiser.step(closure)
        with torch.no_grad():
            return float(gap())


def solve_linear(network: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Give network, if it is one linear layer, the weights of least squares for logits (n, classes) of x (n, *shape).

    Ratios of a softmax's probabilities are linear in the input: with as many queries as features and one this is the
    paper's closed form. Other networks stay as they are, and so does this one where a logit is infinite.
    """
    parts = list(network) if isinstance(network, nn.Sequential) else [network]
    linear = parts[-1]
    if not isinstance(linear, nn.Linear) or any(not isinstance(part, nn.Flatten) for part in parts[:-1]):
        return
    if linear.bias is None or not torch.isfinite(logits).all():
        return
    equations = torch.cat([x.flatten(1), torch.ones_like(x.flatten(1)[:, :1])], 1)
    centred = logits - logits.mean(1, keepdim=True)
    # By SVD, which takes equations that say the same twice, or leave something open.
    solution = torch.linalg.pinv(equations) @ centred
    with torch.no_grad():
        linear.weight.copy_(solution[:-1].T)
        linear.bias.copy_(solution[-1])
