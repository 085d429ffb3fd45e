"""The .tflite writer: what LiteRT makes of its files, what the reader gets back, and what it refuses."""

from __future__ import annotations

import builtins
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the oracle of these tests")
pytest.importorskip("tflite", reason="writing .tflite needs the tflite package")

from ai_edge_litert.interpreter import Interpreter
from graph_cases import image, one_op, quant, random_graph, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from litert_cases import CASES, case
from litert_oracle import codes, compare, schema

from tinyml_edu import ir
from tinyml_edu.errors import DataError, UnsupportedOpError, UsageError
from tinyml_edu.ir import Graph, GraphError, Kind, Node, Quant, Tensor, tflite_padding, tflite_writer
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir.ops import same_padding
from tinyml_edu.ir.tflite_pack import Packer
from tinyml_edu.ir.tflite_padding import padding_kind, with_pads
from tinyml_edu.ir.tflite_writer import tflite_bytes

MLPERF = Path(os.environ.get("TINYML_EDU_DATA", "")) / "mlperf_tiny"
MLPERF_NAMES = ("kws_ref_model", "vww_96_int8", "pretrainedResnet_quant")

needs_mlperf = [
    pytest.mark.data,
    pytest.mark.skipif(not MLPERF.is_dir(), reason="no mlperf_tiny folder in $TINYML_EDU_DATA"),
]


def written_and_read(graph: Graph, tmp_path: Path) -> Graph:
    path = tmp_path / f"{graph.name}.tflite"
    ir.write_tflite(graph, path)
    return ir.read_tflite(path)


def parsed(graph: Graph):
    """Return the root of the file by LiteRT's schema bindings, which the library does not use."""
    return schema.Model.GetRootAs(tflite_bytes(graph), 0)


# -- the round trip ----------------------------------------------------------------------------------------


def normalised(graph: Graph) -> Graph:
    """Return what the round trip promises: see the notes of `write_tflite`."""
    result = with_pads(graph)
    result.tensors = {n: t for n, t in result.tensors.items() if n in _used(result)}
    result.nodes = [_normalised_node(result, node) for node in result.nodes]
    for node in result.nodes:
        if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and len(node.inputs) == 3:
            x, w = (result[name].quant for name in node.inputs[:2])
            scale = (np.float64(x.scale[0]) * w.scale).astype(np.float32)
            axis = 0 if scale.size > 1 else None
            result.update(node.inputs[2], quant=Quant(scale, np.zeros(scale.size, np.int32), axis))
    return result


def _normalised_node(graph: Graph, node: Node) -> Node:
    if node.op == "CONV_2D" and len(node.inputs) == 2:
        zeros = np.zeros(graph[node.outputs[0]].shape[3:], np.int32)
        bias = Tensor(f"{node.name}/bias", zeros.shape, "int32", Kind.CONSTANT, zeros)
        node = replace(node, inputs=(*node.inputs, graph.add(bias)))
    if hasattr(node.attrs, "stride"):
        node = replace(node, attrs=replace(node.attrs, padding=_padding(graph, node)))
    return node


def _used(graph: Graph) -> set[str]:
    return {*graph.inputs, *(n for node in graph.nodes for n in (*node.inputs, *node.outputs))}


def _padding(graph: Graph, node: Node) -> tuple[int, ...]:
    if padding_kind(graph, node) == "VALID":
        return 0, 0, 0, 0
    kernel = getattr(node.attrs, "kernel", None) or graph[node.inputs[1]].shape[1:3]
    dilation = getattr(node.attrs, "dilation", (1, 1))
    sizes = zip(graph[node.inputs[0]].shape[1:3], kernel, node.attrs.stride, dilation, strict=True)
    (top, bottom), (left, right) = (same_padding(*axis) for axis in sizes)
    return top, left, bottom, right


