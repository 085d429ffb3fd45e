"""Lazy attribute access for packages (PEP 562), so that an import costs milliseconds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(
    package: str,
    *,
    submodules: Iterable[str] = (),
    attributes: Mapping[str, Iterable[str]] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``(__getattr__, __dir__, __all__)`` for a package whose contents load on first use.

    Parameters
    ----------
    package : str
        The package's ``__name__``.
    submodules : iterable of str
        Names that resolve to ``package.name``.
    attributes : mapping of str to iterable of str
        Submodule name to the names that the package re-exports from it.

    Examples
    --------
    >>> getter, _, names = attach("tinyml_edu", submodules=["errors"])
    >>> names
    ['errors']
    >>> getter("errors").__name__
    'tinyml_edu.errors'
    """
    modules = set(submodules)
    homes = {name: module for module, names in (attributes or {}).items() for name in names}
    exported = sorted(modules | set(homes))

    def __getattr__(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
            # Kept in the package's own dictionary, so that it wins over a submodule of the same name.
            setattr(sys.modules[package], name, value)
            return value
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return exported

    return __getattr__, __dir__, exported
