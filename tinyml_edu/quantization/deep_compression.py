"""Deep Compression as one file: prune, share weights, Huffman-code, and count every byte [1]_.

The file loses nothing: `load_compressed` returns the very bits that `save_compressed` was given.  What
makes it small are few weights that are not zero (pruning) and few different values (k-means); what those
steps cost in accuracy is measured before the file is written and holds for what is read from it.

The file: ``TEDC``, version (2 bytes), SHA-256 of all that follows (32), length of the header (4), the header
(JSON, deflated: names, shapes, counts), then the tensors' parts one after another, see `tensor_coding`.
Little-endian.  Biases and batch norms are stored, parameter by parameter; nothing is folded, and nothing is
unpickled.

References
----------
.. [1] Han et al., Deep Compression, ICLR 2016.  https://arxiv.org/abs/1510.00149
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._files import write_atomically
from ..errors import DataError, UsageError
from .checking import require_module
from .tensor_coding import DTYPES, Packed, Source, pack, unpack

PARTS = ("index", "labels", "codebooks", "tables", "values", "header")
"""What a file consists of, see `CompressionReport`."""

_MAGIC, _VERSION = b"TEDC", 1
_PREFIX, _LENGTH = struct.Struct("<4sH32s"), struct.Struct("<I")
_MAX_HEADER_BYTES = 1 << 24
_REMEDY = "write it again with save_compressed"
_MALFORMED = (
    DataError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class TensorRow:
    """How one tensor is stored.

    Attributes
    ----------
    name : str
        As in the state dict.
    kind : {"plain", "sparse", "coded"}
        See `tensor_coding`.
    values, kept, centroids : int
        Values of the tensor, those that are stored (not zero, except for "plain"), different ones.
    position_bits, label_bits : int
        Exact lengths of the two Huffman streams.
    parts : dict of str to int
        Bytes by part, see `CompressionReport`.
    """

    name: str
    kind: str
    values: int
    kept: int
    centroids: int
    position_bits: int
    label_bits: int
    parts: dict[str, int]


@dataclass(frozen=True)
class CompressionReport:
    """Where the bytes of a file went.

    Attributes
    ----------
    parts : dict of str to int
        Bytes: ``index`` (Huffman-coded positions), ``labels`` (Huffman-coded), ``codebooks`` (centroids),
        ``tables`` (Huffman code lengths), ``values`` (weights stored as they are, biases, batch norms,
        counters), ``header`` (magic, digest, names, shapes).  They sum to the size of the file.
    rows : tuple of TensorRow
    fp32_bytes : int
        Four for each parameter.  Buffers (running statistics) are in the file but are not counted here.
    """

    parts: dict[str, int]
    rows: tuple[TensorRow, ...]
    fp32_bytes: int

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return sum(self.parts.values())

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the parameters in float32."""
        return self.fp32_bytes / self.file_bytes


def save_compressed(model: nn.Module, path: str | Path, *, coding: str = "huffman") -> CompressionReport:
    """Write all parameters and buffers of ``model`` to one file, losslessly.

    Parameters
    ----------
    model : nn.Module
        Pruned and quantized as it was measured, see `KMeansQuantizer` and `round_small_tensors`; not changed.
    path : path
        Written whole or not at all.
    coding : {"huffman", "fixed"}
        "fixed" gives every symbol of a stream the same number of bits: the chain without its last step.

    Returns
    -------
    CompressionReport
        ``report.file_bytes`` is the size of the file.

    Raises
    ------
    UsageError
        If a tensor has a dtype that is not in `tensor_coding.DTYPES`.
    DataError
        If the file cannot be written.
    """
    if coding not in ("huffman", "fixed"):
        raise UsageError(f"coding is 'huffman' or 'fixed', got {coding!r}")
    require_module(model)
    state = model.state_dict()
    packed = {name: pack(_flat(name, tensor), coding) for name, tensor in state.items()}
    entries = [_entry(name, tensor, packed[name]) for name, tensor in state.items()]
    header = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), 9)
    bodies = (part for p in packed.values() for part in p.parts.values())
    rest = _LENGTH.pack(len(header)) + header + b"".join(bodies)
    data = _PREFIX.pack(_MAGIC, _VERSION, hashlib.sha256(rest).digest()) + rest
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    rows = tuple(_row(name, state[name].numel(), p) for name, p in packed.items())
    parts = {part: sum(row.parts.get(part, 0) for row in rows) for part in PARTS}
    parts["header"] = _PREFIX.size + _LENGTH.size + len(header)
    return CompressionReport(parts, rows, 4 * sum(p.numel() for p in model.parameters()))


