"""Downloads come whole or not at all; originals are decoded without executing what a pickle says."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyml_edu import data
from tinyml_edu.data import originals
from tinyml_edu.data.manifest import entry
from tinyml_edu.errors import DataError


class Server:
    """A web server on this computer that serves the bytes in ``files``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        files = self.files

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = files.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.delenv("TINYML_EDU_DATA", raising=False)
    monkeypatch.delenv("TINYML_EDU_OFFLINE", raising=False)
    monkeypatch.setenv("TINYML_EDU_CACHE", str(tmp_path))
    return tmp_path


def batch_by_hand(x: np.ndarray, y: np.ndarray, key: str) -> bytes:
    """Return a protocol-2 pickle with the opcodes that Python 2 wrote, as in the published archives."""
    pixels = x.transpose(0, 3, 1, 2).tobytes()

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    labels = b"".join(b"K" + bytes([value]) for value in y)
    filenames = b"(" + b"".join(string(b"%05d.png" % i) for i in range(len(y))) + b"e"
    return (
        b"\x80\x02}q\x01(" + string(b"batch_label") + string(b"one of one")
        + string(key.encode()) + b"]q\x02(" + labels + b"e"
        + string(b"data") + b"T" + struct.pack("<i", len(pixels)) + pixels
        + string(b"filenames") + b"]q\x03" + filenames + b"u."
    )  # fmt: skip


def batch_by_python_3(x: np.ndarray, y: np.ndarray, key: str) -> bytes:
    planes = x.transpose(0, 3, 1, 2).reshape(len(y), 3072)
    return pickle.dumps(
        {"batch_label": "one", key: y.tolist(), "data": planes, "filenames": ["a"]}, protocol=2
    )


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    return buffer.getvalue()


def examples(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8), rng.permutation(np.arange(n) % classes)


def publish(server: Server, monkeypatch, name: str, files: dict[str, bytes]) -> None:
    """Serve ``files`` and make them the originals of ``name``."""
    assert set(files) == set(entry(name).originals)
    for file, text in files.items():
        server.files[f"/{file}"] = text
        source = {"url": f"{server.url}/{file}", "md5": hashlib.md5(text).hexdigest()}
        monkeypatch.setitem(entry(name).originals, file, source)


def cifar10_archive() -> tuple[bytes, dict[str, tuple[np.ndarray, np.ndarray]]]:
    batches = {f"data_batch_{i}": examples(20, 10, i) for i in range(1, 6)} | {
        "test_batch": examples(20, 10, 9)
    }
    return archive({name: batch_by_hand(x, y, "labels") for name, (x, y) in batches.items()}), batches


