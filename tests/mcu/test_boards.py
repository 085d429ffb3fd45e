"""The boards: the figures of the design, and what the linker and the emulator need of them."""

from __future__ import annotations

import dataclasses

import pytest

from tinyml_edu.errors import UnknownNameError
from tinyml_edu.mcu import cycles, emulator, toolchain
from tinyml_edu.mcu.boards import BOARDS, get_board

# Name: core, SRAM KiB, flash KiB, MHz; typed again from the datasheets, not taken from the module.
FIGURES = {
    "stm32f412": ("cortex-m4", 256, 1024, 100),
    "stm32f401": ("cortex-m4", 64, 256, 84),
    "stm32f103": ("cortex-m3", 20, 64, 72),
    "stm32f746": ("cortex-m7", 320, 1024, 216),
    "stm32h743": ("cortex-m7", 512, 2048, 480),
    "nrf52840": ("cortex-m4", 256, 1024, 64),
    "rp2040": ("cortex-m0plus", 264, 2048, 133),
}


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_figures_are_those_of_the_datasheet(name):
    board = BOARDS[name]
    core, sram, flash, clock = FIGURES[name]
    assert (board.core, board.sram_bytes, board.flash_bytes) == (core, sram * 1024, flash * 1024)
    assert board.clock_hz == clock * 1_000_000


def test_the_seven_boards_are_all_there_are():
    assert set(BOARDS) == set(FIGURES)
    assert all(name == board.name for name, board in BOARDS.items())


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_every_core_is_known_to_compiler_emulator_and_cycle_table(board):
    assert board.core in cycles.CORES
    assert board.core in emulator._CORE_RUNS
    assert (board.core, board.fpu) in toolchain._ZIG_FPU


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_every_board_names_its_sources(board):
    assert len(board.source) > 10
    # Where RAM comes in several banks, the board says which ones are meant.
    assert bool(board.memory_note) == (board.name in {"stm32f746", "stm32h743", "rp2040"})


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_memories_are_pages_that_do_not_overlap(board):
    assert board.sram_origin % 4096 == board.flash_origin % 4096 == 0
    assert board.sram_bytes % 4096 == board.flash_bytes % 4096 == 0
    flash = range(board.flash_origin, board.flash_origin + board.flash_bytes)
    sram = range(board.sram_origin, board.sram_origin + board.sram_bytes)
    assert flash[-1] < sram[0] or sram[-1] < flash[0]
    # Armv7-M, B1.5.3: the vector table is aligned to a power of two that holds it, at least 128 bytes.
    assert board.vector_table % 128 == 0
    assert board.usable_flash_bytes == board.flash_bytes - (256 if board.name == "rp2040" else 0)


def test_an_unknown_board_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match=r"did you mean 'stm32f412'\?.*rp2040") as caught:
        get_board("stm32f421")
    assert caught.value.exit_code == 2


def test_a_board_passes_through():
    own = dataclasses.replace(BOARDS["stm32f412"], name="own", sram_bytes=4096)
    assert get_board(own) is own


def test_the_table_in_the_documentation_is_that_of_the_code(repository):
    text = (repository / "docs" / "hardware.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{b.name}` | {b.title} | {b.core} | {b.sram_bytes // 1024} | {b.flash_bytes // 1024}"
        f" | {b.clock_hz / 1e6:g} | {b.fpu} | {b.source} |"
        for b in BOARDS.values()
    ]
