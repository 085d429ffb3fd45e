"""Generators of specialised kernels for Cortex-M cores with the DSP extension."""

from ..._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "addition",
        "assembly",
        "candidates",
        "depthwise",
        "direct",
        "long_sums",
        "measure",
        "pointwise",
        "requantize",
        "search",
        "selection",
        "weights",
        "winograd",
    ],
    attributes={"selection": ["Fast", "Selection"]},
)
