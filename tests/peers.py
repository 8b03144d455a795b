"""Our attacks beside other libraries', on the same models and examples, in one process: part of `make perf`.

Needs the extra `peers` and what `make perf` installs beside it, MNIST in a data folder, and the published weights
(see results/strength.md). Each row names who ran, how many inputs per example went through the model, what came
of it, and the CPU time; what is compared is what stands between two lines of the same attack. Usage:

    python tests/peers.py --data FOLDER --weights FOLDER [--only pgd,auto-pgd,minimal-norm,square,hop-skip-jump]

What was measured is kept in results/peers.json, section by section; the table in results/peers.md is made from it.
"""

import argparse
import json
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from perf import hand_written_pgd
from strength import CASES, RESULTS, TASK
from torch import Tensor, nn

from firstline.attacks.evasion.apgd import APGD
from firstline.attacks.evasion.carlini_wagner import CarliniWagner
from firstline.attacks.evasion.ddn import DDN
from firstline.attacks.evasion.deepfool import DeepFool
from firstline.attacks.evasion.fab import FAB
from firstline.attacks.evasion.fmn import FMN
from firstline.attacks.evasion.hop_skip_jump import HopSkipJump
from firstline.attacks.evasion.pdpgd import PDPGD
from firstline.attacks.evasion.pgd import PGD
from firstline.attacks.evasion.sigma_zero import SigmaZero
from firstline.attacks.evasion.square import Square
from firstline.benchmark.core import catalog
from firstline.benchmark.core.contracts import Evasion, MinimalNorm, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.norms import distance
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.benchmark.protocols.evasion import CURVE
from firstline.tasks.digits import Digits

sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv-lib's plots, which nobody looks at here
sys.modules["visdom"].Visdom = object

import adv_lib.attacks  # noqa: E402
import foolbox  # noqa: E402
import torchattacks  # noqa: E402
from art.attacks import evasion as art  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402
from pyautoattack.autopgd_base import APGDAttack  # noqa: E402
from pyautoattack.square import SquareAttack  # noqa: E402

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
ORDER = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}
RADII = {"l1": 10.0, "l0": 20.0}  # of the curves; linf and l2 have those of the models
STEPS = 100


