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

Halves = tuple[dict[str, originals.Arrays], tuple[str, ...], str]
"""Arrays of ``"train"`` and ``"test"``, the class names, and where they came from."""


def names() -> list[str]:
    """Return the names that :func:`load` takes.

    Examples
    --------
    >>> names()[:2]
    ['digits', 'glyphs32']
    """
    return list(entries())


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
        return _made(found, split, {**allowed, **params})
    halves, classes, source = _digits() if found.kind == "embedded" else _real(found)
    x, y = _carve(found, halves, split)
    return Dataset(name, split, x, y, classes, {"source": source})


def _made(found: Entry, split: str, params: dict[str, Any]) -> Dataset:
    """Return a made set from the cache, or make and keep it."""
    from . import glyphs, presence

    maker: Any = {"glyphs32": glyphs, "glyph_presence": presence}[found.name]
    classes = maker.class_names(**({"classes": params["classes"]} if "classes" in params else {}))
    key = "-".join([found.name, f"v{maker.VERSION}", split, *(f"{k}{v}" for k, v in sorted(params.items()))])
    arrays = store.cached_arrays(key)
    if arrays is None:
        x, y = maker.make(split=split, **params)
        arrays = {"x": x, "y": y}
        store.cache_arrays(key, arrays)
    return Dataset(found.name, split, arrays["x"], arrays["y"], classes, {"source": "made", **params})


def _digits() -> Halves:
    """Return scikit-learn's digits with pixels 0 to 255; test is a fixed fifth."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    y = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    halves = {"train": (x[train], y[train]), "test": (x[test], y[test])}
    return halves, tuple(str(i) for i in range(10)), "scikit-learn"


def _real(found: Entry) -> Halves:
    path = store.find(found)
    if path is None:
        return _from_originals(found)
    digest = next(d for relative, d in found.files.items() if path.match(relative))
    arrays = store.read_arrays(store.verified(path, digest), path)
    halves = {
        half: (_images(found, arrays, half), arrays[f"y_{half}"].astype(np.int64))
        for half in ("train", "test")
    }
    return halves, tuple(arrays["classes"].tolist()), f"reduced copy {path.name}"


def _images(found: Entry, arrays: dict[str, np.ndarray], half: str) -> np.ndarray:
    if found.format == "delta":
        return originals.decode_delta(arrays[f"d_{half}"])
    return arrays[f"x_{half}"][..., None]  # (n, H, W) grey


def _from_originals(found: Entry) -> Halves:
    paths = {name: store.original(found, name) for name in found.originals}
    source = f"originals {', '.join(paths)}"
    if found.name == "fashion_mnist":
        return _fashion_halves(paths), _FASHION, source
    archive = next(iter(paths.values()))
    if found.name == "cifar10":
        batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
        return {h: originals.read_cifar(archive, m, "labels") for h, m in batches.items()}, _CIFAR10, source
    halves = {h: originals.read_cifar(archive, [h], "fine_labels") for h in ("train", "test")}
    if found.name == "person32":
        chosen = {h: originals.select_person(*halves[h]) for h in halves}
        return chosen, ("no person", "person"), source
    chosen = {h: originals.select_transfer(*halves[h]) for h in halves}
    return chosen, tuple(originals.TRANSFER_CLASSES), source


def _fashion_halves(paths: dict[str, Path]) -> dict[str, originals.Arrays]:
    prefixes = {"train": "train", "test": "t10k"}
    return {
        half: (
            originals.read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])[..., None],
            originals.read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"]).astype(np.int64),
        )
        for half, prefix in prefixes.items()
    }


def _carve(found: Entry, halves: dict[str, originals.Arrays], split: str) -> originals.Arrays:
    """Return one split; validation is the same seeded, stratified share of each class of train."""
    if split == "test":
        return halves["test"]
    x, y = halves["train"]
    rng = np.random.default_rng(2024)
    validation = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        validation[rows[: round(found.validation_share * len(rows))]] = True
    chosen = validation if split == "validation" else ~validation
    return x[chosen], y[chosen]
