"""Checkpoints with cards: ``<name>.safetensors`` holds weights, ``<name>.json`` says where they are from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from .. import models
from .._files import write_atomically
from ..errors import DataError, UnknownNameError

FOLDER = Path(__file__).parent
"""Where the committed checkpoints are."""

Card = dict[str, Any]
"""Keys of a card:

``name``; ``model`` = ``{name, classes, in_channels, width}``, the arguments of :func:`models.build`;
``classes`` = what each logit stands for; ``parameters``; ``data`` = ``{name, parameters, source, train,
validation, test}`` with the numbers of examples; ``recipe`` = the fields of ``TrainConfig``; ``runs`` = one
``{seed, epochs, validation_accuracy, test_accuracy, seconds, cpu_seconds, precision, device}`` a seed, the
first of which is the one in the file; ``test_accuracy`` = ``{mean, min, max, seeds}``; ``torch``; ``sha256``.
"""


def names(folder: Path | str = FOLDER) -> list[str]:
    """Return the names of the checkpoints in ``folder``, sorted."""
    return sorted(path.name.removesuffix(".json") for path in Path(folder).glob("*.json"))


def card(name: str, folder: Path | str = FOLDER) -> Card:
    """Return the card of checkpoint ``name``.

    Raises
    ------
    UnknownNameError
        If there is no such checkpoint.
    DataError
        If the card cannot be read.
    """
    if name not in names(folder):
        raise UnknownNameError("checkpoint", name, names(folder))
    path = Path(folder) / f"{name}.json"
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        return {key: text[key] for key in ("name", "model", "sha256")} | text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"card {path} is corrupt ({error}); reinstall tinyml_edu") from None


def load(name: str, folder: Path | str = FOLDER) -> tuple[nn.Module, Card]:
    """Return checkpoint ``name`` as a model in evaluation mode, and its card.

    Parameters
    ----------
    name : str
        One of :func:`names`, e.g. ``"vgg_lite.glyphs32"``.
    folder : path, optional
        The committed checkpoints by default.

    Raises
    ------
    UnknownNameError
        If there is no such checkpoint.
    DataError
        If the file is absent, or its sha256 is not the card's.
    """
    found = card(name, folder)
    path = Path(folder) / f"{name}.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read checkpoint {path}: {error.strerror or error}; reinstall tinyml_edu"
        ) from None
    if hashlib.sha256(data).hexdigest() != found["sha256"]:
        raise DataError(f"checkpoint {path} is corrupt: its sha256 is not the card's; reinstall tinyml_edu")
    # Building draws first weights that are thrown away; the caller's random numbers must not move.
    with torch.random.fork_rng(devices=[]):
        model = models.build(**found["model"])
    try:
        model.load_state_dict(load_tensors(data))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"checkpoint {path} does not fit its card ({reason}); reinstall tinyml_edu") from None
    return model.eval(), found


def save(name: str, model: nn.Module, card: Card, folder: Path | str = FOLDER) -> Path:
    """Write a checkpoint and its card, each whole or not at all; return the path of the weights.

    Parameters
    ----------
    model : nn.Module
        What ``models.build(**card["model"])`` builds, trained.
    card : dict
        See :data:`Card`; ``name``, ``parameters``, ``torch`` and ``sha256`` are filled in here, and
        ``test_accuracy`` from ``runs``.
    """
    folder = Path(folder)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    data = save_tensors(weights)
    accuracies = [run["test_accuracy"] for run in card["runs"]]
    filled = card | {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_accuracy": {
            "mean": sum(accuracies) / len(accuracies),
            "min": min(accuracies),
            "max": max(accuracies),
            "seeds": len(accuracies),
        },
        "torch": torch.__version__,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    path = folder / f"{name}.safetensors"
    write_atomically(path, data)
    text = json.dumps(filled, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / f"{name}.json", text.encode())
    return path
