"""The parameter structs of the runtime as ctypes sees them, fields in the order of te_runtime.h."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int8, c_int32


class Shape(Structure):
    _fields_ = [(n, c_int32) for n in ("height", "width", "channels", "row")]


class Output(Structure):
    _fields_ = [
        ("multiplier", POINTER(c_int32)),
        ("exponent", POINTER(c_int8)),
        *((n, c_int32) for n in ("y_zp", "y_min", "y_max")),
    ]


def integers(names: str):
    return [(name, c_int32) for name in names.split()]


class Conv(Structure):
    _fields_ = [
        ("in_", Shape),
        ("out", Shape),
        *integers("kernel_h kernel_w stride_h stride_w dilation_h dilation_w pad_top pad_left x_zp"),
        ("output", Output),
    ]


class FullyConnected(Structure):
    _fields_ = [*((n, c_int32) for n in ("rows", "in_", "out", "x_zp")), ("output", Output)]


class Pool(Structure):
    _fields_ = [
        ("in_", Shape),
        ("out", Shape),
        *integers("kernel_h kernel_w stride_h stride_w pad_top pad_left y_min y_max"),
    ]


class Steps(Structure):
    _fields_ = integers("row column channel")


class Add(Structure):
    _fields_ = [
        ("out", Shape),
        *(("x1", Steps), ("x2", Steps)),
        *integers("x1_zp x2_zp y_zp multiplier_1 multiplier_2 multiplier_y"),
        *integers("exponent_1 exponent_2 exponent_y y_min y_max"),
    ]


class Mul(Structure):
    _fields_ = [
        ("out", Shape),
        *(("x1", Steps), ("x2", Steps)),
        *integers("x1_zp x2_zp y_zp multiplier exponent y_min y_max"),
    ]


class Resize(Structure):
    _fields_ = [("in_", Shape), ("out", Shape), ("rows", POINTER(c_int32)), ("columns", POINTER(c_int32))]


class Mean(Structure):
    _fields_ = [
        ("keep", c_int32 * 3),
        ("reduce", c_int32 * 2),
        *((n, c_int32) for n in ("x_zp", "y_zp", "multiplier", "exponent", "y_min", "y_max")),
    ]


class Pad(Structure):
    _fields_ = [("in_", c_int32 * 4), ("before", c_int32 * 4), ("after", c_int32 * 4), ("code", c_int32)]


STRUCTS = {
    "te_conv_params": Conv,
    "te_fully_connected_params": FullyConnected,
    "te_pool_params": Pool,
    "te_add_params": Add,
    "te_mul_params": Mul,
    "te_resize_params": Resize,
    "te_mean_params": Mean,
    "te_pad_params": Pad,
}
