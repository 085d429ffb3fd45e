"""The native counting hook, ``hook/count_hook.c``, as unicorn and Python see it.

The package's own toolchain compiles it, once per computer.  The structures below mirror the C file field by
field; `load_hook` refuses a library whose layout is another.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from ..errors import ToolchainError
from . import toolchain

SOURCE = Path(__file__).parent / "hook" / "count_hook.c"
DEPTH = 64
"""Most watched functions that may run inside each other, ``TE_DEPTH`` of the hook."""

TOO_DEEP, NOT_CODE = 1, 2
"""What ``Counter.problem`` may report; 0 is no problem."""


class Frame(ctypes.Structure):
    """``struct te_frame`` of the hook: a watched function that is running."""

    _fields_ = [
        ("instructions", ctypes.c_uint64),
        ("cycles", ctypes.c_uint64),
        ("back", ctypes.c_uint32),
        ("sp", ctypes.c_uint32),
        ("function", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    ]


class Counter(ctypes.Structure):
    """``struct te_counter`` of the hook: tables of the code, counts so far, functions that are running."""

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
        ("frames", Frame * DEPTH),
    ]


class Trace(ctypes.Structure):
    """``struct te_trace`` of the hook: accesses of one window of the RAM, by byte and by function."""

    _fields_ = [
        ("reads", ctypes.c_void_p),
        ("writes", ctypes.c_void_p),
        ("cell_reads", ctypes.c_void_p),
        ("cell_writes", ctypes.c_void_p),
        ("counter", ctypes.POINTER(Counter)),
        ("reg_write", ctypes.c_void_p),
        ("base", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("cells", ctypes.c_uint64),
        ("cell_bytes", ctypes.c_uint64),
        ("epsr_register", ctypes.c_int32),
    ]


def load_unicorn() -> Any:
    """Import unicorn, the emulator, with the constants of Arm cores and its native library.

    Raises
    ------
    ToolchainError
        If it is not installed.
    """
    try:
        import unicorn
        import unicorn.arm_const
        import unicorn.unicorn_py3.unicorn
    except ImportError as error:
        raise ToolchainError("the emulator is not installed; run: pip install 'tinyml_edu[mcu]'") from error
    return unicorn


def load_hook() -> ctypes.CDLL:
    """Compile the hook, unless the cache has it, and load it.

    Raises
    ------
    ToolchainError
        If it does not compile, or its ``struct te_counter`` is not the one of this file.
    """
    library = ctypes.CDLL(str(toolchain.compile_shared([SOURCE], name="count_hook")))
    if library.te_counter_bytes() != ctypes.sizeof(Counter):
        raise ToolchainError("the native hook is of another version; remove the compiled files in the cache")
    return library


def add_hook(uc: Any, kind: int, function: Any, state: ctypes.Structure, address: int | None = None) -> None:
    """Register a native function with the emulator ``uc``, for one address or for all.

    unicorn's own ``hook_add`` would wrap it in a Python callback, a hundred times slower.  ``state`` must
    live as long as ``uc``.

    Raises
    ------
    ToolchainError
        If unicorn refuses the hook.
    """
    begin, end = (1, 0) if address is None else (address, address)  # unicorn: begin > end means everywhere
    handle = ctypes.c_size_t()
    status = load_unicorn().unicorn_py3.unicorn.uclib.uc_hook_add(
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
