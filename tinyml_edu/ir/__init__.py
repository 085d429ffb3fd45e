"""The graph shared by all topics: NumPy only, below everything that handles networks."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "attrs",
        "execute",
        "fixed_point",
        "float_kernels",
        "graph",
        "int_params",
        "integer_kernels",
        "lookup_tables",
        "ops",
        "tflite",
        "tflite_checks",
        "tflite_pack",
        "tflite_padding",
        "tflite_tensors",
        "tflite_writer",
        "windows",
    ],
    attributes={
        "graph": ["Graph", "GraphError", "Kind", "Node", "Quant", "Tensor"],
        "ops": ["OPS", "OpSpec", "infer_shape", "input_region", "macs"],
        "execute": ["run"],
        "tflite": ["read_tflite"],
        "tflite_writer": ["write_tflite"],
    },
)
