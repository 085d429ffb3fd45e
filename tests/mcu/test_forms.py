"""A network whose fastest form does not fit the flash is deployed in a smaller one; the report says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fast_layers import layer

from tinyml_edu import ir
from tinyml_edu.errors import DoesNotFitError
from tinyml_edu.ir import attrs as A
from tinyml_edu.mcu.boards import get_board
from tinyml_edu.mcu.deployment import Deployment, deploy
from tinyml_edu.mcu.forms import missing_flash

pytestmark = pytest.mark.c


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(0)
    attributes = A.Conv2D(padding=(1, 1, 1, 1))
    w, b = rng.integers(-127, 128, (48, 3, 3, 48)), np.zeros(48)
    return layer("CONV_2D", (1, 6, 6, 48), w, b, gain=1 / 2000, attributes=attributes)


def flash(graph, tmp_path, board, optimize="speed"):
    return deploy(graph, board, tmp_path / optimize, optimize=optimize).report["flash_bytes"]["total"]


def codes(graph):
    return np.random.default_rng(1).integers(-128, 128, (2, 6, 6, 48)).astype(np.int8)


def test_transformed_weights_are_given_up_first_and_then_speed(graph, tmp_path):
    board = get_board("stm32f412")
    roomy = deploy(graph, board, tmp_path / "roomy")
    assert (roomy.report["optimize"], roomy.report["optimize_note"]) == ("speed", "")
    small = flash(graph, tmp_path, board, "size")
    used, limit = [], roomy.report["flash_bytes"]["total"]
    while limit > small:
        made = deploy(graph, replace(board, flash_bytes=limit - 4), tmp_path / "net")
        report = made.report
        used.append((report["optimize"], report["instructions"]))
        assert "needs 4 B more flash than stm32f412 has" in report["optimize_note"] or len(used) > 1
        assert f"{report['optimize']!r} is used instead" in report["optimize_note"]
        assert report["flash_bytes"]["total"] <= limit - 4
        assert np.array_equal(made.run(codes(graph), "emulate").outputs, ir.run(graph, codes(graph)))
        limit = report["flash_bytes"]["total"]
    with pytest.raises(DoesNotFitError, match="FLASH are missing") as refused:
        deploy(graph, replace(board, flash_bytes=limit - 4), tmp_path / "net")
    assert "optimize='size'" not in str(refused.value)  # nobody is sent where it does not fit either
    assert [name for name, _ in used] == ["speed, least flash", "size"]
    assert roomy.report["instructions"] < min(count for _, count in used)


def test_a_64_kb_board_gets_the_form_that_fits(graph, tmp_path):
    board = get_board("stm32f103")
    fast, small = (flash(graph, tmp_path, board, optimize) for optimize in ("speed", "size"))
    assert small < fast <= board.flash_bytes
    made = deploy(graph, replace(board, flash_bytes=(small + fast) // 2), tmp_path / "net")
    assert Deployment.load(tmp_path / "net").optimize == "size"
    assert made.report["optimize"] == "size"
    host = made.run(codes(graph), "host").outputs
    assert np.array_equal(host, made.run(codes(graph), "emulate").outputs)


def test_a_request_for_size_is_not_widened(graph, tmp_path):
    board = replace(get_board("stm32f412"), flash_bytes=4096)
    with pytest.raises(DoesNotFitError, match="FLASH are missing"):
        deploy(graph, board, tmp_path / "net", optimize="size")


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("12 bytes of FLASH are missing (it has 9)", 12),
        ("4 bytes of RAM are missing (it has 9) and 12 bytes of FLASH are missing (it has 9)", 0),
        ("4 bytes of RAM are missing (it has 9)", 0),
    ],
)
def test_only_missing_flash_calls_for_a_smaller_form(text, bytes_):
    assert missing_flash(DoesNotFitError(text)) == bytes_