def assert_same(a: Graph, b: Graph) -> None:
    """Every tensor, its codes and scales, and every node but for its name."""
    assert (a.inputs, a.outputs) == (b.inputs, b.outputs)
    strip = [[(n.op, n.inputs, n.outputs, n.attrs) for n in g.nodes] for g in (a, b)]
    assert strip[0] == strip[1]
    assert set(a.tensors) == set(b.tensors)
    for name in a.tensors:
        x, y = a[name], b[name]
        assert (x.shape, x.dtype, x.kind) == (y.shape, y.dtype, y.kind), name
        assert (x.data is None) == (y.data is None), name
        assert x.data is None or np.array_equal(x.data, y.data), name
        assert (x.quant is None) == (y.quant is None), name
        if x.quant is not None:
            np.testing.assert_array_equal(x.quant.scale, y.quant.scale, strict=True, err_msg=name)
            np.testing.assert_array_equal(x.quant.zero_point, y.quant.zero_point, err_msg=name)
            assert (x.quant.axis, x.quant.bits) == (y.quant.axis, y.quant.bits), name


@pytest.mark.parametrize("op", CASES)
def test_reading_what_was_written_gives_the_graph_back(op, tmp_path):
    for seed in range(40):
        graph, _ = case(op, seed)
        assert_same(written_and_read(graph, tmp_path), normalised(graph))


def test_the_comparison_of_graphs_notices_every_field():
    """The control: `assert_same` fails on a graph that differs in one thing."""
    graph = normalised(small_network())
    node = graph.nodes[0]
    name, w = node.inputs[1], graph[node.inputs[1]]

    def nudged(array):
        return np.concatenate([array.reshape(-1)[:1] + 1, array.reshape(-1)[1:]]).reshape(array.shape)

    changes = {
        "data": replace(w, data=nudged(w.data)),
        "scale": replace(w, quant=replace(w.quant, scale=nudged(w.quant.scale))),
        "zero point": replace(w, quant=replace(w.quant, zero_point=nudged(w.quant.zero_point))),
        "axis": replace(w, quant=replace(w.quant, axis=1)),
        "kind": replace(w, kind=Kind.VARIABLE),
    }
    others = [
        Graph("g", graph.tensors | {name: t}, graph.nodes, graph.inputs, graph.outputs)
        for t in changes.values()
    ]
    stride = replace(node, attrs=replace(node.attrs, stride=(1, 2)))
    others.append(Graph("g", graph.tensors, [stride, *graph.nodes[1:]], graph.inputs, graph.outputs))
    assert_same(graph, graph)
    for other in others:
        with pytest.raises(AssertionError):
            assert_same(graph, other)


def test_a_file_read_and_written_again_is_the_same_file(tmp_path):
    for op in CASES:
        for seed in range(5):
            first = written_and_read(case(op, seed)[0], tmp_path)
            second = written_and_read(first, tmp_path)
            assert_same(first, second)
            assert [n.name for n in first.nodes] == [n.name for n in second.nodes]
            assert tflite_bytes(first) == tflite_bytes(second)


def test_writing_does_not_change_the_graph():
    graph = random_graph("CONV_2D", np.random.default_rng(3))
    graph.nodes[0] = replace(graph.nodes[0], attrs=replace(graph.nodes[0].attrs, padding=(1, 2, 1, 2)))
    graph.update("y", shape=ir.infer_shape(graph, graph.nodes[0]))
    before = dict(graph.tensors), list(graph.nodes), graph.inputs, graph.outputs
    tflite_bytes(graph)
    assert (graph.tensors, graph.nodes, graph.inputs, graph.outputs) == before


# -- padding -----------------------------------------------------------------------------------------------

axis = st.tuples(*(st.integers(1, high) for high in (9, 4, 3, 3)), st.integers(0, 4), st.integers(0, 4))


