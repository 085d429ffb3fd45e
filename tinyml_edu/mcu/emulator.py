"""Run a firmware image on an emulated Cortex-M core and count what it executes.

The core is unicorn's (QEMU's translator in a wheel).  A native hook (``hook/count_hook.c``, compiled by the
package's own toolchain) runs before each instruction and counts.  *Instructions are exact* and repeat from
run to run; *cycles are estimated* from them by `cycles`, and milliseconds from the cycles.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ToolchainError, UsageError
from . import cycles, toolchain
from .boards import Board, get_board
from .elf import read_elf

DEFAULT_LIMIT = 2_000_000_000
_HOOK_SOURCE = Path(__file__).parent / "hook" / "count_hook.c"
_DEPTH = 64  # TE_DEPTH of the hook
# unicorn executes the DSP instructions of Armv7E-M on its Cortex-M3 too, so the image itself is asked.
_CORE_RUNS = {
    "cortex-m0plus": ("Armv6-M",),
    "cortex-m3": ("Armv6-M", "Armv7-M"),
    "cortex-m4": ("Armv6-M", "Armv7-M", "Armv7E-M"),
    "cortex-m7": ("Armv6-M", "Armv7-M", "Armv7E-M"),
}
_TOO_DEEP, _NOT_CODE = 1, 2  # problems that the hook reports
_PAGE = 4096
_SYSTEM_SPACE = (0xE000_E000, 0x1000)  # system control space: the start-up code enables the FPU there
_BREAKPOINT = 7  # QEMU's EXCP_BKPT


class _Frame(ctypes.Structure):
    _fields_ = [
        ("instructions", ctypes.c_uint64),
        ("cycles", ctypes.c_uint64),
        ("back", ctypes.c_uint32),
        ("sp", ctypes.c_uint32),
        ("function", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    ]


class _Counter(ctypes.Structure):
    """``struct te_counter`` of the hook."""

    _fields_ = [
        ("instructions", ctypes.c_uint64),
        ("cycles", ctypes.c_uint64),
        ("taken", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("slots", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("cycles_sum", ctypes.c_void_p),
        ("last", ctypes.c_void_p),
        ("hits", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
        ("watched", ctypes.c_void_p),
        ("reg_read", ctypes.c_void_p),
        ("stop", ctypes.c_void_p),
        ("code_base", ctypes.c_uint32),
        ("slot_count", ctypes.c_uint32),
        ("functions", ctypes.c_uint32),
        ("sp_low", ctypes.c_uint32),
        ("sp_limit", ctypes.c_uint32),
        ("sp_top", ctypes.c_uint32),
        ("next", ctypes.c_uint32),
        ("refill", ctypes.c_uint32),
        ("depth", ctypes.c_uint32),
        ("problem", ctypes.c_uint32),
        ("sp_register", ctypes.c_int32),
        ("lr_register", ctypes.c_int32),
        ("frames", _Frame * _DEPTH),
    ]


class _Trace(ctypes.Structure):
    """``struct te_trace`` of the hook."""

    _fields_ = [
        ("reads", ctypes.c_void_p),
        ("writes", ctypes.c_void_p),
        ("base", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    ]


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
    reads, writes : ndarray of uint32, shape (arena_bytes,), or None
        Accesses of each byte of the arena over all inferences (with ``trace=True``).
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
    reads: np.ndarray | None = None
    writes: np.ndarray | None = None

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
    machine = Machine(elf_path, board, trace=trace, limit=limit)
    codes = np.ascontiguousarray(inputs)
    if codes.dtype.itemsize != 1 or codes.ndim < 2 or len(codes) == 0:
        raise UsageError(f"inputs must be int8 codes, batch first, not {codes.dtype} {codes.shape}")
    rows = [machine.infer(row.tobytes(), input_offset, output_bytes, output_offset) for row in codes]
    return machine.result(np.frombuffer(b"".join(rows), np.int8).reshape(len(codes), output_bytes))


class Machine:
    """An emulated board, booted, that runs inferences one by one.

    Parameters are those of `emulate`; ``watch`` are the functions that get an account of their own, by
    default every ``model_layer_<i>``; ``each`` counts instruction by instruction instead of block by block
    (the same counts, slower: the tests compare the two).
    """

    def __init__(
        self,
        elf_path: str | Path,
        board: str | Board,
        *,
        trace: bool = False,
        limit: int = DEFAULT_LIMIT,
        watch: tuple[str, ...] | None = None,
        each: bool = False,
    ) -> None:
        self.board, self.image, self.limit = get_board(board), read_elf(elf_path), limit
        arena = self.image.symbol("te_arena")
        self.arena_address, self.arena_bytes = arena.address, arena.size
        if watch is None:
            watch = tuple(s for s in self.image.symbols if s.startswith("model_layer_"))
        names = {self.image.symbol(name).address: name for name in ("model_invoke", *watch)}
        self._watched = [names[address] for address in sorted(names)]
        self._fault: str | None = None
        self._at_breakpoint = False
        self.instructions_each: list[int] = []
        self.cycles_each: list[int] = []
        self._taken = 0
        self._uc = self._boot()
        self._counter = self._attach(trace, each)

    # -- set-up ---------------------------------------------------------------------------------

    def _boot(self) -> Any:
        """Map the board's memories, load the image, set SP and PC from the vector table."""
        unicorn = _unicorn()
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
        self._paint = np.random.default_rng(0).integers(0, 256, self.image.stack, np.uint8).tobytes()
        uc.mem_write(self._stack_limit, self._paint)
        uc.reg_write(unicorn.arm_const.UC_ARM_REG_SP, self.stack_top)
        self._pc = entry | 1
        uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_bad_access)
        return uc

    def _attach(self, trace: bool, each: bool) -> _Counter:
        """Build the records of all code and add the native hooks to the emulator."""
        unicorn = _unicorn()
        library = _hook_library()
        uclib = unicorn.unicorn_py3.unicorn.uclib
        code = max((s for s in self.image.segments if s.executable), key=lambda s: len(s.data))
        decoded = cycles.disassemble(code.data, code.address, self.image.machine_ranges)
        self._tables = tables = cycles.tables(decoded, self.board.core, code.address, len(code.data))
        self._entries = np.array([self.image.symbols[n].address for n in self._watched], np.uint32)
        tables.records[(self._entries - code.address) // 2] |= cycles.WATCH
        self._hits = np.zeros(len(tables.records), np.int64)
        self._totals = np.zeros((len(self._entries), 3), np.uint64)
        counter = _Counter(
            limit=self.limit,
            slots=tables.records.ctypes.data,
            before=tables.before.ctypes.data,
            cycles_sum=tables.cycles_sum.ctypes.data,
            last=tables.last.ctypes.data,
            hits=self._hits.ctypes.data,
            totals=self._totals.ctypes.data,
            watched=self._entries.ctypes.data,
            reg_read=ctypes.cast(uclib.uc_reg_read, ctypes.c_void_p),
            stop=ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p),
            code_base=code.address,
            slot_count=len(tables.records) - 1,
            functions=len(self._entries),
            sp_low=self.stack_top,
            sp_limit=self._stack_limit,
            sp_top=self.stack_top,
            next=self._pc & ~1,
            sp_register=unicorn.arm_const.UC_ARM_REG_SP,
            lr_register=unicorn.arm_const.UC_ARM_REG_LR,
        )
        if each:
            _add_hook(self._uc, unicorn.UC_HOOK_CODE, library.te_count_each, counter)
        else:
            _add_hook(self._uc, unicorn.UC_HOOK_BLOCK, library.te_count_block, counter)
        for address in tables.behind_sp:
            _add_hook(self._uc, unicorn.UC_HOOK_CODE, library.te_watch_stack, counter, address)
        self.reads = self.writes = None
        if trace:
            self.reads, self.writes = (np.zeros(self.arena_bytes, np.uint32) for _ in range(2))
            self._trace = _Trace(
                self.reads.ctypes.data, self.writes.ctypes.data, self.arena_address, self.arena_bytes
            )
            kinds = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
            _add_hook(self._uc, kinds, library.te_trace_access, self._trace)
        return counter

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
        status = self._uc.reg_read(_unicorn().arm_const.UC_ARM_REG_R0)
        if status != 0:
            raise ToolchainError(f"model_invoke returned status {status}; check the model's arguments")
        return bytes(self._uc.mem_read(self.arena_address + output_offset, output_bytes))

    def _run_to_model(self) -> None:
        """Run the start-up code, which clears the arena, up to the first instruction of model_invoke."""
        self._start(until=self.image.symbol("model_invoke").address)

    def _run(self) -> None:
        """Run one inference, up to the breakpoint behind the call, and take its counts."""
        self._hits[:] = 0
        self._totals[:] = 0
        taken = self._counter.taken
        self._start()
        self._taken = self._counter.taken - taken
        calls, instructions, spent = self._totals[self._index("model_invoke")].tolist()
        if calls != 1:
            raise ToolchainError("the firmware stopped outside model_invoke; use the package's start-up code")
        self.instructions_each.append(instructions)
        self.cycles_each.append(spent)

    def _start(self, until: int = 0xFFFF_FFFE) -> None:
        """Run until a breakpoint or an address; raise ToolchainError if it ends otherwise."""
        unicorn = _unicorn()
        self._at_breakpoint, self._fault = False, None
        self._counter.limit = self._counter.instructions + self.limit
        try:
            self._uc.emu_start(self._pc, until)
        except unicorn.UcError as error:
            self._fault = self._fault or str(error)
        pc = self._uc.reg_read(unicorn.arm_const.UC_ARM_REG_PC)
        if self._fault:
            raise ToolchainError(
                f"the firmware faulted at {self.image.where(pc)} ({pc:#010x}): {self._fault}"
            )
        if self._counter.problem == _TOO_DEEP:
            raise ToolchainError(f"more than {_DEPTH} nested watched calls at {self.image.where(pc)}")
        if self._counter.problem == _NOT_CODE:
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
        unicorn = _unicorn()
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

    def _index(self, name: str) -> int:
        return self._watched.index(name)

    def stack_bytes(self) -> int:
        """Return the deepest stack since reset, bytes."""
        seen = bytes(self._uc.mem_read(self._stack_limit, len(self._paint)))
        changed = np.flatnonzero(np.frombuffer(seen, np.uint8) != np.frombuffer(self._paint, np.uint8))
        written = len(seen) - int(changed[0]) if changed.size else 0
        return max(written, self.stack_top - self._counter.sp_low)

    def result(self, outputs: np.ndarray) -> EmulationResult:
        """Return the account of all inferences so far, with the outputs given."""
        layers = {
            name: self._totals[i].tolist() for i, name in enumerate(self._watched) if name != "model_invoke"
        }
        worst = int(np.argmax(self.instructions_each))
        hits = np.cumsum(self._hits) * ((self._tables.records & cycles.CODE) != 0)
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
            taken_branches=self._taken,
            hits={self._counter.code_base + 2 * int(i): int(hits[i]) for i in np.flatnonzero(hits)},
            reads=self.reads,
            writes=self.writes,
        )


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _unicorn() -> Any:
    try:
        import unicorn
        import unicorn.arm_const
        import unicorn.unicorn_py3.unicorn
    except ImportError as error:
        raise ToolchainError("the emulator is not installed; run: pip install 'tinyml_edu[mcu]'") from error
    return unicorn


