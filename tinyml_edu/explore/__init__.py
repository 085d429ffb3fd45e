"""Explorers: ipywidgets with which a student turns one knob and sees every metric move."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["efficiency", "pruning", "quantization", "quantized_values"],
    attributes={
        "efficiency": ["efficiency_explorer", "efficiency_view"],
        "pruning": ["pruning_explorer", "pruning_view", "sensitivity_curves", "weight_histograms"],
        "quantization": ["quantization_explorer", "quantization_view", "value_grids"],
    },
)
