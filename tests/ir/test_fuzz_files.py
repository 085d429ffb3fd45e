"""Damaged files, as `python -m benchmarks.fuzz --files` judges them by the ten thousand, and its controls."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the oracle of files that are read")
pytest.importorskip("tflite", reason="reading .tflite needs the tflite package")

import mutated_files
from mutated_files import bases, judge, judged, mutated

from tinyml_edu import ir
from tinyml_edu.errors import TinyMLError
from tinyml_edu.ir import tflite

FEW, MANY = 300, 6000


def kinds(numbers: range) -> Counter:
    found = list(judged(numbers))
    assert [number for number, _ in found] == list(numbers)
    defects = [(number, verdict) for number, verdict in found if verdict.is_defect]
    assert defects == []
    return Counter(verdict.kind for _, verdict in found)


def test_damaged_files_give_one_of_our_errors_or_what_litert_computes():
    counts = kinds(range(FEW))
    assert counts["refused"] > FEW / 4
    assert counts["equal"] > FEW / 50


@pytest.mark.slow
def test_many_damaged_files_give_one_of_our_errors_or_what_litert_computes():
    assert kinds(range(FEW, FEW + MANY))["equal"] > MANY / 50


def test_the_files_are_different_and_always_the_same():
    assert len({mutated(n) for n in range(100)}) > 90
    assert mutated(7) == mutated(7)
    assert sum(mutated(n) in bases() for n in range(100)) < 10  # a byte may be set to what it was


def test_undamaged_files_run_as_in_litert(tmp_path):
    verdicts = [judge(content, tmp_path / "model.tflite") for content in bases()]
    assert {v.kind for v in verdicts} <= {"equal", "ran"}
    assert sum(v.kind == "equal" for v in verdicts) >= len(ir.OPS)


@pytest.fixture
def good(tmp_path):
    return bases()[0], tmp_path / "model.tflite"


def test_a_wrong_result_is_noticed(good, monkeypatch):
    right = ir.run
    monkeypatch.setattr(ir, "run", lambda graph, x: np.bitwise_xor(right(graph, x), np.int8(64)))
    assert judge(*good).kind == "different"


def test_another_exception_is_noticed(good, monkeypatch):
    monkeypatch.setattr(tflite._Reader, "read", lambda _: {}["a"])
    monkeypatch.setattr(tflite, "_CORRUPT", ())
    verdict = judge(*good)
    assert (verdict.kind, verdict.text) == ("exception", "KeyError: 'a'")


@pytest.mark.parametrize("text", ["short", "two lines\nof a message that is long enough", "x" * 5000])
def test_a_message_that_helps_nobody_is_noticed(good, monkeypatch, text):
    def refuse(_):
        raise TinyMLError(text)

    monkeypatch.setattr(tflite._Reader, "read", refuse)
    assert judge(*good).kind == "message"


def test_a_hang_is_noticed(good, monkeypatch):
    monkeypatch.setattr(mutated_files, "SECONDS", 0.2)
    monkeypatch.setattr(tflite._Reader, "read", lambda _: time.sleep(60))
    assert judge(*good).kind == "hang"


def test_a_gigabyte_is_noticed(monkeypatch):
    def swell(_):
        return np.ones(2 * mutated_files.MEMORY_BYTES, np.int8)

    monkeypatch.setattr(tflite._Reader, "read", swell)
    monkeypatch.setattr(mutated_files, "mutated", lambda _: bases()[0])
    assert [verdict.kind for _, verdict in judged(range(1))] == ["memory"]


def test_a_crash_is_noticed_and_the_next_file_is_judged(monkeypatch):
    import os
    import signal

    real = mutated_files.judge

    def crash(content, path, stage=None):
        if content == mutated(1):
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(content, path, stage)

    monkeypatch.setattr(mutated_files, "judge", crash)
    assert [(n, v.kind == "crash") for n, v in judged(range(3))] == [(0, False), (1, True), (2, False)]
