"""The `standard` ensemble beside AutoAttack, on the same models and examples, in one process: `make strength`.

Needs the extra `peers`, MNIST in a data folder, and the published weights (see results/strength.md). What was
measured is kept per model, norm and part in results/strength/, so that an interrupted run goes on; what was
measured with other members of `standard` is measured again. Usage:

    python tests/strength.py --data FOLDER --weights FOLDER [--models none,wong] [--norms linf,l2] [--parts 0,1,2,3]

--keep leaves AutoAttack's side of what was measured before as it is: its outcome is the same each time. Such
rows count for the strength, and not for the ratio of the times, which is that of rows measured side by side.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from firstline.attacks.evasion.standard import MEMBERS, Standard
from firstline.benchmark.core import catalog
from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.geometry import Region, violation
from firstline.benchmark.core.places import cache_folder
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.adversarial_training import AdversarialTraining
from firstline.defenses.none import NoDefense
from firstline.tasks.networks import lenet5, small_cnn
from firstline.tasks.vision import Mnist

RESULTS = Path(__file__).parents[1] / "results"
PART = 250  # examples that are measured at a time, AutoAttack's own batch size
TASK = Mnist(grid=False)  # AutoAttack's examples are not rounded, so ours are not either
SPACE = InputSpace((1, 28, 28))


@dataclass(frozen=True)
class Case:
    """A model, and the radii at which it is attacked."""

    what: str
    build: Callable[[Path, Path], nn.Module]
    linf: float
    l2: float


def trained(defense: Defense, seed: int) -> Callable[[Path, Path], nn.Module]:
    """A small CNN, trained here by the task's recipe under a defense; kept in the cache."""

    def build(data: Path, weights: Path) -> nn.Module:
        place = cache_folder() / "strength" / f"{defense}-{seed}.pt"
        module = small_cnn((1, 28, 28), 10)
        if not place.is_file():
            streams = Streams(seed).child(TASK.name, "fit")
            fitted = Stack((defense,)).fit(TASK, TASK.load(data).train, streams, torch.device("cpu"))
            assert isinstance(fitted.system, Bare)
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save(fitted.system.module.state_dict(), place)
        module.load_state_dict(torch.load(place, weights_only=True))
        return module

    return build


def published(file: str, network: Callable[[], nn.Module]) -> Callable[[Path, Path], nn.Module]:
    """A network with weights that somebody else trained."""

    def build(data: Path, weights: Path) -> nn.Module:
        module, found = network(), torch.load(weights / file, map_location="cpu", weights_only=True)
        tensors = found["state_dict"][0] if "state_dict" in found else found
        module.load_state_dict(dict(zip(module.state_dict(), tensors.values(), strict=True)))
        return module

    return build


class Mean(nn.Module):
    """The mean of the members' log-probabilities."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.log_softmax(member(x), 1) for member in self.members]).mean(0)


def ensemble(data: Path, weights: Path) -> nn.Module:
    """Three small networks, each adversarially trained from a start of its own."""
    defense = AdversarialTraining(eps=0.1, steps=3, stride=0.5)
    return Mean([trained(defense, seed)(data, weights) for seed in (1, 2, 3)])


def _small() -> nn.Module:
    return small_cnn((1, 28, 28), 10)


CASES = {
    "none": Case("small CNN, undefended", trained(NoDefense(), 0), 0.1, 1.5),
    "at-linf": Case(
        "small CNN, adversarially trained in linf 0.1", trained(AdversarialTraining(eps=0.1), 0), 0.1, 1.5
    ),
    "at-l2": Case(
        "small CNN, adversarially trained in l2 1.5",
        trained(AdversarialTraining(norm="l2", eps=1.5), 0),
        0.1,
        1.5,
    ),
    "wong": Case("Wong & Kolter 2018, published weights", published("mnist.pth", _small), 0.1, 1.5),
    "lenet": Case(
        "LeNet5, undefended, published weights", published("mnist_lenet5_clntrained.pt", lenet5), 0.1, 1.5
    ),
    "ensemble": Case("three small CNNs, adversarially trained", ensemble, 0.1, 1.5),
    "lenet-adv": Case(
        "LeNet5, adversarially trained, published weights",
        published("mnist_lenet5_advtrained.pt", lenet5),
        0.3,
        2.0,
    ),
}


def members(norm: str) -> list[str]:
    """What `standard` consists of, versions included: rows of anything else are measured again."""
    return [f"{member}, version {member.version}" for member in MEMBERS[norm]]


def ours(module: nn.Module, data: Data, norm: str, eps: float) -> Tensor:
    """What `standard` makes of the examples."""
    threat = Threat.parse(f"evasion/white/{norm}:{eps}")
    target = Target(Bare(module).eval(), threat, space=SPACE, classes=10, rng=Streams(0), examples=len(data))
    region = Region(data.x.clone(), SPACE, norm, eps)
    return Standard().perturb(target, data.x.clone(), data.y.clone(), region, Streams(0).child("attack"))


def theirs(module: nn.Module, data: Data, norm: str, eps: float) -> Tensor:
    """What AutoAttack's standard version makes of them."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(module, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0, version="standard")
    found: Tensor = attack.run_standard_evaluation(data.x, data.y, batch_size=PART)[0]
    return found.detach()


def judged(module: nn.Module, found: Tensor, data: Data, norm: str, eps: float) -> Tensor:
    """Which examples (n,) are broken: by a fresh forward, at points that the threat allows."""
    with torch.no_grad():
        wrong = module(found).argmax(1) != data.y
    allowed = [
        violation(f[None], x[None], SPACE, norm, eps) is None for f, x in zip(found, data.x, strict=True)
    ]
    assert all(allowed), f"{len(allowed) - sum(allowed)} points lie outside the threat"
    return wrong


