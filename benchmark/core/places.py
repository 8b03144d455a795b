"""Folders of the user's that outlive a run."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return firstline's cache folder ($XDG_CACHE_HOME, or ~/.cache); it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "firstline"


def weights_path(sha256: str) -> Path:
    """Return where imported weights with this SHA-256 are kept."""
    return cache_folder() / "weights" / f"{sha256}.safetensors"
