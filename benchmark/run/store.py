"""The results folder on disk; nothing else touches it.

    records/ab/<key>.json       one record per cell, immutable, written last
    outcomes/ab/<key>.safetensors   its per-example arrays
    pictures/ab/<key>.png       of inversion: what was rebuilt below what it is of (training data: not for publication)
    streams/ab/<key>.json       one record per stream, immutable
    fits/ab/<key>.safetensors   fitted systems (a cache: may be deleted), with <key>.json beside them
    log.jsonl                   one line per record written, each with the hash of the line before

Every file is written to a temporary name, synced, and renamed, so that a killed run leaves whole files only.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstline.benchmark.core.errors import FirstlineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from firstline.benchmark.core.record import Record
    from firstline.benchmark.core.stream_record import StreamRecord


STALE = 3600.0  # seconds: a younger temporary file may be that of another run, which writes it now


class Damaged(FirstlineError):
    """A stored file is not what was written; it can be made again."""


class Unwritable(FirstlineError):
    """The results folder can't be written; no cell can be saved."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise Unwritable(
            f"cannot write {error.filename or path}: {error.strerror}; free the disk, change the folder's "
            "permissions, or choose another one with --results"
        ) from None


def small(array: "NDArray[Any]") -> "NDArray[Any]":
    """Return a copy of array in the smallest signed type that holds its numbers, if they are signed integers."""
    if array.dtype.kind != "i" or not array.size:
        return array.copy()
    least, most = int(array.min()), int(array.max())
    bits = 1 + max(most, -least - 1).bit_length()
    return array.astype(f"int{next(size for size in (8, 16, 32, 64) if bits <= size)}", order="C")


