"""The emulator counts exactly: hand-written assembly is the oracle, and QEMU a second one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from firmware_projects import MIXED_C, assembly, firmware, mixed_reference, project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyml_edu.errors import DataError, ToolchainError, UsageError
from tinyml_edu.mcu import count_hook, elf, toolchain
from tinyml_edu.mcu.boards import BOARDS, Board
from tinyml_edu.mcu.emulator import Machine, emulate

pytestmark = pytest.mark.c

CORES = {"rp2040": "M0+", "stm32f103": "M3", "stm32f412": "M4", "stm32f746": "M7"}
NOTHING = np.zeros((1, 4), np.int8)
RETURN_0 = ("movs r0, #0", "bx lr")


def run(folder: Path, board: str | Board, *parts: str, **options):
    return emulate(firmware(folder, board, *parts), board, NOTHING, 4, **options)


def by_each(elf_path: Path, board: str, codes: np.ndarray, offset: int = 0):
    """The account by the plain counter, instruction by instruction."""
    machine = Machine(elf_path, board, each=True)
    rows = [machine.infer(row.tobytes(), 0, 64, offset) for row in codes]
    return machine.result(np.frombuffer(b"".join(rows), np.int8).reshape(len(codes), 64))


def counted_loop(turns: int, nops: int) -> str:
    """1 + turns * (nops + 2) + 2 instructions, turns - 1 branches taken before the return."""
    return assembly(
        "model_invoke", f"movs r1, #{turns}", "1:", *["nop"] * nops, "subs r1, r1, #1", "bne 1b", *RETURN_0
    )


# -- counts -------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(CORES)), st.integers(1, 200), st.integers(1, 200), st.integers(0, 30))
def test_nested_loops_are_counted_to_the_instruction(tmp_path, board, outer, inner, nops):
    loop = assembly(
        "model_invoke",
        f"movs r1, #{outer}",
        f"1: movs r2, #{inner}",
        "2:",
        *["nop"] * nops,
        "subs r2, r2, #1",
        "bne 2b",
        "subs r1, r1, #1",
        "bne 1b",
        *RETURN_0,
    )
    result = run(tmp_path, board, loop)
    assert result.instructions == 1 + outer * (1 + inner * (nops + 2) + 2) + 2
    assert result.layer_instructions == {}


def test_one_more_instruction_in_a_loop_is_seen(tmp_path):
    """The control: the count is not insensitive to what it counts."""
    few, more = (run(tmp_path / str(n), "stm32f412", counted_loop(50, n)).instructions for n in (3, 4))
    assert (few, more) == (1 + 50 * 5 + 2, 1 + 50 * 6 + 2)


def test_an_instruction_whose_condition_fails_is_counted(tmp_path):
    """The core spends a cycle on it, and QEMU's -icount counts it too."""
    code = assembly(
        "model_invoke",
        "movs r1, #1",
        "cmp r1, #1",
        "ittte ne",
        *["addne r2, r2, #1"] * 3,
        "addeq r3, #1",
        *RETURN_0,
    )
    elf_path = firmware(tmp_path, "stm32f412", code, arena_bytes=64)
    result = emulate(elf_path, "stm32f412", NOTHING, 4)
    assert result.instructions == 9
    assert by_each(elf_path, "stm32f412", NOTHING).instructions == 9


@pytest.mark.parametrize("board", sorted(CORES))
@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_blocks_and_single_instructions_give_one_account(tmp_path, board, optimize, rng):
    elf_path = firmware(tmp_path, board, MIXED_C, optimize=optimize)
    codes = rng.integers(-128, 128, (3, 64), np.int8)
    fast, plain = emulate(elf_path, board, codes, 64, output_offset=64), by_each(elf_path, board, codes, 64)
    assert (fast.outputs == plain.outputs).all()
    for field in (
        "instructions_each",
        "cycles_each",
        "layer_instructions",
        "layer_cycles",
        "hits",
        "stack_bytes",
    ):
        assert getattr(fast, field) == getattr(plain, field), field
    assert fast.taken_branches == plain.taken_branches


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_every_board_computes_the_same_and_repeats_its_count(tmp_path, board, rng):
    elf_path = firmware(tmp_path, board, MIXED_C)
    codes = rng.integers(-128, 128, (2, 64), np.int8)
    result = emulate(elf_path, board, np.repeat(codes, 2, axis=0), 64, output_offset=64)
    assert result.outputs.tolist() == [mixed_reference(row) for row in codes.tolist() for _ in range(2)]
    first, again, second, _ = result.instructions_each
    assert first == again
    assert result.instructions == max(first, second)
    fresh = emulate(elf_path, board, codes, 64, output_offset=64)
    assert fresh.instructions_each == (first, second)
    assert fresh.estimated_ms == pytest.approx(1e3 * fresh.estimated_cycles / BOARDS[board].clock_hz)


