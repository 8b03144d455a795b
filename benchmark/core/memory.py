"""How many examples fit into a memory budget at once."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from firstline.benchmark.core.system import System

BUDGET = 1 << 30  # bytes for what one pass keeps for its gradient, on the CPU
SAFE = 32  # a batch that is tried without measuring
SHARE = 0.5  # of a GPU's memory
MOST = {"cpu": 256, "cuda": 2048}  # beyond it a batch is not faster, and falls out of the caches


def batch_size(system: System, x: Tensor, noise: torch.Generator) -> int:
    """Return how many examples like those of x (n, *shape) one pass forward and back may hold, at least 1.

    It depends on the system and the machine's memory alone: what one example keeps for its gradient is
    measured, and counted twice for what the way back allocates.
    """
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size() if tensor.shape[:1] == (2,) else 0
        return tensor

    leaf = x[:1].expand(2, *x.shape[1:]).clone().requires_grad_()
    with torch.enable_grad(), saved_tensors_hooks(count, lambda tensor: tensor):
        try:
            system.surrogate(leaf, noise)
        except Exception:  # it is told when the system is asked in earnest
            return SAFE
    kind = x.device.type
    budget = BUDGET if kind == "cpu" else SHARE * torch.cuda.get_device_properties(x.device).total_memory
    return max(1, min(MOST.get(kind, MOST["cpu"]), int(budget / max(kept, 1))))