@settings(max_examples=150, deadline=None)
@given(axis, axis, st.booleans())
def test_pads_before_an_op_compute_what_its_padding_does(rows, columns, depthwise):
    (h, kh, sh, dh, top, bottom), (w, kw, sw, dw, left, right) = rows, columns
    rng = np.random.default_rng(0)
    shape, channel_axis = ((1, kh, kw, 2), 3) if depthwise else ((3, kh, kw, 2), 0)
    attrs = (A.DepthwiseConv2D if depthwise else A.Conv2D)((sh, sw), (top, left, bottom, right), (dh, dw))
    op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    try:
        graph = one_op(
            op, attrs, image(rng, (1, h, w, 2)), *weights(rng, shape, channel_axis), out_quant=quant(rng)
        )
    except GraphError:  # the kernel is larger than the padded input
        return
    padded = with_pads(graph)
    kinds = [padding_kind(padded, node) for node in padded.nodes if node.op == op]
    assert None not in kinds
    x = np.concatenate(codes(rng, (1, h, w, 2)))
    np.testing.assert_array_equal(ir.run(padded, x), ir.run(graph, x))


def two_readers(second: tuple[int, int, int, int]) -> Graph:
    """Return a graph with two convolutions of stride 2 that pad one image by (1, 1, 1, 1) and ``second``."""
    rng = np.random.default_rng(0)
    graph = Graph("two", inputs=("x",), outputs=("y1", "y2"))
    graph.add(image(rng, (1, 8, 8, 2)))
    for i, padding in ((1, (1, 1, 1, 1)), (2, second)):
        w, _ = weights(rng, (4, 3, 3, 2), 0)
        graph.add(replace(w, name=f"w{i}"))
        graph.add(Tensor(f"y{i}", (1, 4, 4, 4), "int8", Kind.ACTIVATION, quant=quant(rng)))
        graph.nodes.append(Node(f"n{i}", "CONV_2D", ("x", f"w{i}"), (f"y{i}",), A.Conv2D((2, 2), padding)))
    return graph.validate()


def test_ops_that_pad_one_tensor_alike_share_the_pad():
    assert [n.op for n in with_pads(two_readers((1, 1, 1, 1))).nodes] == ["PAD", "CONV_2D", "CONV_2D"]
    assert [n.op for n in with_pads(two_readers((0, 1, 1, 0))).nodes] == ["PAD", "CONV_2D", "PAD", "CONV_2D"]
    graph = two_readers((1, 1, 1, 1))
    result = compare(graph, tflite_bytes(graph), [codes(np.random.default_rng(0), (1, 8, 8, 2))])
    assert result.compared == 4 * 2 * 64
    assert result.different == 0


def pool(op: str, padding: tuple[int, ...], *, zero_point: int = 0, activation: str = "none") -> Graph:
    x = Tensor("x", (1, 8, 8, 2), "int8", Kind.INPUT, quant=Quant.per_tensor(0.1, zero_point))
    return one_op(op, A.Pool2D((3, 3), (2, 2), padding, activation), x, out_quant=x.quant)


@pytest.mark.parametrize("op", ["AVERAGE_POOL_2D", "MAX_POOL_2D"])
def test_a_pool_over_padding_that_would_count_is_refused(op, monkeypatch):
    graph = pool(op, (1, 1, 1, 1))
    with pytest.raises(UnsupportedOpError, match="is neither SAME nor VALID"):
        tflite_bytes(graph)
    # The control: written with a PAD all the same, it computes something else.
    monkeypatch.setattr(tflite_padding, "_require_pad_is_exact", lambda *_: None)
    x = [np.full((1, 8, 8, 2), -100, np.int8)]
    assert compare(graph, tflite_bytes(graph), [x]).different > 0


@pytest.mark.parametrize("exact", [{"zero_point": -128}, {"activation": "relu"}, {"activation": "relu6"}])
def test_a_maximum_over_padding_that_cannot_win_is_a_pad(exact):
    graph = pool("MAX_POOL_2D", (1, 1, 1, 1), **exact)
    assert [n.op for n in with_pads(graph).nodes] == ["PAD", "MAX_POOL_2D"]
    result = compare(graph, tflite_bytes(graph), [codes(np.random.default_rng(0), (1, 8, 8, 2))])
    assert result.different == 0


# -- what is in the file -----------------------------------------------------------------------------------