def test_data_dependent_code_is_said_not_to_repeat(tmp_path):
    body = "int model_invoke(void) { volatile int8_t *a = te_arena; while (*a > 0) --*a; return 0; }\n"
    elf_path = firmware(tmp_path, "stm32f412", body)
    result = emulate(elf_path, "stm32f412", np.array([[1], [9]], np.int8), 1)
    assert not result.repeats_exactly
    assert result.instructions == result.instructions_each[1] > result.instructions_each[0]


# -- attribution --------------------------------------------------------------------------------


def test_layers_get_their_callees_and_the_rest_is_the_caller(tmp_path):
    parts = [
        assembly("helper", "nop", "nop", "bx lr"),
        assembly("model_layer_0", "push {r4, lr}", "bl helper", "bl helper", "pop {r4, pc}"),
        assembly("model_layer_2", "nop", "b helper"),  # a tail call: helper returns for both
        assembly(
            "model_invoke", "push {r4, lr}", "bl model_layer_0", "bl model_layer_2", "bl model_layer_0",
            "movs r0, #0", "pop {r4, pc}",
        ),
    ]  # fmt: skip
    result = run(tmp_path, "stm32f412", *parts)
    assert result.layer_instructions == {"model_layer_0": 2 * (4 + 2 * 3), "model_layer_2": 2 + 3}
    assert result.layer_calls == {"model_layer_0": 2, "model_layer_2": 1}
    assert result.instructions == 6 + sum(result.layer_instructions.values())


def test_a_tail_called_layer_ends_with_its_caller(tmp_path):
    parts = [
        assembly("model_layer_0", "nop", *RETURN_0),
        assembly("model_invoke", "b model_layer_0"),
    ]
    result = run(tmp_path, "stm32f412", *parts)
    assert (result.instructions, result.layer_instructions) == (4, {"model_layer_0": 3})


def test_recursion_is_unwound_level_by_level(tmp_path):
    """A depth of 5: each level holds those below it, 3 + 5 instructions a level, so the sum is triangular."""
    parts = [
        assembly(
            "model_layer_0",
            "push {r4, lr}",
            "subs r0, r0, #1",
            "beq 1f",
            "bl model_layer_0",
            "1: pop {r4, pc}",
        ),
        assembly(
            "model_invoke", "push {r4, lr}", "movs r0, #5", "bl model_layer_0", "movs r0, #0", "pop {r4, pc}"
        ),
    ]
    result = run(tmp_path, "stm32f412", *parts)
    depth = [4 + 5 * k for k in range(5)]  # inclusive cost of the innermost level, and of each above it
    assert result.layer_calls == {"model_layer_0": 5}
    assert result.layer_instructions == {"model_layer_0": sum(depth)}
    assert result.instructions == 5 + depth[-1]


@pytest.mark.parametrize("board", sorted(CORES))
def test_hits_sum_to_the_instructions_executed(tmp_path, board, rng):
    elf_path = firmware(tmp_path, board, MIXED_C)
    result = emulate(elf_path, board, rng.integers(-128, 128, (1, 64), np.int8), 64, output_offset=64)
    image = elf.read_elf(elf_path)
    outside = [n for address, n in result.hits.items() if image.where(address).startswith("te_main")]
    # The account starts at the entry of model_invoke: `bl` came before it, `bkpt` comes after its return.
    assert sum(result.hits.values()) - result.instructions in range(3)
    assert sum(outside) <= 2
    entry = image.symbol("model_invoke").address
    assert result.hits[entry] == 1


