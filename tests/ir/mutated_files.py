"""Damaged .tflite files, made from valid ones, and what becomes of each: `judged`.

A worker process, whose memory and time are limited, judges file after file; if it dies, the file that it
died of is known, and another worker goes on behind it.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import resource
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from litert_cases import CASES, case
from litert_oracle import Reference

from tinyml_edu import ir
from tinyml_edu.errors import TinyMLError
from tinyml_edu.ir.tflite_writer import tflite_bytes

MEMORY_BYTES = 1 << 30
"""Beyond what the worker has at its start."""

SECONDS = 10
"""For one file: reading, planning and running."""

LARGEST_RUN = 20_000_000
"""MACs, or elements, of the largest graph that is run."""

DEFECTS = ("exception", "crash", "hang", "memory", "message", "different")


@dataclass(frozen=True)
class Verdict:
    """What became of a file.

    ``kind`` is "refused" (an error of ours), "read" (a graph too large to run), "ran" (LiteRT refuses the
    file), "equal" (LiteRT's codes), "died in LiteRT", or one of `DEFECTS`.
    """

    kind: str
    text: str = ""

    @property
    def is_defect(self) -> bool:
        return self.kind in DEFECTS


@cache
def bases() -> list[bytes]:
    """Return the valid files: one of each op, and small networks, with and without float ends."""
    from test_tflite_reader import small_network

    return [small_network(), small_network(float_ends=True), *(tflite_bytes(case(op, 1)[0]) for op in CASES)]


def _flip_bits(content: bytearray, rng: np.random.Generator) -> None:
    for position in rng.integers(0, len(content), rng.integers(1, 6)):
        content[position] ^= 1 << int(rng.integers(8))


def _set_bytes(content: bytearray, rng: np.random.Generator) -> None:
    for position in rng.integers(0, len(content), rng.integers(1, 4)):
        content[position] = int(rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF]))


def _truncate(content: bytearray, rng: np.random.Generator) -> None:
    del content[int(rng.integers(0, len(content))) :]


def _splice(content: bytearray, rng: np.random.Generator) -> None:
    """Copy a piece of another file, or of this one, over a place."""
    other = bases()[int(rng.integers(len(bases())))]
    size = int(2 ** rng.uniform(0, 8))
    source, target = int(rng.integers(len(other))), int(rng.integers(len(content)))
    piece = other[source : source + size]
    content[target : target + len(piece)] = piece[: len(content) - target]


def _delete(content: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(content)))
    del content[start : start + int(rng.integers(1, 9))]


def _words(content: bytearray, wanted: Callable[[int], bool]) -> list[int]:
    """Return the places of aligned 32-bit words for which ``wanted`` holds."""
    count = len(content) // 4
    return [4 * i for i, word in enumerate(struct.unpack(f"<{count}i", content[: 4 * count])) if wanted(word)]


def _change_word(content: bytearray, rng: np.random.Generator) -> None:
    """Change a word that looks like a length, an offset, a size or an index."""
    places = _words(content, lambda word: 0 < word < len(content))
    if not places:
        return
    place = int(rng.choice(places))
    (old,) = struct.unpack_from("<i", content, place)
    new = int(rng.choice([0, 1, old + 1, old - 1, 2 * old, -old, -1, 2**16, 2**30, 2**31 - 1, -(2**31)]))
    struct.pack_into("<i", content, place, max(min(new, 2**31 - 1), -(2**31)))


def _change_scale(content: bytearray, rng: np.random.Generator) -> None:
    """Change a word that looks like a float32 scale."""
    floats = np.frombuffer(content[: len(content) // 4 * 4], "<f4")
    with np.errstate(invalid="ignore"):
        places = np.flatnonzero((floats > 1e-6) & (floats < 10))
    if places.size:
        place = int(rng.choice(places))
        factor = rng.choice([0, -1, 2, 0.5, 1 + 1e-6, 1e-30, 1e30, np.nan, np.inf])
        with np.errstate(all="ignore"):
            content[4 * place : 4 * place + 4] = np.float32(floats[place] * factor).tobytes()


MUTATIONS = (_flip_bits, _set_bytes, _truncate, _splice, _delete, _change_word, _change_word, _change_scale)


def mutated(number: int) -> bytes:
    """Return damaged file ``number``, always the same."""
    rng = np.random.default_rng([number, 11])
    content = bytearray(bases()[int(rng.integers(len(bases())))])
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        if len(content) > 16:
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](content, rng)
    if rng.random() < 0.9:
        content[4:8] = b"TFL3"[: max(0, len(content) - 4)]
    return bytes(content)


class _Late(BaseException):
    """The alarm: not an Exception, so that nothing catches it by accident."""


def _late(*_: Any) -> None:
    raise _Late


def judge(content: bytes, path: Path, stage: Any = None) -> Verdict:
    """Read, plan and run a file with what our own part of it may take; then ask LiteRT."""
    path.write_bytes(content)
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        verdict, graph, inputs, outputs = _own(path)
    except _Late:
        return Verdict("hang", f"more than {SECONDS} s")
    except MemoryError:
        return Verdict("memory", f"more than {MEMORY_BYTES} bytes")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
        return Verdict("exception", f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if graph is None:
        return verdict
    if stage is not None:
        stage.value = 1  # from here on, a death is LiteRT's
    return _compared(content, graph, inputs, outputs)


def _own(path: Path) -> tuple[Verdict, Any, Any, Any]:
    from tinyml_edu.mcu import planning

    try:
        graph = ir.read_tflite(path)
        sizes = [np.prod(t.shape, dtype=float) for t in graph.tensors.values()]
        planning.plan(graph)
        if sum(sizes) > LARGEST_RUN or sum(ir.macs(graph).values()) > LARGEST_RUN:
            return Verdict("read"), None, None, None
        rng = np.random.default_rng(0)
        inputs = {name: rng.integers(-128, 128, graph[name].shape, dtype=np.int8) for name in graph.inputs}
        values = ir.run(graph, inputs)
    except TinyMLError as error:
        text = str(error)
        in_one_line = 20 < len(text) < 1500 and "\n" not in text
        return Verdict("refused" if in_one_line else "message", text), None, None, None
    outputs = values if isinstance(values, dict) else {graph.outputs[0]: values}
    for name, y in outputs.items():
        if y.shape != graph[name].shape or y.dtype != np.int8:
            return Verdict("different", f"{name} is {y.dtype} {y.shape}, not {graph[name].shape}"), *[
                None
            ] * 3
    return Verdict("ran"), graph, inputs, outputs


def is_undefined(graph: ir.Graph, node: ir.Node) -> bool:
    """Return whether LiteRT shifts a value out of int32 to the left, or converts one beyond int32 from float.

    C++ leaves both undefined.  The library saturates, see ``fixed_point``.
    """
    params = ir.OPS[node.op].params(graph, node)
    if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        w, axis = graph[node.inputs[1]].data, 3 if node.op == "DEPTHWISE_CONV_2D" else 0
        bias = graph[node.inputs[2]].data if len(node.inputs) > 2 else np.zeros(1)
        sums = 255 * np.abs(np.moveaxis(w, axis, 0).astype(float)).reshape(w.shape[axis], -1).sum(1)
        return bool(np.any((sums + np.abs(bias.astype(float))) * 2.0**params.exponent >= 2**31))
    if node.op in ("ADD", "SUB"):
        return 2.0**28 * 2.0**params.eo >= 2**31
    if node.op in ("MUL", "MEAN"):
        bound = 255**2 if node.op == "MUL" else 255 * params.count
        return bound * 2.0**params.exponent >= 2**31
    x, y = (graph[name].quant.item()[0] for name in (node.inputs[0], node.outputs[0]))
    slope = max(1.0, getattr(node.attrs, "alpha", 1.0))
    bounded = node.op in ("SOFTMAX", "LOGISTIC", "TANH")
    # An activation's bound is divided by the scale too, and so is the tangent itself.
    return 6 / y >= 2**30 or (not bounded and 255 * slope * x / y >= 2**30)


def _compared(content: bytes, graph: ir.Graph, inputs: dict, outputs: dict) -> Verdict:
    """Compare with LiteRT where it takes the file, its ends have our types, and names tell tensors apart."""
    try:
        reference = Reference(content)
        details = reference.interpreter.get_input_details()
        if [d["name"] for d in details] != list(graph.inputs) or any(
            d["dtype"] is not np.int8 for d in details
        ):
            return Verdict("ran", "other ends")
        tensors = reference.run(*inputs.values())
    except Exception as error:  # noqa: BLE001 - LiteRT's way to refuse a file
        return Verdict("ran", f"LiteRT: {error}")
    if any(is_undefined(graph, node) for node in graph.nodes):
        return Verdict("ran", "LiteRT's shift overflows")
    steps = 1 if any(node.op == "SOFTMAX" for node in graph.nodes) else 0  # near ties, see int_params
    for name in set(outputs) & set(tensors):
        if tensors[name].shape != outputs[name].shape:
            return Verdict("different", f"{name} is {outputs[name].shape}, LiteRT has {tensors[name].shape}")
        error = int(np.abs(tensors[name].astype(int) - outputs[name]).max(initial=0))
        if error > steps:
            return Verdict("different", f"{name} differs by {error}: {[n.op for n in graph.nodes]}")
    return Verdict("equal")


def _work(numbers: list[int], at: Any, stage: Any, pipe: Any) -> None:
    """Judge files from the one at ``at`` on, and send each verdict."""
    faulthandler.disable()  # a death is a verdict, told by the parent
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, -1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        while at.value < len(numbers):
            stage.value = 0
            verdict = judge(mutated(numbers[at.value]), Path(folder) / "model.tflite", stage)
            pipe.send(verdict)
            at.value += 1


def judged(numbers: Iterable[int], seconds: float = 1e9) -> Iterator[tuple[int, Verdict]]:
    """Yield (number, verdict) of each damaged file, until ``seconds`` are over."""
    import ai_edge_litert.interpreter  # noqa: F401  (before the fork, so that memory is shared)
    import tflite  # noqa: F401

    bases()
    numbers, start = list(numbers), time.monotonic()
    context = multiprocessing.get_context("fork")
    at, stage = context.Value("i", 0), context.Value("i", 0)
    done = 0
    while done < len(numbers) and time.monotonic() - start < seconds:
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(numbers, at, stage, send), daemon=True)
        worker.start()
        send.close()
        while done < len(numbers) and time.monotonic() - start < seconds:
            if not receive.poll(3 * SECONDS):
                worker.kill()
            try:
                verdict = receive.recv()
            except EOFError:  # the worker is dead: of file number `at`
                worker.join()
                died = f"process ended with {worker.exitcode}"
                verdict = Verdict("died in LiteRT", died) if stage.value else Verdict("crash", died)
                at.value = done + 1
                yield numbers[done], verdict
                done += 1
                break
            yield numbers[done], verdict
            done += 1
        worker.kill()
        worker.join()