class Counted(nn.Module):
    """A model that counts the inputs that it is asked about."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.inputs = module, 0

    def forward(self, x: Tensor) -> Tensor:
        self.inputs += len(x)
        found: Tensor = self.module(x.float())  # ART's labels-only attacks work in float64
        return found


@dataclass
class Ran:
    """What an attack found, what it asked, and what that cost."""

    found: Tensor
    inputs: float
    seconds: float


def run(attack: Attack, module: nn.Module, data: Data, who: str) -> Ran:
    """Run it once, its warnings and its draws from the global generator its own."""
    counted = Counted(module).eval().requires_grad_("as installed" in who)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        found = attack(counted, data.x.clone(), data.y.clone())
        seconds = time.process_time() - start
    module.requires_grad_(False)
    return Ran(found.detach().float(), counted.inputs / len(data), seconds)


def ours(attack: Evasion, norm: str, eps: float, knowledge: str = "white") -> Attack:
    """An attack of ours; those that look for the closest point are asked for it, whatever the radius."""
    perturb = attack.minimise if isinstance(attack, MinimalNorm) else attack.perturb

    def call(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        threat = Threat.parse(f"evasion/{knowledge}/{norm}:{eps}")
        space = InputSpace(tuple(x.shape[1:]))
        target = Target(Bare(module).eval(), threat, space=space, classes=10, rng=Streams(0), examples=len(x))
        return perturb(target, x, y, Region(x, space, norm, eps), Streams(0))

    return call


def of_foolbox(name: str, eps: float | None = None, **settings: object) -> Attack:
    def call(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = getattr(foolbox.attacks, name)(**settings)
        free, clipped, _ = attack(foolbox.PyTorchModel(module.eval(), bounds=(0, 1)), x, y, epsilons=eps)
        return free if eps is None else clipped

    return call


def of_art(name: str, **settings: object) -> Attack:
    def call(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model = PyTorchClassifier(
            module,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=10,
            clip_values=(0, 1),
            device_type="cpu",
        )
        attack = getattr(art, name)(model, verbose=False, **settings)
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return call


def of_torchattacks(name: str, **settings: object) -> Attack:
    return lambda module, x, y: getattr(torchattacks, name)(module, **settings)(x, y)


def of_adv_lib(name: str, **settings: object) -> Attack:
    return lambda module, x, y: getattr(adv_lib.attacks, name)(module, x, y, **settings)


def of_autoattack(cls: Callable[..., object], norm: str, eps: float, **settings: object) -> Attack:
    def call(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        found: Tensor = cls(module, norm=names[norm], eps=eps, device="cpu", **settings).perturb(x, y)  # type: ignore[attr-defined]
        return found

    return call


def distances(module: nn.Module, found: Tensor, data: Data, norm: str) -> Tensor:
    """How far each point (n, *shape) is from its example; infinity where it does not fool, or leaves the box."""
    with torch.no_grad():
        fooled = module(found).argmax(1) != data.y
    inside = ((found >= 0) & (found <= 1)).flatten(1).all(1)
    return torch.where(fooled & inside, distance(found, data.x, norm), torch.inf)


@dataclass(frozen=True)
class Contest:
    """One attack of several libraries on one model; rounds is how often each runs, in turn.

    matched makes our side from the number of inputs per example that the other one needed.
    """

    attack: str
    model: str
    norm: str
    eps: float
    sides: dict[str, Attack]
    closest: bool = False
    rounds: int = 1
    examples: int = 256
    matched: Callable[[int], Attack] | None = None


COLUMNS = (
    "attack",
    "model",
    "threat",
    "whose",
    "inputs per example",
    "robust accuracy",
    "median distance",
    "curve area",
    "CPU s",
    "ours / theirs",
)


def held(contest: Contest, module: nn.Module, data: Data) -> list[list[str]]:
    """Run all sides, and return a row of COLUMNS for each."""
    rounds: list[dict[str, Ran]] = []
    for _ in range(contest.rounds):
        ran = {who: run(attack, module, data, who) for who, attack in contest.sides.items()}
        if contest.matched:
            (theirs,) = ran.values()
            ran = {"ours": run(contest.matched(int(theirs.inputs)), module, data, "ours"), **ran}
        rounds.append(ran)
    with torch.no_grad():
        right = module(data.x).argmax(1) == data.y
    rows, radius, top = [], contest.eps * 1.0001 + 1e-6, CURVE * contest.eps
    for who, side in rounds[0].items():
        far = distances(module, side.found, data, contest.norm)
        far = torch.where(right, far, 0.0)
        ratio = median(sides["ours"].seconds / sides[who].seconds for sides in rounds)
        rows.append(
            [
                contest.attack,
                contest.model,
                f"{contest.norm} {contest.eps:g}",
                who,
                f"{side.inputs:.0f}",
                f"{100 * float((far > radius).float().mean()):.1f}",
                f"{float(far[right].median()):.4f}" if contest.closest else "-",
                f"{float(far.clamp_max(top).mean()) / top:.4f}" if contest.closest else "-",
                f"{median(sides[who].seconds for sides in rounds):.2f}",
                "-" if who == "ours" else f"{ratio:.2f}",
            ]
        )
    return rows


def pgd() -> Iterator[Contest]:
    for model, eps, share in (("at-linf", 0.1, 0.1), ("none", 0.1, 0.1), ("digits", 0.15, 1 / 15)):
        step = eps * share
        attack = PGD(random_start=False, stride=share)
        box = {"eps": eps, "eps_step": step, "max_iter": attack.steps}
        of = {
            "Foolbox": of_foolbox("LinfBasicIterativeAttack", eps, abs_stepsize=step, steps=attack.steps),
            "ART": of_art("ProjectedGradientDescent", **box, batch_size=256),
            "torchattacks": of_torchattacks(
                "PGD", eps=eps, alpha=step, steps=attack.steps, random_start=False
            ),
        }

        def loop(module: nn.Module, x: Tensor, y: Tensor, eps: float = eps, step: float = step) -> Tensor:
            return hand_written_pgd(module, x, y, eps, PGD().steps, step, start=False)

        sides = {
            "ours": ours(attack, "linf", eps),
            "hand-written loop": loop,
            "Foolbox as installed": of["Foolbox"],
            "ART as installed": of_art("ProjectedGradientDescent", **box),
            **of,
        }
        yield Contest("PGD-40", model, "linf", eps, sides, rounds=5)


def auto_pgd() -> Iterator[Contest]:
    for model in ("at-linf", "wong", "none"):
        for norm, loss in (("linf", "ce"), ("linf", "dlr"), ("l2", "ce"), ("l2", "dlr")):
            eps = getattr(CASES[model], norm)
            sides = {
                "ours": ours(APGD(steps=STEPS, loss=loss), norm, eps),
                "AutoAttack": of_autoattack(APGDAttack, norm, eps, n_iter=STEPS, loss=loss, n_restarts=1),
                "adv-lib": of_adv_lib("apgd", eps=eps, norm=ORDER[norm], n_iter=STEPS, loss_function=loss),
            }
            yield Contest(f"Auto-PGD, {loss}", model, norm, eps, sides, rounds=3)


def minimal_norm() -> Iterator[Contest]:
    for model in ("at-linf", "wong", "none"):
        eps = {"linf": CASES[model].linf, "l2": CASES[model].l2, **RADII}

        def contest(
            attack: Evasion, norm: str, model: str = model, eps: dict[str, float] = eps, **peers: Attack
        ) -> Contest:
            names = {"foolbox": "Foolbox", "adv_lib": "adv-lib"}
            sides = {names[name]: peer for name, peer in peers.items()}
            mine = {"ours": ours(attack, norm, eps[norm])}
            return Contest(str(attack), model, norm, eps[norm], {**mine, **sides}, closest=True)

        yield contest(
            DDN(steps=STEPS),
            "l2",
            foolbox=of_foolbox("DDNAttack", steps=STEPS),
            adv_lib=of_adv_lib("ddn", steps=STEPS, levels=None),
        )
        for norm in ("l0", "l1", "l2", "linf"):
            yield contest(
                FMN(steps=STEPS),
                norm,
                foolbox=of_foolbox(f"{norm.upper().replace('LINF', 'LInf')}FMNAttack", steps=STEPS),
                adv_lib=of_adv_lib("fmn", norm=ORDER[norm], steps=STEPS),
            )
        for norm in ("l1", "l2", "linf"):
            yield contest(
                PDPGD(steps=STEPS), norm, adv_lib=of_adv_lib("pdpgd", norm=ORDER[norm], num_steps=STEPS)
            )
        yield contest(SigmaZero(steps=STEPS), "l0", adv_lib=of_adv_lib("sigma_zero", num_steps=STEPS))
        yield contest(
            CarliniWagner(searches=9, steps=STEPS),
            "l2",
            foolbox=of_foolbox("L2CarliniWagnerAttack", steps=STEPS),
            adv_lib=of_adv_lib("carlini_wagner_l2", max_iterations=STEPS),
        )
        for norm in ("l2", "linf"):
            yield contest(
                DeepFool(steps=50),
                norm,
                foolbox=of_foolbox(f"{norm.title()}DeepFoolAttack", steps=50),
                adv_lib=of_adv_lib("df", norm=ORDER[norm], steps=50),
            )


def fab() -> Iterator[Contest]:
    for model, lengths in (("at-linf", (20, STEPS)), ("wong", (20,)), ("none", (20,))):
        eps = {"linf": CASES[model].linf, "l2": CASES[model].l2, **RADII}
        for norm in ("l1", "l2", "linf"):
            for steps in lengths:
                sides = {
                    "ours": ours(FAB(steps=steps), norm, eps[norm]),
                    "adv-lib": of_adv_lib(
                        "fab", norm=ORDER[norm], n_iter=steps, restarts=9, targeted_restarts=True
                    ),
                }
                yield Contest(f"fab-t, {steps} steps", model, norm, eps[norm], sides, closest=True)


def square() -> Iterator[Contest]:
    queries = 1000
    for model in ("at-linf", "wong", "none"):
        for norm in ("linf", "l2"):
            eps = getattr(CASES[model], norm)
            sides = {
                "ours": ours(Square(queries=queries), norm, eps, "black"),
                "AutoAttack": of_autoattack(SquareAttack, norm, eps, n_queries=queries),
                "torchattacks": of_torchattacks(
                    "Square", norm=norm.title(), eps=eps, n_queries=queries, n_restarts=1
                ),
                "ART": of_art(
                    "SquareAttack", norm=ORDER[norm], eps=eps, max_iter=queries, p_init=0.8, batch_size=256
                ),
            }
            yield Contest(f"Square, {queries} queries", model, norm, eps, sides, rounds=3)


def hop_skip_jump() -> Iterator[Contest]:
    for model in ("at-linf", "wong", "none"):
        for norm in ("l2", "linf"):
            eps = getattr(CASES[model], norm)
            peers = {
                "Foolbox": (256, of_foolbox("HopSkipJumpAttack", steps=9, constraint=norm)),
                "ART": (64, of_art("HopSkipJump", norm=ORDER[norm], max_iter=9, batch_size=1)),
            }

            def mine(queries: int, norm: str = norm, eps: float = eps) -> Attack:
                return ours(HopSkipJump(queries=queries), norm, eps, "black")

            for who, (examples, attack) in peers.items():
                sides = {who: attack}
                yield Contest("HopSkipJump", model, norm, eps, sides, True, examples=examples, matched=mine)


SECTIONS = {
    "pgd": pgd,
    "auto-pgd": auto_pgd,
    "minimal-norm": minimal_norm,
    "fab-t": fab,
    "square": square,
    "hop-skip-jump": hop_skip_jump,
}


def arena(model: str, examples: int, given: argparse.Namespace) -> tuple[nn.Module, Data]:
    """Return a model with frozen parameters, and test examples drawn by a seed."""
    if model == "digits":
        task, splits = Digits(), Digits().load(None)
        module = train(
            initialise(task.default.build, Streams(0)), splits.train, Recipe(12, 64, 3e-3), Streams(0)
        )
        test = splits.test
    else:
        module, test = CASES[model].build(given.data, given.weights), TASK.load(given.data).test
    drawn = torch.randperm(len(test), generator=Streams(0).torch("strength"))[:examples]
    return module.eval().requires_grad_(False), test.rows(drawn)


LIBRARIES = ("foolbox", "adversarial-robustness-toolbox", "torchattacks", "pyautoattack", "adv-lib")
INTRODUCTION = """# Attacks beside those of other libraries