# -- stack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [0, 8, 200, 500])
def test_a_frame_of_known_size_is_measured(tmp_path, frame):
    function = assembly(
        "model_invoke",
        "push {r4, lr}",
        f"sub sp, #{frame}",
        f"add sp, #{frame}",
        "movs r0, #0",
        "pop {r4, pc}",
    )
    assert run(tmp_path, "stm32f412", function).stack_bytes == 8 + frame


def test_bytes_written_below_the_stack_pointer_are_measured(tmp_path):
    function = assembly("model_invoke", "movs r0, #0", "str r0, [sp, #-64]", "bx lr")
    assert run(tmp_path, "stm32f412", function).stack_bytes == 64


def test_compiled_frames_differ_by_their_arrays(tmp_path):
    source = """__attribute__((noinline)) int model_invoke(void) {{
        volatile uint32_t scratch[{words}];
        for (int i = 0; i < {words}; ++i) scratch[i] = 1;
        return (int)scratch[0] - 1; }}\n"""
    small, large = (
        run(tmp_path / str(words), "rp2040", source.format(words=words)).stack_bytes for words in (16, 116)
    )
    assert large - small == 400


def test_a_stack_overflow_faults_and_says_so(tmp_path):
    function = assembly("model_invoke", "nop", "1: push {r0-r7}", "b 1b")
    with pytest.raises(ToolchainError, match=r"model_invoke\+0x2 .*the stack overflowed"):
        run(tmp_path, "stm32f412", function)


def test_a_stack_pointer_used_as_a_plain_register_is_no_stack(tmp_path):
    function = assembly(
        "model_invoke", "mov r4, sp", "movw r5, :lower16:te_arena", "movt r5, :upper16:te_arena",
        "mov sp, r5", "mov sp, r4", *RETURN_0,
    )  # fmt: skip
    assert run(tmp_path, "stm32f412", function).stack_bytes == 0


# -- cycles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "loop", "call"), [("rp2040", 1, 1), ("stm32f103", 2, 2), ("stm32f412", 2, 2)]
)
def test_a_loop_costs_what_the_manual_says(tmp_path, board, loop, call):
    """movs 1; a turn: nop, subs, bne 1 each and a refill unless it is the last; movs 1; bx 1 and a refill."""
    assert run(tmp_path, board, counted_loop(100, 1)).estimated_cycles == 1 + 300 + 99 * loop + 1 + 1 + call


@pytest.mark.parametrize(
    ("lines", "m3", "m4"),
    [
        (["mul r1, r2, r3"], 1, 1),
        (["mla r1, r2, r3, r4"], 2, 1),
        (["smull r1, r2, r3, r4"], 5, 1),
        (["smlal r1, r2, r3, r12"], 7, 1),
        (["sdiv r1, r2, r3"], 12, 12),
        (["ldr r1, [sp]", "nop"], 3, 3),
        (["ldr r1, [sp]", "ldr r2, [sp, #4]"], 3, 3),  # the second overlaps with the first
        (["ldr r1, [sp]", "ldr r2, [r1]"], 4, 4),  # it cannot: its address is what the first loads
        (["ldr r1, [sp]", "str r1, [sp, #4]"], 3, 3),
        (["add r1, sp, #0", "ldr r2, [r1]"], 4, 4),  # the address is computed right before
        (["add r1, sp, #0", "nop", "ldr r2, [r1]"], 4, 4),
        (["ldrd r1, r2, [sp]"], 3, 3),
        (["push {r1, r2, r3}", "pop {r1, r2, r3}"], 8, 8),
    ],
)
def test_instruction_costs_by_core(tmp_path, lines, m3, m4):
    # r1 must be a readable address where a line loads through it, hence the preparation (13 cycles in all).
    setup = [
        "sub sp, #16",
        "mov r1, sp",
        "nop",
        "str r1, [sp]",
        "nop",
        "movs r2, #0",
        "movs r3, #1",
        "movs r12, #0",
    ]
    setup[-1] = "mov r12, r3"
    teardown = ["nop", "add sp, #16", *RETURN_0]

    def cost(board: str, *middle: str) -> int:
        code = assembly("model_invoke", *setup, *middle, *teardown)
        return run(tmp_path / f"{board}{len(middle)}", board, code).estimated_cycles

    assert cost("stm32f103", *lines) - cost("stm32f103") == m3
    assert cost("stm32f412", *lines) - cost("stm32f412") == m4


