"""``load``: one door to every data set, with disjoint train, validation and test splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnknownNameError, UsageError
from . import originals, store
from .dataset import Dataset
from .manifest import Entry, entries, entry

SPLITS = ("train", "validation", "test")

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_DIGITS_TEST = 360

Half = tuple[originals.Arrays, tuple[str, ...], str]
"""Arrays of the published train or test half, the class names, and where they came from."""


def names() -> list[str]:
    """Return the names that :func:`load` takes.

    Examples
    --------
    >>> names()[:2]
    ['digits', 'glyphs32']
    """
    return list(entries())


def is_available(name: str) -> bool:
    """Return whether :func:`load` needs no download for data set ``name``.

    Examples
    --------
    >>> is_available("glyphs32")
    True
    """
    found = entry(name)
    return found.kind != "real" or store.find(found) is not None or store.has_originals(found)


def card(name: str) -> str:
    """Return the card of a data set as Markdown: what it is, its licence, its splits, where it is found."""
    from .cards import render

    return render(entry(name))


def load(name: str, split: str = "train", **params: Any) -> Dataset:
    """Return one split of a data set.

    Real sets are looked for in ``$TINYML_EDU_DATA``, then in the user's cache (``$TINYML_EDU_CACHE``), and
    then downloaded with their digest checked, unless ``TINYML_EDU_OFFLINE=1``.  The name stands for the set
    that was found: a reduced copy and the full original differ in size, and ``info["source"]`` says which.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    split : {"train", "validation", "test"}
        The three are disjoint; validation is carved from train by a fixed seed.
    **params
        Only for made sets: ``difficulty``, ``seed``, ``classes`` (``glyphs32``), and ``size``, the number of
        examples of this split.

    Returns
    -------
    Dataset
        ``x`` uint8 (n, H, W, C), ``y`` int64 (n,).

    Raises
    ------
    UnknownNameError
        If there is no such set or split.
    UsageError
        If the set does not take a parameter.
    DataError
        If the set is absent or corrupt; the message says what to do.

    Examples
    --------
    >>> digits = load("digits", "test")
    >>> digits.x.shape, digits.classes[3]
    ((360, 8, 8, 1), '3')
    """
    found = entry(name)
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    allowed = {**found.parameters, "size": found.splits[split]} if found.kind == "made" else {}
    if unknown := sorted(set(params) - set(allowed)):
        takes = ", ".join(allowed) or "none"
        raise UsageError(f"data set {name!r} does not take {', '.join(unknown)}; its parameters are: {takes}")
    if found.kind == "made":
        return _made(
            found, split, {key: _like(value, params.get(key, value), key) for key, value in allowed.items()}
        )
    half = "test" if split == "test" else "train"
    arrays, classes, source = _digits(half) if found.kind == "embedded" else _real(found, half)
    x, y = arrays if split == "test" else _carve(found, arrays, split)
    return Dataset(name, split, x, y, classes, {"source": source})


def _like(default: Any, value: Any, key: str) -> Any:
    """Return ``value`` as the type of ``default``; it becomes part of a file name, so nothing else passes."""
    try:
        converted = type(default)(value)
        if converted == value:
            return converted
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"{key} must be of type {type(default).__name__}, like {default}; got {value!r}")


def _made(found: Entry, split: str, params: dict[str, Any]) -> Dataset:
    """Return a made set from the cache, or make and keep it."""
    from . import glyphs, presence

    maker: Any = {"glyphs32": glyphs, "glyph_presence": presence}[found.name]
    classes = maker.class_names(**({"classes": params["classes"]} if "classes" in params else {}))
    key = "-".join([found.name, f"v{maker.VERSION}", split, *(f"{k}{v}" for k, v in sorted(params.items()))])
    kept = store.cached_arrays(key)
    if kept is not None:
        x, y = kept["x"], kept["y"]
    else:
        x, y = maker.make(split=split, **params)
        store.cache_arrays(key, x, y)
    return Dataset(found.name, split, x, y, classes, {"source": "made", **params})


def _digits(half: str) -> Half:
    """Return scikit-learn's digits with pixels 0 to 255; test is a fixed fifth."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    y = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    rows = order[:_DIGITS_TEST] if half == "test" else order[_DIGITS_TEST:]
    return (x[rows], y[rows]), tuple(str(i) for i in range(10)), "scikit-learn"


def _real(found: Entry, half: str) -> Half:
    """Return one half from a reduced copy if there is one, else from the originals."""
    path = store.find(found)
    if path is None:
        return _from_originals(found, half)
    digest = next(d for relative, d in found.files.items() if path.match(relative))
    key = f"d_{half}" if found.format == "delta" else f"x_{half}"
    arrays = store.read_arrays(store.verified(path, digest), path, (key, f"y_{half}", "classes"))
    if found.format == "delta":
        x = originals.decode_delta(arrays[key])
    else:
        x = arrays[key][..., None]  # (n, H, W) grey
    labels = arrays[f"y_{half}"].astype(np.int64)
    return (x, labels), tuple(arrays["classes"].tolist()), f"reduced copy {path.name}"


def _from_originals(found: Entry, half: str) -> Half:
    paths = {name: store.original(found, name) for name in found.originals}
    source = f"originals {', '.join(paths)}"
    if found.name == "fashion_mnist":
        return _fashion_half(paths, half), _FASHION, source
    archive = next(iter(paths.values()))
    if found.name == "cifar10":
        batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
        return originals.read_cifar(archive, batches[half], "labels"), _CIFAR10, source
    x, fine = originals.read_cifar(archive, [half], "fine_labels")
    if found.name == "person32":
        return originals.select_person(x, fine), ("no person", "person"), source
    return originals.select_transfer(x, fine), tuple(originals.TRANSFER_CLASSES), source


def _fashion_half(paths: dict[str, Path], half: str) -> originals.Arrays:
    prefix = "t10k" if half == "test" else "train"
    x = originals.read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])[..., None]
    y = originals.read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"]).astype(np.int64)
    return x, y


def _carve(found: Entry, train: originals.Arrays, split: str) -> originals.Arrays:
    """Return a part of the train half; validation is the same seeded, stratified share of each class."""
    x, y = train
    rng = np.random.default_rng(2024)
    validation = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        validation[rows[: round(found.validation_share * len(rows))]] = True
    chosen = validation if split == "validation" else ~validation
    return x[chosen], y[chosen]
