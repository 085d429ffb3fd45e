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
| load | 2 | 2, less 1 right after a load; 1 more if its address was computed right before | as M3 | as M3 |
| store | 2 | 1, register offset 2 (1 right after a load); 1 more as for a load | as M3 | as M3 |
| LDM, STM, PUSH, POP, LDRD, STRD of N words | 1 + N | 1 + N | 1 + N | 1 + N |
| taken branch, more | 1 (BL 2) | 2 | 2 | 2 |
| POP or LDM of the PC, more | 2 | 2 | 2 | 2 |
| FP add, multiply / fused / divide, root | – | – | 1 / 3 / 14 | as M4 |

Sources: Cortex-M0+ TRM (DDI 0484), table 3-1; Cortex-M3 TRM (DDI 0337), table 3-1 and section 3.3.2;
Cortex-M4 TRM (DDI 0439), tables 3-1 and 7-1 and section 3.3.3.  A figure that the manual gives as a range
(division 2 to 12, long multiplication on M3, refill 1 to 3) is its upper end, except the refill: 2, the
middle.  An instruction whose IT condition fails takes 1 cycle and is charged in full.
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
CODE = 1 << 27

CAVEAT = "estimates from Arm's manuals with zero wait states, not validated on silicon"
"""What must stand beside cycles and milliseconds wherever they are printed."""

