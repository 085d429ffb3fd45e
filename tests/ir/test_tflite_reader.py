"""The .tflite reader: what it makes of good files, what it says of others, and that corrupt ones are safe."""

from __future__ import annotations

import builtins
import contextlib
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT's schema writes the files of these tests")
pytest.importorskip("tflite", reason="reading .tflite needs the tflite package")

from litert_oracle import ACTIVATIONS, ModelWriter, Reference, codes, options, schema

from tinyml_edu import ir
from tinyml_edu.errors import DataError, UnsupportedOpError, UsageError
from tinyml_edu.ir import Kind
from tinyml_edu.ir import attrs as A


def small_network(*, float_ends: bool = False) -> bytes:
    """conv (SAME, stride 2, relu6) -> depthwise -> add -> pool -> dense with a 4-D input -> softmax."""
    rng = np.random.default_rng(0)
    m = ModelWriter()

    def activation(shape, scale=0.05, zero_point=-3):
        return m.tensor(shape, scale=scale, zero_point=zero_point)

    def constants(shape, axis, in_scale=0.05):
        scale = rng.uniform(0.005, 0.02, shape[axis])
        w = m.tensor(shape, scale=scale, axis=axis, data=rng.integers(-127, 128, shape, dtype=np.int8))
        data = rng.integers(-999, 999, shape[axis], dtype=np.int32)
        return [w, m.tensor((shape[axis],), scale=in_scale * scale, data=data, dtype="int32")]

    x = activation((1, 8, 8, 3))
    first = x
    if float_ends:
        first = m.tensor((1, 8, 8, 3), dtype="float32", name="image")
        m.op("QUANTIZE", [first], x, options("Quantize"))
    a, b, c = activation((1, 4, 4, 4)), activation((1, 4, 4, 4)), activation((1, 4, 4, 4), 0.1, 4)
    slide = {"padding": schema.Padding.SAME, "strideH": 2, "strideW": 2}
    slide["fusedActivationFunction"] = ACTIVATIONS["relu6"]
    m.op("CONV_2D", [x, *constants((4, 3, 3, 3), 0)], a, options("Conv2D", **slide))
    slide = {"padding": schema.Padding.SAME, "strideH": 1, "strideW": 1, "depthMultiplier": 1}
    m.op("DEPTHWISE_CONV_2D", [a, *constants((1, 3, 3, 4), 3)], b, options("DepthwiseConv2D", **slide))
    m.op("ADD", [a, b], c, options("Add"))
    d = activation((1, 2, 2, 4), 0.1, 4)
    pool = {"padding": schema.Padding.VALID, "filterHeight": 2, "filterWidth": 2, "strideH": 2, "strideW": 2}
    m.op("AVERAGE_POOL_2D", [c], d, options("Pool2D", **pool))
    e = activation((1, 5), 0.2, 0)
    m.op("FULLY_CONNECTED", [d, *constants((5, 16), 0, 0.1)], e, options("FullyConnected"))
    y = activation((1, 5), 1 / 256, -128)
    m.op("SOFTMAX", [e], y, options("Softmax", beta=1.0))
    last = y
    if float_ends:
        last = m.tensor((1, 5), dtype="float32", name="probabilities")
        m.op("DEQUANTIZE", [y], last, options("Dequantize"))
    return m.pack([first], [last])