def write_whole(path: Path, data: bytes) -> None:
    """Write data to path so that readers see all of it or nothing. Raises Unwritable where it can't."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class Store:
    """A results folder."""

    root: Path

    def _path(self, kind: str, key: str, suffix: str) -> Path:
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def prepare(self) -> None:
        """Make the folder and check that it can be written. Removes leftovers of killed runs."""
        write_whole(self.root / ".writable", b"")
        (self.root / ".writable").unlink(missing_ok=True)
        for pattern in (".new-*", "*/.new-*", "*/*/.new-*"):
            for leftover in self.root.glob(pattern):
                with suppress(FileNotFoundError):
                    if leftover.stat().st_mtime < time.time() - STALE:
                        leftover.unlink()

    def record_path(self, key: str) -> Path:
        """Return where the record of a cell is or will be."""
        return self._path("records", key, ".json")

    def outcomes_path(self, key: str) -> Path:
        """Return where the per-example arrays of a cell are, if it has any. A record's own path is not trusted."""
        return self._path("outcomes", key, ".safetensors")

    def picture_path(self, key: str) -> Path:
        """Return where the picture of a cell is, if it has any."""
        return self._path("pictures", key, ".png")

    def picture(self, record: "Record") -> bytes | None:
        """Return the picture of a record, None where it has none."""
        try:
            return self.picture_path(record.key).read_bytes()
        except OSError:
            return None

    def glance(self, key: str) -> dict[str, Any] | None:
        """Return the record of a cell as plain data without checking it, or None where there is none or it is damaged."""
        try:
            raw = json.loads(self.record_path(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(raw, dict) or raw.get("key") != key or raw.get("status") not in ("ok", "failed"):
            return None
        return raw if isinstance(raw.get("error"), dict) == (raw["status"] == "failed") else None

    def read(self, key: str) -> "Record":
        """Return the record of a cell. Raises FirstlineError."""
        from firstline.benchmark.core.record import read_record

        return read_record(self.record_path(key))

    def record_keys(self) -> list[str]:
        """Return the keys of all records, sorted."""
        return sorted(path.stem for path in (self.root / "records").glob("??/*.json"))

    def find(self, start: str) -> str:
        """Return the one key, of a cell's record or a stream's, that begins with start. Raises FirstlineError."""
        found = [key for key in (*self.record_keys(), *self.stream_keys()) if key.startswith(start)]
        if len(found) != 1:
            what = (
                f"{len(found)} records in {self.root} begin" if found else f"no record in {self.root} begins"
            )
            raise FirstlineError(f"{what} with {start!r}; `firstline status --keys` lists them")
        return found[0]

    def records(self) -> "Iterator[Record]":
        """Yield all records in the order of their keys. Raises FirstlineError at a damaged one."""
        for key in self.record_keys():
            yield self.read(key)

    def write(
        self, record: "Record", arrays: "dict[str, NDArray[Any]] | None", picture: bytes | None = None
    ) -> "Record":
        """Write the picture and the per-example arrays, then the record that names these; return it as written."""
        from safetensors.numpy import save

        from firstline.benchmark.core.record import OutcomeFile

        if picture is not None:
            write_whole(self.picture_path(record.key), picture)
        if arrays is not None:
            data = save({name: small(array) for name, array in arrays.items()})
            path = self.outcomes_path(record.key)
            write_whole(path, data)
            file = OutcomeFile(
                path=str(path.relative_to(self.root)),
                sha256=hashlib.sha256(data).hexdigest(),
                columns=sorted(arrays),
            )
            record = record.model_copy(update={"outcomes": file})
        write_whole(self.record_path(record.key), record.to_json().encode())
        return record

    def stream_path(self, key: str) -> Path:
        """Return where the record of a stream is or will be."""
        return self._path("streams", key, ".json")

    def stream_keys(self) -> list[str]:
        """Return the keys of all streams, sorted."""
        return sorted(path.stem for path in (self.root / "streams").glob("??/*.json"))

    def read_stream(self, key: str) -> "StreamRecord":
        """Return the record of a stream. Raises FirstlineError."""
        from firstline.benchmark.core.stream_record import read_stream

        path = self.stream_path(key)
        record = read_stream(path)
        if record.key != key:
            raise Damaged(f"{path} is the record of another stream; delete the file and run the stream again")
        return record

    def write_stream(self, record: "StreamRecord") -> None:
        """Write the record of a stream."""
        write_whole(self.stream_path(record.key), record.to_json().encode())

    def outcomes(self, record: "Record") -> "dict[str, NDArray[np.generic]]":
        """Return the per-example arrays of a record, integers as int64 again.

        Raises Damaged where they are missing or changed.
        """
        from safetensors.numpy import load

        if record.outcomes is None:
            return {}
        path = self.outcomes_path(record.key)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Damaged(
                f"cannot read {path}: {error.strerror}; delete the record and run the cell again"
            ) from None
        if hashlib.sha256(data).hexdigest() != record.outcomes.sha256:
            raise Damaged(
                f"{path} was changed since it was written; delete the record and run the cell again"
            )
        return {
            name: array.astype("int64") if array.dtype.kind == "i" else array
            for name, array in load(data).items()
        }

    def save_fit(self, key: str, state: "dict[str, Tensor]", facts: dict[str, Any]) -> None:
        """Store a fitted system's tensors; facts (plain data) is written last and marks it whole."""
        from safetensors.torch import save

        data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
        write_whole(self._path("fits", key, ".safetensors"), data)
        facts = {**facts, "sha256": hashlib.sha256(data).hexdigest()}
        write_whole(self._path("fits", key, ".json"), json.dumps(facts, sort_keys=True).encode())

    def has_fit(self, key: str) -> bool:
        """Whether a fitted system is stored."""
        return self._path("fits", key, ".json").is_file()

    def load_fit(self, key: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Return a fitted system's tensors and facts. Raises Damaged, after taking the damaged files away."""
        from safetensors.torch import load

        weights, facts_path = self._path("fits", key, ".safetensors"), self._path("fits", key, ".json")
        try:
            facts = json.loads(facts_path.read_bytes())
            data = weights.read_bytes()
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                raise ValueError("its content changed")
            return load(data), facts
        except (OSError, ValueError, KeyError, TypeError) as error:
            facts_path.unlink(missing_ok=True)
            weights.unlink(missing_ok=True)
            raise Damaged(f"the stored system {weights} is damaged ({error}); it is fitted again") from None

    def log(self, keys: list[str], rewritten: Collection[str] = ()) -> None:
        """Chain records into the log: each line holds the hash of the one before, so that later edits show.

        A key is logged once, and again where it is among rewritten: a failed cell's record after a retry.
        Raises Damaged where the log is not what was written.
        """
        path = self.root / "log.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        try:
            logged = {json.loads(line)["key"] for line in lines} - set(rewritten)
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{path} is damaged; move it away, and the next run begins a new one") from None
        before = hashlib.sha256(lines[-1]).hexdigest() if lines else "0" * 64
        fresh = []
        for key in keys:
            if key in logged:
                continue
            digest = hashlib.sha256(self.record_path(key).read_bytes()).hexdigest()
            line = json.dumps({"before": before, "key": key, "sha256": digest}, sort_keys=True).encode()
            before = hashlib.sha256(line).hexdigest()
            fresh.append(line)
        if fresh:
            write_whole(path, b"\n".join([*lines, *fresh]) + b"\n")
