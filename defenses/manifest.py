"""A manifest of the training data: rows that are not what they were when it was made are left out.

Source: Merkle 1979, Secrecy, Authentication, and Public Key Systems (a file is authenticated by a
digest of the digests of its parts); in practice the checksums of package and container registries.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import DataProblem
from firstline.benchmark.core.places import cache_folder
from firstline.benchmark.core.registry import defense


def digests(data: Data) -> dict[str, str]:
    """Return the SHA-256 of each row of data by its id: of the id, the label, and the input's type, shape and bytes."""
    x = data.x.cpu().contiguous().numpy()
    head = f"{x.dtype.str} {x.shape[1:]}"
    rows = zip(x, data.y.tolist(), data.ids.tolist(), strict=True)
    return {
        str(number): hashlib.sha256(f"{number} {label} {head};".encode() + row.tobytes()).hexdigest()
        for row, label, number in rows
    }


def manifest_path(sha256: str) -> Path:
    """Return where the manifest with this SHA-256 is kept."""
    return cache_folder() / "manifests" / f"{sha256}.json"


def write_manifest(data: Data) -> str:
    """Keep the manifest of data, which is trusted as it is now, and return its SHA-256: the setting to give."""
    content = json.dumps(digests(data), sort_keys=True).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    path = manifest_path(sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return sha256


@defense("manifest")
@dataclass(frozen=True)
class Manifest(Defense):
    """Leave out every row that the manifest does not list, or lists with another digest.

    Claims to catch whatever was changed or added after the manifest was made, row by row and without a false
    alarm. sha256 pins the manifest that `write_manifest` made of the data at their source, and stands for a
    signature: who can change it can change the defense. Known to say nothing of poison that was there before
    (Carlini et al. 2024, arXiv:2302.10149, poison data at their source), nor of rows that
    are missing.
    """

    sha256: str = ""

    def collect(self, data: Data, ctx: Context) -> Data:
        """Return the rows of data that are as the manifest says."""
        path = manifest_path(self.sha256)
        if not self.sha256 or not path.is_file():
            raise DataProblem(
                f"no manifest with SHA-256 {self.sha256 or '(none given)'} is kept here; make one of the trusted "
                "data with firstline.defenses.manifest.write_manifest"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataProblem(f"{path} is not the manifest that its name says: it was changed or damaged")
        listed = json.loads(content)
        sound = [listed.get(number) == digest for number, digest in digests(data).items()]
        return data.rows(torch.tensor(sound, dtype=torch.bool, device=data.x.device))
