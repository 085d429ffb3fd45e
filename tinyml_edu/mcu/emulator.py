"""Run a firmware image on an emulated Cortex-M core and count what it executes.

The core is unicorn's (QEMU's translator in a wheel).  A native hook (`count_hook`) runs before each
block of instructions and counts.  *Instructions are exact* and repeat from run to run; *cycles are estimated*
from them by `cycles`, and milliseconds from the cycles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ToolchainError, UsageError
from .accounting import Account
from .boards import Board, get_board
from .count_hook import DEPTH, NOT_CODE, TOO_DEEP, load_unicorn
from .elf import read_elf
from .instruments import CELL_BYTES, ArenaTrace

DEFAULT_LIMIT = 2_000_000_000
# unicorn executes the DSP instructions of Armv7E-M on its Cortex-M3 too, so the image itself is asked.
_CORE_RUNS = {
    "cortex-m0plus": ("Armv6-M",),
    "cortex-m3": ("Armv6-M", "Armv7-M"),
    "cortex-m4": ("Armv6-M", "Armv7-M", "Armv7E-M"),
    "cortex-m7": ("Armv6-M", "Armv7-M", "Armv7E-M"),
}
_PAGE = 4096
_SYSTEM_SPACE = (0xE000_E000, 0x1000)  # system control space: the start-up code enables the FPU there
_BREAKPOINT = 7  # QEMU's EXCP_BKPT


@dataclass(frozen=True)
class EmulationResult:
    """What a run of one or more inferences on an emulated board gave.

    Attributes
    ----------
    outputs : ndarray of int8, shape (n, output_bytes)
    instructions : int
        Instructions of one inference, from the entry of ``model_invoke`` to its return; the largest, if
        inferences differ (code whose path depends on the data).
    instructions_each, cycles_each : tuple of int, length n
    estimated_cycles : int
        Cycles of that inference by the core's table, zero wait states (an estimate; see `cycles`).
    estimated_ms : float
        ``estimated_cycles`` at the board's clock, milliseconds.
    stack_bytes : int
        Deepest stack since reset, bytes: the larger of the lowest stack pointer and the lowest written byte.
    layer_instructions, layer_cycles : dict of str to int
        Inclusive cost of each watched function in the last inference, callees included.
    layer_calls : dict of str to int
        How often each ran in the last inference.
    taken_branches : int
        Branches taken in the last inference.
    hits : dict of int to int
        Executions of each address in the last inference, ``model_invoke`` to return.
    mnemonics : dict of str to dict of str to int
        How often each mnemonic ran in the last inference, for each watched function without its watched
        callees and for ``model_invoke`` itself: the counts of all sum to that inference's instructions.
    startup_instructions : int
        From reset to the first instruction of ``model_invoke``, once.
    trace : ArenaTrace or None
        Accesses of the arena over all inferences (with ``trace=True``).
    """

    outputs: np.ndarray
    instructions: int
    instructions_each: tuple[int, ...]
    estimated_cycles: int
    cycles_each: tuple[int, ...]
    estimated_ms: float
    stack_bytes: int
    layer_instructions: dict[str, int]
    layer_cycles: dict[str, int]
    layer_calls: dict[str, int]
    taken_branches: int
    hits: dict[int, int]
    mnemonics: dict[str, dict[str, int]]
    startup_instructions: int
    trace: ArenaTrace | None = None

    @property
    def reads(self) -> np.ndarray | None:
        """Reads of each byte of the arena over all inferences, uint32 (arena_bytes,), if traced."""
        return None if self.trace is None else self.trace.reads

    @property
    def writes(self) -> np.ndarray | None:
        """Writes of each byte of the arena over all inferences, uint32 (arena_bytes,), if traced."""
        return None if self.trace is None else self.trace.writes

    @property
    def repeats_exactly(self) -> bool:
        """Whether every inference executed the same number of instructions."""
        return len(set(self.instructions_each)) == 1


def emulate(
    elf_path: str | Path,
    board: str | Board,
    inputs: np.ndarray,
    output_bytes: int,
    *,
    input_offset: int = 0,
    output_offset: int = 0,
    trace: bool = False,
    cell_bytes: int = CELL_BYTES,
    limit: int = DEFAULT_LIMIT,
) -> EmulationResult:
    """Boot a firmware image on a board's core and run one inference for each input.

    Parameters
    ----------
    elf_path : path
        An image from `toolchain.compile_firmware`.
    board : str or Board
        Its core and memory map; code outside them faults.
    inputs : ndarray of int8, shape (n, input_bytes)
        Codes to write at ``te_arena + input_offset`` before each inference (any trailing shape).
    output_bytes : int
        Bytes to read at ``te_arena + output_offset`` after each.
    trace : bool
        Count reads and writes of every byte of the arena (ten to thirty times slower).
    cell_bytes : int
        Bytes of the arena that the trace by layer takes together.
    limit : int
        Most instructions of one inference, boot included; more is a runaway.

    Raises
    ------
    ToolchainError
        If the firmware faults, runs away, or ``model_invoke`` reports an error; with address and function.
    DataError
        If the image is unreadable or has no ``te_arena`` or ``model_invoke``.
    UsageError
        If an input or output does not lie inside the arena.
    """
    if cell_bytes < 1:
        raise UsageError(f"a cell of the trace has at least one byte, not {cell_bytes}")
    machine = Machine(elf_path, board, trace=cell_bytes if trace else 0, limit=limit)
    codes = np.ascontiguousarray(inputs)
    if codes.dtype.itemsize != 1 or codes.ndim < 2 or len(codes) == 0:
        raise UsageError(f"inputs must be int8 codes, batch first, not {codes.dtype} {codes.shape}")
    rows = [machine.infer(row.tobytes(), input_offset, output_bytes, output_offset) for row in codes]
    return machine.result(np.frombuffer(b"".join(rows), np.int8).reshape(len(codes), output_bytes))


class Machine:
    """An emulated board, booted, that runs inferences one by one.

    Parameters are those of `emulate`; ``watch`` are the functions that get an account of their own, by
    default every ``model_layer_<i>``; ``trace`` is the width of a cell, or 0; ``each`` counts instruction by
    instruction instead of block by block (the same counts, slower: the tests compare the two).
    """

    def __init__(
        self,
        elf_path: str | Path,
        board: str | Board,
        *,
        trace: int = 0,
        limit: int = DEFAULT_LIMIT,
        watch: tuple[str, ...] | None = None,
        each: bool = False,
    ) -> None:
        self.board, self.image, self.limit = get_board(board), read_elf(elf_path), limit
        arena = self.image.symbol("te_arena")
        self.arena_address, self.arena_bytes = arena.address, arena.size
        if watch is None:
            functions = (s.name for s in self.image.symbols.values() if s.kind == "STT_FUNC")
            watch = tuple(name for name in functions if name.startswith("model_layer_"))
        # One name for each address: the linker may fold equal functions into one.
        names = {self.image.symbol(name).address: name for name in ("model_invoke", *watch)}
        self._fault: str | None = None
        self._at_breakpoint = False
        self.instructions_each: list[int] = []
        self.cycles_each: list[int] = []
        self._uc = self._boot()
        self._account = Account(
            self._uc,
            self.image,
            self.board.core,
            watched={name: address for address, name in names.items()},
            stack=(self._stack_limit, self.stack_top),
            entry=self._pc & ~1,
            each=each,
        )
        self.trace: ArenaTrace | None = None
        self._cell_bytes = trace
        self.startup_instructions = 0

    # -- set-up ---------------------------------------------------------------------------------

    def _boot(self) -> Any:
        """Map the board's memories, load the image, set SP and PC from the vector table."""
        unicorn = load_unicorn()
        model = {
            "cortex-m0plus": unicorn.arm_const.UC_CPU_ARM_CORTEX_M0,  # the same instruction set, Armv6-M
            "cortex-m3": unicorn.arm_const.UC_CPU_ARM_CORTEX_M3,
            "cortex-m4": unicorn.arm_const.UC_CPU_ARM_CORTEX_M4,
            "cortex-m7": unicorn.arm_const.UC_CPU_ARM_CORTEX_M7,
        }[self.board.core]
        runs, needs = _CORE_RUNS[self.board.core], self.image.architecture
        if needs not in runs:
            raise DataError(
                f"the image is {needs} code, {self.board.name} runs {runs[-1]}; compile it for this board"
            )
        # Not UC_MODE_MCLASS: with it, unicorn ignores the model asked for and emulates a Cortex-M33.
        uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
        uc.ctl_set_cpu_model(model)
        board = self.board
        uc.mem_map(board.flash_origin, _pages(board.flash_bytes), unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        uc.mem_map(board.sram_origin, _pages(board.sram_bytes), unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        uc.mem_map(*_SYSTEM_SPACE, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        for segment in self.image.segments:
            end = segment.address + len(segment.data)
            if segment.address < board.flash_origin or end > board.flash_origin + board.flash_bytes:
                raise DataError(f"the image is not linked for the flash of {board.name}; compile it for it")
            uc.mem_write(segment.address, segment.data)
        self.stack_top, entry = np.frombuffer(bytes(uc.mem_read(board.vector_table, 8)), "<u4").tolist()
        self._stack_limit = self.stack_top - self.image.stack
        # RAM holds anything at power-on.  What is painted shows the stack's depth, and a network that reads a
        # byte of the arena before it writes it.
        random = np.random.default_rng(0)
        self._paint = random.integers(0, 256, self.image.stack, np.uint8).tobytes()
        uc.mem_write(self._stack_limit, self._paint)
        uc.mem_write(self.arena_address, random.integers(0, 256, self.arena_bytes, np.uint8).tobytes())
        uc.reg_write(unicorn.arm_const.UC_ARM_REG_SP, self.stack_top)
        self._pc = entry | 1
        uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_bad_access)
        return uc

    # -- running --------------------------------------------------------------------------------

    def infer(self, codes: bytes, input_offset: int, output_bytes: int, output_offset: int) -> bytes:
        """Write an input, run to the next breakpoint and return the output."""
        places = {"input": (input_offset, len(codes)), "output": (output_offset, output_bytes)}
        for what, (offset, size) in places.items():
            if offset < 0 or offset + size > self.arena_bytes:
                raise UsageError(
                    f"the {what} ({size} bytes at {offset}) is outside the arena of {self.arena_bytes} bytes"
                )
        if not self.instructions_each:
            self._run_to_model()
        self._uc.mem_write(self.arena_address + input_offset, codes)
        self._run()
        status = self._uc.reg_read(load_unicorn().arm_const.UC_ARM_REG_R0)
        if status != 0:
            raise ToolchainError(f"model_invoke returned status {status}; check the model's arguments")
        return bytes(self._uc.mem_read(self.arena_address + output_offset, output_bytes))

    def arena(self) -> np.ndarray:
        """Return what the arena holds now, uint8 (arena_bytes,); before the first inference, anything."""
        return np.frombuffer(bytes(self._uc.mem_read(self.arena_address, self.arena_bytes)), np.uint8)

    def _run_to_model(self) -> None:
        """Run the start-up code up to the first instruction of model_invoke."""
        self._start(until=self.image.symbol("model_invoke").address)
        self.startup_instructions = self._account.instructions
        # From here on: what start-up code does with the arena is no access of the network.
        if self._cell_bytes:
            self.trace = self._account.trace(self.arena_address, self.arena_bytes, self._cell_bytes)

    def _run(self) -> None:
        """Run one inference, up to the breakpoint behind the call, and take its counts."""
        self._account.restart()
        self._start()
        calls, instructions, spent = self._account.totals()["model_invoke"]
        if calls != 1:
            raise ToolchainError("the firmware stopped outside model_invoke; use the package's start-up code")
        self.instructions_each.append(instructions)
        self.cycles_each.append(spent)

    def _start(self, until: int = 0xFFFF_FFFE) -> None:
        """Run until a breakpoint or an address; raise ToolchainError if it ends otherwise."""
        unicorn = load_unicorn()
        self._at_breakpoint, self._fault = False, None
        self._account.allow(self.limit)
        try:
            self._uc.emu_start(self._pc, until)
        except unicorn.UcError as error:
            self._fault = self._fault or str(error)
        pc = self._uc.reg_read(unicorn.arm_const.UC_ARM_REG_PC)
        if self._fault:
            raise ToolchainError(
                f"the firmware faulted at {self.image.where(pc)} ({pc:#010x}): {self._fault}"
            )
        if self._account.problem == TOO_DEEP:
            raise ToolchainError(f"more than {DEPTH} nested watched calls at {self.image.where(pc)}")
        if self._account.problem == NOT_CODE:
            raise ToolchainError(f"the firmware ran into data at {self.image.where(pc)} (pc {pc:#010x})")
        if self._at_breakpoint:
            self._pc = (pc + 2) | 1
        elif pc == until:
            self._pc = pc | 1
        else:
            raise ToolchainError(
                f"the firmware did not finish within {self.limit:,} instructions; it was at "
                f"{self.image.where(pc)} (pc {pc:#010x})"
            )

    def _on_exception(self, uc: Any, number: int, _user: Any) -> None:
        if number == _BREAKPOINT:
            self._at_breakpoint = True
        else:
            self._fault = f"processor exception {number} (undefined instruction or unaligned access)"
        uc.emu_stop()

    def _on_bad_access(self, _uc: Any, kind: int, address: int, size: int, _value: int, _user: Any) -> bool:
        unicorn = load_unicorn()
        kinds = {
            unicorn.UC_MEM_READ_UNMAPPED: "read of",
            unicorn.UC_MEM_WRITE_UNMAPPED: "write to",
            unicorn.UC_MEM_FETCH_UNMAPPED: "jump to",
            unicorn.UC_MEM_WRITE_PROT: "write to flash at",
            unicorn.UC_MEM_FETCH_PROT: "jump to data at",
        }
        where = f"{kinds.get(kind, 'access to')} {address:#010x}, {size} bytes"
        below = self.board.sram_origin - _PAGE <= address < self.board.sram_origin
        self._fault = where + (", just below the RAM: the stack overflowed" if below else "")
        return False

    # -- results --------------------------------------------------------------------------------

    def stack_bytes(self) -> int:
        """Return the deepest stack since reset, bytes."""
        seen = bytes(self._uc.mem_read(self._stack_limit, len(self._paint)))
        changed = np.flatnonzero(np.frombuffer(seen, np.uint8) != np.frombuffer(self._paint, np.uint8))
        written = len(seen) - int(changed[0]) if changed.size else 0
        return max(written, self.stack_top - self._account.lowest_sp)

    def result(self, outputs: np.ndarray) -> EmulationResult:
        """Return the account of all inferences so far, with the outputs given."""
        layers = {name: total for name, total in self._account.totals().items() if name != "model_invoke"}
        worst = int(np.argmax(self.instructions_each))
        return EmulationResult(
            outputs=outputs,
            instructions=self.instructions_each[worst],
            instructions_each=tuple(self.instructions_each),
            estimated_cycles=self.cycles_each[worst],
            cycles_each=tuple(self.cycles_each),
            estimated_ms=1e3 * self.cycles_each[worst] / self.board.clock_hz,
            stack_bytes=self.stack_bytes(),
            layer_instructions={name: total[1] for name, total in layers.items()},
            layer_cycles={name: total[2] for name, total in layers.items()},
            layer_calls={name: total[0] for name, total in layers.items()},
            taken_branches=self._account.taken_branches,
            hits=self._account.executions(),
            mnemonics=self._account.mnemonics(),
            startup_instructions=self.startup_instructions,
            trace=self.trace,
        )


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
