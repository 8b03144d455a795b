"""Dropout. Source: Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014, JMLR 15.

Against membership inference: Salem et al. 2019, arXiv:1806.01246.
"""

from dataclasses import dataclass

from torch import nn

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense


@defense("dropout")
@dataclass(frozen=True)
class Dropout(Defense):
    """In training, set each input of the network's last linear layer to 0 with probability `rate`.

    Claims that no unit can rely on another to recognise a row. Known to leave training rows distinguishable where
    attacks on the loss alone see little (Kaya, Hong & Dumitras 2020, arXiv:2006.05336). The sources drop inputs and
    hidden units; here it is the last hidden layer alone, so that it fits any network whose last module of the kind
    nn.Linear is what answers.
    """

    rate: float = 0.5

    def build(self, task: Task) -> nn.Module:
        """Return the untrained network. Raises FirstlineError where it has no linear layer."""
        if not 0 <= self.rate < 1:
            raise FirstlineError(f"{self}: rate is a probability, at least 0 and below 1")
        module = task.default.build()
        linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise FirstlineError(f"{self.name} needs an nn.Linear layer; the network of {task.name} has none")
        with_dropout = nn.Sequential(nn.Dropout(self.rate), module.get_submodule(linear[-1]))
        if not linear[-1]:  # the network is that layer and nothing else
            return with_dropout
        module.set_submodule(linear[-1], with_dropout)
        return module
