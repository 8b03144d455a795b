"""The site's folder: replaced as a whole, and what did not change is kept from the last time."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstline.benchmark.core.canonical import canonical
from firstline.benchmark.core.errors import FirstlineError
from firstline.leaderboard.downloads import INDEX

SUMS = "SHA256SUMS"
PLAN = "build.json"  # which part was made from what
OURS = ('"format":"firstline.board/', "records.json")  # what tells a site of ours, and its index of old


def digest(data: bytes) -> str:
    """Return the SHA-256 of data."""
    return hashlib.sha256(data).hexdigest()


@dataclass
class Last:
    """What the last build left in a folder: its parts by digest, each with its files, and every file's SHA-256."""

    folder: Path
    engine: str = ""
    parts: Mapping[str, Any] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)

    def holds(self, name: str) -> bool:
        """Whether the file of this name is there as it was written."""
        try:
            return name in self.sums and digest((self.folder / name).read_bytes()) == self.sums[name]
        except OSError:
            return False


def last(folder: Path, engine: str) -> Last:
    """Return what the last build left, nothing if another engine (code, cards, title) made it or it is damaged."""
    try:
        plan = json.loads((folder / PLAN).read_text("utf-8"))
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        sums = {name: sha for sha, name in (line.split("  ", 1) for line in lines)}
        if plan["engine"] == engine:
            return Last(folder, engine, plan["parts"], sums)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Last(folder, engine)


def replace(folder: Path, files: Mapping[str, bytes | str], before: Last, parts: Mapping[str, Any]) -> None:
    """Write files beside folder, then put them in its place: a reader sees the old site or the new one.

    A file given as text is the SHA-256 of one that is kept from before. Raises FirstlineError if folder holds what is
    no site of ours, or can't be written.
    """
    if folder.exists() and not _is_ours(folder):
        raise FirstlineError(
            f"{folder} is not empty and not a leaderboard; name a new folder, or remove it first"
        )
    sums = {name: data if isinstance(data, str) else digest(data) for name, data in files.items()}
    plan = canonical({"engine": before.engine, "parts": parts}) + "\n"
    whole: dict[str, bytes | str] = {**files, PLAN: plan.encode()}
    sums[PLAN] = digest(plan.encode())
    whole[SUMS] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    mark = secrets.token_hex(4)
    new, old = (folder.with_name(f".{folder.name}.{mark}.{age}") for age in ("new", "old"))
    try:
        for place in sorted({(new / name).parent for name in whole}):
            place.mkdir(parents=True, exist_ok=True)
        for name, data in whole.items():
            if before.sums.get(name) == sums.get(name, "") and _linked(folder / name, new / name, sums[name]):
                continue
            if isinstance(data, str):
                raise FirstlineError(
                    f"{folder / name} changed while the leaderboard was built; build it again"
                )
            (new / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise FirstlineError(f"cannot write the leaderboard to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _linked(source: Path, target: Path, sha: str) -> bool:
    """Give target the content of source without a copy where the disk can; False if source is not what it was."""
    try:
        if digest(source.read_bytes()) != sha:
            return False
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
    except OSError:
        return False
    return True


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    mark, old = OURS
    for name in (INDEX, old):
        try:
            if mark in (folder / name).read_text(encoding="utf-8"):
                return True
        except (OSError, UnicodeDecodeError):
            continue
    return False