def small_network() -> Graph:
    """conv -> max pool -> flatten -> dense without bias -> softmax, batch 1."""
    rng = np.random.default_rng(0)
    graph = Graph("small network", inputs=("x",), outputs=("p",))
    graph.add(image(rng, (1, 8, 8, 3)))
    w, b = weights(rng, (4, 3, 3, 3), 0)
    dense, _ = weights(rng, (5, 64), 0)
    for constant in (w, b, replace(dense, name="dense")):
        graph.add(constant)
    hidden, out = quant(rng), quant(rng)
    shapes = {"a": (1, 8, 8, 4), "m": (1, 4, 4, 4), "f": (1, 64)}
    for name, shape in shapes.items():
        graph.add(Tensor(name, shape, "int8", Kind.ACTIVATION, quant=hidden))
    graph.add(Tensor("y", (1, 5), "int8", Kind.ACTIVATION, quant=out))
    graph.add(Tensor("p", (1, 5), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(1 / 256, -128)))
    graph.add(Tensor("unused", (9,), "float32", Kind.CONSTANT, np.zeros(9, np.float32)))
    graph.nodes = [
        Node("conv", "CONV_2D", ("x", "w", "b"), ("a",), A.Conv2D((1, 1), (1, 1, 1, 1), (1, 1), "relu6")),
        Node("pool", "MAX_POOL_2D", ("a",), ("m",), A.Pool2D((2, 2), (2, 2))),
        Node("flatten", "RESHAPE", ("m",), ("f",), A.Reshape((1, 64))),
        Node("dense", "FULLY_CONNECTED", ("f", "dense"), ("y",), A.FullyConnected()),
        Node("softmax", "SOFTMAX", ("y",), ("p",), A.Softmax()),
    ]
    return graph.validate()


def test_the_file_says_what_it_is():
    content, model = tflite_bytes(small_network()), parsed(small_network())
    assert content[4:8] == b"TFL3"
    assert model.Version() == 3
    assert model.SubgraphsLength() == 1
    assert model.Subgraphs(0).Name() == b"small network"
    assert b"tinyml_edu" in model.Description()
    note = model.Metadata(0)
    assert note.Name() == b"min_runtime_version"
    # FULLY_CONNECTED without a bias is the newest operator in it.
    assert model.Buffers(note.Buffer()).DataAsNumpy().tobytes() == b"2.1.0" + bytes(11)


# Source: LiteRT's table of operator versions, https://ai.google.dev/edge/litert/conversion/tensorflow/build/ops_version
VERSIONS = {
    "CONV_2D": {3},
    "DEPTHWISE_CONV_2D": {3},
    "FULLY_CONNECTED": {4, 6},
    "ADD": {2},
    "AVERAGE_POOL_2D": {2},
    "MAX_POOL_2D": {2},
    "MEAN": {2},
    "PAD": {2},
    "RESHAPE": {1},
    "SOFTMAX": {2},
    "SUB": {2},
    "MUL": {2},
    "CONCATENATION": {2},
    "LOGISTIC": {2},
    "HARD_SWISH": {1},
    "RELU": {2},
    "RELU6": {2},
    "RELU_N1_TO_1": {1},
    "LEAKY_RELU": {2},
    "TANH": {2},
    "DEQUANTIZE": {2},
    "PADV2": {2},
    "QUANTIZE": {1},
    "RESIZE_NEAREST_NEIGHBOR": {2, 3},
}


@pytest.mark.parametrize("op", CASES)
def test_operators_carry_the_version_of_their_int8_kernels(op):
    found = set()
    for seed in range(20):
        model = parsed(case(op, seed)[0])
        listed = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
        number = getattr(schema.BuiltinOperator, op)
        found |= {code.Version() for code in listed if code.BuiltinCode() == number}
        assert all(code.DeprecatedBuiltinCode() == code.BuiltinCode() for code in listed)  # all are below 127
    assert found == VERSIONS[op]


