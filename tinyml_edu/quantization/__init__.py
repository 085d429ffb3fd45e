"""From float32 to int8: scales, calibration, and the integer graph that a microcontroller runs."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["affine", "calibration", "post_training", "quantized_model", "storage"],
    attributes={
        "affine": ["AffineParams", "affine_params", "quantize_weight", "symmetric_scale"],
        "calibration": ["calibrate"],
        "post_training": ["QuantConfig", "quantize", "quantize_graph"],
        "quantized_model": ["QuantizedModel"],
    },
)