The same models and examples, in one process and one thread; `make perf`, {versions}.
Examples are drawn by a seed from the MNIST test set; models are those of [strength.md](strength.md): `at-linf` is a
small CNN, adversarially trained in linf 0.1, `none` the same, undefended, `wong` the published weights of Wong &
Kolter. Robust accuracy (percent) and curves are judged by a fresh forward pass, and hold all examples. A median is over
the examples that were right; what was never broken counts as infinitely far, and a curve's area is the share that
stays above it up to {curve:g} times the radius: less is better. Inputs per example are forward passes, counted at the model.
CPU time is that of the whole call; where there are several rounds, a median, and `ours / theirs` the median of the
rounds' ratios. Models have frozen parameters, and examples one batch, but where it says `as installed`: there the
model is as it was loaded and the batch the library's default (32 in ART). Other settings of the libraries are their
defaults, but for the steps. `digits` is the network of that task, undefended, with 8x8 inputs.
"""


def behind(rows: list[list[str]]) -> Iterator[str]:
    """Yield where another side of the same contest found more, or came closer."""
    mine: list[str] = []
    for row in rows:
        mine = row if row[3] == "ours" else mine
        worse = [
            f"{what} {me} against {other}"
            for what, me, other in zip(COLUMNS[5:8], mine[5:8], row[5:8], strict=True)
            if me != "-" and float(other) < float(me)
        ]
        if worse:
            yield f"- {row[0]}, `{row[1]}`, {row[2]}: {', '.join(worse)} ({row[3]})"


def page(measured: dict[str, list[list[str]]]) -> str:
    """Return the results as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *LIBRARIES))
    lines = INTRODUCTION.format(versions=versions, curve=CURVE).splitlines()
    for section in [name for name in SECTIONS if name in measured]:
        lines += ["", f"## {section}", "", f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(row)} |" for row in measured[section]]
    lines += ["", "## Where another library found more or came closer", ""]
    found = [line for rows in measured.values() for line in behind(rows)]
    return "\n".join([*lines, *(found or ["Nowhere."])]) + "\n"


def main() -> None:
    """Measure, print, and write the table if everything was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the published weights")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections to run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    catalog.load()
    place = RESULTS / "peers.json"
    measured = json.loads(place.read_text()) if place.is_file() else {}
    for section in given.only.split(","):
        rows: list[list[str]] = []
        for contest in SECTIONS[section]():
            for row in held(contest, *arena(contest.model, contest.examples, given)):
                rows.append(row)
                sys.stdout.write(f"| {' | '.join(row)} |\n")
                sys.stdout.flush()
        measured[section] = rows
        place.write_text(json.dumps(measured, indent=0) + "\n")
        (RESULTS / "peers.md").write_text(page(measured))


if __name__ == "__main__":
    main()
