"""Products of bits in C, compiled for this computer."""

from ..._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["packed_layer", "xnor"],
    attributes={
        "packed_layer": ["PackedLayer"],
        "xnor": ["PackedBits", "XnorKernel", "pack_bits", "sign_gemm", "unpack_bits", "xnor_gemm"],
    },
)
