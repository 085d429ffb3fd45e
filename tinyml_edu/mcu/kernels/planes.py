"""The planes of a depthwise convolution: a few rows of up to four channels, widened to int16, on the stack.

``load`` widens two rows of the image into one pair of each column (see `depthwise`), ``pad`` fills the planes
with the zero point, ``keep`` moves the pairs that the next output rows read too, and the layer's own function
walks over the image: groups of channels, blocks of columns, output rows.
"""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING

from .assembly import Assembly, function

if TYPE_CHECKING:
    from .depthwise import Shape

GROUP = 4
"""Input channels at a time: what one word of x holds."""


def source(s: Shape) -> str:
    """Return the C functions that fill the planes."""
    return "\n\n".join([_load(s), _pad(s), *([_keep(s)] if s.kept else [])])


def _load(s: Shape) -> str:
    """Widen two rows of a group of channels into one pair of each column of the planes."""
    asm = Assembly()
    asm(f"movw r4, #{s.channels}", "bytes from column to column; 0 for a row of padding")
    asm("mov r5, r4")
    for bit, step in ((1, "r4"), (2, "r5")):
        asm(f"tst r12, #{bit}")
        asm("it ne")
        asm(f"movne {step}, #0")
    if s.group == GROUP:
        _load_two_columns(asm, s)
    asm("2:")
    if s.group == GROUP:
        asm("ldr r6, [r0]")
        asm("ldr r7, [r1]")
        _widen(asm, s, "r6", "r7")
    else:
        for channel in reversed(range(s.group)):
            asm(f"ldrsb r6, [r0, #{channel}]")
            asm(f"ldrsb r7, [r1, #{channel}]")
            asm("pkhbt r6, r6, r7, lsl #16")
            _store(asm, "r6", channel, s)
    asm("add r0, r0, r4")
    asm("add r1, r1, r5")
    asm("cmp r2, r3")
    asm("bne 2b")
    asm("3:")
    comment = (
        f"/* Widen {s.group} channels of two rows of x, `upper` and `lower`, into one pair of the columns\n"
        " * `to` to `end` of the planes.  Bit 0 of `padding`: `upper` is one pixel of padding, repeated;\n"
        " * bit 1: `lower` is. */"
    )
    arguments = [
        ("const int8_t *", "upper"),
        ("const int8_t *", "lower"),
        ("uint32_t *", "to"),
        ("uint32_t *", "end"),  # GCC takes const for a promise to read what nobody has written
        ("int32_t", "padding"),
    ]
    return function(f"{s.name}_load", comment, arguments, asm)


def _load_two_columns(asm: Assembly, s: Shape) -> None:
    """Append the loop over two columns a round, for two rows of x; one column may be left."""
    asm("cmp r12, #0")
    asm("bne 2f")
    asm(f"sub r3, r3, #{4 * s.pairs}")
    asm("cmp r2, r3")
    asm("bhs 4f")
    asm("1:")
    for row, words in (("r0", ("r6", "r8")), ("r1", ("r7", "r9"))):
        asm(f"ldr {words[0]}, [{row}]")
        asm(f"ldr {words[1]}, [{row}, r4]")
        asm(f"add {row}, {row}, r4, lsl #1")
    _widen(asm, s, "r6", "r7")
    _widen(asm, s, "r8", "r9")
    asm("cmp r2, r3")
    asm("blo 1b")
    asm("4:")
    asm(f"add r3, r3, #{4 * s.pairs}")
    asm("cmp r2, r3")
    asm("beq 3f")


def _widen(asm: Assembly, s: Shape, upper: str, lower: str) -> None:
    """Append the stores of four channels of one column, bytes of ``upper`` and ``lower``."""
    asm(f"pkhtb r11, {lower}, {upper}, asr #16", "channels 2 and 3 of both rows")
    asm(f"pkhbt r10, {upper}, {lower}, lsl #16", "channels 0 and 1 of both rows")
    for channel, word in ((3, "r11, ror #8"), (2, "r11"), (1, "r10, ror #8"), (0, "r10")):
        asm(f"sxtb16 r12, {word}")
        _store(asm, "r12", channel, s)


def _store(asm: Assembly, word: str, channel: int, s: Shape) -> None:
    """Append the store of one channel's pair; channel 0, the last one, moves r2 to the next column."""
    plane = 4 * s.columns * s.pairs
    asm(f"str {word}, [r2, #{channel * plane}]" if channel else f"str {word}, [r2], #{4 * s.pairs}")


