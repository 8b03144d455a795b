"""ORL faces: people of whom a system knows seven photographs each; the customary target of model inversion.

Source: Samaria & Harter 1994, WACV, the AT&T (once ORL) Database of Faces; inverted by Fredrikson, Jha & Ristenpart 2015,
CCS, section 5 (seven photographs of each to train on, three to test).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem, FirstlineError, not_found
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.splits import cause, verified

PEOPLE, SHOTS, HEIGHT, WIDTH = 40, 10, 112, 92
KNOWN = 7  # photographs of each in train; the other three are test
PUBLIC = 10  # people who are no classes, by default
WHERE = "the AT&T Laboratories Cambridge Database of Faces (att_faces.zip)"

Photographs = NDArray[np.uint8]


@task("orl-faces")
@dataclass(frozen=True)
class OrlFaces(Task):
    """400 grey photographs of 40 people, halved to 56 x 46 pixels: of each class seven are in train, three in test.

    The last `public` people are no classes. Their photographs are aux, faces that an attacker may know; their labels
    there go around and say nothing. public=0 is the paper's task: all 40 are classes, and aux is empty.

    network is 'softmax' (a regression), 'mlp' (300 hidden units, sigmoid) or 'autoencoder' (two sigmoid layers of 300
    and 100, and a softmax on these). shrink is by how much the sides are divided: 1, 2 or 4.
    """

    modality = "image"
    licence = "for research, with credit to AT&T Laboratories Cambridge"
    eps = {"linf": 8 / 255, "l2": 1.0}  # noqa: RUF012 - settings are the only state

    public: int = PUBLIC
    network: str = "softmax"
    shrink: int = 2

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The people that the system tells apart."""
        if not 0 <= self.public <= PEOPLE - 2:
            raise FirstlineError(f"{self}: public is a number of people from 0 to {PEOPLE - 2}")
        return PEOPLE - self.public

    @property
    def space(self) -> InputSpace:  # type: ignore[override]
        """Grey values from 0 to 1, on the 8-bit grid."""
        if self.shrink not in (1, 2, 4):
            raise FirstlineError(f"{self}: shrink is 1, 2 or 4")
        return InputSpace(shape=(1, HEIGHT // self.shrink, WIDTH // self.shrink), grid=1 / 255)

    def load(self, folder: Path | None) -> Splits:
        """Return the splits: x float32 (n, 1, height, width).

        folder holds orl_faces/ with s1/1.pgm to s40/10.pgm, or orl_faces.npz with x (400, 112, 92), y and shot.
        Nothing is downloaded. Raises DataProblem when there is neither, or one is damaged.
        """
        remedy = f"get {WHERE}, put s1 to s40 into DIR/orl_faces, and name DIR with --data-dir DIR or FIRSTLINE_DATA"
        if folder is None:
            raise DataProblem(f"{self.name} is not downloaded by firstline; {remedy}")
        place = folder / "orl_faces"
        packed = place / "orl_faces.npz"
        try:
            photographs = _unpacked(packed) if os.path.isfile(packed) else _pictures(place)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise DataProblem(f"{self.name}: {place} can't be read ({cause(error)}); {remedy}") from None
        x = torch.from_numpy(photographs).double()
        x = avg_pool2d(x, self.shrink) if self.shrink > 1 else x
        x = (x.round() / 255).float()
        own, others = x[: self.classes], x[self.classes :]
        parts = (
            _rows(part, self.classes, self.space.shape) for part in (own[:, :KNOWN], own[:, KNOWN:], others)
        )
        return verified(Splits(*parts), self.fingerprint, f"{self.name} in {place}")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """The one network that was asked for."""
        pixels = self.space.shape[1] * self.space.shape[2]
        kinds = {
            "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(pixels, self.classes)),
            "mlp": lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(pixels, 300), nn.Sigmoid(), nn.Linear(300, self.classes)
            ),
            "autoencoder": lambda: nn.Sequential(
                nn.Flatten(),
                nn.Linear(pixels, 300),
                nn.Sigmoid(),
                nn.Linear(300, 100),
                nn.Sigmoid(),
                nn.Linear(100, self.classes),
            ),
        }
        if self.network not in kinds:
            raise not_found("network of orl-faces", self.network, kinds)
        epochs = {"softmax": 60, "mlp": 150, "autoencoder": 300}[self.network]
        return {self.network: Architecture(kinds[self.network], Recipe(epochs=epochs, batch=40, rate=1e-3))}


def _rows(x: Tensor, classes: int, shape: tuple[int, ...]) -> Data:
    """Return photographs x (people, shots, height, width) as data, in their order."""
    labels = torch.arange(len(x))[:, None].expand(x.shape[:2]) % classes
    return Data.of(x.reshape(-1, *shape), labels.flatten())


def _unpacked(path: Path) -> Photographs:
    """Return (people, shots, height, width) of an archive of arrays."""
    with np.load(path) as kept:
        x, y, shot = kept["x"], kept["y"], kept["shot"]
    order = np.lexsort((shot, y))
    return _shaped(x[order])


def _pictures(place: Path) -> Photographs:
    """Return the same of the folders of pictures as AT&T gave them."""
    names = [place / f"s{who + 1}" / f"{shot + 1}.pgm" for who in range(PEOPLE) for shot in range(SHOTS)]
    return _shaped(np.stack([_grey(name.read_bytes(), name) for name in names]))


def _grey(raw: bytes, name: Path) -> Photographs:
    """Return the pixels of a binary grey map (PGM, P5)."""
    head = raw.split(None, 4)[:4]
    if (
        len(head) < 4
        or head[0] != b"P5"
        or (int(head[1]), int(head[2]), int(head[3])) != (WIDTH, HEIGHT, 255)
    ):
        raise ValueError(f"{name.name} is no grey map of {WIDTH} x {HEIGHT} pixels")
    return np.frombuffer(raw[-WIDTH * HEIGHT :], np.uint8).reshape(HEIGHT, WIDTH)


def _shaped(x: NDArray[np.uint8]) -> Photographs:
    if x.shape != (PEOPLE * SHOTS, HEIGHT, WIDTH) or x.dtype != np.uint8:
        raise ValueError(f"there are photographs of shape {x.shape}, not {(PEOPLE * SHOTS, HEIGHT, WIDTH)}")
    return np.ascontiguousarray(x.reshape(PEOPLE, SHOTS, HEIGHT, WIDTH))
