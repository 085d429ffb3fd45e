"""Decoders of the formats real sets come in; none of them executes what a file says.

CIFAR's archives hold Python pickles.  They are read as a stream of opcodes (``pickletools.genops``), which
builds no object: the long string is the pixels and the list of small integers after the key is the labels.
"""

from __future__ import annotations

import gzip
import pickletools
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError

PERSON_CLASSES = (2, 11, 35, 46, 98)
"""Fine labels of CIFAR-100 that show a person: baby, boy, girl, man, woman."""

TRANSFER_CLASSES = {
    "apple": 0, "bicycle": 8, "bottle": 9, "butterfly": 14, "castle": 17,
    "clock": 22, "mushroom": 51, "sunflower": 82, "telephone": 86, "tractor": 89,
}  # fmt: skip
"""Fine labels of CIFAR-100 in ``cifar100_transfer10``; none of them occurs in CIFAR-10."""

Arrays = tuple[np.ndarray, np.ndarray]
"""Images uint8 (n, H, W, C) and labels int64 (n,)."""


def decode_delta(d: np.ndarray) -> np.ndarray:
    """Return RGB images uint8 (n, H, W, 3) from delta-coded planes uint8 (n, 3, H, W).

    The planes are green, red - green and blue - green, each differenced along H and W; uint8 wraps on
    purpose, so the coding loses nothing.

    Examples
    --------
    >>> decode_delta(np.array([7, 1, 2], np.uint8).reshape(1, 3, 1, 1)).tolist()
    [[[[8, 7, 9]]]]
    """
    planes = np.cumsum(np.cumsum(d, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    green = planes[:, 0]
    return np.stack([planes[:, 1] + green, green, planes[:, 2] + green], axis=-1)


def encode_delta(images: np.ndarray) -> np.ndarray:
    """Return delta-coded planes uint8 (n, 3, H, W) of RGB images uint8 (n, H, W, 3).

    The inverse of :func:`decode_delta`.
    """
    red, green, blue = (images[..., c] for c in range(3))
    planes = np.stack([green, red - green, blue - green], axis=1)
    for axis in (3, 2):
        planes = np.diff(planes, axis=axis, prepend=np.uint8(0))
    return planes


def read_cifar(archive: Path, members: list[str], label_key: str) -> Arrays:
    """Return the images and labels of some members of a CIFAR ``python`` archive.

    Parameters
    ----------
    archive : Path
        The ``.tar.gz`` as published.
    members : list of str
        Base names, e.g. ``["data_batch_1"]``; their examples are concatenated in this order.
    label_key : str
        ``"labels"`` (CIFAR-10) or ``"fine_labels"`` (CIFAR-100).

    Raises
    ------
    DataError
        If the archive or a member is damaged.
    """
    parts = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            by_name = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
            for member in members:
                file = tar.extractfile(by_name[member])
                assert file is not None, member  # isfile() above
                parts.append(_cifar_batch(file.read(), label_key))
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError, ValueError, AssertionError) as error:
        raise DataError(f"{archive} is not a CIFAR archive ({error}); delete it and fetch it again") from None
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _cifar_batch(text: bytes, label_key: str) -> Arrays:
    """Decode one pickled batch without building what it describes."""
    pixels, labels = b"", []
    opcodes = list(pickletools.genops(text))
    for position, (_, argument, _) in enumerate(opcodes):
        if isinstance(argument, str) and len(argument) > len(pixels):
            pixels = argument.encode("latin-1")  # a string of Python 2 is bytes
        if argument == label_key:
            labels = list(_integers_after(opcodes, position))
    if not labels or len(pixels) != 3072 * len(labels):
        raise ValueError(f"{len(pixels)} bytes of pixels for {len(labels)} labels")
    planes = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, np.int64)


def _integers_after(opcodes: list, position: int) -> Iterator[int]:
    """Yield the integers of the list that follows the opcode at ``position``."""
    integers = ("BININT", "BININT1", "BININT2", "INT")
    for opcode, argument, _ in opcodes[position + 1 :]:
        if opcode.name in integers:
            yield argument
        elif opcode.name not in ("EMPTY_LIST", "MARK", "APPENDS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT"):
            return
        # A long list comes in several MARK .. APPENDS groups, which the loop walks through.


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file (the format of MNIST).

    Raises
    ------
    DataError
        If the file is damaged.
    """
    try:
        with gzip.open(path) as file:
            text = file.read()
        axes = text[3]
        shape = np.frombuffer(text, ">i4", count=axes, offset=4)
        if text[:3] != b"\0\0\x08":
            raise ValueError("wrong magic number")
        return np.frombuffer(text, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError(f"{path} is not an IDX file ({error}); delete it and fetch it again") from None


def select_transfer(x: np.ndarray, fine: np.ndarray) -> Arrays:
    """Return the images of :data:`TRANSFER_CLASSES` in the order of the archive, labelled 0 to 9."""
    wanted = list(TRANSFER_CLASSES.values())
    rows = np.flatnonzero(np.isin(fine, wanted))
    order = {label: i for i, label in enumerate(wanted)}
    return x[rows], np.array([order[label] for label in fine[rows].tolist()], np.int64)


def select_person(x: np.ndarray, fine: np.ndarray, *, seed: int = 0) -> Arrays:
    """Return all persons (label 1) and as many others (label 0), spread evenly over the other classes.

    The number of each other class is the quotient, plus one for a seeded choice of the classes; which of
    its images are taken is a seeded draw too.
    """
    rng = np.random.default_rng(seed)
    persons = np.flatnonzero(np.isin(fine, PERSON_CLASSES))
    others = [c for c in range(100) if c not in PERSON_CLASSES]
    each, rest = divmod(len(persons), len(others))
    favoured = set(rng.permutation(others)[:rest].tolist())
    rows = [persons]
    for label in others:
        candidates = np.flatnonzero(fine == label)
        rows.append(rng.permutation(candidates)[: each + (label in favoured)])
    chosen = np.sort(np.concatenate(rows))
    return x[chosen], np.isin(fine[chosen], PERSON_CLASSES).astype(np.int64)
