"""Grading: build the release, graft answers, run each in its own process, judge outside, record."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "arrays",
        "course",
        "driver",
        "graft",
        "labs",
        "leaks",
        "notebooks",
        "offline",
        "process",
        "prove",
        "records",
        "release",
        "runner",
        "sample",
        "scoring",
        "stock",
        "student",
    ],
)
