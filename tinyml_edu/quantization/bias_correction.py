"""Bias correction: rounding weights shifts what a channel gives on average; the bias takes the shift back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.graph import Graph, Kind, Tensor
from .activations import LINEAR_OPS
from .layerwise import paired_streams, preactivation, prepare
from .post_training import QuantConfig, quantize_graph


def correct_bias(
    graph: Graph,
    x: Any,
    config: QuantConfig | None = None,
    *,
    weight_codes: Mapping[str, np.ndarray] | None = None,
) -> Graph:
    """Return a float graph whose quantized form has the channel means of ``graph``.

    Layer by layer in execution order, the bias of channel ``o`` loses ``mean(z_q[o]) - mean(z[o])``: ``z`` is
    what the float layer computes before its activation, ``z_q`` what the quantized one computes from its
    codes behind the quantized, already corrected layers before it.  This is the empirical form of bias
    correction (eq. 16 and appendix D of [1]_): it needs data, and no assumption on their distribution.

    Parameters
    ----------
    graph : Graph
        Float graph; it is not changed.
    x : ndarray or torch.Tensor
        Calibration inputs, see `calibration.as_stored`.
    config : QuantConfig, optional
        How the graph will be quantized.
    weight_codes : mapping of str to ndarray, optional
        Codes for `quantize_graph` that are not the nearest, as from `adaround`.

    Returns
    -------
    Graph
        The same nodes and weights, other biases; a layer without bias gets one.

    Raises
    ------
    UsageError
        If the graph is int8, or the calibration set is empty, of another shape or not finite.

    Notes
    -----
    Quantize the result with the ranges of ``graph`` itself, ``quantize_graph(corrected, calibrate(graph, x),
    config)``: then the means over ``x`` agree to half a step of the bias, ``s_x * s_w / 2``.

    References
    ----------
    .. [1] Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019.
       https://arxiv.org/abs/1906.04721
    """
    config = config or QuantConfig()
    x, ranges = prepare(graph, x, config)
    graph = _with_biases(graph)
    corrected = replace(graph, tensors=dict(graph.tensors))
    int8 = quantize_graph(corrected, ranges, config, weight_codes=weight_codes)
    real, coded = paired_streams(graph, int8, x)
    for node in graph.nodes:
        if node.op in LINEAR_OPS:
            wanted = preactivation(graph, node, real.value(node.inputs[0]))
            got = preactivation(int8, node, coded.value(node.inputs[0]))
            _move_bias(corrected, int8, node.inputs[2], _channel_means(wanted) - _channel_means(got))
            int8 = quantize_graph(corrected, ranges, config, weight_codes=weight_codes)
        real.step(node)
        coded.step(node, int8)
    return corrected


def _channel_means(z: np.ndarray) -> np.ndarray:
    """Return float64 (O,): the mean over everything but the last axis."""
    return z.mean(axis=tuple(range(z.ndim - 1)), dtype=np.float64)


def _move_bias(graph: Graph, int8: Graph, name: str, shift: np.ndarray) -> None:
    """Set a bias of ``graph`` to what its codes in ``int8`` stand for, plus ``shift`` (O,)."""
    codes, quant = int8[name].data, int8[name].quant
    assert codes is not None
    assert quant is not None
    # From the codes: starting from the float bias would count its rounding twice.
    graph.update(name, data=(codes * quant.scale.astype(np.float64) + shift).astype(np.float32))


def _with_biases(graph: Graph) -> Graph:
    """Return a copy in which every linear node has a bias."""
    result = replace(graph, tensors=dict(graph.tensors), nodes=list(graph.nodes))
    for i, node in enumerate(graph.nodes):
        if node.op in LINEAR_OPS and len(node.inputs) == 2:
            zeros = np.zeros(graph[node.outputs[0]].shape[-1], np.float32)
            tensor = Tensor(result.unique(f"{node.name}.bias"), zeros.shape, "float32", Kind.CONSTANT, zeros)
            result.nodes[i] = replace(node, inputs=(*node.inputs, result.add(tensor)))
    return result
