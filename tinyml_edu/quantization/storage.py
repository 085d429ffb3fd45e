"""A graph as one ``.safetensors`` file: arrays as tensors, the structure as JSON in the header.

Nothing is unpickled.  A digest over structure and arrays shows damage that the container's own
checks let pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .._files import write_atomically
from ..errors import DataError
from ..ir.graph import Graph, GraphError, Kind, Node, Quant, Tensor
from ..ir.ops import OPS, infer_shape

FORMAT = "tinyml_edu.graph/2"


def save_graph(graph: Graph, path: Path) -> None:
    """Write ``graph`` to ``path``, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in graph.tensors.items():
        if tensor.data is not None:
            arrays[f"{name}/data"] = np.ascontiguousarray(tensor.data)
        if tensor.quant is not None:
            arrays[f"{name}/scale"] = tensor.quant.scale
            arrays[f"{name}/zero_point"] = tensor.quant.zero_point
    structure = json.dumps(_structure(graph))
    header = {"format": FORMAT, "graph": structure, "sha256": _digest(structure, arrays)}
    try:
        write_atomically(path, save(arrays, header))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None


def load_graph(path: Path) -> Graph:
    """Read what `save_graph` wrote; raise `DataError` on anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is corrupt ({str(error).splitlines()[0]}); make it again") from None
    if header.get("format") != FORMAT:
        raise DataError(f"{path} holds no graph of format {FORMAT}; make it with QuantizedModel.save")
    if header.get("sha256") != _digest(header.get("graph", ""), arrays):
        raise DataError(f"{path} is corrupt (its checksum differs); make it again")
    try:
        return _graph(json.loads(header["graph"]), arrays)
    except (GraphError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} is corrupt (its header does not fit: {error}); make it again") from None


def _digest(structure: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(structure.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _structure(graph: Graph) -> dict[str, Any]:
    tensors = [
        [
            t.name,
            list(t.shape),
            t.dtype,
            t.kind.value,
            *((None, 8) if t.quant is None else (t.quant.axis, t.quant.bits)),
        ]
        for t in graph.tensors.values()
    ]
    nodes = [[n.name, n.op, list(n.inputs), list(n.outputs), asdict(n.attrs)] for n in graph.nodes]
    ends = {"inputs": list(graph.inputs), "outputs": list(graph.outputs)}
    return {"name": graph.name, "tensors": tensors, "nodes": nodes, **ends}


def _graph(structure: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Graph:
    inputs, outputs = tuple(structure["inputs"]), tuple(structure["outputs"])
    graph = Graph(structure["name"], inputs=inputs, outputs=outputs)
    for name, shape, dtype, kind, axis, bits in structure["tensors"]:
        quant = None
        if f"{name}/scale" in arrays:
            quant = Quant(arrays[f"{name}/scale"], arrays[f"{name}/zero_point"], axis, bits)
        graph.add(Tensor(name, tuple(shape), dtype, Kind(kind), arrays.get(f"{name}/data"), quant))
    for name, op, reads, writes, attrs in structure["nodes"]:
        made = OPS[op].attrs(**{key: _tuples(value) for key, value in attrs.items()})
        graph.nodes.append(Node(name, op, tuple(reads), tuple(writes), made))
    for node in graph.validate().nodes:
        if infer_shape(graph, node) != graph[node.outputs[0]].shape:
            raise GraphError(f"the shape of {node.outputs[0]!r} does not follow from its inputs")
    return graph


def _tuples(value: Any) -> Any:
    """Return JSON lists as the tuples that they were."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