def test_cifar10_is_downloaded_checked_and_decoded(server, folders, monkeypatch, capfd):
    text, batches = cifar10_archive()
    publish(server, monkeypatch, "cifar10", {"cifar-10-python.tar.gz": text})
    train, validation, test = (data.load("cifar10", split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (90, 10, 20)
    assert np.array_equal(test.x, batches["test_batch"][0])
    assert np.array_equal(test.y, batches["test_batch"][1])
    label_of = {x.tobytes(): y for xs, ys in batches.values() for x, y in zip(xs, ys)}
    assert all(label_of[x.tobytes()] == y for part in (train, validation) for x, y in zip(part.x, part.y))
    assert test.info["source"] == "originals cifar-10-python.tar.gz"
    assert "downloading cifar-10-python.tar.gz" in capfd.readouterr().out
    assert [p.name for p in folders.rglob("*") if p.is_file()] == ["cifar-10-python.tar.gz"]
    server.files.clear()
    assert len(data.load("cifar10", "test")) == 20  # from the cache


def cifar100_archive() -> tuple[bytes, dict[str, tuple[np.ndarray, np.ndarray]]]:
    halves = {"train": examples(600, 100, 1), "test": examples(300, 100, 2)}
    return archive({name: batch_by_hand(x, y, "fine_labels") for name, (x, y) in halves.items()}), halves


def test_transfer10_and_person32_are_rebuilt_from_cifar100(server, folders, monkeypatch):
    text, halves = cifar100_archive()
    for name in ("cifar100_transfer10", "person32"):
        publish(server, monkeypatch, name, {"cifar-100-python.tar.gz": text})
    fine_of = {x.tobytes(): int(y) for x, y in zip(*halves["test"])}
    transfer = data.load("cifar100_transfer10", "test")
    assert len(transfer) == 30
    order = list(originals.TRANSFER_CLASSES.values())
    assert [order.index(fine_of[x.tobytes()]) for x in transfer.x] == transfer.y.tolist()
    person = data.load("person32", "test")
    assert np.bincount(person.y).tolist() == [15, 15]
    assert [fine_of[x.tobytes()] in originals.PERSON_CLASSES for x in person.x] == person.y.astype(
        bool
    ).tolist()


def idx(x: np.ndarray) -> bytes:
    return gzip.compress(b"\0\0\x08" + bytes([x.ndim]) + np.array(x.shape, ">i4").tobytes() + x.tobytes())


def test_fashion_mnist_is_downloaded_and_decoded(server, folders, monkeypatch, rng):
    x = rng.integers(0, 256, (100, 28, 28)).astype(np.uint8)
    y = (np.arange(100) % 10).astype(np.uint8)
    files = {
        "train-images-idx3-ubyte.gz": idx(x), "train-labels-idx1-ubyte.gz": idx(y),
        "t10k-images-idx3-ubyte.gz": idx(x[:20]), "t10k-labels-idx1-ubyte.gz": idx(y[:20]),
    }  # fmt: skip
    publish(server, monkeypatch, "fashion_mnist", files)
    test = data.load("fashion_mnist", "test")
    assert np.array_equal(test.x[..., 0], x[:20])
    assert np.array_equal(test.y, y[:20])
    assert len(data.load("fashion_mnist", "train")) == 90


def test_originals_in_the_data_folder_need_no_network(folders, tmp_path, monkeypatch):
    text, _ = cifar10_archive()
    source = {"url": "http://127.0.0.1:9/", "md5": hashlib.md5(text).hexdigest()}
    monkeypatch.setitem(entry("cifar10").originals, "cifar-10-python.tar.gz", source)
    monkeypatch.setenv("TINYML_EDU_OFFLINE", "1")
    monkeypatch.setenv("TINYML_EDU_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz into \$TINYML_EDU_DATA/cifar10,"):
        data.load("cifar10")
    (tmp_path / "mine" / "cifar10").mkdir(parents=True)
    (tmp_path / "mine" / "cifar10" / "cifar-10-python.tar.gz").write_bytes(text)
    assert len(data.load("cifar10", "test")) == 20


def test_a_download_with_another_digest_leaves_nothing(server, folders, monkeypatch):
    text, _ = cifar10_archive()
    publish(server, monkeypatch, "cifar10", {"cifar-10-python.tar.gz": text})
    server.files["/cifar-10-python.tar.gz"] = text[:-1] + b"!"
    with pytest.raises(DataError, match=r"its md5 differs.*data\.load\('glyphs32'\)"):
        data.load("cifar10")
    assert not [p for p in folders.rglob("*") if p.is_file()]


def test_a_missing_page_and_a_dead_server_are_one_line(server, folders, monkeypatch):
    text, _ = cifar10_archive()
    publish(server, monkeypatch, "cifar10", {"cifar-10-python.tar.gz": text})
    server.files.clear()
    with pytest.raises(DataError, match="cannot be downloaded \\(404") as caught:
        data.load("cifar10")
    assert "\n" not in str(caught.value)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError, match=r"no connection.*needs no download") as caught:
        data.load("cifar10")
    assert "\n" not in str(caught.value)


def test_a_damaged_original_in_the_cache_is_refused(server, folders, monkeypatch):
    text, _ = cifar10_archive()
    publish(server, monkeypatch, "cifar10", {"cifar-10-python.tar.gz": text})
    data.load("cifar10")
    path = next(folders.rglob("*.tar.gz"))
    path.write_bytes(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"is corrupt: its md5 is .*; delete it"):
        data.load("cifar10")


@pytest.mark.parametrize("write", [batch_by_hand, batch_by_python_3])
def test_opcodes_give_what_unpickling_gives(write):
    x, y = examples(20, 10, 3)
    text = write(x, y, "labels")
    pixels, labels = originals._cifar_batch(text, "labels")
    assert np.array_equal(pixels, x)
    assert np.array_equal(labels, y)
    unpickled = pickle.loads(text, encoding="latin1")  # noqa: S301 (written four lines above)
    assert unpickled["labels"] == y.tolist()


class Malice:
    def __init__(self, folder) -> None:
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


def test_a_malicious_pickle_executes_nothing(tmp_path):
    x, y = examples(20, 10, 3)
    planes = x.transpose(0, 3, 1, 2).reshape(20, 3072)
    trap = pickle.dumps({"labels": y.tolist(), "data": planes, "x": Malice(tmp_path / "owned")}, protocol=2)
    originals._cifar_batch(trap, "labels")
    assert not (tmp_path / "owned").exists()
    pickle.loads(trap)  # noqa: S301 (the control: unpickling would have executed it)
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("text", [b"", b"not a pickle", pickle.dumps({"labels": [1, 2], "data": b"abc"}, 2)])
def test_a_batch_without_pixels_is_refused(text, tmp_path):
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(archive({"test_batch": text}))
    with pytest.raises(DataError, match="is not a CIFAR archive"):
        originals.read_cifar(path, ["test_batch"], "labels")


@pytest.mark.parametrize("text", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x05ab", b"\0\0\x09\x01\0\0\0\x02ab"])
def test_a_damaged_idx_file_is_refused(text, tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(text))
    with pytest.raises(DataError, match="is not an IDX file"):
        originals.read_idx(path)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.just(3))))
def test_delta_coding_loses_nothing(images):
    assert np.array_equal(originals.decode_delta(originals.encode_delta(images)), images)


def test_persons_are_balanced_and_others_spread_evenly():
    fine = np.repeat(np.arange(100), 30)
    x = np.arange(3000)[:, None]
    chosen, y = originals.select_person(x, fine)
    assert np.bincount(y).tolist() == [150, 150]
    counts = np.bincount(fine[chosen[:, 0]], minlength=100)
    others = np.delete(counts, originals.PERSON_CLASSES)
    assert set(others.tolist()) == {1, 2}
    assert (np.diff(chosen[:, 0]) > 0).all()  # each image once


@pytest.mark.data
def test_class_lists_agree_with_the_reduced_copies(data_dir):
    with np.load(data_dir / "person32" / "person32_delta.npz") as found:
        persons = np.unique(found["fine_train"][found["y_train"] == 1])
        names = found["fine_classes"]
    assert tuple(persons.tolist()) == originals.PERSON_CLASSES
    for name, label in originals.TRANSFER_CLASSES.items():
        assert names[label] == name
    assert data.load("cifar100_transfer10").classes == tuple(originals.TRANSFER_CLASSES)
    assert data.load("cifar10").classes == loading_classes("_CIFAR10")
    assert data.load("fashion_mnist").classes == loading_classes("_FASHION")


def loading_classes(name: str) -> tuple[str, ...]:
    from tinyml_edu.data import loading

    return getattr(loading, name)