def _hook_library() -> ctypes.CDLL:
    """Compile the hook (once per computer) and load it; refuse it if its layout is not ours."""
    library = ctypes.CDLL(str(toolchain.compile_shared([_HOOK_SOURCE], name="count_hook")))
    if library.te_counter_bytes() != ctypes.sizeof(_Counter):
        raise ToolchainError("the native hook is of another version; remove the compiled files in the cache")
    return library


def _add_hook(uc: Any, kind: int, function: Any, state: ctypes.Structure, address: int | None = None) -> None:
    """Register a native function, for one address or for all.

    unicorn's own ``hook_add`` would wrap it in a Python callback, a hundred times slower.
    """
    begin, end = (1, 0) if address is None else (address, address)  # unicorn: begin > end means everywhere
    module = _unicorn().unicorn_py3.unicorn
    handle = ctypes.c_size_t()
    status = module.uclib.uc_hook_add(
        uc._uch,
        ctypes.byref(handle),
        kind,
        ctypes.cast(function, ctypes.c_void_p),
        ctypes.cast(ctypes.pointer(state), ctypes.c_void_p),
        ctypes.c_uint64(begin),
        ctypes.c_uint64(end),
    )
    if status:
        raise ToolchainError(f"the emulator refused the counting hook (unicorn error {status})")
