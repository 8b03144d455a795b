"""k-winners-take-all activations. Source: Xiao, Zhong & Zheng 2020, arXiv:1905.10510."""

from dataclasses import dataclass

from torch import Tensor, nn

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.registry import defense


class KWinners(nn.Module):
    """Keeps the largest share of each example's activations (n, *shape) and sets the others to 0."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Return the winners in their places."""
        flat = x.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1]
        return x * (x >= column(least, x))


@defense("k-winners-take-all", tags={"broken"})
@dataclass(frozen=True)
class KWinnersTakeAll(Defense):
    """Replace the ReLU layers of the task's network by k-winners-take-all, and train it as usual.

    Claims that a network so full of jumps gives gradients that lead nowhere; share is the paper's sparsity
    ratio, between 0.1 and 0.2. Broken by gradients estimated over many points of a neighbourhood (Tramèr et
    al. 2020, arXiv:2002.08347). Layers that are not modules (torch.relu in a forward) stay as they are.
    """

    share: float = 0.2

    def build(self, task: Task) -> nn.Module:
        """Return the untrained network with its activations replaced."""
        if not 0 < self.share <= 1:
            raise FirstlineError(f"{self}: share is a share of the activations, above 0 and at most 1")
        module = task.default.build()
        rectifiers = [name for name, layer in module.named_modules() if isinstance(layer, nn.ReLU)]
        if not rectifiers:
            raise FirstlineError(f"{self.name} replaces nn.ReLU layers; the network of {task.name} has none")
        for name in rectifiers:
            module.set_submodule(name, KWinners(self.share))
        return module