def test_a_branch_target_does_not_overlap_with_the_load_in_front_of_it(tmp_path):
    """Straight: 2 + 1.  Jumped over: the second load has no load before it, and costs 2."""
    code = assembly("model_invoke", "b 1f", "ldr r1, [sp]", "1: ldr r2, [sp]", *RETURN_0)
    assert run(tmp_path, "stm32f412", code).estimated_cycles == (1 + 2) + 2 + 1 + (1 + 2)


# -- what must be refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["movs r1, #0", "movw r1, #0x1234", "str r1, [r1]"], r"model_invoke\+0x6 .*write to 0x00001234"),
        (["ldr r1, =0x30000000", "ldr r1, [r1]", "b 1f", ".ltorg", "1:"], "read of 0x30000000"),
        (["ldr r1, =model_invoke", "str r1, [r1]", "b 1f", ".ltorg", "1:"], "write to flash at"),
        (["add r1, sp, #1", "bx r1"], "jump to data at"),
        (["udf #0"], r"model_invoke\+0x0 .*Invalid instruction"),
    ],
)
def test_faults_name_the_place_and_the_access(tmp_path, lines, message):
    with pytest.raises(ToolchainError, match=message):
        run(tmp_path, "stm32f412", assembly("model_invoke", *lines, *RETURN_0))


def test_an_unaligned_load_faults_on_a_core_that_has_none(tmp_path):
    code = assembly("model_invoke", "mov r1, sp", "subs r1, #3", "ldr r2, [r1]", *RETURN_0)
    assert run(tmp_path, "stm32f412", code).instructions == 5
    with pytest.raises(ToolchainError, match="unaligned"):
        run(tmp_path, "rp2040", code)


def test_an_image_for_a_larger_core_is_refused(tmp_path):
    """The M4's DSP code on the M3; the control: the M3's code runs on the M4, in the same memory map."""
    elf_path = firmware(
        tmp_path / "m4", "stm32f412", assembly("model_invoke", "smlad r1, r2, r3, r1", *RETURN_0)
    )
    assert emulate(elf_path, "stm32f412", NOTHING, 4).instructions == 3
    with pytest.raises(DataError, match="the image is Armv7E-M code, stm32f103 runs Armv7-M"):
        emulate(elf_path, "stm32f103", NOTHING, 4)
    smaller = firmware(tmp_path / "m3", "stm32f103", counted_loop(2, 0))
    assert emulate(smaller, "stm32f412", NOTHING, 4).instructions == 7


def test_the_emulated_core_lacks_what_the_real_one_lacks(tmp_path):
    """Thumb-2 instructions, given to the assembler as numbers, are undefined on the M0+."""
    code = assembly("model_invoke", ".inst.w 0xfbb1f1f2", *RETURN_0)  # udiv r1, r1, r2
    assert run(tmp_path, "stm32f103", code).instructions == 3
    with pytest.raises(ToolchainError, match="Invalid instruction"):
        run(tmp_path, "rp2040", code)


def test_running_into_data_is_refused(tmp_path):
    with pytest.raises(ToolchainError, match="ran into data at model_invoke"):
        run(tmp_path, "stm32f412", assembly("model_invoke", "b 1f", "1: .short 0xbf00", *RETURN_0))


@pytest.mark.parametrize("board", ["stm32f412", "stm32f746", "stm32h743"])
def test_the_floating_point_unit_is_on(tmp_path, board):
    body = """#include <string.h>
    int model_invoke(void) {
        float a[2];
        memcpy(a, te_arena, 8);
        a[0] = a[0] * a[1] + 1.5f;
        memcpy(te_arena + 8, a, 4);
        return 0; }\n"""
    x = np.array([[1.25, -7.5]], np.float32)
    elf_path = firmware(tmp_path, board, body)
    result = emulate(elf_path, board, x.view(np.int8), 4, output_offset=8)
    assert result.outputs.view(np.float32)[0, 0] == 1.25 * -7.5 + 1.5


