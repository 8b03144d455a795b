"""Federated training with a robust server. Source: McMahan et al. 2017, arXiv:1602.05629, algorithm 1 (FedAvg).

The server's rules are those of Yin et al. 2018, arXiv:1803.01498, and Blanchard et al. 2017, arXiv:1703.02757: see
`aggregation`. Clients train by the task's recipe, Adam and its schedule anew in each round, where McMahan et
al. have plain SGD; all take part in every round, and all count alike, as they hold equally many rows.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.training import train
from firstline.defenses.aggregation import RULES, check


def dealt(rows: int, clients: int, rng: Streams | None) -> tuple[Tensor, ...]:
    """Return which rows each client holds, parts of equal size but for one row: in blocks, or shuffled by rng."""
    order = torch.arange(rows) if rng is None else torch.randperm(rows, generator=rng.torch("clients"))
    return order.tensor_split(clients)


def flat(module: nn.Module) -> Tensor:
    """Return a copy of all that module has learned, (parameters,) float64: its weights and running statistics."""
    # In float64, so that what all clients have in common is still the same after a mean, to the last bit.
    return torch.cat([t.flatten().double() for t in module.state_dict().values() if t.is_floating_point()])


def fill(module: nn.Module, values: Tensor) -> None:
    """Put values (parameters,), as `flat` returns them, into module. Counters stay as they are."""
    slots = [t for t in module.state_dict().values() if t.is_floating_point()]
    for slot, part in zip(slots, values.split([t.numel() for t in slots]), strict=True):
        slot.copy_(part.view_as(slot))


@defense("federated-training")
@dataclass(frozen=True)
class FederatedTraining(Defense):
    """Split the rows among clients that train apart, and aggregate their models by a rule, round after round.

    Claims that byzantine clients, whatever their rows do to their models, can't pull the server's model far from
    those of the others: with the median and the trimmed mean in no parameter, with Krum (one client's model) and
    multi-Krum (the mean of those that lie together) as a whole. `aggregation='mean'` is FedAvg, and claims nothing.

    Who holds the poison decides, and the defense isn't told. Rows go to clients in blocks, in the order in which
    they come, where rows that an attack adds come last: they are those of the last clients, as if these were
    the attacker's. Rows that an attack changes stay where they are, with all clients, and so do all rows if scattered.
    Known to fail then, as every client is byzantine; on attackers that make a small change in every parameter (Baruch,
    Baruch & Goldberg 2019, arXiv:1902.06156) or rare rows their own (Wang et al. 2020, arXiv:2007.05084); and
    for honest clients whose data differ from the others'.
    """

    aggregation: str = "median"
    clients: int = 10
    byzantine: int = 2
    rounds: int = 20
    epochs: int = 5
    scattered: bool = False

    def build(self, task: Task) -> nn.Module:
        """Return the task's network."""
        check(self.aggregation, self.clients, self.byzantine)
        if self.rounds < 1 or self.epochs < 1:
            raise FirstlineError(f"{self}: rounds and epochs must be at least 1")
        return super().build(task)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module with what the clients learned from data, each from its own rows."""
        if len(data) < self.clients:
            raise FirstlineError(f"{self}: {self.clients} clients share {len(data)} rows; take fewer clients")
        recipe = replace(ctx.task.default.recipe, epochs=self.epochs)
        parts = dealt(len(data), self.clients, ctx.rng if self.scattered else None)
        held = [data.rows(part.to(data.x.device)) for part in parts]
        for turn in range(self.rounds):
            models = []
            for client, rows in enumerate(held):
                rng = ctx.rng.child(f"round {turn}", f"client {client}")
                models.append(flat(train(deepcopy(module), rows, recipe, rng)))
            fill(module, RULES[self.aggregation](torch.stack(models), self.byzantine))
        return module.eval()
