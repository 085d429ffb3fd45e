"""Data sets: embedded, made by the package, or real; all behind :func:`load`."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["cards", "dataset", "glyphs", "loading", "manifest", "originals", "presence", "store"],
    attributes={
        "dataset": ["Dataset", "normalised", "to_tensor"],
        "loading": ["card", "is_available", "load", "names"],
    },
)