_LONG_LOADS = ("ldm", "pop", "ldrd", "vldm", "vpop")
_LONG_STORES = ("stm", "push", "strd", "vstm", "vpush")
_BASE = re.compile(r"^(?P<dest>\w+), \[(?P<base>\w+)(?:, (?P<index>\w+)(?:, [^\]]*)?)?")
_CONDITIONS = frozenset(re.findall("..", "eqnehslomiplvsvchilsgeltgtlecscc"))
_SINGLE_LOADS = ("ldr", "ldrb", "ldrh", "ldrsb", "ldrsh")
_SINGLE_STORES = ("str", "strb", "strh")
_BRANCHES = ("b", "bl", "bx", "blx", "cbz", "cbnz", "tbb", "tbh")
_LONG_MULTIPLIES, _LONG_ACCUMULATES = ("umull", "smull"), ("umlal", "smlal", "umaal")
_DIVISIONS, _SYSTEM = ("udiv", "sdiv"), ("mrs", "msr")
_STEMS = frozenset((*_SINGLE_LOADS, *_SINGLE_STORES, *_BRANCHES, *_DIVISIONS, *_SYSTEM)) | frozenset(
    ("mla", "mls", *_LONG_MULTIPLIES, *_LONG_ACCUMULATES)
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
    system: int = 2
    refill: int = 2
    refill_call: int = 2


CORES: dict[str, Core] = {
    "cortex-m0plus": Core(store=2, pipelined=False, system=3, refill=1),
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


@dataclass(frozen=True)
class CodeTables:
    """What the counter needs of a program, indexed by halfword from its first address.

    Attributes
    ----------
    records : ndarray of uint32, shape (n + 1,)
        Cycles, change on arrival by a branch (8-bit two's complement), cycles more on leaving by one, flags.
    before, cycles_sum : ndarray of uint32, shape (n + 1,)
        Instructions that start below each halfword, and their cycles: running sums, so that the cost of
        straight-line code is a difference.
    last : ndarray of uint32, shape (n + 1,)
        Halfword of the instruction that ends where this halfword starts.
    behind_sp : tuple of int
        Addresses behind the instructions that may lower the stack pointer.
    mnemonic : ndarray of int32, shape (n + 1,)
        Index into ``names`` of the instruction that starts at each halfword.
    names : tuple of str
        The mnemonics that occur, without the mark of their width: ``ldr.w`` is ``ldr``.
    """

    records: np.ndarray
    before: np.ndarray
    cycles_sum: np.ndarray
    last: np.ndarray
    behind_sp: tuple[int, ...]
    mnemonic: np.ndarray
    names: tuple[str, ...]


def tables(instructions: list[Instruction], core: str, base: int, size_bytes: int) -> CodeTables:
    """Return the counter's tables for a program of ``size_bytes`` bytes at ``base`` on a core."""
    n = -(-size_bytes // 2)
    table, last = np.zeros(n + 1, np.uint32), np.zeros(n + 1, np.uint32)
    mnemonic, known = np.zeros(n + 1, np.int32), dict[str, int]()
    figures = CORES[core]
    previous: Instruction | None = None
    for now in instructions:
        cost, refill = _cost(now, figures)
        change = _pair_cost(previous, now, cost) if figures.pipelined else 0
        index = (now.address - base) // 2
        # Reached by a branch, an instruction has no neighbour in the pipeline: the change is taken back.
        arrival = -change & 0xFF
        table[index] = CODE | (cost + change) | arrival << ARRIVAL_SHIFT | refill << REFILL_SHIFT
        last[index + now.size // 2] = index
        mnemonic[index] = known.setdefault(now.mnemonic.partition(".")[0], len(known))
        previous = now
    starts = (table & CODE) != 0
    return CodeTables(
        records=table,
        before=_running(starts),
        cycles_sum=_running(np.where(starts, table & 0xFF, 0)),
        last=last,
        behind_sp=tuple(i.address + i.size for i in instructions if _lowers_sp(i)),
        mnemonic=mnemonic,
        names=tuple(known),
    )


def _running(values: np.ndarray) -> np.ndarray:
    """Return the sums of all values before each position."""
    return np.concatenate([[0], np.cumsum(values)[:-1]]).astype(np.uint32)


def _cost(now: Instruction, core: Core) -> tuple[int, int]:
    """Return (cycles, cycles more if it branches); the second is 0 exactly if it cannot branch."""
    name = _stem(now.mnemonic)
    if name in _BRANCHES:
        cost = 2 if name in ("tbb", "tbh") else 1
        return cost, core.refill_call if name == "bl" else core.refill
    if name.startswith((*_LONG_LOADS, *_LONG_STORES)):
        return 1 + _words(name, now.operands), 2 if re.search(r"\bpc\b", now.operands) else 0
    refill = core.refill if now.operands.startswith("pc,") else 0
    if name.startswith(("ldr", "vldr")):
        return core.load, refill
    if name.startswith(("str", "vstr")):
        return core.store_register_offset if _register_offset(now.operands) else core.store, 0
    return _arithmetic_cost(name, core), refill


def _arithmetic_cost(name: str, core: Core) -> int:
    if name in _DIVISIONS:
        return core.divide
    if name in _LONG_MULTIPLIES:
        return core.long_multiply
    if name in _LONG_ACCUMULATES:
        return core.long_accumulate
    if name == "mla":
        return core.mla
    if name == "mls":
        return core.mls
    if name in _SYSTEM:
        return core.system
    if name.startswith(("vdiv", "vsqrt")):
        return 14
    if name.startswith(("vmla", "vmls", "vfma", "vfms", "vnmla", "vnmls", "vfnma", "vfnms")):
        return 3
    return 1


def _stem(mnemonic: str) -> str:
    """Return a mnemonic without width mark and condition: ``"mlaeq.w"`` -> ``"mla"``.

    Only a known stem is cut: ``"mls"`` itself ends like a condition.
    """
    name = mnemonic.partition(".")[0]
    return name[:-2] if name[-2:] in _CONDITIONS and name[:-2] in _STEMS else name


def _words(name: str, operands: str) -> int:
    if name in ("ldrd", "strd"):
        return 2
    listed = operands[operands.find("{") :].count(",") + 1
    return 2 * listed if "d" in operands[operands.find("{") : operands.find("{") + 2] else listed


def _register_offset(operands: str) -> bool:
    match = _BASE.match(operands)
    return match is not None and match["index"] is not None


def _pair_cost(previous: Instruction | None, now: Instruction, cost: int) -> int:
    """Return what the instruction right before a single load or store adds to its cycles: -1, 0 or 1.

    DDI 0439, 3.3.3: behind a load, the address phase overlaps with the load's data phase, unless the address
    needs the loaded register; behind a data operation that computes the address, it waits a cycle.
    """
    if previous is None or previous.address + previous.size != now.address:
        return 0
    first, second = _stem(previous.mnemonic), _stem(now.mnemonic)
    access = _BASE.match(now.operands)
    if access is None or second not in (*_SINGLE_LOADS, *_SINGLE_STORES):
        return 0
    needs = (access["base"], access["index"])
    load = _BASE.match(previous.operands)
    if load is not None:
        overlaps = first in _SINGLE_LOADS and load["dest"] not in (*needs, "pc")
        return -1 if overlaps and cost > 1 else 0
    computes = first not in (*_BRANCHES, "cmp", "cmn", "tst", "teq") and "[" not in previous.operands
    return int(computes and "{" not in previous.operands and previous.operands.split(",")[0] in needs)


def _lowers_sp(now: Instruction) -> bool:
    """Return whether an instruction may lower the stack pointer."""
    name, operands = now.mnemonic, now.operands
    if name.startswith(("push", "vpush")) or operands.startswith(("sp,", "sp!")):
        return True
    return "[sp" in operands and ("]!" in operands or "], " in operands)
