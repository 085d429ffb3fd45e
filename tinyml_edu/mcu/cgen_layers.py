"""What each node becomes in C: constants in flash, a params struct, one function that calls one kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from string import Template
from textwrap import indent
from typing import Any

import numpy as np

from ..errors import UnsupportedOpError
from ..ir import int_params
from ..ir.graph import Graph, Node
from ..ir.ops import OPS
from .broadcasting import merged_axes
from .kernels.selection import Chooser, Fast
from .planning import Plan, moves_nothing

LINE = 110
C_TYPES = {"int8": "int8_t", "int32": "int32_t", "uint32": "uint32_t"}


@dataclass
class Layer:
    """One generated function.  ``text`` is its C, constants included; ``shapes`` reads "in -> out".

    ``fast`` is the specialised function that replaces ``kernel`` on cores with the DSP extension, "" if none
    does, and ``fast_bytes`` the constants of the layer there.
    """

    symbol: str
    op: str
    kernel: str
    shapes: str
    text: str
    constant_bytes: int
    fast: str = ""
    fast_bytes: int = 0


@dataclass
class Parts:
    """What an op's emitter returns: the kernel, its arguments, definitions before it, how often to call it.

    The call is repeated for ``images`` images, the variable ``n`` in the arguments.  ``in_place`` says that
    the output lies over the first input, which only some kernels can do.
    """

    kernel: str
    arguments: list[str]
    definitions: list[str] = field(default_factory=list)
    images: int = 1
    in_place: bool = False


def comment_text(name: str) -> str:
    """Return ``name`` with every character replaced that could end a comment or start a trigraph or macro."""
    return re.sub(r"[^\w.:/ \-]", "_", name).replace("*/", "__").replace("/*", "__").replace("//", "/")


class Emitter:
    """Emits nodes one after the other and remembers which constants already stand in the file.

    Parameters
    ----------
    graph : Graph
        The int8 graph.
    plan : Plan
        Where each activation lies in the arena, and the scratch of nodes that asked for some.
    selection : Chooser, optional
        Chooses specialised kernels; without it, every node calls its plain kernel.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        selection: Chooser | None = None,
    ) -> None:
        self.graph = graph
        self.plan = plan
        self.offsets = plan.offsets
        self.selection = selection
        self._sources: set[str] = set()
        self._constants: dict[str, str] = {}
        self._bytes = 0

    def emit(self, i: int, node: Node) -> Layer | None:
        """Return the layer of node ``i``, or None if its output already lies in memory as it should."""
        if moves_nothing(self.graph, node, self.offsets):
            return None
        self._bytes = 0
        parts = EMITTERS[node.op](self, i, node)
        x, y = self.graph[node.inputs[0]], self.graph[node.outputs[0]]
        shapes = f"{_shape(x.shape)} -> {_shape(y.shape)}"
        symbol = f"model_layer_{i}"
        _, scratch_bytes = self.plan.scratch(node.name)
        fast = self.selection.choose(node, scratch_bytes, in_place=parts.in_place) if self.selection else None
        if fast:
            body = self._two_forms(i, node, parts, fast)
        else:
            body = [*parts.definitions, function_text(symbol, plain_body(parts))]
        text = "\n".join([self._header(i, node), *body, ""])
        name, fast_bytes = (list(fast.sources)[-1], fast.stream.nbytes) if fast else ("", self._bytes)
        return Layer(symbol, node.op, parts.kernel, shapes, text, self._bytes, name, fast_bytes)

    def _two_forms(self, i: int, node: Node, parts: Parts, fast: Fast) -> list[str]:
        """Return the definitions and the function of a layer that has a specialised kernel.

        Which of both forms is compiled depends on the core, `TE_DSP` in te_config.h.
        """
        source = [text for name, (text, _) in fast.sources.items() if name not in self._sources]
        self._sources |= fast.sources.keys()
        body = _wrap(f"{word:#010x}u" for word in fast.stream.ravel().tolist())
        stream = f"static const uint32_t stream_{i}[{fast.stream.size}] = {{\n{body}\n}};"
        call = fast_body(parts, fast, f"stream_{i}", self.scratch(node))
        both = ["#if TE_DSP", call, "#else", plain_body(parts), "#endif"]
        return [
            *["#if TE_DSP", *source, stream, "#else", *parts.definitions, "#endif"],
            function_text(f"model_layer_{i}", "\n".join(both)),
        ]

    def _header(self, i: int, node: Node) -> str:
        lines = [f"/* Layer {i}: {node.op}, {comment_text(node.name)}"]
        for role, names in (("in ", node.inputs), ("out", node.outputs)):
            for name in names:
                tensor = self.graph[name]
                at = f"arena + {self.offsets[name]}" if name in self.offsets else "flash"
                lines.append(f" *   {role} {_shape(tensor.shape)} {tensor.dtype}, {at}: {comment_text(name)}")
        cost = OPS[node.op].macs(
            node.attrs, tuple(self.graph[n].shape for n in node.inputs), self.graph[node.outputs[0]].shape
        )
        return "\n".join([*lines, f" *   {cost:,} MACs */" if cost else " */"])

    def pointer(self, name: str, parts: list[str], stem: str) -> str:
        """Return the C expression of a tensor's first element; a constant is defined on first use."""
        if name in self.offsets:
            return f"te_arena + {self.offsets[name]}"
        if name not in self._constants:
            data = self.graph[name].data
            if data is None:
                raise UnsupportedOpError(f"{name!r} is neither an activation nor a constant")
            self._constants[name] = stem
            parts.append(self.array(stem, data))
        return self._constants[name]

    def scratch(self, node: Node) -> str:
        """Return the C expression of a node's working memory in the arena, NULL if it asked for none."""
        offset, size = self.plan.scratch(node.name)
        return f"te_arena + {offset}" if size else "NULL"

    def array(self, name: str, values: np.ndarray) -> str:
        """Return the definition of a constant array in flash."""
        self._bytes += values.nbytes
        body = _wrap(str(v) for v in values.ravel().tolist())
        return f"static const {C_TYPES[str(values.dtype)]} {name}[{values.size}] = {{\n{body}\n}};"