def test_an_image_of_another_memory_map_is_refused(tmp_path):
    elf_path = firmware(tmp_path, "rp2040", counted_loop(1, 0))
    with pytest.raises(DataError, match="not linked for the flash of stm32f412"):
        emulate(elf_path, "stm32f412", NOTHING, 4)


def test_an_endless_loop_is_stopped(tmp_path):
    elf_path = firmware(tmp_path, "stm32f412", assembly("model_invoke", "nop", "1: b 1b"))
    with pytest.raises(ToolchainError, match=r"did not finish within 10,000 instructions.*model_invoke"):
        emulate(elf_path, "stm32f412", NOTHING, 4, limit=10_000)


def test_a_status_other_than_ok_is_reported(tmp_path):
    with pytest.raises(ToolchainError, match="status 3"):
        run(tmp_path, "stm32f412", assembly("model_invoke", "movs r0, #3", "bx lr"))


def test_inputs_and_outputs_must_lie_in_the_arena(tmp_path):
    elf_path = firmware(tmp_path, "stm32f412", counted_loop(1, 0), arena_bytes=32)
    with pytest.raises(UsageError, match="output"):
        emulate(elf_path, "stm32f412", NOTHING, 8, output_offset=25)
    with pytest.raises(UsageError, match="input"):
        emulate(elf_path, "stm32f412", np.zeros((1, 33), np.int8), 8)
    with pytest.raises(UsageError, match="int8"):
        emulate(elf_path, "stm32f412", np.zeros((1, 8), np.float32), 8)


def test_an_image_without_a_network_is_refused(tmp_path):
    (tmp_path / "main.c").write_text('void te_main(void) { for (;;) __asm volatile("bkpt #0"); }\n')
    with pytest.raises(DataError, match="te_arena"):
        emulate(toolchain.compile_firmware(tmp_path, "stm32f412"), "stm32f412", NOTHING, 4)


def test_a_missing_emulator_is_a_message(tmp_path, monkeypatch):
    elf_path = firmware(tmp_path, "stm32f412", counted_loop(1, 0))
    monkeypatch.setitem(__import__("sys").modules, "unicorn", None)
    with pytest.raises(ToolchainError, match=r"pip install 'tinyml_edu\[mcu\]'"):
        emulate(elf_path, "stm32f412", NOTHING, 4)


def test_a_hook_of_another_layout_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "hook.c"
    text = count_hook.SOURCE.read_text()
    other.write_text(text.replace("#define TE_DEPTH 64", "#define TE_DEPTH 65"))
    monkeypatch.setattr(count_hook, "SOURCE", other)
    elf_path = firmware(tmp_path / "p", "stm32f412", counted_loop(1, 0))
    with pytest.raises(ToolchainError, match="another version"):
        emulate(elf_path, "stm32f412", NOTHING, 4)


# -- memory trace -------------------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS)
def test_the_trace_counts_every_access_of_every_byte(tmp_path, board):
    body = """int model_invoke(void) {
        volatile uint8_t *bytes = (volatile uint8_t *)te_arena;
        volatile uint32_t *words = (volatile uint32_t *)te_arena;
        for (int i = 0; i < 5; ++i) bytes[3] = bytes[17];
        words[2] = words[5];
        return 0; }\n"""
    elf_path = firmware(tmp_path, board, body, arena_bytes=32)
    result = emulate(elf_path, board, NOTHING, 4, trace=True)
    reads, writes = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    reads[17], reads[20:24], writes[3], writes[8:12] = 5, 1, 5, 1
    # The start-up code clears the arena before the first inference: that is not counted.
    assert (result.reads == reads).all()
    assert (result.writes == writes).all()
    plain = emulate(elf_path, board, NOTHING, 4)
    assert (plain.instructions, plain.reads) == (result.instructions, None)


# -- run-time support ---------------------------------------------------------------------------

