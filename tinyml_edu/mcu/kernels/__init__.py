"""Generators of specialised kernels for Cortex-M cores with the DSP extension."""

from ..._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "addition",
        "assembly",
        "candidates",
        "compact",
        "compact_addition",
        "compact_clamp",
        "compact_dense",
        "compact_depthwise",
        "compact_factors",
        "compact_windows",
        "depthwise",
        "direct",
        "long_sums",
        "measure",
        "planes",
        "pointwise",
        "requantize",
        "search",
        "selection",
        "weights",
        "winograd",
    ],
    attributes={"selection": ["Fast", "Selection"]},
)