def _pad(s: Shape) -> str:
    """Fill the planes with the zero point; columns that are no padding are written over."""
    asm, registers = Assembly(), [f"r{i}" for i in range(2, 12)]
    rounds, rest = divmod(s.columns * s.pairs * s.group, len(registers))
    asm(f"movw r2, #{s.x_zp & 0xFFFF}")
    asm(f"movt r2, #{s.x_zp & 0xFFFF}")
    for register in registers[1:]:
        asm(f"mov {register}, r2")
    if rounds:
        asm(f"add r1, r0, #{4 * rounds * len(registers)}")
        asm("1:")
        asm(f"stm r0!, {{{', '.join(registers)}}}")
        asm("cmp r0, r1")
        asm("bne 1b")
    for register in registers[:rest]:
        asm(f"str {register}, [r0], #4")
    comment = "/* Fill the planes with padding. */"
    return function(f"{s.name}_pad", comment, [("uint32_t *", "planes")], asm)


def _keep(s: Shape) -> str:
    """Move the pairs that the next output rows read too to the front, column by column."""
    asm = Assembly()
    moved, elements = 4 * (s.pairs - s.kept), s.columns * s.group
    unroll = next(n for n in (4, 3, 2, 1) if elements % n == 0)
    asm("1:")
    for element in range(unroll):
        for at in range(0, 4 * s.kept, 8):
            base = 4 * s.pairs * element + at
            if at + 4 < 4 * s.kept:
                asm(f"ldrd r2, r3, [r0, #{base + moved}]")
                asm(f"strd r2, r3, [r0, #{base}]")
            else:
                asm(f"ldr r2, [r0, #{base + moved}]")
                asm(f"str r2, [r0, #{base}]")
    asm(f"add r0, r0, #{4 * s.pairs * unroll}")
    asm("cmp r0, r1")
    asm("bne 1b")
    comment = f"/* Move the last {s.kept} pairs of each column to its front. */"
    arguments = [("uint32_t *", "planes"), ("const uint32_t *", "end")]
    return function(f"{s.name}_keep", comment, arguments, asm)


_IMAGE = Template("""\
/* ${kernel_h}x$kernel_w depthwise convolution, stride ($stride_h, $stride_w): x ($height, $width, $channels),
 * y ($out_height, $out_width, $outputs).  `stream` is the layer's. */
TE_NOINLINE static void $name(const int8_t *x, int8_t *y, const uint32_t *stream) {
    static const int8_t padding[4] __attribute__((aligned(4))) = {$x_zp, $x_zp, $x_zp, $x_zp};
    uint32_t planes[$elements * $pairs]; /* (channel, column, pair of rows) */
    for (int32_t c = 0; c < $channels; c += $group) {
        const int32_t from = c < $last_group ? c : $last_group; /* of the last channels, some may be known */
        const int32_t count = $channels - c < $group ? $channels - c : $group;
        const uint32_t *const end = stream + count * $record;
        for (int32_t block = 0; block < $out_width; block += $block) {
            const int32_t j = block < $last_block ? block : $last_block;
            const int32_t left = j * $stride_w - $pad_left; /* column of x at the front of a plane */
            const int32_t first = left < 0 ? 0 : left;
            const int32_t last = left + $columns > $width ? $width : left + $columns;
            if (first > left || last < left + $columns) {
                ${name}_pad(planes);
            }
            for (int32_t row = 0; row < $out_height; row += $rows) {
                const int32_t i = row < $last_row ? row : $last_row; /* the last rows may overlap */
                const int32_t top = i * $stride_h - $pad_top;
                int32_t pair = 0;
$keep                for (; pair < $pairs && first < last; pair++) {
                    const int32_t r = top + 2 * pair;
                    const int upper = r >= 0 && r < $height, lower = r + 1 >= 0 && r + 1 < $height;
                    const int32_t at = (r * $width + first) * $channels + from;
                    ${name}_load(upper ? x + at : padding, lower ? x + at + $row_bytes : padding,
                        planes + (first - left) * $pairs + pair, planes + (last - left) * $pairs + pair,
                        !upper + 2 * !lower);
                }
                ${name}_rows(planes, y + (i * $out_width + j) * $outputs + c * $multiplier, stream, end);
            }
        }
        stream = end;
    }
}""")

_KEEP = Template("""\
                if (row > 0 && row == i) {
                    ${name}_keep(planes, planes + $elements * $pairs);
                    pair = $kept;
                }
""")


def image(s: Shape) -> str:
    """Return the C function of the layer, which calls all others."""
    fields: dict[str, object] = {f: getattr(s, f) for f in s.__dataclass_fields__}
    fields |= {
        "name": s.name,
        "group": s.group,
        "outputs": s.outputs,
        "pairs": s.pairs,
        "kept": s.kept,
        "columns": s.columns,
        "elements": s.columns * s.group,
        "block": s.block,
        "record": s.multiplier * s.record,
        "last_group": s.channels - s.group,
        "last_block": s.out_width - s.block,
        "last_row": s.out_height - s.rows,
        "row_bytes": s.width * s.channels,
    }
    return _IMAGE.substitute(fields, keep=_KEEP.substitute(fields) if s.kept else "")