SUPPORT_C = r"""
#include <string.h>
typedef struct { int64_t a, b; } pair;
static volatile uint32_t sink;
int model_invoke(void) {
    pair in;
    memcpy(&in, te_arena, 16);
    const uint64_t ua = (uint64_t)in.a, ub = (uint64_t)in.b;
    const int shift = (int)(ub & 63);
    const int32_t na = (int32_t)in.a, nb = (int32_t)in.b;
    const uint32_t wa = (uint32_t)in.a, wb = (uint32_t)in.b;
    int64_t out[8] = {(int64_t)(ua * ub), in.a / in.b, in.a % in.b, (int64_t)(ua / ub), (int64_t)(ua % ub),
                      (int64_t)(ua << shift), (int64_t)(ua >> shift), in.a >> shift};
    int32_t narrow[5] = {na / nb, na % nb, (int32_t)(wa / wb), (int32_t)(wa % wb), __builtin_clz(wa | 1)};
    memcpy(te_arena + 16, out, sizeof out);
    memcpy(te_arena + 80, narrow, sizeof narrow);
    return 0;
}
"""


def wrap(value: int, bits: int) -> int:
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def truncated(a: int, b: int) -> tuple[int, int]:
    q = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return q, a - q * b


EDGES = [1, -1, 2, -2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100000001, -(2**63), 2**63 - 1, 10**12]


