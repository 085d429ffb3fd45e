"""Read a firmware image: section sizes, symbols and the segments that a boot loader would write."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError

# Tag_CPU_arch of the build attributes (Arm IHI 0045, 3.3.5.2).
ARCHITECTURES = {11: "Armv6-M", 12: "Armv6-M", 10: "Armv7-M", 13: "Armv7E-M"}


@dataclass(frozen=True)
class Segment:
    """Bytes that lie in flash before the core starts.

    ``address`` is the load address: initial values of variables lie in flash, behind the constants, and
    the start-up code copies them to RAM.
    """

    address: int
    data: bytes
    executable: bool


@dataclass(frozen=True)
class Symbol:
    """A function or variable: its address (bit 0, the Thumb mark, cleared) and size in bytes."""

    name: str
    address: int
    size: int
    kind: str


@dataclass(frozen=True)
class Image:
    """What a firmware image takes on the board, all in bytes.

    Attributes
    ----------
    code : int
        ``.text``: vector table, start-up, support functions, kernels, network.
    weights : int
        ``.rodata``: every constant in flash, multipliers included.
    data : int
        ``.data``: variables with initial values; they take flash *and* RAM.
    bss : int
        ``.bss``: variables that start as zero; the arena is one.
    stack : int
        ``.stack``: what the linker script reserves; how much is used, the emulator measures.
    entry : int
        Address of the first instruction, with the Thumb mark.
    architecture : str
        What the image was compiled for, one of `ARCHITECTURES`.
    symbols : dict of str to Symbol
    segments : tuple of Segment
    machine_ranges : tuple of (int, int)
        Address ranges ``[first, end)`` that hold instructions (literal pools are left out).
    """

    code: int
    weights: int
    data: int
    bss: int
    stack: int
    entry: int
    architecture: str
    symbols: dict[str, Symbol]
    segments: tuple[Segment, ...]
    machine_ranges: tuple[tuple[int, int], ...]

    @property
    def flash_bytes(self) -> int:
        """Bytes of flash that the image takes."""
        return self.code + self.weights + self.data

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM that the image takes, the reserved stack included."""
        return self.data + self.bss + self.stack

    def symbol(self, name: str) -> Symbol:
        """Return a symbol, or raise DataError if the image has none of that name."""
        if name not in self.symbols:
            raise DataError(f"the firmware image has no symbol {name!r}; compile it from generated sources")
        return self.symbols[name]

    def where(self, address: int) -> str:
        """Return ``"function+offset"`` for an address, or its hexadecimal form."""
        functions = sorted((s.address, s.size, s.name) for s in self.symbols.values() if s.kind == "STT_FUNC")
        index = bisect.bisect_right(functions, (address, 1 << 32, "")) - 1
        if index >= 0 and address < functions[index][0] + max(functions[index][1], 1):
            return f"{functions[index][2]}+{address - functions[index][0]:#x}"
        return f"{address:#010x}"


def read_elf(path: str | Path) -> Image:
    """Read an image for a 32-bit little-endian Arm core.

    Raises
    ------
    DataError
        If the file is missing, is no ELF file, is truncated, or was linked for another machine.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    # A damaged file raises the first three (seen by fuzzing); the others are what parsing may raise as well.
    unreadable = (ELFError, ValueError, AttributeError, KeyError, IndexError, TypeError)

    try:
        with Path(path).open("rb") as stream:
            size = stream.seek(0, 2)
            return _read(ELFFile(stream), size)
    except FileNotFoundError as error:
        raise DataError(f"no firmware image at {path}; compile one first") from error
    except unreadable as error:
        raise DataError(f"{path} is not a readable firmware image ({error}); compile it again") from error


def _read(elf: Any, file_bytes: int) -> Image:
    if elf.get_machine_arch() != "ARM" or elf.elfclass != 32 or not elf.little_endian:
        raise DataError(f"the image is for {elf.get_machine_arch()}, not for a little-endian Arm core")
    table = elf.get_section_by_name(".symtab")
    if table is None:
        raise DataError("the image has no symbol table; link it without -s")
    segments = []
    for header in elf.iter_segments("PT_LOAD"):
        if header["p_offset"] + header["p_filesz"] > file_bytes:
            raise DataError("the image is truncated; compile it again")
        if header["p_filesz"]:
            segments.append(Segment(header["p_paddr"], header.data(), bool(header["p_flags"] & 1)))
    text = elf.get_section_by_name(".text")
    if text is None or not segments:
        raise DataError("the image holds no code; compile it again")
    raw = [(s.name, s["st_value"], s["st_size"], s["st_info"]["type"]) for s in table.iter_symbols()]
    symbols = {
        name: Symbol(name, value & ~1 if kind == "STT_FUNC" else value, size, kind)
        for name, value, size, kind in raw
        if name and not name.startswith("$") and kind in ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE")
    }
    # Mapping symbols ($t code, $d data; Arm IHI 0044, 5.5.5) tell instructions from literal pools.
    marks = sorted((value, name[:2]) for name, value, *_ in raw if name[:2] in ("$t", "$d"))
    sizes = {s.name: s["sh_size"] for s in elf.iter_sections()}
    return Image(
        code=sizes[".text"],
        weights=sizes.get(".rodata", 0),
        data=sizes.get(".data", 0),
        bss=sizes.get(".bss", 0),
        stack=sizes.get(".stack", 0),
        entry=elf["e_entry"],
        architecture=_architecture(elf),
        symbols=symbols,
        segments=tuple(segments),
        machine_ranges=_machine_ranges(marks, text["sh_addr"], text["sh_addr"] + text["sh_size"]),
    )


def _architecture(elf: Any) -> str:
    attributes = elf.get_section_by_name(".ARM.attributes")
    for part in attributes.iter_subsections() if attributes is not None else ():
        for block in part.iter_subsubsections():
            for attribute in block.iter_attributes("TAG_CPU_ARCH"):
                if attribute.value in ARCHITECTURES:
                    return ARCHITECTURES[attribute.value]
    raise DataError("the image is not for a Cortex-M0 to M7 core; compile it for one of the boards")


def _machine_ranges(marks: list[tuple[int, str]], first: int, end: int) -> tuple[tuple[int, int], ...]:
    inside = [(address, mark) for address, mark in marks if first <= address < end]
    ends = [address for address, _ in inside[1:]] + [end]
    return tuple((a, b) for (a, mark), b in zip(inside, ends, strict=True) if mark == "$t" and b > a)
