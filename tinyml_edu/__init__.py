"""From a PyTorch model to a firmware image: compress, quantize, plan memory, generate C, run it."""

from ._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "checks",
        "data",
        "demo",
        "distillation",
        "errors",
        "explore",
        "grading",
        "ir",
        "mcu",
        "models",
        "plots",
        "profile",
        "pruning",
        "quantization",
        "train",
        "zoo",
    ],
)
