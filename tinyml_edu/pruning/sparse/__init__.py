"""Sparse weights as they are stored and executed: formats with exact bytes, C kernels, a model of EIE."""

from ..._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=[
        "bitmask",
        "compressed",
        "eie",
        "formats",
        "matrix",
        "relative",
        "spmm",
        "storage",
        "two_four",
    ],
    attributes={
        "bitmask": ["Bitmask"],
        "compressed": ["Csc", "Csr"],
        "eie": ["EieReport", "simulate"],
        "formats": ["FORMATS", "byte_table", "decode", "encode"],
        "matrix": ["Dense", "Size", "SparseMatrix"],
        "relative": ["RelativeIndex"],
        "spmm": ["SpmmKernel", "matmul"],
        "storage": ["HEADER_BYTES", "read", "write"],
        "two_four": ["TwoFour"],
    },
)
