"""The account that the native hook keeps of a program: in total, by watched function and by address."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import count_hook, cycles
from .elf import Image
from .instruments import OUTSIDE, ArenaTrace


class Account:
    """Counts of what one emulator executes; it owns the memory that the hook writes.

    Parameters
    ----------
    uc : unicorn.Uc
        The emulator, with the image loaded.
    image : Image
        Its largest executable segment is what is counted.
    core : str
        Whose cycle table applies.
    watched : mapping of str to int
        Functions that get totals of their own, and their entry addresses.
    stack : (int, int)
        Lowest address of the stack and the one above its top.
    entry : int
        Address of the first instruction.
    each : bool
        Count instruction by instruction instead of block by block.
    """

    def __init__(
        self,
        uc: Any,
        image: Image,
        core: str,
        *,
        watched: Mapping[str, int],
        stack: tuple[int, int],
        entry: int,
        each: bool,
    ) -> None:
        unicorn = count_hook.load_unicorn()
        self._library = library = count_hook.load_hook()
        code = max((s for s in image.segments if s.executable), key=lambda s: len(s.data))
        decoded = cycles.disassemble(code.data, code.address, image.machine_ranges)
        self._tables = cycles.tables(decoded, core, code.address, len(code.data))
        self._names = sorted(watched, key=lambda name: watched[name])  # the hook searches by bisection
        self._entries = np.array([watched[name] for name in self._names], np.uint32)
        self._tables.records[(self._entries - code.address) // 2] |= cycles.WATCH
        self._hits = np.zeros((len(self._entries) + 1, len(self._tables.records)), np.int64)
        self._totals = np.zeros((len(self._entries), 3), np.uint64)
        self._uc, self._taken_before = uc, 0
        self._counter = self._new_counter(unicorn, code.address, stack, entry)
        if each:
            count_hook.add_hook(uc, unicorn.UC_HOOK_CODE, library.te_count_each, self._counter)
        else:
            count_hook.add_hook(uc, unicorn.UC_HOOK_BLOCK, library.te_count_block, self._counter)
        for address in self._tables.behind_sp:
            count_hook.add_hook(uc, unicorn.UC_HOOK_CODE, library.te_watch_stack, self._counter, address)

    def _new_counter(
        self, unicorn: Any, code_base: int, stack: tuple[int, int], entry: int
    ) -> count_hook.Counter:
        """Return the hook's state at reset; it points into arrays that this object keeps alive."""
        tables, uclib = self._tables, unicorn.unicorn_py3.unicorn.uclib
        return count_hook.Counter(
            slots=tables.records.ctypes.data,
            before=tables.before.ctypes.data,
            cycles_sum=tables.cycles_sum.ctypes.data,
            last=tables.last.ctypes.data,
            hits=self._hits.ctypes.data,
            totals=self._totals.ctypes.data,
            watched=self._entries.ctypes.data,
            reg_read=ctypes.cast(uclib.uc_reg_read, ctypes.c_void_p),
            stop=ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p),
            code_base=code_base,
            slot_count=len(tables.records) - 1,
            functions=len(self._entries),
            sp_low=stack[1],
            sp_limit=stack[0],
            sp_top=stack[1],
            next=entry,
            sp_register=unicorn.arm_const.UC_ARM_REG_SP,
            lr_register=unicorn.arm_const.UC_ARM_REG_LR,
        )

    def trace(self, address: int, size: int, cell_bytes: int) -> ArenaTrace:
        """Count reads and writes of each byte of a window from now on, in arrays that go on changing."""
        unicorn = count_hook.load_unicorn()
        reads, writes = (np.zeros(size, np.uint32) for _ in range(2))
        cells = -(-size // cell_bytes)
        by_function = [np.zeros((len(self._names) + 1, cells), np.uint32) for _ in range(2)]
        self._trace = count_hook.Trace(
            *(array.ctypes.data for array in (reads, writes, *by_function)),
            ctypes.pointer(self._counter),
            ctypes.cast(unicorn.unicorn_py3.unicorn.uclib.uc_reg_write, ctypes.c_void_p),
            *(address, size, cells, cell_bytes),
            unicorn.arm_const.UC_ARM_REG_EPSR,
        )
        self._traced = ArenaTrace((*self._names, OUTSIDE), cell_bytes, reads, writes, *by_function)
        kinds = unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE
        count_hook.add_hook(self._uc, kinds, self._library.te_trace_access, self._trace)
        return self._traced

    def restart(self) -> None:
        """Begin a new inference: totals, executions and branches count from 0; the stack's depth stays."""
        self._hits[:] = 0
        self._totals[:] = 0
        self._taken_before = self._counter.taken

    def allow(self, instructions: int) -> None:
        """Let the program execute that many more instructions before the hook stops it."""
        self._counter.limit = self._counter.instructions + instructions

    @property
    def instructions(self) -> int:
        """Instructions since reset."""
        return self._counter.instructions

    @property
    def problem(self) -> int:
        """Why the hook stopped the program: 0, or one of the problems that `count_hook` names."""
        return self._counter.problem

    @property
    def taken_branches(self) -> int:
        """Branches taken since `restart`."""
        return self._counter.taken - self._taken_before

    @property
    def lowest_sp(self) -> int:
        """Lowest stack pointer since reset, an address."""
        return self._counter.sp_low

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """Return (calls, instructions, cycles) of each watched function since `restart`, callees included."""
        rows = zip(self._names, self._totals.tolist())
        return {name: (calls, instructions, spent) for name, (calls, instructions, spent) in rows}

    def executions(self) -> dict[int, int]:
        """Return how often the instruction at each address ran since `restart`."""
        hits = self._executed().sum(axis=0)
        return {self._counter.code_base + 2 * int(i): int(hits[i]) for i in np.flatnonzero(hits)}

    def mnemonics(self) -> dict[str, dict[str, int]]:
        """Return how often each mnemonic ran since `restart`, by watched function, the most frequent first.

        An instruction belongs to the innermost watched function that was running.
        """
        return {name: self._histogram(hits) for name, hits in zip(self._names, self._executed())}

    def _histogram(self, hits: np.ndarray) -> dict[str, int]:
        counts = np.zeros(len(self._tables.names), np.int64)
        np.add.at(counts, self._tables.mnemonic, hits)  # bincount would add up in floating point
        order = np.argsort(-counts, kind="stable")
        return {self._tables.names[i]: int(counts[i]) for i in order if counts[i]}

    def _executed(self) -> np.ndarray:
        """Return executions of each halfword's instruction, (functions + 1, slots + 1)."""
        return np.cumsum(self._hits, axis=1) * ((self._tables.records & cycles.CODE) != 0)