def measure(
    name: str, norm: str, part: int, data: Data, module: nn.Module, kept: dict[str, object] | None
) -> dict[str, object]:
    """Both on one part of the examples, the one that comes first alternating; ours alone beside a kept row."""
    case = CASES[name]
    eps = getattr(case, norm)
    row: dict[str, object] = {"model": name, "norm": norm, "eps": eps, "part": part}
    row["members"], row["beside"] = members(norm), kept is None
    sides = [("ours", ours)] if kept else [("ours", ours), ("autoattack", theirs)]
    with torch.no_grad():
        right = module(data.x).argmax(1) == data.y
    row["examples"], row["clean"] = len(data), int(right.sum())
    for side, attack in sides if part % 2 else sides[::-1]:
        start = time.process_time()
        found = attack(module, data, norm, eps)
        row[f"{side}_seconds"] = round(time.process_time() - start, 2)
        row[f"{side}_broken"] = data.ids[right & judged(module, found, data, norm, eps)].tolist()
    return {**{k: v for k, v in (kept or {}).items() if k.startswith("autoattack")}, **row}


def table(rows: list[dict[str, object]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Strength and cost of `standard`, beside AutoAttack",
        "",
        "AutoAttack's standard version (PyPI `pyautoattack`) on the same models and examples, in one process and one",
        f"thread; Python {platform.python_version()}, torch {torch.__version__}. Robust accuracy in percent of the examples.",
        "Examples are drawn by a seed from the MNIST test set. CPU seconds of the examples on which both ran side by side",
        "(`timed`); the ratio is ours to AutoAttack's. On the others AutoAttack's outcome, which is the same each time, was",
        "measured before.",
        "",
        "| model | threat | examples | clean | AutoAttack | standard | only standard breaks | only AutoAttack breaks | timed | CPU s, AutoAttack | standard | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lists, sums = [], [0.0, 0.0]
    for name, case in CASES.items():
        for norm in ("linf", "l2"):
            mine = [row for row in rows if (row["model"], row["norm"]) == (name, norm)]
            if not mine:
                continue
            n, clean = (sum(row[k] for row in mine) for k in ("examples", "clean"))
            broken = {s: {i for row in mine for i in row[f"{s}_broken"]} for s in ("ours", "autoattack")}
            timed = [row for row in mine if row["beside"]]
            seconds = {s: sum(row[f"{s}_seconds"] for row in timed) for s in ("ours", "autoattack")}
            only = broken["ours"] - broken["autoattack"], broken["autoattack"] - broken["ours"]
            kept = {s: 100 * (clean - len(broken[s])) / n for s in broken}
            sums = [sums[0] + seconds["ours"], sums[1] + seconds["autoattack"]]
            ratio = f"{seconds['ours'] / seconds['autoattack']:.2f}" if timed else "-"
            lines.append(
                f"| {case.what} | {norm} {getattr(case, norm):g} | {n} | {100 * clean / n:.1f} "
                f"| {kept['autoattack']:.1f} | {kept['ours']:.1f} | {len(only[0])} | {len(only[1])} "
                f"| {sum(row['examples'] for row in timed)} "
                f"| {seconds['autoattack']:.0f} | {seconds['ours']:.0f} | {ratio} |"
            )
            for who, ids in zip(("standard", "AutoAttack"), only, strict=True):
                if ids:
                    lists.append(f"- `{name}`, {norm}: only {who} breaks {', '.join(map(str, sorted(ids)))}")
    lines += [
        "",
        f"In all: {sums[0]:.0f} CPU seconds for {sums[1]:.0f} of AutoAttack's, {sums[0] / max(sums[1], 1e-9):.2f} of them.",
        "",
    ]
    lines += [
        "## Examples that one side alone breaks",
        "",
        "Numbers are positions in the official test set.",
        "",
        *lists,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the published weights")
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--norms", default="linf,l2")
    parser.add_argument("--parts", default="0,1,2,3", help=f"parts of {PART} examples")
    parser.add_argument("--keep", action="store_true", help="run AutoAttack only where it has not run before")
    given = parser.parse_args()
    torch.set_num_threads(1)
    catalog.load()
    folder = RESULTS / "strength"
    folder.mkdir(exist_ok=True)
    test = TASK.load(given.data).test
    drawn = test.rows(torch.randperm(len(test), generator=Streams(0).torch("strength")))
    for part in map(int, given.parts.split(",")):
        for name in given.models.split(","):
            for norm in given.norms.split(","):
                place = folder / f"{name}-{norm}-{part}.json"
                kept = json.loads(place.read_text()) if place.is_file() else None
                if kept and kept.get("members") == members(norm):
                    continue
                module = CASES[name].build(given.data, given.weights).eval().requires_grad_(False)
                rows = drawn.rows(torch.arange(PART * part, PART * (part + 1)))
                row = measure(name, norm, part, rows, module, kept if given.keep else None)
                place.write_text(json.dumps(row) + "\n")
                left = {s: row["clean"] - len(row[f"{s}_broken"]) for s in ("autoattack", "ours")}
                sys.stdout.write(
                    f"{name} {norm} part {part}: kept {left} of {row['clean']}, seconds {row['autoattack_seconds']} and {row['ours_seconds']}\n"
                )
                sys.stdout.flush()
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (RESULTS / "strength.md").write_text(
        table([row for row in found if row.get("members") == members(row["norm"])])
    )


if __name__ == "__main__":
    main()
