"""Visible questions of the labs, and the check that a notebook calls: ``checks.check("lab00.q1")``."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["compare", "loading", "notebook", "protocol", "tripwire"],
    attributes={
        "compare": ["all_of", "close", "true"],
        "notebook": ["CheckError", "check"],
        "loading": ["known_labs", "load_lab"],
        "protocol": ["PASS", "Lab", "Mutant", "Question", "Verdict", "numeric", "wrong"],
    },
)
