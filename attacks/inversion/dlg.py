"""Deep leakage from gradients. Source: Zhu, Liu & Han 2019, arXiv:1906.08935, algorithm 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.attacks.inversion.descent import inside
from firstline.attacks.inversion.gradient_matching import of_guess
from firstline.benchmark.core.contracts import GradientLeakage, Update
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.registry import attack
from firstline.benchmark.core.rng import Streams


@attack("dlg")
@dataclass(frozen=True)
class DLG(GradientLeakage):
    """Find inputs and soft labels whose gradients are closest, in squares, to those that came: L-BFGS from noise.

    The best of `restarts` starts is kept. Known to get stuck where activations have no second derivative (ReLU), and on
    batches of many rows.
    """

    needs = ("gradients",)
    goals = ("updates",)
    inputs = ("real",)

    steps: int = 200
    restarts: int = 2

    def rebuild(
        self, update: Update, space: InputSpace, classes: int, aux: Data | None, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """Return the inputs, clipped to the box, and the likeliest labels."""
        draw, like = rng.torch("start"), update.gradients[0]
        best, least = None, float("inf")
        for _ in range(max(1, self.restarts)):
            x = torch.rand((update.batch, *space.shape), generator=draw).to(like)
            low, high = space.box(x)
            x = (low + x * (high - low)).requires_grad_()
            y = torch.randn(update.batch, classes, generator=draw).to(like).requires_grad_()
            gap = self._descend(update, x, y)
            if gap < least or best is None:
                best, least = (x.detach(), y.detach()), gap
        assert best is not None
        return inside(space, best[0].nan_to_num(nan=0.0)), best[1].argmax(1)

    def _descend(self, update: Update, x: Tensor, y: Tensor) -> float:
        """Move x and y in place; return how far the gradients are in the end, infinity where that is no number."""
        optimiser = torch.optim.LBFGS(
            [x, y], max_iter=self.steps, history_size=50, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = -(torch.softmax(y, 1) * torch.log_softmax(update.network(x), 1)).sum(1).mean()
            pairs = zip(of_guess(update, loss), update.gradients, strict=True)
            gap: Tensor = torch.stack([(mine - theirs).square().sum() for mine, theirs in pairs]).sum()
            x.grad, y.grad = torch.autograd.grad(gap, [x, y])
            return gap

        with torch.enable_grad():
            optimiser.step(closure)
            gap = float(closure().detach())
        return gap if gap == gap else float("inf")
