"""The table of all data sets, read from ``manifest.toml``."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ..errors import UnknownNameError


@dataclass(frozen=True)
class Entry:
    """What the manifest says about one data set.

    Attributes
    ----------
    kind : {"embedded", "made", "real"}
    shape : tuple of int
        (H, W, C) of one example.
    rule : str
        How the splits were chosen.
    splits : dict
        Number of examples a split: the default of a made set, that of the reduced copy of a real one.
    parameters : dict
        Keyword arguments that :func:`tinyml_edu.data.load` takes for this set, with their defaults.
    stand_in : str
        Data set to use where this one cannot be had; empty for embedded and made sets.
    files : dict
        Path under a data folder to sha256.
    originals : dict
        File name to ``{"url", "md5"}`` of the download.
    """

    name: str
    title: str
    kind: str
    shape: tuple[int, ...]
    licence: str
    origin: str
    rule: str
    splits: dict[str, int]
    parameters: dict[str, Any] = field(default_factory=dict)
    stand_in: str = ""
    format: str = ""
    validation_share: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    originals: dict[str, dict[str, str]] = field(default_factory=dict)


@functools.cache
def entries() -> dict[str, Entry]:
    """Return all entries by name, in the order of the file."""
    text = resources.files(__package__).joinpath("manifest.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)
    return {name: Entry(name=name, **{**row, "shape": tuple(row["shape"])}) for name, row in rows.items()}


def entry(name: str) -> Entry:
    """Return the entry ``name``.

    Raises
    ------
    UnknownNameError
        If the manifest has no such set.
    """
    if name not in entries():
        raise UnknownNameError("data set", name, entries())
    return entries()[name]
