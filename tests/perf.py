"""Timings side by side, in one process, on the same model and batch: `make perf`.

Only ratios and overheads are meant to be compared between machines. Usage: python tests/perf.py [OUT.md]
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.attacks.evasion.pgd import PGD
from firstline.benchmark.core import catalog
from firstline.benchmark.core.contracts import Architecture, Context, Defense, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.benchmark.core.training_many import train_many
from firstline.benchmark.run.matrix import Selection, expand
from firstline.benchmark.run.pool import ALLOCATOR, Done, Event, LocalPool
from firstline.benchmark.run.runner import execute, make_plan
from firstline.benchmark.run.store import Store
from firstline.benchmark.run.suite import parse_suite
from firstline.defenses.adversarial_training import AdversarialTraining
from firstline.defenses.fast_adversarial_training import FastAdversarialTraining
from firstline.defenses.none import NoDefense
from firstline.defenses.trades import Trades
from firstline.tasks.networks import mlp, small_cnn
from firstline.tasks.vision import Mnist

FIRSTLINE = str(Path(sys.executable).with_name("firstline"))


def hand_written_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, stride: float, start: bool = True
) -> Tensor:
    """The loop that one writes in a notebook, with frozen parameters."""
    adv = x
    if start:
        adv = x + torch.empty_like(x).uniform_(-eps, eps, generator=torch.Generator().manual_seed(0))
        adv = adv.clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        loss = cross_entropy(model(adv), y)
        (gradient,) = torch.autograd.grad(loss, adv)
        adv = adv.detach() + stride * gradient.sign()
        adv = torch.min(torch.max(adv, x - eps), x + eps)
        adv = adv.clamp(0, 1)
    return adv.detach()


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def pgd_ratios(rounds: int = 9) -> list[tuple[str, str, str]]:
    """PGD-40 on a frozen small CNN beside the hand-written loop, the rounds interleaved."""
    torch.set_num_threads(1)
    rows = []
    for name, breakable in (("no example breaks", False), ("undefended: broken examples leave", True)):
        for grid in (0.0, 1 / 255):
            space = InputSpace(shape=(1, 28, 28), grid=grid)
            x = torch.rand(256, 1, 28, 28, generator=torch.Generator().manual_seed(1))
            x = space.round(x)
            model = initialise(lambda: small_cnn((1, 28, 28), 10), Streams(0)).eval().requires_grad_(False)
            if not breakable:
                model[-1].bias[0] += 5  # one class wins everywhere, so that all 40 steps are taken
            y, eps = model(x).argmax(1), 0.1
            threat = Threat.parse(f"evasion/white/linf:{eps}")

            def ours(space=space, x=x, y=y, model=model, threat=threat) -> Tensor:
                target = Target(Bare(model), threat, space=space, classes=10, rng=Streams(0), examples=len(x))
                return PGD().perturb(target, x, y, Region(x, space, "linf", threat.eps), Streams(0))

            def theirs(x=x, y=y, model=model, eps=eps) -> Tensor:
                return hand_written_pgd(model, x, y, eps, 40, 0.1 * eps)

            ours(), theirs()
            pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(rounds)]
            ratio = median(a / b for a, b in pairs)
            kind = "8-bit grid" if grid else "no grid"
            wanted = "at most 1.05" if not breakable else "below 1"
            rows.append((f"PGD-40 / hand-written loop, {name}, {kind}", f"{ratio:.3f}", wanted))
    return rows


class Short(Mnist):
    """One epoch."""

    @property
    def default(self) -> Architecture:
        """The task's own, trained for one epoch."""
        architecture = super().default
        return replace(architecture, recipe=replace(architecture.recipe, epochs=1))


TRAINERS = (FastAdversarialTraining(), AdversarialTraining(), Trades())  # TRADES learns from two inputs


