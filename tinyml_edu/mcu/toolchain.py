"""Compile C for this computer and for the boards: ``zig cc`` from the ``ziglang`` wheel.

Results are kept in the `compile_cache` under everything that they depend on: sources, flags, compiler
version and, for host code, the CPU features of this computer.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .._files import write_atomically
from ..errors import DoesNotFitError, ToolchainError, UnknownNameError, UsageError
from .boards import Board, get_board
from .compile_cache import built_beside, cache_dir, cached

FIRMWARE_DIR = Path(__file__).parent / "firmware"
DEFAULT_STACK_BYTES = 4096

# zig's own defaults, undone: it compiles -O3 as -O2 and strips what -Os compiles (hence a level for clang
# itself behind zig's), keeps a frame pointer (a register less for kernels), adds unwind tables and, without
# -O, traps on undefined behaviour.
_ZIG_LEVEL = {"speed": ("-O3", "-Xclang", "-O3"), "size": ("-O3", "-Xclang", "-Os")}
_GCC_LEVEL = {"speed": ("-O3",), "size": ("-Os",)}
_ZIG_FPU = {
    ("cortex-m0plus", "none"): "",
    ("cortex-m3", "none"): "",
    ("cortex-m4", "none"): "",
    ("cortex-m4", "single"): "+vfp4d16sp",
    ("cortex-m7", "none"): "",
    ("cortex-m7", "single"): "+fp_armv8d16sp",
    ("cortex-m7", "double"): "+fp_armv8d16",
}
_ZIG_COMMON = ("-fno-sanitize=all", "-fno-stack-protector")
_COMMON = (
    "-std=c11",
    "-g0",
    "-fomit-frame-pointer",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-ffunction-sections",
    "-fdata-sections",
)
_OVERFLOW = re.compile(
    r"will not fit in region '(?P<region>\w+)': overflowed by (?P<bytes>\d+) bytes"
    r"|region `(?P<gnu_region>\w+)' overflowed by (?P<gnu_bytes>\d+) bytes"
)


def zig_command() -> list[str]:
    """Return the command that starts zig, or raise ToolchainError if the wheel is not installed."""
    if importlib.util.find_spec("ziglang") is None:
        raise ToolchainError("the C compiler is not installed; run: pip install 'tinyml_edu[mcu]'")
    return [sys.executable, "-m", "ziglang"]


def compile_shared(
    sources: Sequence[str | Path],
    *,
    name: str = "library",
    optimize: str = "speed",
    include: Iterable[str | Path] = (),
    flags: Sequence[str] = (),
    libc: bool = False,
) -> Path:
    """Compile C files into a shared library for this computer and return its path.

    Parameters
    ----------
    sources : sequence of path
        C files, and headers that they include (a header is part of the cache key and is not compiled).
    name : str
        First part of the library's file name.
    optimize : {"speed", "size"}
    include : iterable of path
        Folders for ``#include``; every header in them is part of the cache key.
    flags : sequence of str
        More compiler flags, after the default ones.
    libc : bool
        Link the C library and the compiler's run-time library by name.  The first such link builds parts of
        them (seconds).  Without it, undefined symbols such as ``memcpy`` resolve when the library loads,
        from the libraries that the Python process has loaded already.

    Raises
    ------
    ToolchainError
        If the compiler is missing or refuses the sources.
    """
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    level = _level(_ZIG_LEVEL, optimize)
    options = ["-shared", "-fPIC", *level, *_ZIG_COMMON, *_COMMON, *flags]
    if not libc:
        options += ["-nostdlib"]
        options += ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else []
    paths, folders = [Path(p) for p in sources], [Path(p) for p in include]
    target = cached(name, suffix, [*paths, *_headers(folders)], [*options, _host_features()])
    if not target.exists():
        command = [*zig_command(), "cc", *options, *(f"-I{p}" for p in folders)]
        _build(command, [p for p in paths if p.suffix != ".h"], target)
    return target


def compile_host(
    sources_dir: str | Path, *, optimize: str = "speed", flags: Sequence[str] = (), libc: bool = False
) -> Path:
    """Compile the ``.c`` files of a folder into one shared library for this computer.

    The library uses this computer's own instructions (``-mcpu=native``): it may be copied to a machine with
    the same CPU features only.  Loaded with `ctypes.CDLL`, it has one arena for the whole process; a copy of
    the file under another name has another.

    Returns
    -------
    Path
        The library, in the cache.  The same sources give the same path without compiling again.

    Raises
    ------
    ToolchainError
        If the folder holds no C file, or the compiler is missing or refuses the sources.
    """
    folder = Path(sources_dir)
    sources = [*_c_files(folder), *_headers([folder])]
    return compile_shared(
        sources, name="host", optimize=optimize, include=_include_folders(folder), flags=flags, libc=libc
    )


def compile_firmware(
    sources_dir: str | Path,
    board: str | Board,
    *,
    optimize: str = "speed",
    out: str | Path | None = None,
    stack_bytes: int = DEFAULT_STACK_BYTES,
    compiler: str = "zig",
    flags: Sequence[str] = (),
) -> Path:
    """Compile the ``.c`` files of a folder into a firmware image (ELF) for a board.

    The start-up code, the run-time helpers and the linker script are the package's own
    (``tinyml_edu/mcu/firmware``).  The linker script holds the board's memory map, so the linker itself
    enforces the budget.

    Parameters
    ----------
    sources_dir : path
        Folder with ``model.c`` and its companions; one of them defines ``model_invoke``.  Sub-folders may
        hold headers; their ``.c`` files (an example's ``main``) are left out.
    board : str or Board
    optimize : {"speed", "size"}
        ``-O3`` or ``-Os``.
    out : path, optional
        Where to write the image; by default it stays in the cache.
    stack_bytes : int
        Bytes of RAM reserved for the stack, a multiple of 16.
    compiler : {"zig", "gcc"}
        ``"gcc"`` is ``arm-none-eabi-gcc`` from the PATH, for cross-checks.
    flags : sequence of str
        More compiler flags, after the default ones.

    Raises
    ------
    DoesNotFitError
        If code and constants exceed the flash, or arena, variables and stack the RAM; with the bytes.
    ToolchainError
        If the compiler is missing or refuses the sources.
    """
    board, folder = get_board(board), Path(sources_dir)
    sources = [*_c_files(folder), *sorted(FIRMWARE_DIR.glob("*.c"))]
    includes = [FIRMWARE_DIR / "include", *_include_folders(folder)]
    driver, options, version = _cross_compiler(board, compiler, optimize)
    options += [*_COMMON, *flags, "-nostdlib", "-Wl,--gc-sections", f"-DTE_FPU={int(board.fpu != 'none')}"]
    script = linker_script(board, stack_bytes)
    files = [*sources, *_headers([folder, FIRMWARE_DIR])]
    target = cached(f"firmware-{board.name}", ".elf", files, [*options, version, script])
    if not target.exists():
        with tempfile.TemporaryDirectory() as scratch:
            script_path = Path(scratch) / "link.ld"
            script_path.write_text(script)
            command = [*driver, *options, *(f"-I{p}" for p in includes), "-T", str(script_path)]
            # libgcc resolves the helpers that GCC alone calls, such as its Armv6-M switch tables.
            tail = ["-lgcc"] if compiler == "gcc" else []
            _build(command, sources, target, board=board, optimize=optimize, tail=tail)
    if out is None:
        return target
    write_atomically(Path(out), target.read_bytes())
    return Path(out)


def what_decides_code(board: Board, *, optimize: str = "speed", compiler: str = "zig") -> list[str]:
    """Return all that decides the machine code of a board's firmware beside its sources."""
    driver, options, version = _cross_compiler(board, compiler, optimize)
    return [*driver[-1:], *options, *_COMMON, version]


def linker_script(board: Board, stack_bytes: int = DEFAULT_STACK_BYTES) -> str:
    """Return the linker script of a board: its memory map and a stack of ``stack_bytes`` bytes."""
    if stack_bytes <= 0 or stack_bytes % 16:
        raise UsageError(f"the stack needs a positive multiple of 16 bytes, not {stack_bytes}")
    text = (FIRMWARE_DIR / "link.ld.in").read_text()
    values = {
        "TITLE": board.title,
        "SOURCE": board.source,
        "FLASH_ORIGIN": f"0x{board.vector_table:08X}",
        "FLASH_BYTES": str(board.usable_flash_bytes),
        "RAM_ORIGIN": f"0x{board.sram_origin:08X}",
        "RAM_BYTES": str(board.sram_bytes),
        "STACK_BYTES": str(stack_bytes),
    }
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def self_test() -> str:
    """Compile a small program now, for this computer and for a board, run both, and return a line about it.

    Raises
    ------
    ToolchainError
        If the compiler or the emulator is missing, fails, or computes a wrong result.
    """
    from . import emulator

    factor = int.from_bytes(os.urandom(2), "little") % 97 + 3  # a fresh program each time: nothing is cached
    source = f"""#include <stdint.h>
        int8_t te_arena[16] __attribute__((aligned(16)));
        int model_invoke(void) {{ te_arena[1] = (int8_t)(te_arena[0] * {factor} + 1); return 0; }}
        int te_self_test(int x) {{ te_arena[0] = (int8_t)x; model_invoke(); return te_arena[1]; }}"""
    wanted = (2 * factor + 1 + 128) % 256 - 128
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.c").write_text(source)
        library, image = compile_host(folder), compile_firmware(folder, "stm32f412")
        here = ctypes.CDLL(str(library)).te_self_test(2)
        board = emulator.emulate(image, "stm32f412", np.full((1, 1), 2, np.int8), 1, output_offset=1)
        if sys.platform != "win32":  # Windows keeps a loaded library locked
            library.unlink()
        image.unlink()
    if (here, int(board.outputs[0, 0])) != (wanted, wanted):
        raise ToolchainError("a compiled test program computes a wrong result; reinstall ziglang and unicorn")
    return f"zig {_zig_version().strip()}; host library and emulated Cortex-M4 firmware agree"


def _level(levels: Mapping[str, tuple[str, ...]], optimize: str) -> tuple[str, ...]:
    if optimize not in levels:
        raise UnknownNameError("optimization goal", optimize, levels)
    return levels[optimize]


def _cross_compiler(board: Board, compiler: str, optimize: str) -> tuple[list[str], list[str], str]:
    """Return the driver, its target and level flags, and its version, for a board's core."""
    if compiler == "zig":
        # eabihf passes floats in FPU registers; without an FPU zig's eabi is software floating point.
        # -fhosted: zig assumes a freestanding target has no memcpy *builtin* and then calls a function for
        # every 4-byte memcpy that a kernel uses as an unaligned load (five times the instructions).
        abi = "eabi" if board.fpu == "none" else "eabihf"
        cpu = board.mcpu + _ZIG_FPU[board.core, board.fpu]
        target = ["-target", f"thumb-freestanding-{abi}", f"-mcpu={cpu}", "-fhosted"]
        options = [*target, *_level(_ZIG_LEVEL, optimize), *_ZIG_COMMON]
        return [*zig_command(), "cc"], options, _zig_version()
    if compiler == "gcc":
        path = shutil.which("arm-none-eabi-gcc")
        if path is None:
            raise ToolchainError("arm-none-eabi-gcc is not on the PATH; install it or use compiler='zig'")
        fpu = {"none": [], "single": ["-mfloat-abi=hard", "-mfpu=auto"], "double": ["-mfloat-abi=hard"]}
        cpu = board.core + {"single": "+nofp.dp" if board.core == "cortex-m7" else ""}.get(board.fpu, "")
        options = ["-mthumb", f"-mcpu={cpu}", *fpu[board.fpu], "-nostartfiles", *_level(_GCC_LEVEL, optimize)]
        return [path], options, _output([path, "--version"])
    raise UnknownNameError("compiler", compiler, ["zig", "gcc"])


def _c_files(folder: Path) -> list[Path]:
    sources = sorted(folder.glob("*.c"))
    if not sources:
        raise ToolchainError(f"no C source in {folder}; generate the model's C code there first")
    return sources


def _headers(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.h"))]


def _include_folders(folder: Path) -> list[Path]:
    return sorted({folder, *(path.parent for path in folder.rglob("*.h"))})


@functools.cache
def _zig_version() -> str:
    return _output([*zig_command(), "version"])


@functools.cache
def _host_features() -> str:
    """Return what ``-mcpu=native`` stands for here: zig's own list, with its version, OS and ABI."""
    return _output([*zig_command(), "build-exe", "--show-builtin"])


def _environment() -> dict[str, str]:
    """Return the environment for zig: its caches live inside ours, so that one folder can be removed."""
    zig_cache = str(cache_dir().parent / "zig")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig_cache, "ZIG_LOCAL_CACHE_DIR": zig_cache}


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode:
        raise ToolchainError(f"{Path(command[0]).name} does not run: {_first_error(done.stderr)}")
    return done.stdout


def _build(
    command: list[str],
    sources: Sequence[Path],
    target: Path,
    *,
    board: Board | None = None,
    optimize: str = "speed",
    tail: Sequence[str] = (),
) -> None:
    """Run the compiler; a failure leaves no ``target`` behind."""
    with built_beside(target) as scratch:
        line = [*command, *map(str, sources), *tail, "-o", str(scratch)]
        done = subprocess.run(line, capture_output=True, text=True, env=_environment(), check=False)
        if done.returncode:
            _fail(done.stderr, board, optimize)


def _fail(log: str, board: Board | None, optimize: str) -> None:
    """Raise the error that a compiler's log stands for; the whole log is attached as a note."""
    missing: dict[str, int] = {}
    for match in _OVERFLOW.finditer(log):
        region = match["region"] or match["gnu_region"]
        missing[region] = max(missing.get(region, 0), int(match["bytes"] or match["gnu_bytes"]))
    error: Exception
    if missing and board is not None:
        sizes = {"RAM": board.sram_bytes, "FLASH": board.usable_flash_bytes}
        what = " and ".join(f"{n} bytes of {r} are missing (it has {sizes[r]})" for r, n in missing.items())
        advice = _advice(missing, optimize)
        error = DoesNotFitError(f"the firmware does not fit on {board.name}: {what}; {advice}")
    else:
        error = ToolchainError(f"the C compiler failed: {_first_error(log)}")
    error.add_note(log.strip())
    raise error


def _advice(missing: dict[str, int], optimize: str) -> str:
    smaller = "optimize='size', " if optimize != "size" else ""
    tips = {
        "RAM": "try a smaller input, fewer channels, patch inference or a larger board",
        "FLASH": f"try {smaller}a smaller network or a larger board",
    }
    return "; ".join(tips[region] for region in missing)


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else "no message")
