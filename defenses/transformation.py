"""What defenses that change images share: the system, and the way back through what gives no gradient.

Source: Athalye, Carlini & Wagner 2018, arXiv:1802.00420 (BPDA).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Defense, Task
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.system import Response, System

Change = Callable[[Tensor], Tensor]


class Transformed(System):
    """Answers `change` of its inputs; an attacker with gradients goes back through `stand_in` of them."""

    def __init__(self, inner: System, change: Change, stand_in: Change) -> None:
        super().__init__(inner)
        self.change, self.stand_in = change, stand_in

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer the changed x (n, *shape)."""
        return self._inside().respond(self.change(x), rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer the changed x (n, *shape), differentiably."""
        return self._inside().surrogate(self.stand_in(x), rng)


def straight_through(x: Tensor, changed: Tensor) -> Tensor:
    """Return changed, with the gradient of x: BPDA by the identity."""
    return x + (changed - x).detach()


def images_only(defense: Defense, task: Task) -> None:
    """Raise FirstlineError unless the inputs of task are images (channels, height, width)."""
    if len(task.space.shape) != 3:
        raise FirstlineError(
            f"{defense.name} is for images (channels, height, width); the inputs of {task.name} have shape "
            f"{task.space.shape}"
        )
