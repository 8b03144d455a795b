"""firstline new: a plugin to start from."""

import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from firstline.benchmark.cli.show_text import say
from firstline.benchmark.core.errors import FirstlineError, not_found
from firstline.benchmark.run.store import write_whole

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "firstline-{name}"
version = "0.1.0"
description = "A firstline {kind}"
dependencies = ["firstline"]

[project.entry-points."firstline.plugins"]
{name} = "{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""

DEFENSE = '''"""{title}: squeeze inputs to fewer levels before they are answered.

Source: replace with the paper that this implements; here Xu et al. 2018, arXiv:1704.01155, section 4.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from firstline.benchmark.api import Defense, Response, System, Task, defense


class {cls}System(System):
    """Rounds inputs to `levels` values between 0 and 1."""

    def __init__(self, inner: System, levels: int) -> None:
        super().__init__(inner)
        self.levels = levels

    def _rounded(self, x: Tensor) -> Tensor:
        return torch.round(x * (self.levels - 1)) / (self.levels - 1)

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer the rounded x (n, *shape)."""
        return self._inside().respond(self._rounded(x), rng)

    def surrogate(self, x: Tensor, rng: torch.Generator) -> Response:
        """Answer the rounded x, with gradients that pass straight through the rounding, which has none (BPDA)."""
        return self._inside().surrogate(x + (self._rounded(x) - x).detach(), rng)


@defense("{name}")
@dataclass(frozen=True)
class {cls}(Defense):
    """Say in one line what it does; then what it claims, and where it is known to fail."""

    inputs = ("real",)

    levels: int = 16

    def deploy(self, system: System, task: Task) -> System:
        """Return system behind the rounding."""
        return {cls}System(system, self.levels)
'''

ATTACK = '''"""{title}: a few steps uphill.

Source: replace with the paper that this implements; here Goodfellow et al. 2015, arXiv:1412.6572, section 4.
"""

from dataclasses import dataclass

from torch import Tensor

from firstline.benchmark.api import Evasion, Region, Streams, Target, ascend, attack


@attack("{name}")
@dataclass(frozen=True)
class {cls}(Evasion):
    """Say in one line what it does."""

    needs = ("gradients",)
    goals = ("linf", "l2", "l1")

    steps: int = 10

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        """Return x (n, *shape) moved inside its ball so that labels y (n,) fit it badly."""
        return ascend(
            lambda points, rows: target.slope(points, y[rows], rows),
            region,
            start=x,
            steps=self.steps,
            stride=2.5 / self.steps,
        )
'''

KINDS = {"defense": DEFENSE, "attack": ATTACK}


def new(
    kind: Annotated[str, typer.Argument(help="defense or attack.")],
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits and hyphens.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to write it; by default a folder called NAME here.")
    ] = None,
) -> None:
    """Write a plugin that passes `firstline check`: a module and the pyproject that registers it."""
    if kind not in KINDS:
        raise not_found("kind of plugin", kind, KINDS)
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise FirstlineError(
            f"{name!r} can't be a name; use small letters, digits and hyphens, such as my-{kind}"
        )
    place = folder or Path(name)
    if place.exists() and any(place.iterdir() if place.is_dir() else [place]):
        raise FirstlineError(f"{place} exists and is not empty; choose another --folder")
    words = {
        "name": name,
        "kind": kind,
        "module": module,
        "title": name.replace("-", " ").capitalize(),
        "cls": "".join(part.capitalize() for part in name.split("-")),
    }
    write_whole(place / f"{module}.py", KINDS[kind].format(**words).encode())
    write_whole(place / "pyproject.toml", PROJECT.format(**words).encode())
    say(f"wrote {place / (module + '.py')} and {place / 'pyproject.toml'}; next:")
    say(f"  firstline check {place}")
    say(f"  pip install -e {place}")
    option = f"-d {name}" if kind == "defense" else f"-a {name}"
    say(f"  add {name!r} to a suite of your own, and: firstline run my-suite.toml {option}")