def _shape(shape: Iterable[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _wrap(items: Iterable[str]) -> str:
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > LINE:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return "\n".join([*lines, line])


def function_text(symbol: str, body: str) -> str:
    """Return the function of a layer."""
    return f"TE_NOINLINE te_status {symbol}(void) {{\n{body}\n}}"


def plain_body(parts: Parts) -> str:
    """Return the statements of a layer that calls its plain kernel."""
    call = f"{parts.kernel}({', '.join(parts.arguments)})"
    if parts.images == 1:
        return f"    return {call};"
    return _repeat(f"TE_LAYER({call});", parts.images)


def fast_body(parts: Parts, fast: Fast, stream: str, scratch: str = "NULL") -> str:
    """Return the statements of a layer that has a specialised kernel, with the array ``stream``."""
    x, y = parts.arguments[1], parts.arguments[1 if parts.in_place else -1]
    pointers = {"x": x, "y": y, "stream": stream, "scratch": scratch, "x1": x, "x2": parts.arguments[2]}
    return _repeat(Template(fast.call).substitute(pointers), parts.images)


def _repeat(statements: str, images: int) -> str:
    """Return statements that run once an image, then TE_OK."""
    if images > 1:
        statements = f"for (int32_t n = 0; n < {images}; n++) {{\n{indent(statements, '    ')}\n}}"
    return indent(statements, "    ") + "\n    return TE_OK;"


def _struct(kind: str, name: str, fields: Mapping[str, Any]) -> str:
    body = "".join(f"    .{key} = {value},\n" for key, value in fields.items())
    return f"static const {kind} {name} = {{\n{body}}};"


def _image(shape: tuple[int, ...]) -> str:
    """Return a te_shape for one (height, width, channels) image of ``shape`` (N, H, W, C)."""
    _, height, width, channels = shape
    return f"{{{height}, {width}, {channels}, {width * channels}}}"


def _output(emitter: Emitter, i: int, p: int_params.ConvParams, definitions: list[str]) -> str:
    definitions.append(emitter.array(f"multiplier_{i}", p.multiplier))
    definitions.append(emitter.array(f"exponent_{i}", p.exponent.astype(np.int8)))
    return f"{{multiplier_{i}, exponent_{i}, {p.y_zp}, {p.y_min}, {p.y_max}}}"


def _bias(emitter: Emitter, i: int, node: Node, definitions: list[str]) -> str:
    return emitter.pointer(node.inputs[2], definitions, f"bias_{i}") if len(node.inputs) > 2 else "NULL"


def _repeated(pointer: str, shape: tuple[int, ...]) -> str:
    """Return the pointer to image n of a tensor whose first axis counts images."""
    return pointer if shape[0] == 1 else f"{pointer} + n * {prod(shape[1:])}"


def _convolution(emitter: Emitter, i: int, node: Node) -> Parts:
    a, p = node.attrs, int_params.conv_params(emitter.graph, node)
    x, w, y = (emitter.graph[n] for n in (*node.inputs[:2], node.outputs[0]))
    definitions: list[str] = []
    weights = emitter.pointer(w.name, definitions, f"w_{i}")
    bias = _bias(emitter, i, node, definitions)
    fields = {
        "in": _image(x.shape),
        "out": _image(y.shape),
        "kernel_h": w.shape[1],
        "kernel_w": w.shape[2],
        "stride_h": a.stride[0],
        "stride_w": a.stride[1],
        "dilation_h": a.dilation[0],
        "dilation_w": a.dilation[1],
        "pad_top": a.padding[0],
        "pad_left": a.padding[1],
        "x_zp": p.x_zp,
        "output": _output(emitter, i, p, definitions),
    }
    definitions.append(_struct("te_conv_params", f"params_{i}", fields))
    kernel = "te_conv2d_s8" if node.op == "CONV_2D" else "te_depthwise_conv2d_s8"
    source = _repeated(emitter.pointer(x.name, definitions, f"x_{i}"), x.shape)
    target = _repeated(emitter.pointer(y.name, definitions, ""), y.shape)
    in_place = emitter.offsets[y.name] == emitter.offsets.get(x.name)
    if in_place:
        kernel, target = "te_depthwise_conv2d_inplace_s8", emitter.scratch(node)
    arguments = [f"&params_{i}", source, weights, bias, target]
    return Parts(kernel, arguments, definitions, x.shape[0], in_place)


def _fully_connected(emitter: Emitter, i: int, node: Node) -> Parts:
    p = int_params.fully_connected_params(emitter.graph, node)
    x, w = (emitter.graph[n] for n in node.inputs[:2])
    definitions: list[str] = []
    weights = emitter.pointer(w.name, definitions, f"w_{i}")
    bias = _bias(emitter, i, node, definitions)
    fields = {
        "rows": prod(x.shape) // w.shape[1],
        "in": w.shape[1],
        "out": w.shape[0],
        "x_zp": p.x_zp,
        "output": _output(emitter, i, p, definitions),
    }
    definitions.append(_struct("te_fully_connected_params", f"params_{i}", fields))
    source = emitter.pointer(x.name, definitions, f"x_{i}")
    target = emitter.pointer(node.outputs[0], definitions, "")
    return Parts("te_fully_connected_s8", [f"&params_{i}", source, weights, bias, target], definitions)


def _pool(emitter: Emitter, i: int, node: Node) -> Parts:
    a, p = node.attrs, int_params.pool_params(emitter.graph, node)
    x, y = emitter.graph[node.inputs[0]], emitter.graph[node.outputs[0]]
    fields = {
        "in": _image(x.shape),
        "out": _image(y.shape),
        "kernel_h": a.kernel[0],
        "kernel_w": a.kernel[1],
        "stride_h": a.stride[0],
        "stride_w": a.stride[1],
        "pad_top": a.padding[0],
        "pad_left": a.padding[1],
        "y_min": p.y_min,
        "y_max": p.y_max,
    }
    definitions: list[str] = []
    source = _repeated(emitter.pointer(x.name, definitions, f"x_{i}"), x.shape)
    target = _repeated(emitter.pointer(y.name, definitions, ""), y.shape)
    definitions.append(_struct("te_pool_params", f"params_{i}", fields))
    kernel = "te_average_pool2d_s8" if node.op == "AVERAGE_POOL_2D" else "te_max_pool2d_s8"
    return Parts(kernel, [f"&params_{i}", source, target], definitions, x.shape[0])


def _add(emitter: Emitter, i: int, node: Node) -> Parts:
    p = int_params.add_params(emitter.graph, node)
    numbers = {
        "x1_zp": p.x1_zp,
        "x2_zp": p.x2_zp,
        "y_zp": p.y_zp,
        "multiplier_1": p.m1,
        "multiplier_2": p.m2,
        "multiplier_y": p.mo,
        "exponent_1": p.e1,
        "exponent_2": p.e2,
        "exponent_y": p.eo,
        "y_min": p.y_min,
        "y_max": p.y_max,
    }
    kernel = "te_add_s8" if node.op == "ADD" else "te_sub_s8"
    return _arithmetic(emitter, i, node, (kernel, "te_add_params"), numbers)


def _mul(emitter: Emitter, i: int, node: Node) -> Parts:
    p = int_params.mul_params(emitter.graph, node)
    numbers = {
        "x1_zp": p.x1_zp,
        "x2_zp": p.x2_zp,
        "y_zp": p.y_zp,
        "multiplier": p.multiplier,
        "exponent": p.exponent,
        "y_min": p.y_min,
        "y_max": p.y_max,
    }
    return _arithmetic(emitter, i, node, ("te_mul_s8", "te_mul_params"), numbers)


def _arithmetic(
    emitter: Emitter, i: int, node: Node, c_names: tuple[str, str], numbers: dict[str, int]
) -> Parts:
    """Return the call of ADD, SUB or MUL; ``c_names`` are the kernel's and that of its parameters."""
    graph = emitter.graph
    axes = merged_axes(graph[node.outputs[0]].shape, *(graph[name].shape for name in node.inputs))
    if len(axes) > 4:
        shapes = " and ".join(_shape(graph[name].shape) for name in node.inputs)
        raise UnsupportedOpError(f"{node.name}: {node.op} of {shapes} repeats too many separate axes")
    outer, *inner = [(1, 0, 0, 0)] * (4 - len(axes)) + axes
    (height, *rows), (width, *columns), (channels, *steps) = inner
    definitions: list[str] = []
    pointers = [emitter.pointer(n, definitions, f"x{k}_{i}") for k, n in enumerate(node.inputs, 1)]
    pointers.append(emitter.pointer(node.outputs[0], definitions, ""))
    if outer[0] > 1:
        pointers = [f"{p} + n * {step}" for p, step in zip(pointers, (*outer[2:], outer[1]), strict=True)]
    fields = {"out": f"{{{height}, {width}, {channels}, {width * channels}}}"}
    for k in (1, 2):
        fields[f"x{k}"] = f"{{{rows[k]}, {columns[k]}, {steps[k]}}}"
    definitions.append(_struct(c_names[1], f"params_{i}", fields | numbers))
    return Parts(c_names[0], [f"&params_{i}", *pointers], definitions, outer[0])


def _concatenation(emitter: Emitter, i: int, node: Node) -> Parts:
    axis = node.attrs.axis
    shapes = [emitter.graph[name].shape for name in node.inputs]
    definitions: list[str] = []
    sources = [emitter.pointer(n, definitions, f"x{k}_{i}") for k, n in enumerate(node.inputs, 1)]
    sizes = np.array([prod(shape[axis:]) for shape in shapes], np.int32)
    definitions.append(emitter.array(f"sizes_{i}", sizes))
    definitions.append(f"static const int8_t *const x_{i}[{len(sources)}] = {{\n{_wrap(sources)}\n}};")
    target = emitter.pointer(node.outputs[0], definitions, "")
    arguments = [str(prod(shapes[0][:axis])), str(len(sources)), f"sizes_{i}", f"x_{i}", target]
    return Parts("te_concatenation_s8", arguments, definitions)


def _lookup(emitter: Emitter, i: int, node: Node) -> Parts:
    table = OPS[node.op].params(emitter.graph, node)
    definitions = [emitter.array(f"table_{i}", table)]
    source = emitter.pointer(node.inputs[0], definitions, f"x_{i}")
    target = emitter.pointer(node.outputs[0], definitions, "")
    size = prod(emitter.graph[node.inputs[0]].shape)
    return Parts("te_lookup_s8", [str(size), f"table_{i}", source, target], definitions)


def _resize(emitter: Emitter, i: int, node: Node) -> Parts:
    rows, columns = int_params.resize_rows(emitter.graph, node)
    x, y = emitter.graph[node.inputs[0]], emitter.graph[node.outputs[0]]
    definitions = [
        emitter.array(f"rows_{i}", rows.astype(np.int32)),
        emitter.array(f"columns_{i}", columns.astype(np.int32)),
    ]
    fields = {"in": _image(x.shape), "out": _image(y.shape), "rows": f"rows_{i}", "columns": f"columns_{i}"}
    definitions.append(_struct("te_resize_params", f"params_{i}", fields))
    source = _repeated(emitter.pointer(x.name, definitions, f"x_{i}"), x.shape)
    target = _repeated(emitter.pointer(y.name, definitions, ""), y.shape)
    return Parts("te_resize_nearest_s8", [f"&params_{i}", source, target], definitions, x.shape[0])


def _mean(emitter: Emitter, i: int, node: Node) -> Parts:
    p = int_params.mean_params(emitter.graph, node)
    shape = emitter.graph[node.inputs[0]].shape
    kept_or_reduced = groupby(range(len(shape)), key=lambda axis: axis in node.attrs.axes)
    sizes = [prod(shape[axis] for axis in axes) for _, axes in kept_or_reduced]
    if 0 in node.attrs.axes:  # the first group is a kept one
        sizes.insert(0, 1)
    sizes += [1] * (5 - len(sizes))
    if len(sizes) > 5:
        raise UnsupportedOpError(
            f"{node.name}: MEAN over axes {node.attrs.axes} of {_shape(shape)}: at most two groups of axes"
        )
    fields = {
        "keep": f"{{{sizes[0]}, {sizes[2]}, {sizes[4]}}}",
        "reduce": f"{{{sizes[1]}, {sizes[3]}}}",
        "x_zp": p.x_zp,
        "y_zp": p.y_zp,
        "multiplier": p.multiplier,
        "exponent": p.exponent,
        "y_min": p.y_min,
        "y_max": p.y_max,
    }
    definitions: list[str] = []
    source = emitter.pointer(node.inputs[0], definitions, f"x_{i}")
    target = emitter.pointer(node.outputs[0], definitions, "")
    definitions.append(_struct("te_mean_params", f"params_{i}", fields))
    return Parts("te_mean_s8", [f"&params_{i}", source, target], definitions)


def _pad(emitter: Emitter, i: int, node: Node) -> Parts:
    axes = _merge_unpadded(emitter.graph[node.inputs[0]].shape, node.attrs.padding)
    if len(axes) > 4:
        raise UnsupportedOpError(f"{node.name}: PAD of more than four separate axes")
    axes = [(1, 0, 0)] * (4 - len(axes)) + axes
    sizes, before, after = zip(*axes)
    fields = {
        "in": "{" + ", ".join(map(str, sizes)) + "}",
        "before": "{" + ", ".join(map(str, before)) + "}",
        "after": "{" + ", ".join(map(str, after)) + "}",
        "code": int_params.pad_code(emitter.graph, node),
    }
    definitions: list[str] = []
    source = emitter.pointer(node.inputs[0], definitions, f"x_{i}")
    target = emitter.pointer(node.outputs[0], definitions, "")
    definitions.append(_struct("te_pad_params", f"params_{i}", fields))
    return Parts("te_pad_s8", [f"&params_{i}", source, target], definitions)


def _merge_unpadded(
    shape: tuple[int, ...], padding: tuple[tuple[int, int], ...]
) -> list[tuple[int, int, int]]:
    """Return (size, before, after) for each axis, with unpadded neighbours merged into one axis."""
    axes: list[tuple[int, int, int]] = []
    for size, (before, after) in zip(shape, padding):
        if (size, before, after) == (1, 0, 0):
            continue
        if axes and before == after == 0 and axes[-1][1:] == (0, 0):
            axes[-1] = (axes[-1][0] * size, 0, 0)
        else:
            axes.append((size, before, after))
    return axes


def _softmax(emitter: Emitter, i: int, node: Node) -> Parts:
    table = int_params.softmax_table(emitter.graph, node)
    shape = emitter.graph[node.inputs[0]].shape
    definitions = [emitter.array(f"table_{i}", table)]
    source = emitter.pointer(node.inputs[0], definitions, f"x_{i}")
    target = emitter.pointer(node.outputs[0], definitions, "")
    return Parts(
        "te_softmax_s8", [str(prod(shape[:-1])), str(shape[-1]), f"table_{i}", source, target], definitions
    )


def _copy(emitter: Emitter, i: int, node: Node) -> Parts:
    """RESHAPE of a constant, the only one that moves bytes."""
    definitions: list[str] = []
    source = emitter.pointer(node.inputs[0], definitions, f"x_{i}")
    target = emitter.pointer(node.outputs[0], definitions, "")
    return Parts(
        "te_reshape_s8", [str(prod(emitter.graph[node.inputs[0]].shape)), source, target], definitions
    )


EMITTERS: dict[str, Callable[[Emitter, int, Node], Parts]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "MEAN": _mean,
    "PAD": _pad,
    "RESHAPE": _copy,
    "SOFTMAX": _softmax,
    "SUB": _add,
    "MUL": _mul,
    "CONCATENATION": _concatenation,
    "LOGISTIC": _lookup,
    "HARD_SWISH": _lookup,
    "RELU": _lookup,
    "RELU6": _lookup,
    "RELU_N1_TO_1": _lookup,
    "LEAKY_RELU": _lookup,
    "TANH": _lookup,
    "QUANTIZE": _lookup,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
}
