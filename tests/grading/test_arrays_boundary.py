"""Files that a student's process leaves: read whole when honest, refused when not."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyml_edu.errors import DataError
from tinyml_edu.grading.arrays import MAX_BYTES, read_arrays, unflatten, write_arrays

DTYPES = st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes())


@given(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4)))
def test_arrays_come_back_as_they_were(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("a") / "x.npz"
    write_arrays(path, {"0/x": array})
    back = read_arrays(path)["0/x"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def _archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _npy(array, **kwargs):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **kwargs)
    return buffer.getvalue()


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickled_array_is_refused_and_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _archive(tmp_path / "x.npz", {"0/x.npy": _npy(np.array([_Bomb()], dtype=object), allow_pickle=True)})
    with pytest.raises(DataError, match="objects"):
        read_arrays(tmp_path / "x.npz")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(_Bomb()))  # noqa: S301  the control: the bomb does go off when unpickled
    assert (tmp_path / "exploded").exists()


def test_a_header_that_promises_more_than_it_holds_is_refused(tmp_path):
    data = _npy(np.zeros(4)).replace(b"(4,)", b"(9,)")
    _archive(tmp_path / "x.npz", {"0/x.npy": data})
    with pytest.raises(DataError, match="header"):
        read_arrays(tmp_path / "x.npz")


def test_a_zip_bomb_is_refused(tmp_path):
    _archive(tmp_path / "x.npz", {"0/x.npy": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="compressed"):
        read_arrays(tmp_path / "x.npz")


def test_a_pipe_a_link_and_nonsense_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    write_arrays(tmp_path / "good.npz", {"0/x": np.zeros(1)})
    (tmp_path / "link").symlink_to(tmp_path / "good.npz")
    (tmp_path / "text").write_text("PK not really")
    for name in ("pipe", "link", "text", "absent"):
        with pytest.raises(DataError):
            read_arrays(tmp_path / name)


def test_too_much_is_refused_before_it_is_written(tmp_path):
    huge = np.broadcast_to(np.float64(0), (MAX_BYTES // 8 + 1,))
    with pytest.raises(DataError, match="limit"):
        write_arrays(tmp_path / "x.npz", {"0/x": huge})
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("key", ["2/x", "-1/x", "x", "/x", "٢/x", "1" * 400 + "/x"])
def test_an_array_for_a_case_that_does_not_exist_is_refused(key):
    with pytest.raises(DataError, match="does not exist"):
        unflatten({key: np.zeros(1)}, 2)
