"""What the emulator shows beside totals: which instructions a layer executes, where it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

CELL_BYTES = 16
"""Width of a cell of the access trace, the alignment of buffers in the arena: a cell lies in one buffer."""

OUTSIDE = "outside"
"""Name of the row for what runs outside of every watched function."""


@dataclass(frozen=True)
class ArenaTrace:
    """Reads and writes of the arena, over all inferences of a run.

    Attributes
    ----------
    layers : tuple of str, length n
        What the rows stand for: functions of the firmware, or nodes of the graph.
    cell_bytes : int
        Bytes of the arena in one cell, the last one may have fewer.
    reads, writes : ndarray of uint32, shape (arena_bytes,)
        Accesses of each byte.
    layer_reads, layer_writes : ndarray of uint32, shape (n, ceil(arena_bytes / cell_bytes))
        Bytes read and written in each cell by each row; a row's callees count for the row.
    """

    layers: tuple[str, ...]
    cell_bytes: int
    reads: np.ndarray
    writes: np.ndarray
    layer_reads: np.ndarray
    layer_writes: np.ndarray

    @property
    def arena_bytes(self) -> int:
        """Size of the arena, bytes."""
        return len(self.reads)

    def select(self, rows: Mapping[str, str]) -> ArenaTrace:
        """Return the rows named by the keys of ``rows``, in that order, renamed to its values."""
        index = [self.layers.index(name) for name in rows]
        return replace(
            self,
            layers=tuple(rows.values()),
            layer_reads=self.layer_reads[index],
            layer_writes=self.layer_writes[index],
        )


def total_mnemonics(layers: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Add up the histograms of all layers, the most frequent mnemonic first.

    Examples
    --------
    >>> total_mnemonics({"conv": {"smlad": 9, "ldr": 4}, "pool": {"ldr": 7}})
    {'ldr': 11, 'smlad': 9}
    """
    counts: dict[str, int] = {}
    for histogram in layers.values():
        for name, count in histogram.items():
            counts[name] = counts.get(name, 0) + count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def histogram_rows(
    layers: Mapping[str, Mapping[str, int]], *, most: int = 8
) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Return a table of the histograms: column names, and a row of counts for each layer and the total.

    The ``most`` frequent mnemonics of the whole network have a column each; the others share the last.

    Examples
    --------
    >>> histogram_rows({"conv": {"smlad": 9, "ldr": 4}, "pool": {"ldr": 7, "ssat": 1}}, most=2)
    (['ldr', 'smlad', 'other'], [('conv', [4, 9, 0]), ('pool', [7, 0, 1]), ('total', [11, 9, 1])])
    """
    total = total_mnemonics(layers)
    columns = list(total)[:most]

    def counts(histogram: Mapping[str, int]) -> list[int]:
        shown = [histogram.get(name, 0) for name in columns]
        return [*shown, sum(histogram.values()) - sum(shown)]

    rows = [(name, counts(histogram)) for name, histogram in layers.items()]
    return [*columns, "other"], [*rows, ("total", counts(total))]


def rows_of(nodes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return function to node name, for the nodes that have a function of their own, in their order."""
    return {node["symbol"]: node["name"] for node in nodes if node["symbol"]}
