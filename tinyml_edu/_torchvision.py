"""Import torchvision, also where the compiled operators of its wheel do not load.

A CPU build of torch beside a stock torchvision wheel fails on ``import torchvision`` with ``operator
torchvision::nms does not exist``: the wheel's operators were built for another torch.  The data sets,
transforms and models never call those operators; only their schemas are looked up at import.  So the two
missing schemas are declared here and the import is tried again.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MISSING = ("nms", "qnms")

# A Library takes its schemas with it when it is collected, so it lives as long as the process.
_declared: list[torch.library.Library] = []


def load() -> ModuleType:
    """Return the ``torchvision`` module.

    Returns
    -------
    ModuleType
        ``torchvision``, with ``datasets``, ``transforms`` and ``models`` usable.

    Raises
    ------
    RuntimeError
        If torchvision fails for another reason than the two missing schemas.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    _declare_missing_schemas()
    # The failed import leaves half-initialised submodules behind; they must be executed again.
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    return importlib.import_module("torchvision")


def _declare_missing_schemas() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` without an implementation."""
    library = torch.library.Library("torchvision", "DEF")
    for name in _MISSING:
        library.define(name + _SCHEMA)
    _declared.append(library)
