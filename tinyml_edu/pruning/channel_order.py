"""Reorder channels so that N:M sparsity keeps more: neighbours are chosen, the network's function stays [1]_.

References
----------
.. [1] Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
"""

from __future__ import annotations

import copy
from collections import defaultdict

import numpy as np
import torch
from torch import nn

from .dependency import ChannelGroup, Dependencies, Layer, find_dependencies
from .n_m import search_permutation
from .surgery import keep_inputs, keep_outputs


def reorder_for_n_m(model: nn.Module, example: torch.Tensor, n: int = 2, m: int = 4) -> nn.Module:
    """Return a copy of ``model`` whose channels are ordered so that N:M keeps larger weights.

    The channels of each group (see `dependency`) move together, in the layers that write and in those that
    read them; `n_m.search_permutation` finds the order that keeps the largest sum of ``|w|`` of all readers.
    ``prune(model, PruneConfig(granularity="2:4"))`` then works on neighbours as they lie in memory.

    Parameters
    ----------
    model : nn.Module
        See `structured.ChannelPruner`.  It is not changed.
    example : torch.Tensor
        Input (N, C, H, W) or (N, F).
    n, m : int
        N of every M neighbouring input channels will stay.

    Returns
    -------
    nn.Module
        It computes what ``model`` computes, up to the order of float sums.

    Notes
    -----
    Groups keep their order where their channels are read only as several features each, behind a flatten, or
    as one channel in each group of a grouped convolution, whose groups are fixed places.
    """
    found = find_dependencies(model, example)
    new_label = np.arange(
        1 + max((int(x.max()) for n in found.layers for x in (n.inputs, n.outputs)), default=0)
    )
    for group in found.groups:
        scores = _reader_scores(model, found, group)
        if scores is not None:
            order = search_permutation(scores, n, m).numpy()
            new_label[group.labels] = group.labels[order]
    reordered = copy.deepcopy(model)
    for layer in found.layers:
        module = reordered.get_submodule(layer.path)
        keep_outputs(module, torch.from_numpy(_places(layer.outputs, new_label)))
        if layer.op in ("CONV_2D", "FULLY_CONNECTED"):
            keep_inputs(module, torch.from_numpy(_places(layer.inputs, new_label)))
    return reordered


def _reader_scores(model: nn.Module, found: Dependencies, group: ChannelGroup) -> torch.Tensor | None:
    """Return ``|w|`` (rows, units) of the layers that read each unit once; None: keep the order."""
    columns = []
    for layer in found.layers:
        if layer.op in ("CONV_2D", "FULLY_CONNECTED") and _reads_each_once(layer, group):
            place = {label: i for i, label in enumerate(layer.inputs)}
            weight = model.get_parameter(f"{layer.path}.weight").detach().abs()
            rows = weight.movedim(1, -1).flatten(0, -2)  # (O * KH * KW, I)
            columns.append(rows[:, [place[label] for label in group.labels]])
    return torch.cat(columns) if columns else None


def _reads_each_once(layer: Layer, group: ChannelGroup) -> bool:
    counts = np.isin(layer.inputs, group.labels).sum()
    return bool(counts == len(group) and np.isin(group.labels, layer.inputs).all())


def _places(labels: np.ndarray, new_label: np.ndarray) -> np.ndarray:
    """Return for each place the old place of what moves there: the channel of the new label, (channels,).

    A label that stands at several places, a channel's features behind a flatten, keeps their order.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[int(label)].append(place)
    seen: dict[int, int] = defaultdict(int)
    moved = np.empty(len(labels), dtype=np.int64)
    for place, label in enumerate(labels):
        moved[place] = places[int(new_label[label])][seen[int(label)]]
        seen[int(label)] += 1
    return moved
