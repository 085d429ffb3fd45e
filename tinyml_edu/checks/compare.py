"""Comparisons that say in words what is wrong: shape, dtype, which value, and which class of mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .protocol import PASS, Verdict, wrong


def close(
    got: Any,
    want: Any,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    name: str = "the result",
    dtype: Any = None,
    mistakes: Mapping[str, Any] | None = None,
    look_at: str = "",
) -> Verdict:
    """Return ``PASS`` when ``|got - want| <= atol + rtol * |want|`` everywhere, else what differs and how.

    Parameters
    ----------
    got, want : array_like
        What came back and what the judge computed.  NaN equals nothing, not even NaN: a judge that expects
        NaN says so by itself.
    rtol, atol : float
        Both 0 asks for equality.  Derive the tolerance at the place of the call.
    name : str
        What the values are, for the message.
    dtype : dtype, optional
        Asked for exactly when given.
    mistakes : mapping of str to array_like, optional
        Phrase to the values that a known mistake gives; the first that matches is named in the message.
    look_at : str
        Where to look when no known mistake matches.

    Examples
    --------
    >>> close([1.0, 2.0], [1.0, 3.0]).reason
    'the result: 1 of 2 values differ; first at [1]: expected 3.0, got 2.0'
    >>> close([2.0, 6.0], [1.0, 3.0], rtol=1e-6).look_at
    'every value is 2 times the expected one'
    >>> close([[1, 2, 3]], [1, 2, 3]).reason
    'the result has shape (1, 3), expected (3,)'
    """
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        hint = "the axes are swapped" if got.shape == want.shape[::-1] else look_at
        return wrong(f"{name} has shape {got.shape}, expected {want.shape}", look_at=hint)
    if got.dtype.kind not in "buifc" or want.dtype.kind not in "buifc":
        same = got.dtype.kind == want.dtype.kind and bool(np.all(got == want))
        return PASS if same else wrong(f"{name}: expected {_short(want)}, got {_short(got)}", look_at=look_at)
    if dtype is not None and got.dtype != np.dtype(dtype):
        return wrong(f"{name} has dtype {got.dtype}, expected {np.dtype(dtype)}", look_at=look_at)
    good = _within(got, want, rtol, atol)
    if good.all():
        return PASS
    hint = _known_mistake(got, mistakes, rtol, atol) or "; ".join(
        filter(None, [_pattern(got, want), look_at])
    )
    return wrong(f"{name}: {_where(got, want, good)}", look_at=hint)


def true(condition: bool, reason: str, *, look_at: str = "") -> Verdict:
    """Return ``PASS`` when ``condition`` holds, else a wrong answer with ``reason``."""
    return PASS if condition else wrong(reason, look_at=look_at)


def all_of(*verdicts: Verdict) -> Verdict:
    """Return the first verdict with the lowest score: put what a student should mend first in front.

    Examples
    --------
    >>> all_of(PASS, wrong("a", score=0.5), wrong("b"), wrong("c")).reason
    'b'
    """
    return min(verdicts, key=lambda verdict: verdict.score)


def _within(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """Return where the values agree; exact without tolerance, and never where either is NaN."""
    equal = got == want  # also covers infinities, whose difference is NaN
    if rtol == 0.0 and atol == 0.0:
        return np.asarray(equal)
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = _real(got), _real(want)
        near = np.abs(a - b) <= atol + rtol * np.abs(b)
    return np.asarray(equal | (near & np.isfinite(b)))


def _real(x: np.ndarray) -> np.ndarray:
    """Widen to double, so that differences of unsigned or narrow integers do not wrap."""
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _where(got: np.ndarray, want: np.ndarray, good: np.ndarray) -> str:
    if got.ndim == 0:
        return f"expected {_short(want)}, got {_short(got)}"
    index = tuple(int(i) for i in np.argwhere(~good)[0])
    count = int(np.count_nonzero(~good))
    return (
        f"{count} of {got.size} values differ; first at {list(index)}: "
        f"expected {_short(want[index])}, got {_short(got[index])}"
    )


def _short(value: Any, limit: int = 200) -> str:
    text = str(np.asarray(value).tolist())
    return text if len(text) <= limit else text[:limit] + " ..."


def _known_mistake(got: np.ndarray, mistakes: Mapping[str, Any] | None, rtol: float, atol: float) -> str:
    """Return the phrase of the first mistake that gives these values."""
    for phrase, values in (mistakes or {}).items():
        other = np.asarray(values)
        if other.shape == got.shape and _within(got, other, rtol, atol).all():
            return phrase
    return ""


def _pattern(got: np.ndarray, want: np.ndarray) -> str:
    """Name what is plain to see in the numbers: NaNs, a factor, an offset."""
    a, b = _real(got).ravel(), _real(want).ravel()
    if np.isnan(a).any():
        return "there are NaNs: look for 0 / 0, the log of 0 or an empty set"
    if a.size == 0 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return ""
    return _scaled(a, b) if b.any() else ""


def _scaled(a: np.ndarray, b: np.ndarray) -> str:
    """Say whether ``a`` is ``b`` times a factor or, for two values and more, plus an offset.

    The comparison allows 1e-5 relative, ten times the rounding of a float32 product.
    """
    square = np.vdot(b, b)
    factor = np.vdot(b, a) / square if square > 0 else 0.0  # the square of a tiny value is 0
    if np.isreal(factor) and factor != 0 and np.allclose(a, factor * b, rtol=1e-5, atol=0):
        factor = float(np.real(factor))
        if a.size == 1:
            return f"off by a factor of {factor:.6g}"
        return (
            "every sign is flipped" if factor == -1 else f"every value is {factor:.6g} times the expected one"
        )
    offset = (a - b).mean()
    if a.size > 1 and np.isreal(offset) and np.allclose(a, b + offset, rtol=1e-5, atol=0):
        return f"every value is off by {float(np.real(offset)):+.6g}"
    return ""
