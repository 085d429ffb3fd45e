"""Graphs of one layer that a specialised kernel takes, and inputs that drive its sums to their ends."""

from __future__ import annotations

import numpy as np

from tinyml_edu import ir
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import cgen, emulator, planning, toolchain

KINDS = ("pointwise", "direct", "depthwise", "fully connected", "winograd", "long", "depthwise any")


def layer(
    op: str,
    x_shape: tuple[int, ...],
    weights: np.ndarray,
    bias: np.ndarray,
    *,
    x_zp: int = -128,
    y_zp: int = -128,
    gain: float | np.ndarray = 1 / 64,
    attributes: object = None,
) -> Graph:
    """Return a graph of one layer; ``gain`` is the factor from its accumulators to codes."""
    attributes = attributes or {"CONV_2D": A.Conv2D(), "FULLY_CONNECTED": A.FullyConnected()}.get(op)
    channels = weights.shape[3 if op == "DEPTHWISE_CONV_2D" else 0]
    scale = np.broadcast_to(np.float32(gain), (channels,)).astype(np.float32)
    zeros, axis = np.zeros(channels, np.int32), 3 if op == "DEPTHWISE_CONV_2D" else 0
    graph = Graph("layer")
    graph.add(Tensor("x", x_shape, "int8", Kind.INPUT, quant=Quant.per_tensor(1.0, x_zp)))
    w = weights.astype(np.int8)
    graph.add(Tensor("w", w.shape, "int8", Kind.CONSTANT, w, Quant(scale, zeros, axis)))
    b = bias.astype(np.int32)
    graph.add(Tensor("b", b.shape, "int32", Kind.CONSTANT, b, Quant(scale, zeros, 0)))
    shape = ir.ops.OPS[op].infer_shape(attributes, x_shape, w.shape, b.shape)
    graph.add(Tensor("y", shape, "int8", Kind.ACTIVATION, quant=Quant.per_tensor(1.0, y_zp)))
    graph.nodes.append(Node("node", op, ("x", "w", "b"), ("y",), attributes))
    graph.inputs, graph.outputs = ("x",), ("y",)
    return graph.validate()


