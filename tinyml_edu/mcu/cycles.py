"""Estimate cycles: what each instruction costs on each core, by Arm's own manuals, with zero wait states.

The estimate is a sum over executed instructions.  It knows no flash wait state, no cache and no bus
contention, so it is a lower estimate of a board's time whose flash is slow; `docs/hardware.md` says more.

| instruction | Cortex-M0+ | Cortex-M3 | Cortex-M4 | Cortex-M7 |
|---|---:|---:|---:|---:|
| ALU, compare, move, shift, extend | 1 | 1 | 1 | 1 |
| MUL | 1 | 1 | 1 | 1 |
| MLA, MLS | – | 2 | 1 (MLS 1) | 1 |
| SMLAD, SMULBB, SSAT, other DSP | – | 1 (SSAT) | 1 | 1 |
| UMULL, SMULL / UMLAL, SMLAL | – | 5 / 7 | 1 | 1 |
| UDIV, SDIV | – | 12 | 12 | 12 |
| load | 2 | 2, less 1 right after a load | as M3 | as M3 |
| store | 2 | 1, register offset 2, less 1 right after a load | as M3 | as M3 |
| LDM, STM, PUSH, POP, LDRD, STRD of N words | 1 + N | 1 + N | 1 + N | 1 + N |
| taken branch, more | 1 (BL 2) | 2 | 2 | 2 |
| POP or LDM of the PC, more | 2 | 2 | 2 | 2 |
| FP add, multiply / fused / divide, root | – | – | 1 / 3 / 14 | as M4 |

Sources: Cortex-M0+ TRM (DDI 0484), table 3-1; Cortex-M3 TRM (DDI 0337), tables 3-1 and section 3.3.2;
Cortex-M4 TRM (DDI 0439), tables 3-1, 7-1 and section 3.3.3.  A figure that the manual gives as a range (division 2
to 12, long multiplication on M3, refill 1 to 3) is its upper end, except the refill: 2, the middle.
Arm publishes no such table for the Cortex-M7, which issues up to two instructions a cycle: its column is
the M4's, a *single-issue* estimate, which a program in tightly coupled memory should beat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Layout of a record, shared with hook/count_hook.c.
ARRIVAL_SHIFT = 8
REFILL_SHIFT = 16
WATCH = 1 << 24
MOVES_SP = 1 << 26

_LONG_LOADS = ("ldm", "pop", "ldrd", "vldm", "vpop")
_LONG_STORES = ("stm", "push", "strd", "vstm", "vpush")
_BASE = re.compile(r"^(?P<dest>\w+), \[(?P<base>\w+)(?:, (?P<index>\w+)(?:, [^\]]*)?)?")
_CONDITIONS = frozenset("eq ne hs lo mi pl vs vc hi ls ge lt gt le cs cc".split())
_SINGLE_LOADS = ("ldr", "ldrb", "ldrh", "ldrsb", "ldrsh")
_SINGLE_STORES = ("str", "strb", "strh")
_STEMS = frozenset(
    [*_SINGLE_LOADS, *_SINGLE_STORES]
    + "mla mls umull smull umlal smlal umaal udiv sdiv mrs msr tbb tbh bl".split()
)


@dataclass(frozen=True)
class Core:
    """Cycle figures of a core; see the table above for the meaning of each."""

    load: int = 2
    store: int = 1
    store_register_offset: int = 2
    pipelined: bool = True
    mla: int = 1
    mls: int = 1
    long_multiply: int = 1
    long_accumulate: int = 1
    divide: int = 12
    refill: int = 2
    refill_call: int = 2


CORES: dict[str, Core] = {
    "cortex-m0plus": Core(store=2, store_register_offset=2, pipelined=False, refill=1, refill_call=2),
    "cortex-m3": Core(mla=2, mls=2, long_multiply=5, long_accumulate=7),
    "cortex-m4": Core(),
    "cortex-m7": Core(),
}


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction: address, size in bytes, and its text in unified assembly syntax."""

    address: int
    size: int
    mnemonic: str
    operands: str


