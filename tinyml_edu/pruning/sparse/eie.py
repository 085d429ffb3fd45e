"""A cycle model of EIE: how well do processing elements share a sparse layer?

The machine [1]_: row ``i`` of the weights lives on PE ``i % pes`` in the relative-index format.  One
activation that is not zero is broadcast each cycle into a queue in front of every PE; if any queue is full,
the broadcast waits.  A PE takes the activation at the head of its queue and multiplies it with its entries of
that column, one a cycle, padding zeros included.

What the model fixes:

- the k-th activation is in the queues from cycle ``t[k]`` on, the first from cycle 0;
- a PE spends ``max(1, entries)`` cycles on it: a column without entries still has to be looked up;
- it holds its place in a queue until its last entry is done, so that with depth 1 the PEs go in step.

Left out: the pipeline's constant latency, reading activations and writing results, and bank conflicts.

References
----------
.. [1] Han et al., EIE, ISCA 2016, sections III-C and IV; queue depth and load balance: figure 8.
       https://arxiv.org/abs/1602.01528
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError
from .relative import RelativeIndex

CLOCK_HZ = 800e6
"""Clock of the published chip."""


@dataclass(frozen=True, eq=False)
class EieReport:
    """What one matrix-vector product costs.

    Attributes
    ----------
    output : ndarray (rows,) of float64 or int64
        The product, from the entries as they are stored.
    cycles : int
        Until the last PE is done.
    work : ndarray (pes,) of int64
        Entries that each PE multiplies, padding zeros included: its busy cycles.
    padding : ndarray (pes,) of int64
        Padding zeros among them.
    lookups : ndarray (pes,) of int64
        Cycles spent on columns without entries.
    broadcasts : int
        Activations that are not zero.
    dense_macs : int
        ``rows * cols``: what a machine without sparsity multiplies.
    """

    output: NDArray[np.generic]
    cycles: int
    work: NDArray[np.int64]
    padding: NDArray[np.int64]
    lookups: NDArray[np.int64]
    broadcasts: int
    dense_macs: int

    @property
    def ideal_cycles(self) -> int:
        """Cycles if the entries were spread evenly: ``ceil(sum of work / pes)``."""
        return math.ceil(int(self.work.sum()) / len(self.work))

    @property
    def load_balance(self) -> float:
        """Busy cycles over all cycles, 0 to 1: 1 minus the bubbles of figure 8; 1 if nothing runs."""
        return float(self.work.sum() / (self.cycles * len(self.work))) if self.cycles else 1.0

    def seconds(self, clock_hz: float = CLOCK_HZ) -> float:
        """Return the time of the product at a clock."""
        return self.cycles / clock_hz


def simulate(weight: RelativeIndex, activations: ArrayLike, *, queue_depth: int = 8) -> EieReport:
    """Run one matrix-vector product on the model.

    Parameters
    ----------
    weight : RelativeIndex (rows, cols)
        Encoded for the number of PEs of the machine: ``RelativeIndex.encode(matrix, pes=64)``.
    activations : array (cols,)
        Zeros among them cost nothing.
    queue_depth : int, default=8
        Activations that a queue holds, the one at work included.

    Raises
    ------
    UsageError
        If the queue depth is below 1, or the activations do not match the columns.

    Notes
    -----
    With ``c[p, k]`` cycles of PE ``p`` for the k-th activation and ``f[p, k]`` the end of its work:

        t[k]    = max(t[k - 1] + 1, max over p of f[p, k - queue_depth])
        f[p, k] = max(t[k], f[p, k - 1]) + c[p, k]

    Examples
    --------
    Two PEs: column 0 gives both one entry, column 1 gives three to PE 0 alone.

    >>> w = np.array([[1, 4], [2, 0], [0, 5], [0, 0], [0, 6]], dtype=np.int8)
    >>> report = simulate(RelativeIndex.encode(w, pes=2), [1, 1], queue_depth=1)
    >>> report.cycles, report.work.tolist(), report.output.tolist()
    (4, [4, 1], [5, 2, 5, 0, 6])
    """
    a = np.asarray(activations)
    if a.shape != (weight.shape[1],):
        raise UsageError(f"the matrix has {weight.shape[1]} columns; activations have shape {a.shape}")
    if queue_depth < 1:
        raise UsageError(f"a queue holds at least one activation, got queue_depth={queue_depth}")
    active = np.flatnonzero(a)
    entries = weight.column_entries()[:, active]  # (pes, k)
    owner = np.repeat(np.arange(weight.pes), weight.column_entries().sum(axis=1))
    rows, cols = weight.positions()
    wasted = (weight.values == 0) & (a[cols] != 0)
    return EieReport(
        output=_multiply(weight, a, rows, cols),
        cycles=_last_cycle(np.maximum(entries, 1), queue_depth),
        work=entries.sum(axis=1),
        padding=np.bincount(owner[wasted], minlength=weight.pes),
        lookups=np.count_nonzero(entries == 0, axis=1).astype(np.int64),
        broadcasts=len(active),
        dense_macs=weight.shape[0] * weight.shape[1],
    )


def _last_cycle(cost: NDArray[np.int64], depth: int) -> int:
    """Return when the last PE is done; ``cost`` (pes, k) is the cycles of each PE for each activation."""
    done = np.zeros((len(cost), cost.shape[1] + 1), np.int64)  # column k + 1: f[:, k]
    broadcast = -1
    for k in range(cost.shape[1]):
        room = int(done[:, k - depth + 1].max()) if k >= depth else 0
        broadcast = max(broadcast + 1, room)
        done[:, k + 1] = np.maximum(broadcast, done[:, k]) + cost[:, k]
    return int(done[:, -1].max())


def _multiply(
    weight: RelativeIndex, a: NDArray[np.generic], rows: NDArray[np.int64], cols: NDArray[np.int64]
) -> NDArray[np.generic]:
    exact = np.issubdtype(weight.values.dtype, np.integer) and np.issubdtype(a.dtype, np.integer)
    wide = np.int64 if exact else np.float64
    used = a[cols] != 0
    output = np.zeros(weight.shape[0], wide)
    np.add.at(output, rows[used], weight.values[used].astype(wide) * a[cols[used]].astype(wide))
    return output
