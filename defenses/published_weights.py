"""Weights that somebody else trained, read from an imported file: for reproducing papers. Source: the recipe's paper."""

import hashlib
from dataclasses import dataclass

from safetensors.torch import load
from torch import nn

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.core.places import weights_path
from firstline.benchmark.core.registry import defense


@defense("published-weights", tags={"pretrained"})
@dataclass(frozen=True)
class PublishedWeights(Defense):
    """Use imported weights instead of training.

    Claims what its paper claims. sha256 names the imported file (`firstline reproduce RECIPE --weights FILE`
    imports it), so that other weights are another cell; architecture is one of the task's, empty for its
    default.
    """

    sha256: str = ""
    architecture: str = ""

    def build(self, task: Task) -> nn.Module:
        """Return the untrained network."""
        known = task.architectures
        if self.architecture and self.architecture not in known:
            raise not_found(f"architecture of {task.name}", self.architecture, known)
        return (known[self.architecture] if self.architecture else task.default).build()

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module with the imported weights. No data is looked at."""
        path = weights_path(self.sha256)
        if not self.sha256 or not path.is_file():
            raise FirstlineError(
                f"no weights with SHA-256 {self.sha256 or '(none given)'} were imported; "
                "import them with `firstline reproduce RECIPE --weights FILE`"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise FirstlineError(f"{path} is damaged: delete it and import the weights again")
        module.load_state_dict(load(content))
        return module.to(ctx.device)
