"""Generators of specialised kernels for Cortex-M cores with the DSP extension."""

from ..._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "addition",
        "assembly",
        "depthwise",
        "direct",
        "long_sums",
        "planes",
        "pointwise",
        "requantize",
        "selection",
        "weights",
        "winograd",
    ],
    attributes={"selection": ["Fast", "Selection"]},
)
