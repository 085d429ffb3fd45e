"""Small hand-written firmware projects whose behaviour is known to the instruction."""

from __future__ import annotations

from pathlib import Path

from tinyml_edu.mcu import toolchain
from tinyml_edu.mcu.boards import Board

ARENA = "#include <stdint.h>\nint8_t te_arena[{size}] __attribute__((aligned(16)));\n"


def assembly(name: str, *lines: str) -> str:
    """A C function that consists of these instructions alone: no prologue, nothing added."""
    body = "".join(f'"{line}\\n\\t"\n' for line in lines)
    return f"__attribute__((naked, noinline, used)) int {name}(void) {{ __asm volatile({body}); }}\n"


def project(folder: Path, *parts: str, arena_bytes: int = 256) -> Path:
    """Write ``model.c`` with an arena and the given functions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.c").write_text(ARENA.format(size=arena_bytes) + "".join(parts))
    return folder


def firmware(folder: Path, board: str | Board, *parts: str, arena_bytes: int = 256, **options) -> Path:
    """Write a project and compile it for a board."""
    return toolchain.compile_firmware(project(folder, *parts, arena_bytes=arena_bytes), board, **options)


# Ordinary compiled code: loads of all widths, 64-bit requantisation, division, copies, calls, conditionals.
# The input is 64 int8 codes at 0, the output 64 at 64.
MIXED_C = r"""
#include <string.h>
static const int8_t weights[9] = {-3, 7, 1, 0, -128, 127, 5, -9, 2};
static int32_t requantize(int32_t acc, int32_t multiplier, int shift) {
    int64_t product = (int64_t)acc * multiplier + ((int64_t)1 << (shift - 1));
    int32_t y = (int32_t)(product >> shift);
    return y < -128 ? -128 : y > 127 ? 127 : y;
}
__attribute__((noinline)) void model_layer_0(void) {
    for (int i = 0; i < 64; ++i) {
        int32_t sum = i * 37 - 900;
        for (int k = 0; k < 9; ++k) sum += te_arena[(i + k) & 63] * weights[k];
        te_arena[64 + i] = (int8_t)requantize(sum, 1518500250, 38);
    }
}
__attribute__((noinline)) void model_layer_1(void) {
    int8_t row[24];
    for (int i = 0; i < 40; i += 8) {
        memcpy(row, te_arena + 64 + i, 24);
        int32_t total = 0;
        for (int k = 0; k < 24; ++k) total += row[k];
        for (int k = 0; k < 8; ++k) te_arena[64 + i + k] = (int8_t)(total / (k + 3) + row[k] % (k + 1));
    }
}
int model_invoke(void) {
    model_layer_0();
    model_layer_1();
    return 0;
}
"""


def mixed_reference(codes: list[int]) -> list[int]:
    """What MIXED_C computes, in Python integers."""
    weights = [-3, 7, 1, 0, -128, 127, 5, -9, 2]
    out = []
    for i in range(64):
        acc = i * 37 - 900 + sum(codes[(i + k) & 63] * weights[k] for k in range(9))
        out.append(max(-128, min(127, (acc * 1518500250 + (1 << 37)) >> 38)))
    for i in range(0, 40, 8):
        row = out[i : i + 24]
        total = sum(row)
        for k in range(8):
            value = _truncated(total, k + 3) + (row[k] - (k + 1) * _truncated(row[k], k + 1))
            out[i + k] = (value + 128) % 256 - 128
    return out


def _truncated(a: int, b: int) -> int:
    return abs(a) // b * (1 if a >= 0 else -1)
