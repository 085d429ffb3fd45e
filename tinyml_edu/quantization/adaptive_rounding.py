"""AdaRound: learn, layer by layer, which weights to round up and which down.

Rounding to nearest is best for each weight alone.  A layer adds many of them up, and errors that cancel in
its output are better than errors that are small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..ir.graph import Graph, Node
from ..ir.windows import Slide
from .activations import LINEAR_OPS
from .layerwise import paired_streams, prepare
from .post_training import QuantConfig, quantize_graph, weight_scales

GAMMA, ZETA = -0.1, 1.1
"""Range of the stretched sigmoid before it is clipped to [0, 1]: it reaches both ends (section 3.2)."""

BETA_START, BETA_END = 20.0, 2.0
WARM_UP = 0.2
"""The exponent of the regularizer falls from the first to the second, after a share without regularizer."""


@dataclass(frozen=True, eq=False)
class RoundingProblem:
    """One layer as groups of small linear layers; arrays are float32, ``steps`` float64.

    A convolution or a fully connected layer is one group, a depthwise layer one for each input channel.

    Attributes
    ----------
    steps : ndarray (G, M, K)
        Weights in steps of their scale, ``w / s``; M outputs of K inputs in each group.
    scale : ndarray (G, M, 1)
    q_max : int
        Codes lie in ``[-q_max, q_max]``.
    inputs : ndarray (G, R, K)
        R rows of what the quantized layers before this one feed it.
    target : ndarray (G, R, M)
        What the float layer makes of its own inputs, activation included.
    bias : ndarray (G, 1, M)
    activation : {"none", "relu", "relu6", "relu_n1_to_1"}
    """

    steps: np.ndarray
    scale: np.ndarray
    q_max: int
    inputs: np.ndarray
    target: np.ndarray
    bias: np.ndarray
    activation: str

    def nearest(self) -> np.ndarray:
        """Return the codes (G, M, K) of rounding to nearest."""
        return np.clip(np.rint(self.steps), -self.q_max, self.q_max)

    def errors(self, codes: np.ndarray) -> np.ndarray:
        """Return float64 (G, M): the mean squared error of each output."""
        y = self.inputs @ (codes * self.scale).astype(np.float32).swapaxes(1, 2) + self.bias
        return np.square(clamped(torch.from_numpy(y), self.activation).numpy() - self.target).mean(
            axis=1, dtype=np.float64
        )


def adaround(
    graph: Graph,
    x: Any,
    config: QuantConfig | None = None,
    *,
    iterations: int = 600,
    rows: int = 8192,
    batch_size: int = 512,
    learning_rate: float = 0.02,
    regularization: float = 10.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return weight codes that make each layer's output, not each weight, close to the float one.

    For each layer in execution order, the rounding ``h(V)`` in [0, 1] of every weight is found by Adam [1]_:

        minimize  |f(W x) - f(W_q x_q)|^2 + lambda * sum (1 - |2 h(V) - 1|^beta)        (eq. 25)

    with ``W_q = s * clip(floor(W / s) + h(V))`` and ``beta`` falling until every ``h`` is 0 or 1.  ``x`` is
    the float network's input of the layer, ``x_q`` that of the network whose earlier layers are quantized
    with their learned codes, ``f`` the layer's activation.

    Parameters
    ----------
    graph : Graph
        Float graph; it is not changed.
    x : ndarray or torch.Tensor
        Calibration inputs, see `calibration.as_stored`.
    config : QuantConfig, optional
        How the graph will be quantized; 4 weight bits or fewer is where rounding matters.
    iterations : int, default=600
        Steps of Adam a layer.
    rows : int, default=8192
        Output pixels to learn from, drawn at random from all images; at least one an image.
    batch_size : int, default=512
        Output pixels a step.
    learning_rate : float
    regularization : float, default=10.0
        lambda, for an output error in units of the error of rounding to nearest and a mean over the weights
        in place of the sum, so that one value serves all layers.
    seed : int
        Of the draws.

    Returns
    -------
    dict of str to ndarray
        int8 codes by weight tensor name, for ``quantize_graph(..., weight_codes=codes)`` with the ranges of
        ``calibrate(graph, x, observer=config.observer, bits=config.activation_bits)``.  An output channel
        whose learned codes do worse on the rows than the nearest ones keeps those.

    Raises
    ------
    UsageError
        If the graph is int8, the calibration set is empty, of another shape or not finite, or an argument
        is not positive.

    References
    ----------
    .. [1] Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020.
       https://arxiv.org/abs/2004.10568
    """
    if min(iterations, rows, batch_size) < 1 or not (learning_rate > 0 and regularization >= 0):
        raise UsageError(
            "adaround needs iterations, rows, batch_size >= 1, learning_rate > 0 and regularization >= 0"
        )
    config = config or QuantConfig()
    x, ranges = prepare(graph, x, config)
    scales, codes = weight_scales(graph, ranges, config), {}
    draw = np.random.default_rng(seed)
    int8 = quantize_graph(graph, ranges, config)
    real, coded = paired_streams(graph, int8, x)
    for node in graph.nodes:
        if node.op in LINEAR_OPS:
            name = node.inputs[1]
            problem = layer_problem(
                graph,
                node,
                x=real.value(node.inputs[0]),
                x_q=coded.value(node.inputs[0]),
                scale=scales[name],
                bits=config.bits_of(node),
                pixels=_choose_pixels(graph, node, len(x), rows, draw),
            )
            learned = learn_rounding(
                problem,
                iterations=iterations,
                batch_size=batch_size,
                learning_rate=learning_rate,
                regularization=regularization,
                seed=int(draw.integers(2**31)),
            )
            codes[name] = _stored(graph, node, learned)
            int8 = quantize_graph(graph, ranges, config, weight_codes=codes)
        real.step(node)
        coded.step(node, int8)
    return codes


