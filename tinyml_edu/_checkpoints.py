"""Tensors and a JSON text in one safetensors file, written whole or not at all; nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ._files import write_atomically
from .errors import DataError

_KEY = "tinyml_edu"


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``state`` to one file, atomically.

    Raises
    ------
    DataError
        If the folder cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = to_bytes(plain, metadata={_KEY: json.dumps(state, sort_keys=True)})
    try:
        write_atomically(path, data)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state that :func:`save` wrote.

    Raises
    ------
    DataError
        If the file is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors, json.loads(metadata[_KEY])
    except FileNotFoundError:
        raise DataError(f"checkpoint {path} does not exist; check the path") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"checkpoint {path} is corrupt or not one of ours ({reason}); delete it and train again"
        ) from None
