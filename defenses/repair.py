"""What repairs of a deployed system share: how they end, who watches them, and the incident's clean data in two.

Source: common ground of the repairs; each names its own. A repair gets clean data of the defender's and nothing
else: no test data, no success rate of the attack. Its schedule is fixed, and its last weights are the result.
"""

import torch

from firstline.benchmark.core.contracts import Context, Defense, Incident
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.system import System
from firstline.benchmark.core.training import Watch


def closed(system: System) -> System:
    """Return system in evaluation mode and frozen, as it is deployed."""
    return system.eval().requires_grad_(False)


def shown(system: System, ctx: Context) -> Watch:
    """Return what lets `train`, which has the network inside, show system to who watches the repair."""
    return lambda network, steps, samples: ctx.watch(system, steps, samples)


def clean_of(defense: Defense, incident: Incident, ctx: Context) -> Data:
    """Return the incident's clean data on the device. Raises FirstlineError where there is none."""
    if len(incident.clean) == 0:
        raise FirstlineError(f"{defense}: a repair needs clean data, and the incident holds none")
    return incident.clean.to(ctx.device)


def check_epochs(defense: Defense, epochs: int) -> None:
    """Raise FirstlineError unless there is at least one epoch."""
    if epochs < 1:
        raise FirstlineError(f"{defense}: epochs must be at least 1")


def fit_and_check(data: Data, ctx: Context) -> tuple[Data, Data]:
    """Return two random halves of data: one to fit on, one to check the accuracy on."""
    order = torch.randperm(len(data), generator=ctx.rng.torch("halves")).to(data.x.device)
    cut = (len(data) + 1) // 2
    return data.rows(order[:cut]), data.rows(order[cut:])