def read(content: bytes, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    return ir.read_tflite(path)


def test_a_network_reads_with_explicit_padding_and_a_flatten(tmp_path):
    graph = read(small_network(), tmp_path)
    assert [n.op for n in graph.nodes] == [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "ADD",
        "AVERAGE_POOL_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
        "SOFTMAX",
    ]
    assert graph.nodes[0].attrs == A.Conv2D((2, 2), (0, 0, 1, 1), (1, 1), "relu6")
    assert graph.nodes[1].attrs == A.DepthwiseConv2D((1, 1), (1, 1, 1, 1))
    assert graph.nodes[4].attrs == A.Reshape((1, 16))
    assert len({n.name for n in graph.nodes}) == 7
    bias = graph[graph.nodes[0].inputs[2]]
    assert (bias.kind, bias.dtype, bias.quant.axis) == (Kind.CONSTANT, "int32", 0)


def test_a_network_runs_as_the_reference_does(tmp_path):
    content = small_network()
    graph, reference = read(content, tmp_path), Reference(content)
    for x in codes(np.random.default_rng(1), (1, 8, 8, 3)):
        want = reference.run(x)
        for name, value in ir.run(graph, x, keep=True).items():
            if name in want:  # the flatten before FULLY_CONNECTED is ours
                np.testing.assert_array_equal(value, want[name])


def test_float_ends_are_dropped(tmp_path):
    inner, outer = read(small_network(), tmp_path), read(small_network(float_ends=True), tmp_path)
    assert [n.op for n in outer.nodes] == [n.op for n in inner.nodes]
    assert outer[outer.inputs[0]].dtype == outer[outer.outputs[0]].dtype == "int8"
    x = codes(np.random.default_rng(1), (1, 8, 8, 3))[0]
    np.testing.assert_array_equal(ir.run(outer, x), ir.run(inner, x))


def test_constants_are_views_of_the_file(tmp_path):
    graph = read(small_network(), tmp_path)
    assert all(not t.data.flags.owndata and not t.data.flags.writeable for t in graph.constants())


# -- files that are refused, and what is said --------------------------------------------------------------


def one_op(name, kind=None, *, shape=(1, 4, 4, 2), out=None, x=None, y=None, extra=(), **values) -> bytes:
    """Return a file with one op whose activations have ``x`` and ``y`` as quantization."""
    m = ModelWriter()
    source = m.tensor(shape, **(x or {"scale": 0.1}))
    others = [m.tensor(**tensor) for tensor in extra]
    target = m.tensor(out or shape, **(y or {"scale": 0.1}))
    m.op(name, [source, *others], target, options(kind, **values) if kind else None)
    return m.pack([source], [target])


def weights(shape, **changes):
    return {"shape": shape, "scale": 0.1, "data": np.ones(shape, np.int8)} | changes


CONV = {"padding": 1, "strideH": 1, "strideW": 1}

UNSUPPORTED = {
    "other op": (one_op("ELU"), "ELU at position 0 is not supported; supported: CONV_2D"),
    "tanh": (
        one_op("CONV_2D", "Conv2D", extra=[weights((2, 1, 1, 2))], fusedActivationFunction=4, **CONV),
        "fused activation 4; supported: none, relu, relu6, relu_n1_to_1",
    ),
    "grouped": (one_op("CONV_2D", "Conv2D", extra=[weights((2, 1, 1, 1))], **CONV), "grouped convolution"),
    "weights zero point": (
        one_op("CONV_2D", "Conv2D", extra=[weights((2, 1, 1, 2), zero_point=3)], **CONV),
        "zero point other than 0",
    ),
    "dynamic weights": (
        one_op("CONV_2D", "Conv2D", extra=[weights((2, 1, 1, 2), data=None)], **CONV),
        "needs constant int8 weights",
    ),
    "float bias": (
        one_op(
            "CONV_2D",
            "Conv2D",
            extra=[weights((2, 1, 1, 2)), {"shape": (2,), "dtype": "float32", "data": np.ones(2)}],
            **CONV,
        ),
        "needs a constant int32 bias",
    ),
    "scales along inputs": (
        one_op("CONV_2D", "Conv2D", extra=[weights((2, 1, 1, 2), scale=np.ones(2), axis=3)], **CONV),
        "a scale for each index of axis 3",
    ),
    "float network": (one_op("SOFTMAX", "Softmax", x={"dtype": "float32"}), "full integer quantization"),
    "no scale": (one_op("RESHAPE", x={"scale": None}), "needs exactly one scale"),
    "repeated batch": (
        one_op(
            "ADD",
            "Add",
            out=(2, 4, 4, 2),
            extra=[{"shape": (2, 1, 1, 2), "scale": 0.1, "data": np.ones((2, 1, 1, 2))}],
        ),
        "repeats 't0' of shape .* along the batch",
    ),
    "negative slope": (one_op("LEAKY_RELU", "LeakyRelu", alpha=-0.5), "has alpha -0.5"),
    "batch mean": (
        one_op(
            "MEAN", "Reducer", out=(4, 4, 2), extra=[{"shape": (1,), "data": np.zeros(1), "dtype": "int32"}]
        ),
        "averages over the batch",
    ),
    "dynamic axes": (
        one_op("MEAN", "Reducer", extra=[{"shape": (1,), "dtype": "int32"}]),
        "integer constant",
    ),
    "batch pad": (
        one_op(
            "PAD", "Pad", out=(2, 4, 4, 2), extra=[{"shape": (4, 2), "data": np.eye(4, 2), "dtype": "int32"}]
        ),
        "pads the batch",
    ),
    "softmax scale": (one_op("SOFTMAX", "Softmax", beta=1.0), "scale 1/256 and zero point -128"),
    "pool scale": (
        one_op("MAX_POOL_2D", "Pool2D", y={"scale": 0.2}, filterHeight=1, filterWidth=1, **CONV),
        "changes the scale from 0.1 to 0.2",
    ),
    "giant pool": (
        one_op("MAX_POOL_2D", "Pool2D", padding=0, filterHeight=2**30, filterWidth=1, strideH=1, strideW=1),
        "spans 1073741824 rows or columns of 4",
    ),
    "giant dilation": (
        one_op(
            "CONV_2D",
            "Conv2D",
            extra=[weights((2, 3, 1, 2))],
            **(CONV | {"padding": 0, "dilationHFactor": 2**29}),
        ),
        "spans 1073741825 rows",
    ),
    "batch of two": (one_op("RESHAPE", shape=(2, 4)), "batch size 1"),
    "logistic scale": (one_op("LOGISTIC"), "LOGISTIC at position 0: the output must have scale 1/256"),
    "joined scales": (
        one_op(
            "CONCATENATION",
            "Concatenation",
            out=(1, 4, 4, 4),
            axis=3,
            extra=[{"shape": (1, 4, 4, 2), "scale": 0.2, "data": np.ones((1, 4, 4, 2))}],
        ),
        "changes the scale from 0.2 to 0.1",
    ),
    "joined batch": (
        one_op(
            "CONCATENATION",
            "Concatenation",
            out=(2, 4, 4, 2),
            axis=-4,
            extra=[{"shape": (1, 4, 4, 2), "scale": 0.1, "data": np.ones((1, 4, 4, 2))}],
        ),
        "joins along the batch",
    ),
    "joined and activated": (
        one_op("CONCATENATION", "Concatenation", axis=3, fusedActivationFunction=1),
        "has a fused activation",
    ),
    "resized twice over": (
        one_op(
            "RESIZE_NEAREST_NEIGHBOR",
            "ResizeNearestNeighbor",
            alignCorners=True,
            halfPixelCenters=True,
            extra=[{"shape": (2,), "data": np.array([4, 4]), "dtype": "int32"}],
        ),
        "align_corners and half_pixel_centers",
    ),
    "dynamic size": (
        one_op("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor", extra=[{"shape": (2,), "dtype": "int32"}]),
        "integer constant",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_the_engine_lacks_is_named(case, tmp_path):
    content, message = UNSUPPORTED[case]
    with pytest.raises(UnsupportedOpError, match=message):
        read(content, tmp_path)


CONTRADICTIONS = {
    "output shape": (one_op("RESHAPE", out=(1, 31)), "changes the number of values"),
    "conv output": (
        one_op("CONV_2D", "Conv2D", out=(1, 4, 4, 3), extra=[weights((2, 1, 1, 2))], **CONV),
        r"makes \(1, 4, 4, 2\), but its output says \(1, 4, 4, 3\)",
    ),
    "stride 0": (
        one_op("CONV_2D", "Conv2D", extra=[weights((2, 1, 1, 2))], padding=0, strideH=0, strideW=1),
        "stride",
    ),
    "no options": (one_op("SOFTMAX"), "has no SoftmaxOptions"),
    "negative scale": (one_op("RESHAPE", x={"scale": -1.0}), "not a positive number"),
    "scale nan": (one_op("RESHAPE", x={"scale": np.nan}), "not a positive number"),
    "zero point": (one_op("RESHAPE", x={"scale": 0.1, "zero_point": 128}), "no int8 code"),
    "zero size": (one_op("RESHAPE", shape=(1, 0)), r"has shape \(1, 0\)"),
    "huge": (one_op("RESHAPE", shape=(1, 2**20, 2**20)), "has shape"),
    "short constant": (
        one_op("CONV_2D", "Conv2D", extra=[weights((2, 1, 1, 2), data=np.ones(3))], **CONV),
        "needs 4 bytes, the file has 3",
    ),
    "accumulator": (
        one_op(
            "CONV_2D",
            "Conv2D",
            extra=[
                weights((2, 1, 1, 2)),
                {"shape": (2,), "dtype": "int32", "scale": 0.01, "data": np.full(2, 2**31 - 1)},
            ],
            **CONV,
        ),
        "beyond int32",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_files_that_contradict_themselves_are_data_errors(case, tmp_path):
    content, message = CONTRADICTIONS[case]
    with pytest.raises(DataError, match=message):
        read(content, tmp_path)


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*No such file"):
        ir.read_tflite(tmp_path / "absent.tflite")
    with pytest.raises(DataError, match="cannot read"):
        ir.read_tflite(tmp_path)
    for content in (b"", b"TFL3", b"PK\x03\x04" + bytes(100)):
        with pytest.raises(DataError, match="not a TensorFlow Lite file"):
            read(content, tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_tflite(name, *args, **kwargs):
        if name == "tflite":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tflite)
    with pytest.raises(UsageError, match=r"pip install 'tinyml_edu\[tflite\]'"):
        read(small_network(), tmp_path)


# -- fuzz ------------------------------------------------------------------------------------------------


def survives(content: bytes, tmp_path) -> bool:
    """Read ``content``; only our errors may come out.  Run what reads as a graph, if it is small."""
    try:
        graph = read(content, tmp_path)
    except (DataError, UnsupportedOpError):
        return False
    if sum(np.prod(t.shape) for t in graph.tensors.values()) < 1e6 and sum(ir.macs(graph).values()) < 1e7:
        x = {name: np.zeros(graph[name].shape, np.int8) for name in graph.inputs}
        y = ir.run(graph, x)
        assert (y if isinstance(y, np.ndarray) else next(iter(y.values()))).dtype == np.int8
    return True


def test_a_truncated_file_is_a_data_error(tmp_path):
    content = small_network()
    assert survives(content, tmp_path)
    read_as_graph = [n for n in range(0, len(content), 7) if survives(content[:n], tmp_path)]
    # FlatBuffers are written back to front: a cut at the end takes bytes that something points to,
    # or alignment that nothing does.
    assert all(n > len(content) - 16 for n in read_as_graph)


def flips(content: bytes, rng: np.random.Generator, n: int):
    for _ in range(n):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[position] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, damaged[position] ^ (1 << rng.integers(8))]
            )
        damaged[4:8] = b"TFL3"
        yield bytes(damaged)


def test_flipped_bytes_give_our_errors_or_a_graph(tmp_path):
    results = [survives(c, tmp_path) for c in flips(small_network(), np.random.default_rng(0), 400)]
    assert any(results)  # a flipped weight is a valid file
    assert not all(results)


def test_corrupt_files_allocate_little(tmp_path):
    content = small_network()
    tracemalloc.start()
    try:
        for damaged in flips(content, np.random.default_rng(1), 150):
            (tmp_path / "model.tflite").write_bytes(damaged)
            tracemalloc.reset_peak()
            with contextlib.suppress(DataError, UnsupportedOpError):
                ir.read_tflite(tmp_path / "model.tflite")
            # The file once, and a few Python objects (under 100 bytes each) for each of its bytes.
            assert tracemalloc.get_traced_memory()[1] < 300 * len(content)
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_every_byte_of_a_small_file_may_be_wrong(tmp_path):
    content = small_network()
    for position in range(len(content)):
        if 4 <= position < 8:
            continue
        for value in (0, content[position] ^ 0x80):
            survives(content[:position] + bytes([value]) + content[position + 1 :], tmp_path)


@pytest.mark.slow
@pytest.mark.data
def test_real_files_may_be_damaged(tmp_path, data_dir):
    for path in sorted((data_dir / "mlperf_tiny").glob("*.tflite")):
        content = path.read_bytes()
        for n in np.random.default_rng(2).integers(8, len(content), 100):
            survives(content[:n], tmp_path)
        for damaged in flips(content, np.random.default_rng(3), 300):
            survives(damaged, tmp_path)
