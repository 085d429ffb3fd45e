"""Checkpoints that the recipes in ``benchmarks/train_zoo.py`` trained, each with a card."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["checkpoints"],
    attributes={"checkpoints": ["card", "load", "names", "save"]},
)
