"""Call the runtime's kernels on layers made at run time: one library for all of them, nothing compiled again.

The generator writes a layer as C text: arrays, a struct of parameters, a call.  Here that text is read back
into ctypes objects, so that what is called is what a project would hold.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from ctypes import Array, Structure, c_int8, c_int32, c_uint32
from pathlib import Path
from typing import Any

import host_build
import numpy as np
from c_structs import STRUCTS

from tinyml_edu.ir.graph import Graph, Kind
from tinyml_edu.mcu import planning, toolchain
from tinyml_edu.mcu.cgen_layers import EMITTERS, Emitter

GUARD, FILL = 64, 0x5A
"""Bytes around every buffer of the arena, and what they hold: a kernel must leave them alone."""

_TYPES = {"int8_t": c_int8, "int32_t": c_int32, "uint32_t": c_uint32}
_ARRAY = re.compile(r"static const (\w+) (\w+)\[\d+\] = \{(.*)\};", re.DOTALL)
_POINTERS = re.compile(r"static const int8_t \*const (\w+)\[\d+\] = \{(.*)\};", re.DOTALL)
_STRUCT = re.compile(r"static const (\w+) (\w+) = \{(.*)\};", re.DOTALL)


class DifferenceError(AssertionError):
    """C and NumPy disagree, or C wrote where it must not."""


def library(*, fast: bool, sanitized_in: Path | None = None) -> ctypes.CDLL:
    """Return the runtime as one library; with a folder, built by gcc to stop on undefined behaviour."""
    define = f"-DTE_REQUANT_FAST={int(fast)}"
    if sanitized_in is None:
        sources = sorted(host_build.RUNTIME.glob("*.[ch]"))
        include, flags = [host_build.RUNTIME], [*host_build.STRICT, define]
        return ctypes.CDLL(
            str(toolchain.compile_shared(sources, name="runtime", include=include, flags=flags))
        )
    target = sanitized_in / f"runtime_{int(fast)}.so"
    checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-DTE_DEBUG", "-fPIC", "-shared", "-O1"]
    sources = [str(path) for path in sorted(host_build.RUNTIME.glob("*.c"))]
    subprocess.run(["gcc", "-std=c99", "-w", *checks, define, *sources, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


class Layer:
    """A graph of one node, ready to be called again and again."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.node = graph, graph.nodes[0]
        live = [t for t in graph.tensors.values() if t.kind is not Kind.CONSTANT]
        self.offsets, at = {}, GUARD
        for tensor in live:
            self.offsets[tensor.name] = at
            at += tensor.nbytes + GUARD
        self.arena = np.full(at, FILL, np.uint8)
        self.parts = EMITTERS[self.node.op](Emitter(graph, planning.placed(self.offsets, at)), 0, self.node)
        self.names: dict[str, Any] = {"NULL": None}
        self.kept: dict[str, Any] = {}
        base = self.arena.ctypes.data
        self._define("te_arena", base)
        for text in self.parts.definitions:
            self._read(text.strip())

    def _define(self, name: str, address: int) -> None:
        self.names[name] = address

    def _read(self, text: str) -> None:
        if found := _POINTERS.fullmatch(text):
            name, body = found.groups()
            values = [self._value(item) for item in body.split(",") if item.strip()]
            self._keep(name, (ctypes.c_void_p * len(values))(*values))
        elif found := _ARRAY.fullmatch(text):
            kind, name, body = found.groups()
            values = np.array(body.replace(",", " ").split(), dtype=kind.removesuffix("_t"))
            self._keep(name, (_TYPES[kind] * values.size).from_buffer_copy(values.tobytes()))
        else:
            found = _STRUCT.fullmatch(text)
            assert found, f"cannot read {text[:80]!r}"
            kind, name, body = found.groups()
            tokens = re.findall(r"[\w-]+", re.sub(r"\.\w+ = ", "", body))
            self._keep(name, _filled(STRUCTS[kind], tokens, self))

    def _keep(self, name: str, value: Array | Structure) -> None:
        self.kept[name] = value
        self.names[name] = ctypes.addressof(value)

    def _value(self, text: str, n: int = 0) -> Any:
        """Return the number or address that an argument of the call is."""
        text = text.strip().removeprefix("&")
        return eval(text, {"__builtins__": {}}, self.names | {"n": n})  # the generator's own text

    def run(self, lib: ctypes.CDLL, *inputs: np.ndarray) -> np.ndarray:
        """Return the output for one image, computed by ``lib``; raise on a write elsewhere."""
        self.arena[:] = FILL
        for name, x in zip(self.graph.inputs, inputs, strict=True):
            self._view(name)[:] = x.reshape(-1)
        kernel = lib[self.parts.kernel]
        for n in range(self.parts.images):
            arguments = [self._value(a, n) for a in self.parts.arguments]
            status = kernel(*(a if a is None or a < 2**31 else ctypes.c_void_p(a) for a in arguments))
            if status:
                raise DifferenceError(f"{self.parts.kernel} returns {status}")
        name = self.graph.outputs[0]
        for tensor, x in zip(self.graph.inputs, inputs, strict=True):
            if np.any(self._view(tensor) != x.reshape(-1)):
                raise DifferenceError(f"{self.parts.kernel} writes into its input {tensor}")
        y = self._view(name).copy()
        for tensor in self.offsets:
            self._view(tensor)[:] = np.int8(FILL)
        if np.any(self.arena != FILL):
            raise DifferenceError(f"{self.parts.kernel} writes beside its output")
        return y.reshape(self.graph[name].shape)

    def _view(self, name: str) -> np.ndarray:
        at = self.offsets[name]
        return self.arena[at : at + self.graph[name].nbytes].view(np.int8)


def _filled(kind: type[Structure], tokens: list[str], layer: Layer) -> Structure:
    """Return a struct whose fields, nested ones included, are the tokens in order."""
    result = kind()
    rest = _fill(result, tokens, layer)
    assert not rest, f"{kind.__name__} has fewer fields than {tokens}"
    return result


def _fill(target: Any, tokens: list[str], layer: Layer) -> list[str]:
    slots = [name for name, _ in target._fields_] if isinstance(target, Structure) else range(len(target))
    for slot in slots:
        inner = getattr(target, slot) if isinstance(slot, str) else target[slot]
        if isinstance(inner, (Structure, Array)):
            tokens = _fill(inner, tokens, layer)
            continue
        token, *tokens = tokens
        value: Any = int(token) if re.fullmatch(r"-?\d+", token) else layer.kept[token]
        if isinstance(value, Array):
            value = ctypes.cast(value, type(inner))
        if isinstance(slot, str):
            setattr(target, slot, value)
        else:
            target[slot] = value
    return tokens
