"""The reference raises "call your own" when a student's answer calls it instead of being one.

This catches mistakes, not fraud: the references are public.  Library-internal callers go on working, because
only a call whose own frame runs in the student's namespace is refused.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .protocol import Lab, resolve


class TripwireError(RuntimeError):
    """The answer calls the library's function of the same name."""


@contextmanager
def armed(lab: Lab, names: Iterable[str], namespace: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, calling a reference of ``names`` from code of ``namespace`` raises `TripwireError`.

    Parameters
    ----------
    lab : Lab
        Its ``reference`` says which object stands behind a name; names without one are skipped.
    names : iterable of str
        What the student must provide.
    namespace : mapping
        The globals of the student's code.
    """
    undo: list[Callable[[], None]] = []
    try:
        for name in names:
            if name in lab.reference:
                undo += _arm(name, resolve(lab.reference[name]), namespace)
        yield
    finally:
        for restore in reversed(undo):
            restore()


def taken(lab: Lab, names: Iterable[str], namespace: Mapping[str, Any]) -> str:
    """Return a message when a name that the student must provide is the reference itself, else ""."""
    for name in names:
        value = namespace.get(name)
        if value is None or name not in lab.reference or not callable(value):
            continue
        if value is resolve(lab.reference[name]) or hasattr(value, "_tripwire_of"):
            return f"{name} is the library's own; write yours in the answer cell"
    return ""


def _arm(name: str, target: Any, namespace: Mapping[str, Any]) -> list[Callable[[], None]]:
    if not callable(target):
        return []
    if inspect.isclass(target):
        # Replacing the class would break isinstance, so only its construction is guarded.
        original = target.__init__
        setattr(target, "__init__", _guard(name, original, namespace))  # noqa: B010
        return [functools.partial(setattr, target, "__init__", original)]
    guarded = _guard(name, target, namespace)
    _swap(target, guarded, namespace)
    # The way back scans again: a lazy package may have cached the guard while it was armed.
    return [functools.partial(_swap, guarded, target, namespace)]


def _swap(old: Any, new: Any, namespace: Mapping[str, Any]) -> None:
    """Rebind every name of the library and of the namespace that is bound to ``old``."""
    for holder in _holders(namespace):
        for key in [key for key, value in list(holder.items()) if value is old]:
            holder[key] = new


def _holders(namespace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Dictionaries through which student code reaches the library: its modules, and the namespace."""
    # Private labs are loaded as tinyml_edu_checks_<id>.
    modules = [m for key, m in list(sys.modules.items()) if key.startswith("tinyml_edu") and m is not None]
    holders = [vars(module) for module in modules]
    if isinstance(namespace, dict):
        holders.append(namespace)
    return holders


def _guard(name: str, function: Callable[..., Any], namespace: Mapping[str, Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals is namespace:
            raise TripwireError(f"call your own {name}: this cell must not use the library's")
        return function(*args, **kwargs)

    guarded._tripwire_of = name  # type: ignore[attr-defined]
    return guarded