def load_compressed(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file, bit for bit what was saved: ``model.load_state_dict(...)``.

    Raises
    ------
    DataError
        If the file is missing, is not such a file, has another version, or is damaged anywhere.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; {_REMEDY}") from None
    if len(data) < _PREFIX.size or data[:4] != _MAGIC:
        raise DataError(f"{path} is not a compressed network; {_REMEDY}")
    _, version, digest = _PREFIX.unpack_from(data)
    if version != _VERSION:
        raise DataError(f"{path} has version {version}, this release reads {_VERSION}; {_REMEDY}")
    rest = data[_PREFIX.size :]
    if hashlib.sha256(rest).digest() != digest:
        raise DataError(f"{path} is damaged: its SHA-256 does not match; {_REMEDY}")
    try:  # The digest is no signature: what follows may still be anything.
        return _state(rest)
    except _MALFORMED as error:
        raise DataError(f"{path} is damaged: {error}; {_REMEDY}") from None


@torch.no_grad()
def round_small_tensors(model: nn.Module) -> list[str]:
    """Round biases and batch norms to float16 values, in place, so that the file needs half of their bytes.

    They stay float32 tensors.  Everything with fewer than two axes is rounded, unless a value lies beyond
    float16's 65,504: that tensor stays whole.  Rounding is off by at most 2**-11 of a value or, below
    2**-14, by 2**-25; for a variance that is small beside the epsilon of a batch norm (1e-5).

    Returns
    -------
    list of str
        The rounded parameters and buffers.
    """
    require_module(model)
    rounded = []
    for name, tensor in model.state_dict().items():  # the tensors are the model's own
        if tensor.ndim < 2 and tensor.dtype == torch.float32:
            half = tensor.half().float()
            if torch.isfinite(half).all():
                tensor.copy_(half)
                rounded.append(name)
    return rounded


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _flat(name: str, tensor: Tensor) -> np.ndarray:
    if _dtype(tensor) not in DTYPES:
        raise UsageError(f"{name} has dtype {_dtype(tensor)}, which is not stored; convert it by .float()")
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(-1)


def _entry(name: str, tensor: Tensor, packed: Packed) -> list[Any]:
    """Return a tensor's line of the header."""
    return [name, packed.kind, list(tensor.shape), _dtype(tensor), packed.stored, *packed.numbers]


def _row(name: str, values: int, packed: Packed) -> TensorRow:
    sizes: dict[str, int] = {}
    for part, content in packed.parts.items():
        key = "tables" if part.endswith("table") else part
        sizes[key] = sizes.get(key, 0) + len(content)
    counts = packed.kept, packed.centroids, packed.position_bits, packed.label_bits
    return TensorRow(name, packed.kind, values, *counts, sizes)


def _state(rest: bytes) -> dict[str, Tensor]:
    """Return the state dict in what follows the digest."""
    (length,) = _LENGTH.unpack_from(rest)
    start = _LENGTH.size + length
    source = Source(rest[start:])
    state = {}
    for name, kind, shape, dtype, stored, *numbers in _inflate(rest[_LENGTH.size : start]):
        flat = unpack(source, kind, math.prod(shape), (dtype, stored), numbers)
        state[str(name)] = torch.from_numpy(flat.reshape(shape))
    if source.data:
        raise DataError(f"{len(source.data)} bytes are left over")
    return state


def _inflate(header: bytes) -> Any:
    stream = zlib.decompressobj()
    text = stream.decompress(header, _MAX_HEADER_BYTES)
    if not stream.eof or stream.unused_data:
        raise DataError("the header does not end where it should")
    return json.loads(text)