@pytest.mark.parametrize("board", ["rp2040", "stm32f103"])
def test_integer_helpers_agree_with_python(tmp_path, board, rng):
    pairs = [(a, b) for a in EDGES for b in EDGES if wrap(b, 32) != 0]
    widths = rng.integers(1, 64, (200, 2))
    random = [tuple(int(rng.integers(-(2**w), 2**w)) for w in row) for row in widths.tolist()]
    pairs += [(a, b) for a, b in random if wrap(b, 32) != 0]
    # Signed overflow is undefined in C: the most negative number divided by -1.
    pairs = [
        (a, b)
        for a, b in pairs
        if not (wrap(b, 32) == -1 and wrap(a, 32) == -(2**31)) and (a, b) != (-(2**63), -1)
    ]
    codes = np.array(pairs, np.int64).view(np.int8).reshape(len(pairs), 16)
    result = emulate(firmware(tmp_path, board, SUPPORT_C), board, codes, 84, output_offset=16)
    for (a, b), row in zip(pairs, result.outputs, strict=True):
        ua, ub, wa, wb = a % 2**64, b % 2**64, a % 2**32, b % 2**32
        shift = ub & 63
        wide = [a * b, *truncated(a, b), ua // ub, ua % ub, ua << shift, ua >> shift, a >> shift]
        narrow = [*truncated(wrap(a, 32), wrap(b, 32)), wa // wb, wa % wb, 32 - (wa | 1).bit_length()]
        assert row[:64].view(np.int64).tolist() == [wrap(v, 64) for v in wide], (a, b)
        assert row[64:].view(np.int32).tolist() == [wrap(v, 32) for v in narrow], (a, b)


COPY_C = r"""
#include <string.h>
int model_invoke(void) {
    const uint8_t *in = (const uint8_t *)te_arena;
    uint8_t *work = (uint8_t *)te_arena + 16;
    for (int i = 0; i < 64; ++i) work[i] = (uint8_t)i;
    if (in[3] == 0) memcpy(work + in[0], work + in[1], in[2]);
    if (in[3] == 1) memmove(work + in[0], work + in[1], in[2]);
    if (in[3] == 2) memset(work + in[0], in[1], in[2]);
    return 0;
}
"""


@pytest.mark.parametrize("board", ["rp2040", "stm32f412"])
def test_memory_functions_agree_with_python(tmp_path, board, rng):
    cases = [(32 + d, s, n, 0) for d in range(4) for s in range(4) for n in (0, 1, 3, 4, 5, 8, 17)]
    cases += [(d, s, n, 1) for d in (0, 1, 4, 9) for s in (0, 2, 4, 7) for n in (0, 1, 6, 16, 33)]
    cases += [(d, v, n, 2) for d in range(4) for v in (0, 255) for n in (0, 1, 2, 7, 8, 31)]
    codes = np.array(cases, np.uint8).view(np.int8)
    result = emulate(firmware(tmp_path, board, COPY_C), board, codes, 64, output_offset=16)
    for (to, source, size, kind), row in zip(cases, result.outputs.view(np.uint8), strict=True):
        wanted = bytearray(range(64))
        wanted[to : to + size] = (
            bytes([source]) * size if kind == 2 else bytes(wanted[source : source + size])
        )
        assert bytes(row) == bytes(wanted), (to, source, size, kind)


# -- QEMU ---------------------------------------------------------------------------------------

# QEMU's mps2 machines have a 25 MHz timer; -icount shift=6 makes an instruction last 64 ns of virtual time,
# 1.6 ticks.  Semihosting prints the difference of two readings and exits.
QEMU_MAIN = r"""
#include <stdint.h>
#define TIMER ((volatile uint32_t *)0x40000000)
int model_invoke(void);
static int semihost(int operation, const void *argument) {
    register int r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt #0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
void te_main(void) {
    char text[16];
    int at = 15;
    TIMER[2] = 0xFFFFFFFF, TIMER[1] = 0xFFFFFFFF, TIMER[0] = 1;
    const uint32_t before = TIMER[1];
    model_invoke();
    uint32_t ticks = before - TIMER[1];
    text[at] = 0;
    do text[--at] = (char)('0' + ticks % 10), ticks /= 10; while (ticks);
    semihost(4, text + at);
    semihost(0x18, (const void *)0x20026);
    for (;;) {}
}
"""
QEMU_BOARDS = {
    "mps2-an385": ("cortex-m3", "cortex_m3", "none"),
    "mps2-an386": ("cortex-m4", "cortex_m4", "none"),
    "mps2-an500": ("cortex-m7", "cortex_m7", "none"),
}


def qemu_board(machine: str) -> Board:
    core, mcpu, fpu = QEMU_BOARDS[machine]
    return Board(
        machine, machine, core, mcpu, 4 << 20, 4 << 20, 25_000_000, "QEMU", flash_origin=0, fpu=fpu
    )  # fmt: skip


def qemu_ticks(folder: Path, machine: str, *parts: str, **options) -> int:
    project(folder, *parts, arena_bytes=256)
    (folder / "qemu_main.c").write_text(QEMU_MAIN)
    elf_path = toolchain.compile_firmware(folder, qemu_board(machine), **options)
    command = ["qemu-system-arm", "-M", machine, "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-chardev", "stdio,id=sh0", "-semihosting-config", "enable=on,target=native,chardev=sh0"]
    command += ["-icount", "shift=6,align=off,sleep=off", "-kernel", str(elf_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(re.search(r"\d+", done.stdout)[0])


@pytest.mark.qemu
@pytest.mark.parametrize("machine", sorted(QEMU_BOARDS))
@pytest.mark.parametrize(("compiler", "optimize"), [("zig", "speed"), ("zig", "size"), ("gcc", "speed")])
def test_qemu_counts_the_same_instructions(tmp_path, machine, compiler, optimize):
    board = qemu_board(machine)
    options = {"compiler": compiler, "optimize": optimize}
    nothing = assembly("model_invoke", *RETURN_0)
    elf_path = firmware(tmp_path / "unicorn", board, MIXED_C, **options)
    mine = emulate(elf_path, board, np.zeros((1, 64), np.int8), 64, output_offset=64)
    assert mine.outputs[0].tolist() == mixed_reference([0] * 64)
    ticks = qemu_ticks(tmp_path / "code", machine, MIXED_C, **options)
    empty = qemu_ticks(tmp_path / "empty", machine, nothing, **options)
    # Two readings round to a tick each, 0.625 instructions: the difference is exact after rounding.
    assert abs((ticks - empty) * 5 / 8 - (mine.instructions - 2)) < 1, (ticks, empty, mine.instructions)


@pytest.mark.qemu
def test_qemu_sees_one_instruction_more(tmp_path):
    """The control: the comparison resolves a difference of two instructions in a thousand."""
    ticks = [qemu_ticks(tmp_path / str(n), "mps2-an386", counted_loop(100, n)) for n in (8, 9)]
    assert abs((ticks[1] - ticks[0]) * 5 / 8 - 100) < 1
