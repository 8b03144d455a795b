"""Content keys: everything that can change a number is in the preimage, nothing else is.

A preimage is plain nested data, one level per stage; a key is the SHA-256 of its canonical JSON. Paths, jobs,
display and retries are left out on purpose: they cannot change a correct number.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols.versions import STREAM, VERSIONS

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # the driver's, and its stand-in under WSL
CORE = 2  # rises when a change to the core loops, streams or metric kernels changes numbers


@dataclass(frozen=True)
class Use:
    """An item as a cell uses it: its text form, and all that identifies it. hooks are those of a defense."""

    text: str
    name: str
    version: int
    settings: dict[str, Any]
    code: str
    tags: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return what goes into a key."""
        return {"name": self.name, "version": self.version, "settings": self.settings, "code": self.code}


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix. device is resolved: cpu or cuda.

    fitted are the layers that the fit depends on, empty where that is the whole stack.
    """

    suite: str
    task: Use
    fingerprint: str
    defense: tuple[Use, ...]
    attack: Use
    threat: Threat
    seed: int
    examples: int
    device: str
    fitted: tuple[Use, ...] = ()

    @property
    def repairs(self) -> tuple[Use, ...]:
        """The layers that repair the fitted system after an incident."""
        return tuple(layer for layer in self.defense if "recover" in layer.hooks)

    @property
    def defense_text(self) -> str:
        """The text form of the stack."""
        return "+".join(layer.text for layer in self.defense)

    @property
    def label(self) -> str:
        """A name for people."""
        return (
            f"{self.task.text} · {self.defense_text} · {self.attack.text} · {self.threat} · seed {self.seed}"
        )


def only_repairs(layer: Use) -> bool:
    """Return whether all that a layer does is to repair: no fit depends on it."""
    return layer.hooks == ("recover",)


def key(preimage: dict[str, Any]) -> str:
    """Return the key of a preimage: 64 hexadecimal digits."""
    return hashlib.sha256(canonical(preimage).encode()).hexdigest()


@functools.cache
def _torch_version() -> str:
    return ".".join(version("torch").split("+")[0].split(".")[:2])


def numeric(device: str) -> dict[str, Any]:
    """Return the numeric environment: what makes the same computation give other numbers."""
    return {"core": CORE, "device": device, "dtype": "float32", "torch": _torch_version()}


def data_preimage(cell: Cell) -> dict[str, Any]:
    """The data: the task and its fingerprint."""
    return {"stage": "data/1", "task": cell.task.identity(), "fingerprint": cell.fingerprint}


def poison_preimage(cell: Cell) -> dict[str, Any]:
    """The poisoned training set."""
    return {
        "stage": "poison/1",
        "data": data_preimage(cell),
        "attack": cell.attack.identity(),
        "threat": str(cell.threat),
        "seed": cell.seed,
        "numeric": numeric(cell.device),
    }


def fit_preimage(cell: Cell, *, poisoned: bool) -> dict[str, Any]:
    """The fitted system. Without poison it is shared by every attack on it, and in any case by its repairs."""
    return {
        "stage": "fit/1",
        "data": data_preimage(cell),
        "poison": poison_preimage(cell) if poisoned else None,
        "defense": [layer.identity() for layer in cell.fitted or cell.defense],
        "seed": cell.seed,
        "numeric": numeric(cell.device),
    }


def bank_preimage(cell: Cell, undefended: tuple[Use, ...] = ()) -> dict[str, Any]:
    """Systems fitted to halves of the rows, with the cell's defense, or with undefended where that is any."""
    return {
        "stage": "bank/1",
        "data": data_preimage(cell),
        "defense": [layer.identity() for layer in undefended or cell.defense],
        "canaries": cell.threat.canaries,
        "seed": cell.seed,
        "numeric": numeric(cell.device),
    }


def pair_preimages(cell: Cell, undefended: tuple[Use, ...] = ()) -> list[dict[str, Any]]:
    """Each two systems of a bank that are fitted to complementary halves, which are stored together."""
    bank = bank_preimage(cell, undefended)
    return [{"stage": "pair/1", "bank": bank, "pair": pair} for pair in range(cell.threat.shadows // 2)]


def attacked_preimage(cell: Cell) -> dict[str, Any]:
    """What the attack meets: a fitted system, or in membership inference a bank of so many."""
    if cell.threat.vector == "membership":
        return bank_preimage(cell) | {"systems": cell.threat.shadows}
    return fit_preimage(cell, poisoned=cell.threat.vector == "poisoning")


def repair_preimage(cell: Cell) -> dict[str, Any]:
    """The repaired system, and what was seen of it on the way, on so many examples."""
    return {
        "stage": "repair/1",
        "fit": fit_preimage(cell, poisoned=True),
        "defense": [layer.identity() for layer in cell.repairs],
        "examples": cell.examples,
        "protocol": VERSIONS["poisoning"],
        "seed": cell.seed,
    }


def craft_preimage(cell: Cell) -> dict[str, Any]:
    """What the attack made, of a system that is the same for all that attack it, or of one that was repaired."""
    made = {
        "stage": "craft/1",
        "fit": attacked_preimage(cell),
        "attack": cell.attack.identity(),
        "threat": str(cell.threat),
        "seed": cell.seed,
        "examples": cell.examples,
    }
    if cell.repairs:  # no part of the fit
        made["repaired"] = [layer.identity() for layer in cell.defense]
    return made


def score_preimage(cell: Cell, *, blind: bool = True) -> dict[str, Any]:
    """The system's answers."""
    return {"stage": "score/1", "craft": craft_preimage(cell), "blind": blind}


def cell_preimage(cell: Cell, *, blind: bool = True) -> dict[str, Any]:
    """The record: the answers, and the protocol that measures them."""
    return {
        "stage": "measure/1",
        "score": score_preimage(cell, blind=blind),
        "protocol": {"vector": cell.threat.vector, "version": VERSIONS[cell.threat.vector]},
    }


def stream_preimage(cell: Cell, shape: dict[str, Any]) -> dict[str, Any]:
    """The record of a stream: what is fitted, attacked and repaired in it, in which shape, and the protocols."""
    return {
        "stage": "stream/1",
        "data": data_preimage(cell),
        "defense": [layer.identity() for layer in cell.defense],
        "attack": cell.attack.identity(),
        "threat": str(cell.threat),
        "shape": shape,
        "seed": cell.seed,
        "examples": cell.examples,
        "numeric": numeric(cell.device),
        "protocol": {"stream": STREAM, cell.threat.vector: VERSIONS[cell.threat.vector]},
    }


def stage_keys(cell: Cell, *, blind: bool = True) -> dict[str, str]:
    """Return the key of every stage of a cell."""
    stages = {
        "data": data_preimage(cell),
        "fit": attacked_preimage(cell),
        "craft": craft_preimage(cell),
        "score": score_preimage(cell, blind=blind),
    }
    if cell.threat.vector == "poisoning":
        stages["poison"] = poison_preimage(cell)
    if cell.repairs:
        stages["repair"] = repair_preimage(cell)
    return {name: key(preimage) for name, preimage in stages.items()}


def resolve_device(name: str) -> str:
    """Return cpu or cuda for auto, cpu or cuda, without importing torch. Raises FirstlineError for cuda without a GPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise FirstlineError(f"--device must be auto, cpu or cuda; found {name!r}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = not hidden and any(Path(device).exists() for device in GPU_DEVICES)
    if name == "cuda" and not there:
        raise FirstlineError("--device cuda: no NVIDIA GPU is visible here; use --device cpu, or auto")
    return "cuda" if name != "cpu" and there else "cpu"