def test_constants_lie_on_16_bytes():
    for op in CASES:
        for seed in range(10):
            content = tflite_bytes(case(op, seed)[0])
            base = np.frombuffer(content, np.uint8).ctypes.data
            model = schema.Model.GetRootAs(content, 0)
            buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
            assert buffers[0].DataLength() == 0
            starts = [b.DataAsNumpy().ctypes.data - base for b in buffers if b.DataLength()]
            assert len(starts) >= 1  # the metadata, if nothing else
            assert not any(start % 16 for start in starts), (op, seed, starts)


def test_scales_are_per_channel_along_the_right_axis():
    for op, name_axis in (("CONV_2D", 0), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 0)):
        graph = random_graph(op, np.random.default_rng(1))
        sub = parsed(graph).Subgraphs(0)
        tensors = {sub.Tensors(i).Name().decode(): sub.Tensors(i) for i in range(sub.TensorsLength())}
        info, w = tensors["w"].Quantization(), graph["w"]
        np.testing.assert_array_equal(info.ScaleAsNumpy(), w.quant.scale)
        np.testing.assert_array_equal(info.ZeroPointAsNumpy(), np.zeros(w.quant.scale.size))
        assert info.QuantizedDimension() == name_axis
        if "b" in tensors:
            product = (np.float64(graph["x"].quant.scale[0]) * w.quant.scale).astype(np.float32)
            np.testing.assert_array_equal(tensors["b"].Quantization().ScaleAsNumpy(), product)


def test_the_stock_interpreter_runs_the_file():
    """With its default kernels (XNNPACK), which round otherwise: this says only that it accepts the file."""
    interpreter = Interpreter(model_content=tflite_bytes(small_network()))
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (source["name"], source["dtype"], tuple(source["shape"])) == ("x", np.int8, (1, 8, 8, 3))
    assert source["quantization"] == small_network()["x"].quant.item()
    interpreter.set_tensor(source["index"], np.zeros((1, 8, 8, 3), np.int8))
    interpreter.invoke()
    # Softmax in steps of 1/256: five values that are each rounded by half a step at most.
    total = (interpreter.get_tensor(target["index"]).astype(int) + 128).sum()
    assert abs(total - 256) <= 2.5 + 1  # and a certainty of 256/256 is stored as 255


def test_weights_of_fewer_bits_are_int8_codes():
    graph = small_network()
    w = graph["w"]
    narrow = replace(w, data=np.clip(w.data, -8, 7), quant=replace(w.quant, bits=4))
    graph.tensors["w"] = narrow
    result = compare(graph, tflite_bytes(graph), [codes(np.random.default_rng(0), (1, 8, 8, 3))])
    assert result.compared > 0
    assert result.different == 0


@pytest.mark.parametrize("rank", range(2, 9))
def test_tensors_of_any_rank_are_written(rank):
    rng, shape = np.random.default_rng(rank), (1, *[2] * (rank - 1))
    x, other = image(rng, shape), image(rng, shape, "x2")
    graphs = [
        one_op("ADD", A.Add(), x, other, out_quant=quant(rng)),
        one_op("MEAN", A.Mean((rank - 1,)), x, out_quant=quant(rng)),
        one_op("RESHAPE", A.Reshape((1, 2 ** (rank - 1))), x, out_quant=x.quant),
        one_op("SOFTMAX", A.Softmax(), x, out_quant=Quant.per_tensor(1 / 256, -128)),
    ]
    if rank <= 5:
        graphs.append(one_op("PAD", A.Pad(((0, 0), *[(1, 0)] * (rank - 1))), x, out_quant=x.quant))
    for graph in graphs:
        inputs = [codes(rng, shape) for _ in graph.inputs]
        result = compare(graph, tflite_bytes(graph), inputs)
        assert result.compared > 0
        assert result.different == 0, graph.name


# -- whole networks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


