"""Defenses in order: the hooks of a stack chain those of its layers."""

from dataclasses import dataclass
from time import process_time

import torch
from torch import nn

from firstline.benchmark.core.contracts import Context, Defense, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken, FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, System


@dataclass(frozen=True)
class Fitted:
    """A fitted system, the ids of the training rows that it was allowed to see, and the CPU seconds it took."""

    system: System
    kept: torch.Tensor
    seconds: float


@dataclass(frozen=True)
class Stack:
    """One or more defenses under one name. The first layer is the innermost."""

    layers: tuple[Defense, ...]

    def __str__(self) -> str:
        return "+".join(str(layer) for layer in self.layers)

    def trainer(self) -> Defense:
        """Return the layer that builds and trains the network; at most one may."""
        trainers = [layer for layer in self.layers if {"build", "train"} & set(layer.facts()["hooks"])]
        if len(trainers) > 1:
            names = " and ".join(layer.name for layer in trainers)
            raise FirstlineError(f"stack {self}: {names} both train the network; keep one of them")
        return trainers[0] if trainers else Defense()

    def assemble(self, task: Task, module: nn.Module) -> list[System]:
        """Return the bare system and each layer's wrapping of it; the last one is what is deployed."""
        systems: list[System] = [Bare(module)]
        for layer in self.layers:
            system = layer.deploy(systems[-1], task)
            if not isinstance(system, System):
                raise ContractBroken(
                    f"{layer.name}: deploy returned {type(system).__name__} instead of a System"
                )
            systems.append(system)
        return systems

    def skeleton(self, task: Task) -> System:
        """Return the deployed system with weights still to be read in."""
        return self.assemble(task, initialise(lambda: self.trainer().build(task), Streams(0)))[-1]

    def fit(self, task: Task, data: Data, rng: Streams, device: torch.device) -> Fitted:
        """Return the system fitted to data, in evaluation mode and frozen."""
        start = process_time()
        for layer in self.layers:
            before = len(data)
            data = layer.collect(data, Context(task, rng.child("collect", layer.name), device))
            if not isinstance(data, Data) or len(data) == 0:
                raise ContractBroken(f"{layer.name}: collect left no training data of {before} rows")
        trainer = self.trainer()
        # The streams name no defense: all systems of a task start from the same weights and batch orders.
        module = initialise(lambda: trainer.build(task), rng).to(device)
        data = data.to(device)
        module = trainer.train(module, data, Context(task, rng.child("train"), device))
        if not isinstance(module, nn.Module):
            raise ContractBroken(
                f"{trainer.name}: train returned {type(module).__name__} instead of a module"
            )
        systems = [s.to(device).eval() for s in self.assemble(task, module)]
        for layer, system in zip(self.layers, systems[1:], strict=True):
            with torch.no_grad():
                layer.calibrate(system, data, Context(task, rng.child("calibrate", layer.name), device))
        system = systems[-1].eval().requires_grad_(False)
        for name, tensor in system.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ContractBroken(
                    f"{self}: {name} of the fitted system is NaN or infinite; lower the learning rate"
                )
        return Fitted(system, data.ids.cpu(), process_time() - start)
