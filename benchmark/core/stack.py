"""Defenses in order: the hooks of a stack chain those of its layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time

import torch
from torch import nn

from firstline.benchmark.core.contracts import NOBODY, Context, Defense, Gradients, Incident, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken, FirstlineError
from firstline.benchmark.core.privacy import PrivateTraining
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.training_many import train_many


@dataclass(frozen=True)
class Fitted:
    """A fitted system, the ids of the training rows that it was allowed to see, and the CPU seconds it took.

    suspicion (n,) says how suspect each of the n rows was, NaN where no filter said; None where none did at all.
    """

    system: System
    kept: torch.Tensor
    seconds: float
    suspicion: torch.Tensor | None = None


@dataclass(frozen=True)
class Repaired:
    """A repaired system, and the CPU seconds that the repair took without those of who watched it."""

    system: System
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

    def privacy(self, task: Task, rows: int) -> PrivateTraining | None:
        """Return what makes the fitted system private, or None: the trainer's claim where no layer looks at data.

        rows is how many the task has to train on. A layer that collects, calibrates or recovers by the training
        data may give away rows that training hid, and which rows it looks at isn't known here.
        """
        looking = {"collect", "calibrate", "recover"}
        if any(looking & set(layer.facts()["hooks"]) for layer in self.layers):
            return None
        return self.trainer().privacy(task, rows)

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

    def fit(
        self,
        task: Task,
        data: Data,
        rng: Streams,
        device: torch.device,
        poisoned: torch.Tensor = NOBODY,
        clean: Data | None = None,
    ) -> Fitted:
        """Return the system fitted to data, in evaluation mode and frozen.

        poisoned are the ids of poisoned rows. Layers that are controls are told them, and no others. clean are rows
        of the defender's own, for `calibrate`.
        """
        start = process_time()
        suspicion: torch.Tensor | None = None
        whole = data.ids.cpu()

        def suspect(ids: torch.Tensor, scores: torch.Tensor) -> None:
            nonlocal suspicion
            if suspicion is None:
                suspicion = torch.full((len(whole),), float("nan"), dtype=torch.float64)
            order = whole.argsort()
            suspicion[order[torch.searchsorted(whole[order], ids.cpu())]] = scores.detach().double().cpu()

        for layer in self.layers:
            before = len(data)
            told = poisoned if "control" in layer.tags else NOBODY
            about = Context(task, rng.child("collect", layer.name), device, poisoned=told, suspect=suspect)
            data = layer.collect(data, about)
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
        system = self._deployed(task, module, data, rng, device, clean)
        return Fitted(system, data.ids.cpu(), process_time() - start, suspicion)

    def fit_many(
        self,
        task: Task,
        data: Data,
        rows: torch.Tensor,
        rngs: Sequence[Streams],
        device: torch.device,
        clean: Data | None = None,
    ) -> list[System]:
        """Return the systems fitted to data at rows (k, m), each from its own random streams, as `fit` would.

        Networks are trained all at once where the defense changes neither the data nor the training itself.
        """
        trainer = self.trainer()
        alone = any("collect" in layer.facts()["hooks"] for layer in self.layers)
        if alone or type(trainer).train is not Defense.train:
            return [
                self.fit(task, data.rows(mine), rng, device, clean=clean).system
                for mine, rng in zip(rows, rngs, strict=True)
            ]
        data = data.to(device)
        modules = train_many(
            [initialise(lambda: trainer.build(task), rng).to(device) for rng in rngs],
            data,
            rows,
            trainer.recipe(task),
            [rng.child("train") for rng in rngs],
            objective=trainer.objective,
        )
        return [
            self._deployed(task, module, data.rows(mine.to(device)), rng, device, clean)
            for module, mine, rng in zip(modules, rows, rngs, strict=True)
        ]

    def _deployed(
        self,
        task: Task,
        module: nn.Module,
        data: Data,
        rng: Streams,
        device: torch.device,
        clean: Data | None,
    ) -> System:
        """The system around a trained network, calibrated and frozen."""
        systems = [s.to(device).eval() for s in self.assemble(task, module)]
        clean = clean if clean is None else clean.to(device)
        for layer, system in zip(self.layers, systems[1:], strict=True):
            with torch.no_grad():
                about = Context(task, rng.child("calibrate", layer.name), device, clean=clean)
                layer.calibrate(system, data, about)
        system = systems[-1].eval().requires_grad_(False)
        self._check_finite(system, "fitted")
        return system

    def transmit(self, updates: Sequence[Gradients], ctx: Context) -> Gradients:
        """Return what a server sees of the first of the clients' updates, after every layer in turn."""
        seen = updates[0]
        for layer in self.layers:
            seen = layer.transmit([seen, *updates[1:]], ctx)
        return seen

    def verify(
        self, task: Task, data: Data, suspect: Target, rng: Streams, device: torch.device
    ) -> float | None:
        """Return the p-value of suspect having been made without the system that was fitted to data from rng.

        Of several layers that test, the lowest times their number (Bonferroni); None where no layer tests.
        """
        found = []
        for layer in self.layers:
            about = Context(task, rng.child("collect", layer.name), device)
            chance = layer.verify(suspect, data.to(device), about)
            if chance is None:
                continue
            if not 0 <= chance <= 1:
                raise ContractBroken(f"{layer.name}: verify returned {chance}, which is no probability")
            found.append(float(chance))
        return min(1.0, min(found) * len(found)) if found else None

    def repairs(self) -> tuple[Defense, ...]:
        """Return the layers that repair a system after an incident."""
        return tuple(layer for layer in self.layers if "recover" in layer.facts()["hooks"])

    def repair(
        self,
        task: Task,
        system: System,
        incident: Incident,
        rng: Streams,
        device: torch.device,
        watch: Callable[[System, int, int], None],
    ) -> Repaired:
        """Return system as the layers repair it, one after the other, in evaluation mode and frozen.

        Raises ContractBroken where a layer returns something whose tensors have other names or shapes: it could
        not be stored and read back.
        """
        start, watching = process_time(), 0.0

        def watched(seen: System, steps: int, samples: int) -> None:
            nonlocal watching
            before = process_time()
            watch(seen, steps, samples)
            watching += process_time() - before

        found = system
        for layer in self.repairs():
            found = layer.recover(
                found, incident, Context(task, rng.child("recover", layer.name), device, watched)
            )
            if not isinstance(found, System):
                raise ContractBroken(
                    f"{layer.name}: recover returned {type(found).__name__} instead of a System"
                )
            before, after = _shapes(system), _shapes(found)
            odd = sorted(name for name in before | after if before.get(name) != after.get(name))
            if odd:
                raise ContractBroken(
                    f"{layer.name}: recover returned a system in which {odd[0]} is {after.get(odd[0], 'missing')} "
                    f"and was {before.get(odd[0], 'missing')}; a repair changes values, not modules"
                )
        found = found.eval().requires_grad_(False)
        self._check_finite(found, "repaired")
        return Repaired(found, process_time() - start - watching)

    def _check_finite(self, system: System, what: str) -> None:
        for name, tensor in system.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ContractBroken(
                    f"{self}: {name} of the {what} system is NaN or infinite; lower the learning rate"
                )


def _shapes(system: System) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in system.state_dict().items()}