def disassemble(code: bytes, address: int, ranges: Iterable[tuple[int, int]]) -> list[Instruction]:
    """Decode the instructions in ``ranges`` of ``code``, which starts at ``address``.

    A halfword that does not decode is left out (and then has no cost); the emulator faults if it is reached.
    """
    import capstone

    engine = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS)
    engine.skipdata = True
    return [
        Instruction(at, size, mnemonic, operands)
        for first, end in ranges
        for at, size, mnemonic, operands in engine.disasm_lite(code[first - address : end - address], first)
        if mnemonic != ".byte"
    ]


def records(instructions: list[Instruction], core: str, base: int, size_bytes: int) -> np.ndarray:
    """Return the counter's records, uint32 ``(size_bytes // 2,)``, one per halfword from ``base``."""
    table = np.zeros(size_bytes // 2, np.uint32)
    figures = CORES[core]
    previous: Instruction | None = None
    for now in instructions:
        cost, refill = _cost(now, figures)
        saved = int(figures.pipelined and _pipelines(previous, now))
        record = (cost - saved) | saved << ARRIVAL_SHIFT | refill << REFILL_SHIFT
        table[(now.address - base) // 2] = record | (MOVES_SP if _moves_sp(now) else 0)
        previous = now
    return table


def _cost(now: Instruction, core: Core) -> tuple[int, int]:
    """Return (cycles, cycles more if the next instruction executed is not the one behind it)."""
    name = _stem(now.mnemonic)
    to_pc = re.search(r"\bpc\b", now.operands.split("[")[0]) is not None
    if name.startswith((*_LONG_LOADS, *_LONG_STORES)):
        return 1 + _words(name, now.operands), 2 if to_pc else 0
    if name.startswith(("ldr", "vldr")):
        return core.load, core.refill
    if name.startswith(("str", "vstr")):
        return core.store_register_offset if _register_offset(now.operands) else core.store, 0
    if name in ("tbb", "tbh"):
        return 2, core.refill
    return _arithmetic_cost(name, core), core.refill_call if name == "bl" else core.refill


def _arithmetic_cost(name: str, core: Core) -> int:
    if name in ("udiv", "sdiv"):
        return core.divide
    if name in ("umull", "smull"):
        return core.long_multiply
    if name in ("umlal", "smlal", "umaal"):
        return core.long_accumulate
    if name == "mla":
        return core.mla
    if name == "mls":
        return core.mls
    if name in ("mrs", "msr"):
        return 2
    if name.startswith(("vdiv", "vsqrt")):
        return 14
    if name.startswith(("vmla", "vmls", "vfma", "vfms", "vnmla", "vnmls", "vfnma", "vfnms")):
        return 3
    return 1


def _stem(mnemonic: str) -> str:
    """Return a mnemonic without width mark and condition: ``"mlaeq.w"`` -> ``"mla"``.

    Only a known stem is cut: ``"mls"`` itself ends like a condition.
    """
    name = mnemonic.split(".")[0]
    return name[:-2] if name[-2:] in _CONDITIONS and name[:-2] in _STEMS else name


def _words(name: str, operands: str) -> int:
    if name in ("ldrd", "strd"):
        return 2
    listed = operands[operands.find("{") :].count(",") + 1
    return 2 * listed if "d" in operands[operands.find("{") : operands.find("{") + 2] else listed


def _register_offset(operands: str) -> bool:
    match = _BASE.match(operands)
    return match is not None and match["index"] is not None


def _pipelines(previous: Instruction | None, now: Instruction) -> bool:
    """Return whether a single load or store overlaps with the single load right before it.

    DDI 0439, 3.3.3: the address phase of the second overlaps with the data phase of the first, unless the
    first loads a register that the second's address needs.
    """
    if previous is None or previous.address + previous.size != now.address:
        return False
    first, second = _stem(previous.mnemonic), _stem(now.mnemonic)
    if first not in _SINGLE_LOADS or second not in (*_SINGLE_LOADS, *_SINGLE_STORES):
        return False
    load, access = _BASE.match(previous.operands), _BASE.match(now.operands)
    if load is None or access is None or load["dest"] == "pc":
        return False
    return load["dest"] not in (access["base"], access["index"])


def _moves_sp(now: Instruction) -> bool:
    """Return whether an instruction may lower the stack pointer."""
    name, operands = now.mnemonic, now.operands
    if name.startswith(("push", "vpush")) or operands.startswith(("sp,", "sp!")):
        return True
    return "[sp" in operands and ("]!" in operands or "], " in operands)
