"""``optimize="size"``: kernels that are written once a network and serve every layer of their kind.

`selection` gives each shape of layer a function of its own, all sizes constant.  Here the sizes are read at
run time: a dense kernel for two pixels and one for a single pixel (`compact_dense`), one for depthwise layers
(`compact_depthwise`), one for ADD.  Their number does not grow with the network, so their code has a limit
without a budget (`all_sources`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from ...ir.graph import Graph, Node
from . import (
    addition,
    compact_addition,
    compact_clamp,
    compact_dense,
    compact_depthwise,
    compact_factors,
    compact_windows,
)
from .direct import padded
from .pointwise import MAX_SCRATCH_BYTES
from .requantize import VARIES, Channels, channels
from .selection import Fast, is_eligible

Sources = dict[str, tuple[str, int]]


@dataclass
class CompactSelection:
    """Chooses the shared kernel of each node, where one is exact for it."""

    graph: Graph
    requant: str

    def choose(self, node: Node, scratch_bytes: int | None = None, *, in_place: bool = False) -> Fast | None:
        """See `Chooser.choose`."""
        fast = _MAKERS[node.op](self.graph, node, self.requant) if is_eligible(self.graph, node) else None
        return fast if fast and fast.suits(scratch_bytes, in_place=in_place) else None


def all_sources() -> Sources:
    """Return every function that a network can use, and an upper estimate of its bytes."""
    result = _part("ROWS") | _part("PATCHES") | _part("FILL") | _part("DEPTHWISE") | _clamp((0, 0))
    result |= {compact_addition.NAME: (compact_addition.source(), compact_addition.CODE_BYTES)}
    for rounding in ("double", "single"):
        result |= _depthwise_kernel(rounding)
        for tile in (1, 2):
            result |= _dense_kernel(compact_dense.Kernel(tile, rounding))
    return result


# --- sources: types first, then what uses them ----------------------------------------------------------


def _part(name: str) -> Sources:
    """Return a function of `compact_windows` and the types that it needs, by the names in C."""
    window = {"te_conv_window": (compact_windows.WINDOW, 0)}
    dense = {"te_dense": (compact_dense.TYPES, 0)}
    copy = {"te_copy": (compact_windows.copy_source(), compact_windows.CODE_BYTES["COPY"])}
    types, stem = {
        "ROWS": (dense, "te_dense_rows"),
        "PATCHES": (dense | window | copy, "te_dense_patches"),
        "FILL": ({}, "te_fill_pixels"),
        "DEPTHWISE": (window | {"te_depthwise": (compact_depthwise.TYPES, 0)}, "te_depthwise_runs"),
    }[name]
    return types | {stem: (getattr(compact_windows, name), compact_windows.CODE_BYTES[name])}


def _dense_kernel(kernel: compact_dense.Kernel) -> Sources:
    types = {"te_dense": (compact_dense.TYPES, 0)}
    return types | {kernel.name: (compact_dense.source(kernel), kernel.code_bytes)}


def _depthwise_kernel(rounding: str) -> Sources:
    types = {"te_depthwise": (compact_depthwise.TYPES, 0)}
    name = compact_depthwise.name(rounding)
    return types | {name: (compact_depthwise.source(rounding), compact_depthwise.CODE_BYTES)}


def _clamp(clamp: tuple[int, int]) -> Sources:
    """Return what a layer with that clamp needs: nothing, if saturation is enough."""
    if clamp == (-128, 127):
        return {}
    return {compact_clamp.NAME: (compact_clamp.source(), compact_clamp.CODE_BYTES)}


# --- dense layers ---------------------------------------------------------------------------------------


def _conv(graph: Graph, node: Node, requant: str) -> Fast | None:
    x, w = (graph[name].shape for name in node.inputs[:2])
    a = node.attrs
    side_by_side = w[1:3] == (1, 1) and a.stride == (1, 1) and not any(a.padding) and x[3] % 4 == 0
    pixels = prod(graph[node.outputs[0]].shape[1:3])
    window = None if side_by_side else _window(graph, node)
    return _dense(graph, node, channels(graph, node, requant), pixels, window)


def _fully_connected(graph: Graph, node: Node, requant: str) -> Fast | None:
    c = channels(graph, node, requant)
    k = c.weights.shape[1]
    rows = prod(graph[node.inputs[0]].shape) // k
    # Rows that are not whole words are copied: the kernel reads words.
    window = f"{{{rows}, 1, {k}, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0}}" if k % 4 else None
    return _dense(graph, node, c, rows, window)


def _dense(graph: Graph, node: Node, c: Channels, pixels: int, window: str | None) -> Fast | None:
    """Return the kernel for pixels whose inputs are side by side, or copied so as ``window`` says."""
    c, outputs = padded(c), len(c.weights)
    y_zp = _zero_point(graph, node.outputs[0])
    k, size = c.weights.shape[1], pixels * outputs
    kernel = _dense_tile(k, pixels, c.rounding, patches=window is not None)
    if kernel is None or not compact_factors.is_short(c, y_zp) or _too_small(c, size):
        return None
    stream, codes = compact_dense.stream(kernel, c), _constant_codes(c)
    sources = _clamp(c.clamp)
    calls = []
    if codes.size:
        sources |= _part("FILL")
        calls.append(
            "/* Channels of one code, whatever the input. */\n"
            f"te_fill_pixels($y, {pixels}, {outputs}, $stream + {stream.size});"
        )
    if stream.size:
        wide = 4 * kernel.padded(k) if kernel.tile == 2 else 0
        fields = (k, wide, outputs, 2 * y_zp + 1, "$stream", f"$stream + {stream.size}", kernel.name)
        numbers = ", ".join(map(str, (*fields, kernel.tile, pixels)))
        sources |= _dense_kernel(kernel) | _part("PATCHES" if window else "ROWS")
        calls.append(_dense_call(numbers, window, (wide + (kernel.tile * k if window else 0)) // 4))
    call = "\n".join(calls) + compact_clamp.call("$y", size, c.clamp)
    return Fast(sources, np.append(stream, codes), call)


def _dense_tile(k: int, pixels: int, rounding: str, *, patches: bool) -> compact_dense.Kernel | None:
    """Return the kernel whose scratch fits the stack: four bytes an input, and a byte for each copied one.

    FULLY_CONNECTED takes one row at a time, since it is alone in rounding once: a second kernel would be for
    it only.
    """
    two = compact_dense.Kernel(2, rounding)
    if pixels > 1 and 4 * two.padded(k) + 2 * k * patches <= MAX_SCRATCH_BYTES:
        return two
    one = compact_dense.Kernel(1, rounding)
    return one if not patches or k <= MAX_SCRATCH_BYTES else None


def _dense_call(numbers: str, window: str | None, words: int) -> str:
    scratch = f"uint32_t scratch[{words}];\n" if words else ""
    pointer = "scratch" if words else "NULL"
    layer = f"static const te_dense layer = {{{numbers}}};\n"
    if window is None:
        return f"{layer}{scratch}te_dense_rows(&layer, $x, $y, {pointer});"
    place = f"static const te_conv_window window = {window};\n"
    return f"{layer}{place}{scratch}te_dense_patches(&layer, &window, $x, $y, {pointer});"


def _window(graph: Graph, node: Node) -> str:
    """Return the initializer of the node's ``te_conv_window``."""
    x, w, y = (graph[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    a = node.attrs
    sizes = (*x[1:4], y[2], *w[1:3], *a.stride, *a.dilation, a.padding[0], a.padding[1])
    return "{" + ", ".join(map(str, (*sizes, _zero_point(graph, node.inputs[0])))) + "}"


def _zero_point(graph: Graph, name: str) -> int:
    return graph[name].quant.item()[1]  # type: ignore[union-attr]  # int_params has checked it


def _too_small(c: Channels, size: int) -> bool:
    """Whether the output has a clamp and too few codes for it."""
    return c.clamp != (-128, 127) and size < compact_clamp.LEAST


def _constant_codes(c: Channels) -> np.ndarray:
    """Return the codes of all channels as words, 0 for those that vary; no word if all do."""
    if np.all(c.codes == VARIES):
        return np.array([], np.uint32)
    codes = np.where(c.codes == VARIES, 0, c.codes).astype(np.int8)
    return np.pad(codes, (0, -len(codes) % 4)).view("<u4")


# --- others ---------------------------------------------------------------------------------------------


def _depthwise(graph: Graph, node: Node, requant: str) -> Fast | None:
    x, w, y = (graph[name].shape for name in (*node.inputs[:2], node.outputs[0]))
    c, y_zp = channels(graph, node, requant), _zero_point(graph, node.outputs[0])
    if x[3] == 1:  # every output channel sees the only input channel: an ordinary convolution
        return _dense(graph, node, c, prod(y[1:3]), _window(graph, node))
    taps = w[1] * w[2] + w[1] * w[2] % 2
    fits = 4 * taps + x[3] <= MAX_SCRATCH_BYTES and x[3] >= compact_depthwise.GROUP
    if x[3] != y[3] or not fits or not compact_factors.is_short(c, y_zp):
        return None
    stream = compact_depthwise.stream(compact_factors.with_constants(c, y_zp)).ravel()
    name = compact_depthwise.name(c.rounding)
    fields = (
        x[3],
        node.attrs.stride[1] * x[3],
        2 * y_zp + 1,
        4 * taps,
        "$stream",
        f"$stream + {stream.size}",
    )
    call = (
        f"static const te_depthwise layer = {{{', '.join(map(str, (*fields, name, y[1])))}}};\n"
        f"static const te_conv_window window = {_window(graph, node)};\n"
        f"const int8_t *taps[{taps}];\nint8_t outside[{x[3]}];\n"
        "te_depthwise_runs(&layer, &window, $x, $y, outside, taps);"
    ) + compact_clamp.call("$y", prod(y[1:]), c.clamp)
    sources = _clamp(c.clamp) | _depthwise_kernel(c.rounding) | _part("DEPTHWISE")
    return Fast(sources, stream, call)


def _add(graph: Graph, node: Node, requant: str) -> Fast | None:
    shape = addition.shape_of(graph, node, requant)
    if shape is None or shape.single:  # the shared kernel rounds twice
        return None
    size = prod(graph[node.outputs[0]].shape)
    first, second = ("$x2", "$x1") if shape.swapped else ("$x1", "$x2")
    call = f"{compact_addition.NAME}({first}, {second}, $y, $y + {size}, $stream);"
    sources = _clamp(shape.clamp)
    sources |= {compact_addition.NAME: (compact_addition.source(), compact_addition.CODE_BYTES)}
    return Fast(sources, compact_addition.stream(shape), call + compact_clamp.call("$y", size, shape.clamp))


_MAKERS: dict[str, Callable[[Graph, Node, str], Fast | None]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
}
