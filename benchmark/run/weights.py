"""Import of published weights: a pickled checkpoint becomes safetensors, once, outside the path of any run."""

import hashlib
import io
from pathlib import Path

from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.places import weights_path
from firstline.benchmark.run.store import write_whole


def import_weights(path: Path, expected: str) -> str:
    """Convert the checkpoint at path, whose SHA-256 must be expected; return that of the converted file.

    Only tensors are read (torch's weights_only loader). Raises FirstlineError saying what is wrong with the file.
    """
    import torch
    from safetensors.torch import save

    try:
        content = path.read_bytes()
    except OSError as error:
        raise FirstlineError(f"cannot read the weights {path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise FirstlineError(
            f"{path} is not the published file: its SHA-256 is {found}, the recipe's {expected}"
        )
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise FirstlineError(
            f"{path} holds more than tensors, or is damaged: {type(error).__name__}"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise FirstlineError(f"{path} is not a plain dictionary of tensors")
    data = save({name: state[name].contiguous().clone() for name in sorted(state)})
    digest = hashlib.sha256(data).hexdigest()
    write_whole(weights_path(digest), data)
    return digest