def random_layer(kind: str, seed: int) -> Graph:
    """Return a random layer; its gain spreads random sums over the codes, channel by channel."""
    rng = np.random.default_rng([KINDS.index(kind), seed])

    def integer(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    c, o = 4 * integer(1, 12), integer(1, 24)
    h, w = integer(3, 9), integer(3, 9)
    op, attributes, pads = "CONV_2D", A.Conv2D(), (0, 0, 0, 0)
    activation = str(rng.choice(A.ACTIVATIONS))
    if kind == "fully connected":
        op, x, shape, attributes = "FULLY_CONNECTED", (integer(1, 6), c), (o, c), A.FullyConnected(activation)
    elif kind == "depthwise":
        stride = integer(1, 2)
        pads = tuple(integer(0, 1) for _ in range(4))
        op, x, shape = "DEPTHWISE_CONV_2D", (1, h + 1, w, c), (1, 3, 3, c)
        attributes = A.DepthwiseConv2D((stride, stride), pads, activation=activation)
    elif kind == "depthwise any":
        kernel, c, multiplier = (integer(1, 7), integer(1, 7)), integer(1, 11), integer(1, 3)
        pads = tuple(integer(0, kernel[i % 2] - 1) for i in range(4))
        stride = (integer(1, 3), integer(1, 3))
        op, x, shape = "DEPTHWISE_CONV_2D", (1, h + 4, w + 4, c), (1, *kernel, c * multiplier)
        attributes = A.DepthwiseConv2D(stride, pads, activation=activation)
    elif kind == "pointwise":
        x, shape, attributes = (1, h, w, c), (o, 1, 1, c), A.Conv2D(activation=activation)
    elif kind == "long":
        c, o, kernel = 4 * integer(20, 60), 8 * integer(1, 2), integer(1, 2)
        x = (1, *((3, 3) if kernel > 1 else (1, 1)), c)
        shape, attributes = (o, kernel, kernel, c), A.Conv2D((kernel, kernel), activation=activation)
    elif kind == "winograd":
        pads = tuple(integer(0, 1) for _ in range(4))
        c, o = int(rng.choice([4, 12, 16, 24, 32, 64])), 8 * integer(1, 2)
        x, shape = (1, h, w, c), (o, 3, 3, c)
        attributes = A.Conv2D((1, 1), pads, activation=activation)
    else:
        c, kernel = integer(1, 12), (integer(1, 3), integer(1, 3))
        pads = tuple(integer(0, kernel[i % 2] - 1) for i in range(4))
        x, shape = (1, h, w, c), (o, *kernel, c)
        attributes = A.Conv2D((integer(1, 2), integer(1, 2)), pads, activation=activation)
    weights = rng.integers(-127, 128, shape)
    channels = shape[3 if op == "DEPTHWISE_CONV_2D" else 0]
    fan_in = weights.size // channels
    bias = rng.integers(-5000, 5000, channels)
    gain = 2.0 ** rng.uniform(-1, 2, len(bias)) / (74 * 0.6 * np.sqrt(fan_in))
    zero_points = [-128, 127, integer(-128, 127)]
    x_zp, y_zp = (int(rng.choice(zero_points)) for _ in range(2))
    return layer(op, x, weights, bias, x_zp=x_zp, y_zp=y_zp, gain=gain, attributes=attributes)


def telling_inputs(graph: Graph, seed: int = 0) -> np.ndarray:
    """Return int8 (n, ...): random codes, both ends, and inputs that drive sums to their ends.

    Where the sign of a channel's weights is the input's, its sum is the largest there is; each pixel takes
    the signs of another channel, once as they are and once negated.
    """
    shape, rng = graph["x"].shape[0:], np.random.default_rng(seed)
    w = graph["w"].data
    ends = [np.full(shape, -128), np.full(shape, 127)]
    if graph.nodes[0].op == "DEPTHWISE_CONV_2D":
        signs = np.resize(np.sign(w), shape)
    else:
        rows = np.sign(w.reshape(w.shape[0], -1))
        signs = np.resize(rows if rows.shape[1] % shape[-1] == 0 else rows[:, : shape[-1]], shape)
    ends += [np.where(signs > 0, 127, -128), np.where(signs > 0, -128, 127)]
    random = rng.integers(-128, 128, (2, *shape))
    return np.stack([*random, *ends]).astype(np.int8)


def on_a_board(
    graph: Graph,
    x: np.ndarray,
    folder,
    *,
    board: str = "stm32f412",
    requant: str = "exact",
    compiler="zig",
    in_place: bool = True,
) -> emulator.EmulationResult:
    """Compile a graph for a board and emulate it on ``x``, one input after the other."""
    plan = planning.plan(graph, in_place=in_place)
    for name, text in cgen.generate(graph, plan, requant=requant).items():
        if "/" not in name:
            (folder / name).write_text(text)
    image = toolchain.compile_firmware(folder, board, compiler=compiler, stack_bytes=planning.STACK_BYTES)
    output = graph.outputs[0]
    return emulator.emulate(
        image,
        board,
        x.reshape(len(x), -1),
        graph[output].nbytes,
        input_offset=plan.offsets[graph.inputs[0]],
        output_offset=plan.offsets[output],
    )


def expected(graph: Graph, x: np.ndarray, requant: str = "exact") -> np.ndarray:
    """Return what the NumPy kernels compute, int8 (n, output bytes)."""
    return np.stack([ir.run(graph, one, requant=requant).ravel() for one in x])


def differences(graph: Graph, x: np.ndarray, folder, **options) -> list[int]:
    """Return, for each input, how many codes the emulated firmware computes differently from NumPy."""
    y = on_a_board(graph, x, folder, **options).outputs
    wanted = expected(graph, x, options.get("requant", "exact"))
    return np.count_nonzero(y != wanted, axis=1).tolist()


def differences_of_a_network(graph: Graph, x: np.ndarray, folder) -> list[int]:
    """Return `differences` for inputs (n, H, W, C) of a network of any length."""
    folder.mkdir(parents=True, exist_ok=True)
    return differences(graph, x[:, None], folder)