def _choose_pixels(
    graph: Graph, node: Node, images: int, rows: int, draw: np.random.Generator
) -> list[np.ndarray]:
    """Return for each image the flat indices of the output pixels to learn from."""
    shape = graph[node.outputs[0]].shape
    pixels = shape[1] * shape[2] if len(shape) == 4 else 1
    each = min(pixels, -(-rows // images))
    return [draw.choice(pixels, each, replace=False) for _ in range(images)]


def layer_problem(
    graph: Graph,
    node: Node,
    *,
    x: np.ndarray,
    x_q: np.ndarray,
    scale: np.ndarray,
    bits: int,
    pixels: list[np.ndarray],
) -> RoundingProblem:
    """Return one linear node as a rounding problem.

    Parameters
    ----------
    x, x_q : ndarray (n, H, W, C) or (n, F)
        Inputs of the node in the float network and, dequantized, in the quantized one.
    scale : ndarray (O,) or (1,)
        Scales of the weights.
    pixels : list of n int arrays
        Flat indices of the output pixels that become rows; ``[0]`` each for FULLY_CONNECTED.
    """
    weight = _grouped(graph, node, _constant(graph, node.inputs[1]))  # (G, M, K)
    groups, outputs, _ = weight.shape
    per_output = np.broadcast_to(scale, groups * outputs).reshape(groups, outputs, 1)
    bias = (
        _constant(graph, node.inputs[2]) if len(node.inputs) > 2 else np.zeros(groups * outputs, np.float32)
    )
    bias = bias.reshape(groups, 1, outputs)
    y = _rows(graph, node, x, pixels) @ weight.swapaxes(1, 2) + bias
    return RoundingProblem(
        steps=weight / per_output.astype(np.float64),
        scale=per_output,
        q_max=2 ** (bits - 1) - 1,
        inputs=_rows(graph, node, x_q, pixels),
        target=clamped(torch.from_numpy(y), node.attrs.activation).numpy(),
        bias=bias,
        activation=node.attrs.activation,
    )


def _constant(graph: Graph, name: str) -> np.ndarray:
    data = graph[name].data
    assert data is not None
    return data


def _grouped(graph: Graph, node: Node, w: np.ndarray) -> np.ndarray:
    """Return weights as (G, M, K): (1, O, KH·KW·I), (1, O, I), or (C, M, KH·KW) of a depthwise node."""
    if node.op != "DEPTHWISE_CONV_2D":
        return w.reshape(1, w.shape[0], -1)
    channels = graph[node.inputs[0]].shape[-1]
    return w.reshape(w.shape[1] * w.shape[2], channels, -1).transpose(1, 2, 0)


def _stored(graph: Graph, node: Node, codes: np.ndarray) -> np.ndarray:
    """Return codes (G, M, K) as int8 in the shape of the node's weights: the inverse of `_grouped`."""
    if node.op == "DEPTHWISE_CONV_2D":
        codes = codes.transpose(2, 0, 1)
    return codes.reshape(graph[node.inputs[1]].shape).astype(np.int8)


def _rows(graph: Graph, node: Node, x: np.ndarray, pixels: list[np.ndarray]) -> np.ndarray:
    """Return (G, R, K): what the chosen output pixels read."""
    if node.op == "FULLY_CONNECTED":
        return x[None]
    shape = graph[node.inputs[1]].shape
    slide = Slide.of(node.attrs, (shape[1], shape[2]), graph[node.outputs[0]].shape)
    picked = [slide.im2col(slide.frame(x[i : i + 1]))[at] for i, at in enumerate(pixels)]
    rows = np.concatenate(picked)  # (R, KH·KW·C)
    if node.op == "CONV_2D":
        return rows[None]
    return np.ascontiguousarray(rows.reshape(len(rows), -1, x.shape[-1]).transpose(2, 0, 1))


def learn_rounding(
    problem: RoundingProblem,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    regularization: float,
    seed: int,
) -> np.ndarray:
    """Return the codes (G, M, K) of one layer; the arguments are those of `adaround`."""
    nearest = problem.nearest()
    errors = problem.errors(nearest)
    if errors.sum() == 0:
        return nearest
    floor = np.floor(problem.steps)
    base, scale, inputs, target, bias = (
        torch.from_numpy(np.array(a, np.float32))
        for a in (floor, problem.scale, problem.inputs, problem.target, problem.bias)
    )
    share = torch.from_numpy((problem.steps - floor).astype(np.float32))
    # V starts where h(V) is the share that rounding takes away: the soft weights are the real ones.
    v = torch.logit((share - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    adam = torch.optim.Adam([v], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for i in range(iterations):
        rows = torch.randint(inputs.shape[1], (batch_size,), generator=generator)
        h = rectified_sigmoid(v)
        w = (base + h).clamp(-problem.q_max, problem.q_max) * scale
        y = clamped(torch.baddbmm(bias, inputs[:, rows], w.transpose(1, 2)), problem.activation)
        loss = (y - target[:, rows]).square().mean() / float(errors.mean())
        loss = loss + regularization * regularizer(h, beta_at(i, iterations))
        adam.zero_grad()
        loss.backward()
        adam.step()
    codes = np.clip(floor + (v.detach() >= 0).numpy(), -problem.q_max, problem.q_max)
    better = problem.errors(codes) < errors  # (G, M)
    return np.where(better[..., None], codes, nearest)


def rectified_sigmoid(v: torch.Tensor) -> torch.Tensor:
    """Return ``h(V)``: a sigmoid stretched to [GAMMA, ZETA] and clipped to [0, 1] (eq. 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def regularizer(h: torch.Tensor, beta: float | None) -> torch.Tensor:
    """Return the mean of ``1 - |2 h - 1|^beta`` (eq. 24): 0 where every h is 0 or 1; 0 during the warm-up."""
    return h.new_zeros(()) if beta is None else (1 - (2 * h - 1).abs().pow(beta)).mean()


def beta_at(iteration: int, iterations: int) -> float | None:
    """Return the exponent of the regularizer, or None during the warm-up: a cosine from 20 to 2.

    Examples
    --------
    >>> beta_at(0, 100), beta_at(20, 100), round(beta_at(60, 100), 1)
    (None, 20.0, 11.0)
    """
    progress = (iteration / iterations - WARM_UP) / (1 - WARM_UP)
    if progress < 0:
        return None
    return BETA_END + (BETA_START - BETA_END) * (1 + math.cos(math.pi * progress)) / 2


def clamped(y: torch.Tensor, activation: str) -> torch.Tensor:
    """Return ``y`` after "none", "relu", "relu6" or "relu_n1_to_1"."""
    if activation == "none":
        return y
    low, high = {"relu": (0, None), "relu6": (0, 6), "relu_n1_to_1": (-1, 1)}[activation]
    return y.clamp(low, high)
