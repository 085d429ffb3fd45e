"""Places where a project cannot be written: one line that says so, and nothing left behind."""

from __future__ import annotations

import errno
import os

import pytest
from random_graphs import random_layer

from tinyml_edu.errors import DataError, TinyMLError, UnknownNameError
from tinyml_edu.mcu import deploy, deployment

pytestmark = pytest.mark.c


@pytest.fixture
def graph():
    return random_layer("RELU", 3)


def refused(graph, out, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        deploy(graph, "stm32f412", out)
    assert "\n" not in str(caught.value)
    assert "name a folder that you may write to" in str(caught.value)


def test_a_path_through_a_file(graph, tmp_path):
    (tmp_path / "file").write_text("")
    refused(graph, tmp_path / "file" / "net", "cannot write .*(Not a directory|File exists)")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(graph, tmp_path):
    tmp_path.chmod(0o500)
    refused(graph, tmp_path / "net", "cannot write .*Permission denied")


def test_a_folder_that_denies_it(graph, tmp_path, monkeypatch):
    def denied(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(deployment.tempfile, "mkdtemp", denied)
    refused(graph, tmp_path / "net", "cannot write .*Permission denied")


def test_a_full_disk_leaves_nothing_behind(graph, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(deployment, "write_texts", full)
    refused(graph, tmp_path / "net", "cannot write .*No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_board_is_told_which_there_are(graph, tmp_path):
    with pytest.raises(
        UnknownNameError, match=r"unknown board 'stm32f421'; did you mean 'stm32f412'\?  Known"
    ):
        deploy(graph, "stm32f421", tmp_path / "net")
    assert issubclass(UnknownNameError, TinyMLError)
    assert list(tmp_path.iterdir()) == []