NETWORKS = {
    "vgg_lite": ((3, 32, 32), set()),
    "resnet8": ((3, 32, 32), {"PAD"}),  # stride 2 with torch's padding 1 is not SAME on an even size
    "mobilenet_v2_tiny": ((3, 32, 32), {"PAD"}),
    "ds_cnn": ((1, 49, 10), {"PAD"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_network_equals_the_reference(name, torch, tmp_path):
    from tinyml_edu import models
    from tinyml_edu.quantization import quantize

    shape, added = NETWORKS[name]
    torch.manual_seed(0)
    model = models.build(name, in_channels=shape[0], width=0.25).eval()
    quantized = quantize(model, None, torch.randn(8, *shape))
    graph, path = quantized.graph, tmp_path / f"{name}.tflite"
    quantized.write_tflite(path)
    inputs = codes(np.random.default_rng(0), graph[graph.inputs[0]].shape)
    compared, different, fast = compare(graph, path.read_bytes(), [inputs])
    assert compared == sum(4 * np.prod(graph[node.outputs[0]].shape) for node in graph.nodes)
    assert different == 0, f"{different} of {compared} codes differ"
    assert fast <= 1
    again = ir.read_tflite(path)
    assert {n.op for n in again.nodes} - {n.op for n in graph.nodes} == added
    np.testing.assert_array_equal(
        ir.run(again, np.concatenate(inputs)), ir.run(graph, np.concatenate(inputs))
    )


@pytest.mark.parametrize("name", MLPERF_NAMES)
class TestMLPerfTiny:
    pytestmark = needs_mlperf

    def test_read_and_written_it_equals_the_original(self, name, tmp_path):
        graph = ir.read_tflite(MLPERF / f"{name}.tflite")
        path = tmp_path / f"{name}.tflite"
        ir.write_tflite(graph, path)
        again = ir.read_tflite(path)
        assert_same(again, graph)
        inputs = codes(np.random.default_rng(0), graph[graph.inputs[0]].shape)
        for source in (MLPERF / f"{name}.tflite", path):  # the same values from the two files
            compared, different, fast = compare(graph, source.read_bytes(), [inputs])
            assert compared > 4 * 1000
            assert different == 0, (source, f"{different} of {compared} codes differ")
            assert fast <= 1


# -- writers that are wrong, which these comparisons must catch --------------------------------------------


def shifted_zero_point(monkeypatch):
    right = Packer._quantization
    monkeypatch.setattr(
        Packer, "_quantization", lambda self, q: right(self, replace(q, zero_point=q.zero_point ^ 1))
    )


def doubled_scale(monkeypatch):
    right = Packer._quantization
    monkeypatch.setattr(Packer, "_quantization", lambda self, q: right(self, replace(q, scale=2 * q.scale)))


def reversed_scales(monkeypatch):
    right = Packer._quantization
    monkeypatch.setattr(Packer, "_quantization", lambda self, q: right(self, replace(q, scale=q.scale[::-1])))


def no_activation(monkeypatch):
    monkeypatch.setattr(tflite_writer._Writer, "_activation", lambda *_: {})


def changed_option(name: str, change):
    def apply(monkeypatch):
        right = tflite_writer._Writer._operator

        def wrong(self, node, kind, options, **rest):
            options = options | ({name: change(options[name])} if name in options else {})
            return right(self, node, kind, options, **rest)

        monkeypatch.setattr(tflite_writer._Writer, "_operator", wrong)

    return apply


def changed_constant(what: str, change):
    def apply(monkeypatch):
        right = tflite_writer._Writer._constant
        monkeypatch.setattr(
            tflite_writer._Writer,
            "_constant",
            lambda self, node, name, values, *rest: right(
                self, node, name, change(np.asarray(values)) if name == what else values, *rest
            ),
        )

    return apply


def reversed_data(monkeypatch):
    right = Packer._tensor

    def wrong(self, tensor):
        data = tensor.data
        if data is not None and data.dtype == np.int8:
            data = data.reshape(-1)[::-1].reshape(data.shape)
        return right(self, replace(tensor, data=data))

    monkeypatch.setattr(Packer, "_tensor", wrong)


WRONG_WRITERS = {
    "zero point": (
        shifted_zero_point,
        ["CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "MEAN", "HARD_SWISH", "RELU", "QUANTIZE"],
    ),
    "scale": (doubled_scale, ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "SOFTMAX", "MUL"]),
    "scale order": (reversed_scales, ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"]),
    "activation": (
        no_activation,
        ["CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "AVERAGE_POOL_2D", "MAX_POOL_2D"],
    ),
    "weights": (
        reversed_data,
        ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL", "CONCATENATION"],
    ),
    "stride": (changed_option("StrideH", lambda s: s + 1), ["CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D"]),
    "dilation": (changed_option("DilationWFactor", lambda d: 3 - d), ["CONV_2D", "DEPTHWISE_CONV_2D"]),
    "padding": (changed_option("Padding", lambda p: 1 - p), ["CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D"]),
    "kernel": (changed_option("FilterWidth", lambda k: k + 1), ["AVERAGE_POOL_2D", "MAX_POOL_2D"]),
    "joined axis": (changed_option("Axis", lambda a: a % 3 + 1), ["CONCATENATION"]),
    "corners": (changed_option("AlignCorners", lambda a: not a), ["RESIZE_NEAREST_NEIGHBOR"]),
    "centers": (changed_option("HalfPixelCenters", lambda a: not a), ["RESIZE_NEAREST_NEIGHBOR"]),
    "size": (changed_constant("size", lambda s: s[::-1]), ["RESIZE_NEAREST_NEIGHBOR"]),
    "beta": (changed_option("Beta", lambda b: 2 * b), ["SOFTMAX"]),
    "axes": (changed_constant("axes", lambda a: a % 3 + 1), ["MEAN"]),
    "pad": (changed_constant("paddings", lambda p: p[:, ::-1]), ["PAD", "CONV_2D"]),
    "shape": (changed_constant("shape", lambda s: s[::-1]), ["RESHAPE"]),
}


@pytest.mark.parametrize("wrong", WRONG_WRITERS)
def test_a_wrong_writer_is_caught(wrong, monkeypatch):
    apply, ops = WRONG_WRITERS[wrong]
    apply(monkeypatch)
    for op in ops:
        assert any(_differs(op, seed) for seed in range(25)), op


def _differs(op: str, seed: int) -> bool:
    graph, rng = case(op, seed)
    inputs = [codes(rng, graph[name].shape) for name in graph.inputs]
    try:
        return compare(graph, tflite_bytes(graph), inputs).different > 0
    except RuntimeError:  # LiteRT refuses the file
        return True


# -- what is refused, and failures -------------------------------------------------------------------------


def float_graph() -> Graph:
    x = Tensor("x", (1, 4), "float32", Kind.INPUT)
    graph = Graph("float", {"x": x, "y": replace(x, name="y", kind=Kind.ACTIVATION)})
    graph.nodes, graph.inputs, graph.outputs = (
        [Node("s", "SOFTMAX", ("x",), ("y",), A.Softmax())],
        ("x",),
        ("y",),
    )
    return graph


def changed(name: str, **changes) -> Graph:
    graph = small_network()
    graph.update(name, **changes)
    return graph


def with_node(position: int, **changes) -> Graph:
    graph = small_network()
    graph.nodes[position] = replace(graph.nodes[position], **changes)
    return graph


def batch_of_two() -> Graph:
    rng = np.random.default_rng(0)
    x = image(rng, (2, 3))
    return one_op("RESHAPE", A.Reshape((2, 3, 1)), x, out_quant=x.quant)


def cropping() -> Graph:
    rng = np.random.default_rng(0)
    constants = weights(rng, (2, 1, 1, 2), 0)
    attrs = A.Conv2D(padding=(-1, 0, 0, 0))
    return one_op("CONV_2D", attrs, image(rng, (1, 4, 4, 2)), *constants, out_quant=quant(rng))


def softmax_of_one_axis() -> Graph:
    """A batch of such inputs would be normalised together: LiteRT runs one of them, `ir.run` many."""
    x = image(np.random.default_rng(0), (1,))
    graph = Graph("one", {"x": x}, inputs=("x",), outputs=("y",))
    graph.add(replace(x, name="y", kind=Kind.ACTIVATION, quant=Quant.per_tensor(1 / 256, -128)))
    graph.nodes = [Node("softmax", "SOFTMAX", ("x",), ("y",), A.Softmax())]
    return graph


def six_axes() -> Graph:
    x = image(np.random.default_rng(0), (1, 2, 2, 2, 2, 2))
    return one_op("PAD", A.Pad(((0, 0), *[(1, 1)] * 5)), x, out_quant=x.quant)


HIDDEN = small_network()["a"].quant

REFUSED = {
    "float": (float_graph(), UsageError, "tensor 'x' is float32; .*quantize it first"),
    "one float tensor": (changed("m", dtype="float32"), UsageError, "tensor 'm' is float32"),
    "float weights": (
        changed("w", dtype="float32", data=np.zeros((4, 3, 3, 3), np.float32)),
        UsageError,
        "reads 'w', which is float32; it needs int8",
    ),
    "float bias": (changed("b", dtype="float32"), UsageError, "reads 'b', which is float32; it needs int32"),
    "no scale": (changed("y", quant=None), UsageError, "tensor 'y' is int8 without a scale"),
    "weights without a scale": (changed("w", quant=None), UsageError, "'w', which is int8 without a scale"),
    "narrow activations": (
        changed("a", quant=replace(HIDDEN, bits=4, zero_point=np.zeros(1, np.int32))),
        UnsupportedOpError,
        "tensor 'a' has codes of 4 bits",
    ),
    "wrong axis": (
        changed("w", quant=replace(small_network()["w"].quant, axis=3)),
        UsageError,
        "scales along axis 3; CONV_2D needs axis 0",
    ),
    "variable": (changed("w", kind=Kind.VARIABLE), UnsupportedOpError, "reads 'w', a variable"),
    "pool that rescales": (changed("m", quant=Quant.per_tensor(9.0, 0)), UsageError, "needs one scale"),
    "softmax scale": (changed("p", quant=HIDDEN), UsageError, "needs scale 1/256 and zero point -128"),
    "unknown op": (
        with_node(4, op="GELU"),
        UnsupportedOpError,
        "softmax is a GELU; supported: CONV_2D",
    ),
    "shape": (changed("y", shape=(1, 6)), GraphError, r"makes \(1, 5\), but 'y' says \(1, 6\)"),
    "undefined": (with_node(1, inputs=("m",)), GraphError, "before it is written"),
    "no operation": (Graph("empty"), UsageError, "there is nothing to write"),
    "softmax of the batch": (softmax_of_one_axis(), GraphError, "SOFTMAX needs a batch axis"),
    "batch": (batch_of_two(), UnsupportedOpError, "batch size 1"),
    "crop": (cropping(), UnsupportedOpError, "crops its input"),
    "six axes": (six_axes(), UnsupportedOpError, "pads 6 axes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_file_cannot_hold_is_refused_in_one_line(what, tmp_path):
    graph, error, message = REFUSED[what]
    path = tmp_path / "model.tflite"
    path.write_bytes(b"what was there")
    with pytest.raises(error, match=message) as raised:
        ir.write_tflite(graph, path)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == b"what was there"


def test_a_constant_as_data_is_refused():
    graph = small_network()
    graph.inputs = ()
    graph.update("x", kind=Kind.CONSTANT, data=np.zeros((1, 8, 8, 3), np.int8))
    graph.add(image(np.random.default_rng(0), (1, 2), "other"))
    graph.inputs = ("other",)
    with pytest.raises(UnsupportedOpError, match="reads the constant 'x' as data"):
        tflite_bytes(graph)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"what was there")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with pytest.raises(DataError, match=r"cannot write .*No space left on device; choose another folder"):
            ir.write_tflite(small_network(), path)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]
    ir.write_tflite(small_network(), path)  # the control: without the failure it is replaced
    assert path.read_bytes() == tflite_bytes(small_network())


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without_tflite(name, *args, **kwargs):
        if name == "tflite":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tflite)
    with pytest.raises(UsageError, match=r"pip install 'tinyml_edu\[tflite\]'"):
        tflite_bytes(small_network())
