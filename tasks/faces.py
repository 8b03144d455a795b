"""ORL faces: forty people of whom a system knows six photographs each; the customary target of model inversion.

Source: Samaria & Harter 1994, WACV, the AT&T (once ORL) Database of Faces; inverted by Fredrikson, Jha & Ristenpart 2015,
CCS (seven photographs of each to train on there, three to test).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import avg_pool2d

from firstline.benchmark.core.contracts import Architecture, Task
from firstline.benchmark.core.data import Data, InputSpace, Splits
from firstline.benchmark.core.errors import DataProblem, FirstlineError, not_found
from firstline.benchmark.core.registry import task
from firstline.benchmark.core.training import Recipe
from firstline.tasks.splits import cause, verified

PEOPLE, SHOTS, HEIGHT, WIDTH = 40, 10, 112, 92
KNOWN, TESTED = 6, 3  # photographs of each in train and test; the last one is aux
WHERE = "the AT&T Laboratories Cambridge Database of Faces (att_faces.zip)"

Photographs = NDArray[np.uint8]


@task("orl-faces")
@dataclass(frozen=True)
class OrlFaces(Task):
    """400 grey photographs of 40 people, halved to 56 x 46 pixels: six of each in train, three in test, one in aux.

    network is 'softmax' (a regression), 'mlp' (300 hidden units, sigmoid) or 'autoencoder' (two sigmoid layers of 300
    and 100, and a softmax on these). shrink is by how much the sides are divided: 1, 2 or 4.
    """

    modality = "image"
    licence = "for research, with credit to AT&T Laboratories Cambridge"
    classes = PEOPLE
    eps = {"linf": 8 / 255, "l2": 1.0}  # noqa: RUF012 - settings are the only state

    network: str = "softmax"
    shrink: int = 2

    @property
    def space(self) -> InputSpace:  # type: ignore[override]
        """Grey values from 0 to 1, as fine as means of 8-bit pixels are."""
        if self.shrink not in (1, 2, 4):
            raise FirstlineError(f"{self}: shrink is 1, 2 or 4")
        return InputSpace(shape=(1, HEIGHT // self.shrink, WIDTH // self.shrink))

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
        x = torch.from_numpy(photographs).float().div(255)
        x = avg_pool2d(x, self.shrink) if self.shrink > 1 else x
        y = torch.arange(PEOPLE)[:, None].expand(PEOPLE, SHOTS)
        cuts = (slice(0, KNOWN), slice(KNOWN, KNOWN + TESTED), slice(KNOWN + TESTED, SHOTS))
        parts = (
            Data.of(x[:, cut].reshape(-1, *self.space.shape), y[:, cut].flatten().clone()) for cut in cuts
        )
        return verified(Splits(*parts), self.fingerprint, f"{self.name} in {place}")

    @property
    def architectures(self) -> Mapping[str, Architecture]:
        """The one network that was asked for."""
        pixels = self.space.shape[1] * self.space.shape[2]
        kinds = {
            "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(pixels, PEOPLE)),
            "mlp": lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(pixels, 300), nn.Sigmoid(), nn.Linear(300, PEOPLE)
            ),
            "autoencoder": lambda: nn.Sequential(
                nn.Flatten(),
                nn.Linear(pixels, 300),
                nn.Sigmoid(),
                nn.Linear(300, 100),
                nn.Sigmoid(),
                nn.Linear(100, PEOPLE),
            ),
        }
        if self.network not in kinds:
            raise not_found("network of orl-faces", self.network, kinds)
        epochs = {"softmax": 60, "mlp": 150, "autoencoder": 300}[self.network]
        return {self.network: Architecture(kinds[self.network], Recipe(epochs=epochs, batch=40, rate=1e-3))}


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
