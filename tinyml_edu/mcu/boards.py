"""The boards that the compiler knows: core, memory, clock and where each figure comes from."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnknownNameError

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True)
class Board:
    """A microcontroller as the linker and the emulator see it.

    Attributes
    ----------
    name, title : str
        The name to type, and the part's own name.
    core : str
        Arm core, such as ``"cortex-m4"``; the emulator and the cycle table go by it.
    mcpu : str
        Zig's name of the core (``-mcpu=``).
    sram_bytes, flash_bytes : int
        Size of the memories, bytes.  Where a part has several RAM banks, ``sram_bytes`` is the contiguous
        region that ``memory_note`` names, because one arena cannot span a hole.
    sram_origin, flash_origin : int
        First address of each.
    clock_hz : int
        Highest CPU clock of the part, Hz; times are estimated at this clock with zero wait states.
    fpu : str
        ``"none"``, ``"single"`` or ``"double"``.
    boot_bytes : int
        Bytes at the start of flash that a ROM boot loader owns; the vector table follows them.
    memory_note : str
        Which RAM region is meant, where there is a choice.
    source : str
        Datasheet and reference manual of the figures.
    """

    name: str
    title: str
    core: str
    mcpu: str
    sram_bytes: int
    flash_bytes: int
    clock_hz: int
    source: str
    sram_origin: int = 0x2000_0000
    flash_origin: int = 0x0800_0000
    fpu: str = "none"
    boot_bytes: int = 0
    memory_note: str = ""

    @property
    def has_dsp(self) -> bool:
        """Whether the core has the DSP extension, which the specialised kernels are written for."""
        return self.core in ("cortex-m4", "cortex-m7")

    @property
    def vector_table(self) -> int:
        """Address of the vector table, where the core finds its first stack pointer and its first PC."""
        return self.flash_origin + self.boot_bytes

    @property
    def usable_flash_bytes(self) -> int:
        """Flash that is left for the firmware after the boot loader, bytes."""
        return self.flash_bytes - self.boot_bytes


_LIST = (
    Board(
        name="stm32f412",
        title="STM32F412xG",
        core="cortex-m4",
        mcpu="cortex_m4",
        sram_bytes=256 * KIB,
        flash_bytes=1 * MIB,
        clock_hz=100_000_000,
        fpu="single",
        source="ST DS11139 (STM32F412xE/xG), RM0402",
    ),
    Board(
        name="stm32f401",
        title="STM32F401xC",
        core="cortex-m4",
        mcpu="cortex_m4",
        sram_bytes=64 * KIB,
        flash_bytes=256 * KIB,
        clock_hz=84_000_000,
        fpu="single",
        source="ST DS9716 (STM32F401xB/xC), RM0368",
    ),
    Board(
        name="stm32f103",
        title="STM32F103x8",
        core="cortex-m3",
        mcpu="cortex_m3",
        sram_bytes=20 * KIB,
        flash_bytes=64 * KIB,
        clock_hz=72_000_000,
        source="ST DS5319 (STM32F103x8/xB), RM0008",
    ),
    Board(
        name="stm32f746",
        title="STM32F746xG",
        core="cortex-m7",
        mcpu="cortex_m7",
        sram_bytes=320 * KIB,
        flash_bytes=1 * MIB,
        clock_hz=216_000_000,
        fpu="single",
        memory_note=(
            "DTCM 64 KB (0x20000000), SRAM1 240 KB (0x20010000) and SRAM2 16 KB (0x2004C000) follow each "
            "other without a hole, so that one arena may span all three; ITCM 16 KB (0x00000000) is not used"
        ),
        source="ST DS10916 (STM32F745xx/F746xx), RM0385",
    ),
    Board(
        name="stm32h743",
        title="STM32H743xI",
        core="cortex-m7",
        mcpu="cortex_m7",
        sram_bytes=512 * KIB,
        flash_bytes=2 * MIB,
        clock_hz=480_000_000,
        fpu="double",
        sram_origin=0x2400_0000,
        memory_note=(
            "AXI SRAM, 512 KB (0x24000000), the largest contiguous bank; DTCM 128 KB (0x20000000), SRAM1-3 "
            "288 KB (0x30000000) and SRAM4 64 KB (0x38000000) lie elsewhere and are not used"
        ),
        source="ST DS12110 (STM32H742xI/G, H743xI/G; 480 MHz is revision V), RM0433",
    ),
    Board(
        name="nrf52840",
        title="nRF52840",
        core="cortex-m4",
        mcpu="cortex_m4",
        sram_bytes=256 * KIB,
        flash_bytes=1 * MIB,
        clock_hz=64_000_000,
        fpu="single",
        flash_origin=0x0000_0000,
        source="Nordic nRF52840 Product Specification v1.7 (4413_417)",
    ),
    Board(
        name="rp2040",
        title="RP2040 with 2 MB of flash (Raspberry Pi Pico)",
        core="cortex-m0plus",
        mcpu="cortex_m0plus",
        sram_bytes=264 * KIB,
        flash_bytes=2 * MIB,
        clock_hz=133_000_000,
        flash_origin=0x1000_0000,
        boot_bytes=256,
        memory_note=(
            "SRAM0-3, 256 KB striped (0x20000000), and SRAM4-5, 2 x 4 KB (0x20040000), are contiguous; flash "
            "is an external chip, run in place through a cache; its first 256 bytes hold the boot loader"
        ),
        source="Raspberry Pi RP2040 Datasheet (sections 2.6 and 2.8), Pico Datasheet",
    ),
)

QEMU_M4 = Board(
    name="mps2-an386",
    title="Arm MPS2 with AN386, as QEMU has it",
    core="cortex-m4",
    mcpu="cortex_m4",
    sram_bytes=4 * MIB,
    flash_bytes=4 * MIB,
    clock_hz=25_000_000,
    flash_origin=0x0000_0000,
    source="QEMU, hw/arm/mps2.c: ZBT RAM at 0x00000000 and 0x20000000",
)
"""Not a board to deploy to: it is where a second emulator checks what the first one counts."""

BOARDS: dict[str, Board] = {board.name: board for board in _LIST}


def get_board(name: str | Board) -> Board:
    """Return the board of that name (a `Board` is returned as it is).

    Raises
    ------
    UnknownNameError
        If no board has that name; the message suggests the nearest one.

    Examples
    --------
    >>> get_board("stm32f412").sram_bytes
    262144
    """
    if isinstance(name, Board):
        return name
    if name not in BOARDS:
        raise UnknownNameError("board", name, BOARDS)
    return BOARDS[name]
