"""Operands that repeat along some axes, as loops over as few axes as possible."""

from __future__ import annotations

Axis = tuple[int, int, int, int]
"""Length, and the elements from one index to the next in the output and in two operands."""


def merged_axes(out: tuple[int, ...], *operands: tuple[int, ...]) -> list[Axis]:
    """Return the axes of an element-wise op, outermost first; neighbours that one loop covers are one.

    Parameters
    ----------
    out : tuple of int
        Shape of the output.
    operands : two tuples of int
        Shapes of the same rank; an operand repeats along an axis of length 1 where the output's is longer.

    Returns
    -------
    list of (length, step, step, step)
        Steps in the output, the first and the second operand; 0 where an operand repeats.  Axes of length 1
        are left out; one axis at least is returned.

    Examples
    --------
    >>> merged_axes((1, 8, 8, 16), (1, 8, 8, 16), (1, 1, 1, 16))
    [(64, 16, 16, 0), (16, 1, 1, 1)]
    """
    axes: list[Axis] = []
    steps = [1] * (1 + len(operands))
    shapes = (out, *operands)
    for axis in reversed(range(len(out))):
        if out[axis] == 1:
            continue
        inner = axes[-1] if axes else None
        own = [0 if shape[axis] == 1 else step for shape, step in zip(shapes, steps, strict=True)]
        steps = [step * shape[axis] for shape, step in zip(shapes, steps, strict=True)]
        if inner is not None and own == [inner[0] * step for step in inner[1:]]:
            axes[-1] = (inner[0] * out[axis], *inner[1:])
        else:
            axes.append((out[axis], own[0], own[1], own[2]))
    return axes[::-1] or [(1, 1, 1, 1)]
