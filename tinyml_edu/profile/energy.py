"""Energy of one inference by the 45 nm table: what arithmetic costs, and what fetching its operands costs.

The figures are a 2014 process and a model of it, not a measurement of a board of today.  Their *ratios*
are the lesson: a 32-bit word from DRAM costs as much as a thousand 8-bit multiplications or more.
"""

from __future__ import annotations

from ..errors import UnknownNameError

# Energy of one operation, or of one 32-bit memory access, in picojoules.
# Arithmetic and SRAM: Horowitz, "Computing's energy problem", ISSCC 2014, figure 1.1.9 (45 nm, 0.9 V; the
# SRAM is an 8 KB cache at 10 pJ per 64 bits).  DRAM: Han et al., EIE, ISCA 2016, table I (32-bit access),
# https://arxiv.org/abs/1602.01528.
ENERGY_45NM_PJ: dict[str, float] = {
    "int8_add": 0.03,
    "int8_mul": 0.2,
    "int32_add": 0.1,
    "int32_mul": 3.1,
    "float16_add": 0.4,
    "float16_mul": 1.1,
    "float32_add": 0.9,
    "float32_mul": 3.7,
    "sram_32bit": 5.0,
    "dram_32bit": 640.0,
}

# An int8 MAC adds its 16-bit product to a 32-bit accumulator, hence the int32 addition.
_MAC_PJ = {
    "int8": ENERGY_45NM_PJ["int8_mul"] + ENERGY_45NM_PJ["int32_add"],
    "float16": ENERGY_45NM_PJ["float16_mul"] + ENERGY_45NM_PJ["float16_add"],
    "float32": ENERGY_45NM_PJ["float32_mul"] + ENERGY_45NM_PJ["float32_add"],
}


def energy_breakdown_uj(
    macs: int, *, dram_bytes: float = 0, sram_bytes: float = 0, dtype: str = "float32"
) -> dict[str, float]:
    """Return the energy of arithmetic, SRAM and DRAM traffic in microjoules.

    Parameters
    ----------
    macs : int
        Multiply-accumulates.
    dram_bytes, sram_bytes : float
        Bytes moved to or from each memory; four bytes are one access.
    dtype : {"float32", "float16", "int8"}
        Type of the operands.  An int8 MAC is an 8-bit product and a 32-bit addition.

    Returns
    -------
    dict
        Keys ``compute``, ``sram``, ``dram``; values in microjoules.

    Raises
    ------
    UnknownNameError
        If the table has no MAC of ``dtype``.

    Examples
    --------
    >>> parts = energy_breakdown_uj(1_000_000, dram_bytes=4_000_000, dtype="int8")
    >>> {name: round(value, 3) for name, value in parts.items()}
    {'compute': 0.3, 'sram': 0.0, 'dram': 640.0}
    """
    if dtype not in _MAC_PJ:
        raise UnknownNameError("data type in the energy table", dtype, _MAC_PJ)
    return {
        "compute": macs * _MAC_PJ[dtype] * 1e-6,
        "sram": sram_bytes / 4 * ENERGY_45NM_PJ["sram_32bit"] * 1e-6,
        "dram": dram_bytes / 4 * ENERGY_45NM_PJ["dram_32bit"] * 1e-6,
    }


def inference_energy_uj(
    macs: int, *, dram_bytes: float = 0, sram_bytes: float = 0, dtype: str = "float32"
) -> float:
    """Return the sum of `energy_breakdown_uj` in microjoules."""
    return sum(energy_breakdown_uj(macs, dram_bytes=dram_bytes, sram_bytes=sram_bytes, dtype=dtype).values())
