"""Errors that a user can act on: one line that says what is wrong and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TinyMLError(Exception):
    """The work failed.  The command line prints the message and exits with ``exit_code``."""

    exit_code = 1


class UsageError(TinyMLError):
    """The request itself is wrong: an unknown name, a bad value."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not in a list of known ones; the message suggests the nearest.

    Examples
    --------
    >>> print(UnknownNameError("board", "stm32f421", ["stm32f412", "rp2040"]))
    unknown board 'stm32f421'; did you mean 'stm32f412'?  Known: rp2040, stm32f412
    """

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        known = sorted(known)
        lower = {k.lower(): k for k in known}
        near = difflib.get_close_matches(str(name).lower(), lower, n=1)
        hint = f"; did you mean {lower[near[0]]!r}?" if near else "."
        super().__init__(f"unknown {kind} {name!r}{hint}  Known: {', '.join(known)}")


class DataError(TinyMLError):
    """A file is missing, corrupt or of another version."""


class UnsupportedOpError(TinyMLError):
    """A network holds an operation that the compiler does not support."""


class DoesNotFitError(TinyMLError):
    """A network needs more memory than the board has."""


class ToolchainError(TinyMLError):
    """A compiler or emulator is missing or failed."""


class GradingError(TinyMLError):
    """A submission, a lab or a course folder cannot be graded as asked."""
