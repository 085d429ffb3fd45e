"""DEPTHWISE_CONV_2D of any window, stride and dilation: one kernel that all such layers share.

A list on the stack holds the address of each tap of the window, two taps at a time.  Four channels share it::

    LDRD  addresses of two taps           PKHBT, PKHTB  (x0, x1) and (x2, x3) of both taps
    LDR   four inputs of each             SXTB16        to int16: one channel of both taps a word
    LDRD  eight weights, in that order    SMLAD         one for two products

20 instructions a round, for eight products.  All addresses move by the same distance from one channel, and
one pixel, to the next: the list serves a run of output pixels whose window lies inside the image.  A pixel at
the border gets a list of its own, in which taps outside of x point to codes of real 0.
"""

from __future__ import annotations

import numpy as np

from . import compact_factors
from .assembly import Assembly, function
from .compact_factors import Registers
from .requantize import Channels

GROUP = 4
CODE_BYTES = 4 * 100
_SUMS = ("r3", "r4", "r5", "r6")
_FACTORS = Registers(multiplier="r9", place="r10", zero="r0", addend="r11", t="r12")
_TAPS, _Y, _AT, _STREAM, _END, _ZERO, _PIXELS, _CHANNELS, _FRAME = 0, 8, 12, 16, 20, 24, 28, 32, 40

TYPES = """\
/* What the depthwise kernel reads of its layer: bytes of a pixel of y, distance of two windows in x, 2 * zp
 * + 1 of y, bytes of a list of taps. */
typedef struct te_depthwise te_depthwise;
typedef void te_depthwise_kernel(const int8_t *const *taps, int8_t *y, const te_depthwise *d, int32_t pixels);
struct te_depthwise {
    int32_t channels, step, zero, list_bytes;
    const uint32_t *stream, *end;
    te_depthwise_kernel *kernel;
    int32_t out_height;
};"""


def name(rounding: str) -> str:
    """Return the function's name in C."""
    return "te_depthwise_taps" + ("" if rounding == "double" else "_single")


def stream(c: Channels) -> np.ndarray:
    """Return the words of all groups of four channels, uint32 (groups, words).

    Of each: its first channel, four biases, weights, then two factors of each channel.  The last group may
    overlap the one before it.
    """
    channels, taps = c.weights.shape
    first = np.minimum(np.arange(0, channels, GROUP), channels - GROUP)
    rows = first[:, None] + np.arange(GROUP)
    weights = np.pad(c.weights, ((0, 0), (0, taps % 2)))[rows]
    # (group, half, channel of it, tap pair, tap) -> (group, tap pair, half, tap, channel): the bytes of words
    codes = weights.reshape(len(first), 2, 2, -1, 2).transpose(0, 3, 1, 4, 2).astype(np.int8)
    factors = compact_factors.words(c, "acc", np.arange(channels))[rows]
    parts = [
        first[:, None],
        c.bias[rows],
        np.ascontiguousarray(codes).reshape(len(first), -1).view("<u4").astype(np.int64),
        factors.reshape(len(first), -1),
    ]
    return (np.concatenate(parts, axis=1) & 0xFFFFFFFF).astype(np.uint32)


def source(rounding: str) -> str:
    """Return the C function."""
    asm = Assembly()
    asm(f"sub sp, sp, #{_FRAME}")
    asm("ldm r2, {r4, r5, r6, r7, r8, r9}", "channels, step, zero, list_bytes, stream, end")
    asm("add r7, r7, r0")
    asm("mov r10, #0")
    asm(f"strd r0, r7, [sp, #{_TAPS}]", "the list and its end")
    asm(f"strd r1, r10, [sp, #{_Y}]", "y, and how far the pixel is from the taps")
    asm(f"strd r8, r9, [sp, #{_STREAM}]")
    asm(f"strd r6, r3, [sp, #{_ZERO}]", "2 * zp + 1, and the pixels that are left")
    asm(f"strd r4, r5, [sp, #{_CHANNELS}]")
    asm("1:")
    asm(f"ldr r1, [sp, #{_STREAM}]")
    asm("2:")
    asm("ldr r2, [r1], #4", "the first of four channels")
    asm(f"ldr r7, [sp, #{_AT}]")
    asm("add r2, r2, r7")
    asm(f"ldrd r0, lr, [sp, #{_TAPS}]")
    asm(f"ldm r1!, {{{', '.join(_SUMS)}}}", "biases")
    asm("3:")
    _two_taps(asm)
    asm("cmp r0, lr")
    asm("bne 3b")
    _finish(asm, rounding)
    asm(f"ldr r9, [sp, #{_END}]")
    asm("cmp r1, r9")
    asm("bne 2b")
    asm(f"ldrd r7, r8, [sp, #{_Y}]")
    asm(f"ldrd r9, r10, [sp, #{_CHANNELS}]")
    asm("add r7, r7, r9", "the next pixel")
    asm("add r8, r8, r10")
    asm(f"strd r7, r8, [sp, #{_Y}]")
    asm(f"ldr r9, [sp, #{_PIXELS}]")
    asm("subs r9, r9, #1")
    asm(f"str r9, [sp, #{_PIXELS}]")
    asm("bne 1b")
    asm(f"add sp, sp, #{_FRAME}")
    comment = (
        "/* All channels of `pixels` adjacent outputs; `taps` are the addresses of the first one's window,\n"
        " * an even number of them. */"
    )
    arguments = [
        ("const int8_t *const *", "taps"),
        ("int8_t *", "y"),
        ("const te_depthwise *", "d"),
        ("int32_t", "pixels"),
    ]
    return function(name(rounding), comment, arguments, asm)


def _two_taps(asm: Assembly) -> None:
    """Append two taps of four channels: r2 is the channel, r10, r11 the weights."""
    asm("ldrd r7, r8, [r0], #8", "two taps")
    asm("ldr r7, [r7, r2]")
    asm("ldr r8, [r8, r2]")
    asm("pkhbt r9, r7, r8, lsl #16", "channels 0 and 1 of both")
    asm("pkhtb r8, r8, r7, asr #16", "channels 2 and 3 of both")
    asm("ldrd r10, r11, [r1], #8")
    for half, (x, w) in enumerate((("r9", "r10"), ("r8", "r11"))):
        for odd, rotation in enumerate(("", ", ror #8")):
            acc = _SUMS[2 * half + odd]
            asm(f"sxtb16 r7, {x}{rotation}")
            asm(f"sxtb16 r12, {w}{rotation}")
            asm(f"smlad {acc}, r7, r12, {acc}")


def _finish(asm: Assembly, rounding: str) -> None:
    """Requantize and store four channels."""
    asm(f"ldr r7, [sp, #{_Y}]")
    asm(f"ldr r0, [sp, #{_ZERO}]")
    for acc in _SUMS:
        asm("ldrd r9, r10, [r1], #8", "multiplier; shift and place")
        if acc == _SUMS[0]:
            asm("add r7, r7, r10, lsr #8")
        compact_factors.emit_addend(asm, _FACTORS)
        compact_factors.emit(asm, rounding, acc, _FACTORS, form="acc")
        asm("strb r12, [r7], #1")