def training_ratios(rounds: int = 9, batches: int = 4) -> list[tuple[str, str, str]]:
    """CPU time of adversarial training beside plain training: the small CNN, 1x28x28 inputs, batches of 128."""
    torch.set_num_threads(1)
    rows = []
    for grid in (False, True):
        task = Short(grid=grid)
        x = torch.rand(128 * batches, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        data = Data.of(task.space.round(x), torch.arange(len(x)) % 10)

        def fit(defense: Defense, task=task, data=data) -> float:
            module = initialise(task.default.build, Streams(0))
            context = Context(task, Streams(0), torch.device("cpu"))
            return cpu_seconds(lambda: defense.train(module, data, context))

        defenses = [NoDefense(), *TRAINERS]
        times = [[fit(defense) for defense in defenses] for _ in range(rounds + 1)][1:]
        for column, trainer in enumerate(TRAINERS, start=1):
            ratio = median(row[column] / row[0] for row in times)
            kind = "8-bit grid" if grid else "no grid"
            wanted = f"at most {(trainer.steps + 1) * 1.1:.1f}"
            rows.append(
                (f"{trainer.name}, steps={trainer.steps} / plain training, {kind}", f"{ratio:.2f}", wanted)
            )
    return rows


def many_ratios(rounds: int = 7, batches: int = 15) -> list[tuple[str, str, str]]:
    """CPU time of the loop over that of training all networks at once, best of the rounds, which are interleaved."""
    torch.set_num_threads(1)
    perceptron, momentum = Recipe(epochs=2, rate=0.05, momentum=0.9), "momentum"
    small = (1, 28, 28)
    cases = [
        (f"64 MLPs 600-128-100, {momentum}, batch {batch}", 64, (600,), 100, batch, perceptron, "above 1")
        for batch in (32, 64, 100, 256)
    ]
    cases += [
        ("64 MLPs 600-128-100, Adam, batch 32", 64, (600,), 100, 32, Recipe(epochs=2), "above 1"),
        (f"64 MLPs 446-128-30, {momentum}, batch 100", 64, (446,), 30, 100, perceptron, "above 1"),
        ("16 small CNNs, 1x28x28, Adam, batch 32", 16, small, 10, 32, Recipe(epochs=1), "at least 0.98"),
    ]
    rows = []
    for name, count, shape, classes, batch, recipe, wanted in cases:
        draw = torch.Generator().manual_seed(0)
        data = Data.of(
            torch.rand(8000, *shape, generator=draw), torch.randint(classes, (8000,), generator=draw)
        )
        rngs = [Streams(number) for number in range(count)]
        chosen = torch.stack(
            [torch.randperm(len(data), generator=rng.torch("rows"))[: batch * batches] for rng in rngs]
        )
        recipe = replace(recipe, batch=batch)

        def fresh(shape=shape, classes=classes, rngs=rngs) -> list[nn.Module]:
            def build() -> nn.Module:
                return small_cnn(shape, classes) if len(shape) == 3 else mlp(shape[0], classes, (128,))

            return [initialise(build, rng) for rng in rngs]

        def loop(modules, data=data, chosen=chosen, recipe=recipe, rngs=rngs) -> None:
            for module, own, rng in zip(modules, chosen, rngs, strict=True):
                train(module, data.rows(own), recipe, rng)

        def many(modules, data=data, chosen=chosen, recipe=recipe, rngs=rngs) -> None:
            train_many(modules, data, chosen, recipe, rngs)

        took: dict[Callable[..., None], list[float]] = {loop: [], many: []}
        for _ in range(rounds):
            for way, times in took.items():
                modules = fresh()
                times.append(cpu_seconds(lambda way=way, modules=modules: way(modules)))
        ratio = min(took[loop]) / min(took[many])
        rows.append((f"one by one / train_many, {name}", f"{ratio:.2f}", wanted))
    return rows


def cell_overhead(cells: int = 200) -> list[tuple[str, str, str]]:
    """Wall time per trivial cell beyond the attack itself, on a warm pool of one, scored blindly."""
    suite = parse_suite(
        {
            "name": "trivial",
            "version": "1",
            "seeds": [0],
            "examples": 4,
            "matrix": [
                {
                    "tasks": ["breast-cancer"],
                    "defenses": ["constant"],
                    "attacks": ["fgsm"],
                    "threats": [f"evasion/white/linf:{(n + 1) / 1000}" for n in range(cells)],
                }
            ],
        },
        "perf",
    )
    with tempfile.TemporaryDirectory() as folder:
        root, times, crafted = Path(folder), [], []
        matrix = expand(suite, catalog.load(), Selection(), "cpu", None)

        def tell(event: Event) -> None:
            if isinstance(event, Done):
                assert event.record.status == "ok", event.record.error
                times.append(time.perf_counter())
                crafted.append(event.record.cost.craft_seconds)

        plan = make_plan(matrix, Store(root))
        execute(plan, LocalPool(1), root=root, folder=None, blind=True, tell=tell)
    overhead = (times[-1] - times[0] - sum(crafted[1:])) / (len(times) - 1)
    return [
        (
            f"harness per trivial cell ({cells} cells, one worker, blind)",
            f"{1000 * overhead:.1f} ms",
            "below 10 ms",
        )
    ]


def command_seconds(rounds: int = 7) -> list[tuple[str, str, str]]:
    """Wall time of the commands that must answer at once, best of several."""
    rows = []
    for words in (["list"], ["show", "pgd"], ["plan", "quick"]):
        with tempfile.TemporaryDirectory() as folder:
            command = [FIRSTLINE, *words] + (["--results", folder] if words[0] == "plan" else [])
            subprocess.run(command, check=True, capture_output=True)
            took = []
            for _ in range(rounds):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                took.append(time.perf_counter() - start)
        rows.append(
            (f"firstline {' '.join(words)}", f"{min(took):.2f} s (median {median(took):.2f})", "below 0.5 s")
        )
    return rows


def publish(lines: list[str]) -> None:
    """Print a page, and write it to the path in the first argument if there is one."""
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


def main() -> None:
    """Measure, print, and write the table if a path is given."""
    if any(name not in os.environ for name in ALLOCATOR):  # the allocator is set as it is in the workers
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    rows = [*pgd_ratios(), *training_ratios(), *many_ratios(), *cell_overhead(), *command_seconds()]
    lines = [
        "# Timings",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}, one thread. `make perf`",
        "",
    ]
    lines += [
        "| what | measured | target |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    publish(lines)


if __name__ == "__main__":
    main()
