"""Float and uint8 ends, scales that change inside a graph, and shapes that other exporters write.

Each file runs in LiteRT too: from the same input, in the file's own type, to the same codes.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the oracle of these tests")
pytest.importorskip("tflite", reason="reading .tflite needs the tflite package")

from litert_oracle import ModelWriter, Reference, codes, options, schema

from tinyml_edu import ir
from tinyml_edu.errors import DataError, UnsupportedOpError
from tinyml_edu.ir import attrs as A

SHAPE = (1, 4, 4, 2)
IN, OUT = {"scale": 0.1, "zero_point": 7}, {"scale": 0.05, "zero_point": -20}
UNSIGNED = {"dtype": "uint8", "scale": 0.1, "zero_point": 135}  # 7 + 128


def read(m: ModelWriter, first: int, last: int, tmp_path) -> tuple[ir.Graph, Reference]:
    content = m.pack([first], [last])
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    return ir.read_tflite(path), Reference(content)


def result(reference: Reference, x: np.ndarray) -> np.ndarray:
    """Return the output of the file, in its type, for an input in its type."""
    (source,), (target,) = (
        reference.interpreter.get_input_details(),
        reference.interpreter.get_output_details(),
    )
    reference.interpreter.set_tensor(source["index"], x)
    reference.interpreter.invoke()
    return reference.interpreter.get_tensor(target["index"])


def unsigned(codes_of_int8: np.ndarray) -> np.ndarray:
    return (codes_of_int8.astype(int) + 128).astype(np.uint8)


def inputs() -> list[np.ndarray]:
    return codes(np.random.default_rng(0), SHAPE)


def relu(m: ModelWriter, x: int) -> int:
    y = m.tensor(SHAPE, **OUT)
    return m.op("RELU", [x], y)


def test_a_uint8_input_is_codes_less_128(tmp_path):
    m = ModelWriter()
    first, x = m.tensor(SHAPE, **UNSIGNED), m.tensor(SHAPE, **IN)
    m.op("QUANTIZE", [first], x, options("Quantize"))
    graph, reference = read(m, first, relu(m, x), tmp_path)
    assert [node.op for node in graph.nodes] == ["RELU"]
    assert graph[graph.inputs[0]].quant.item() == (np.float32(0.1), 7)
    for x in inputs():
        np.testing.assert_array_equal(ir.run(graph, x), result(reference, unsigned(x)))


def test_a_uint8_input_of_another_scale_is_requantized(tmp_path):
    m = ModelWriter()
    first, x = m.tensor(SHAPE, dtype="uint8", scale=0.07, zero_point=3), m.tensor(SHAPE, **IN)
    m.op("QUANTIZE", [first], x, options("Quantize"))
    graph, reference = read(m, first, relu(m, x), tmp_path)
    assert [node.op for node in graph.nodes] == ["QUANTIZE", "RELU"]
    assert graph[graph.inputs[0]].quant.item() == (np.float32(0.07), -125)
    for x in inputs():
        np.testing.assert_array_equal(ir.run(graph, x), result(reference, unsigned(x)))


@pytest.mark.parametrize("same", [True, False])
def test_a_uint8_output_is_codes_less_128(same, tmp_path):
    m = ModelWriter()
    first = m.tensor(SHAPE, **IN)
    y = relu(m, first)
    scale = {"scale": 0.05, "zero_point": 108} if same else {"scale": 0.09, "zero_point": 30}
    last = m.op("QUANTIZE", [y], m.tensor(SHAPE, dtype="uint8", **scale), options("Quantize"))
    graph, reference = read(m, first, last, tmp_path)
    assert [node.op for node in graph.nodes] == ["RELU"] + ["QUANTIZE"] * (not same)
    for x in inputs():
        np.testing.assert_array_equal(unsigned(ir.run(graph, x)), result(reference, x))


def test_float_ends_keep_the_scale_of_their_codes(tmp_path):
    m = ModelWriter()
    first, x = m.tensor(SHAPE, dtype="float32"), m.tensor(SHAPE, **IN)
    m.op("QUANTIZE", [first], x, options("Quantize"))
    y = relu(m, x)
    last = m.op("DEQUANTIZE", [y], m.tensor(SHAPE, dtype="float32"), options("Dequantize"))
    graph, reference = read(m, first, last, tmp_path)
    source, target = graph[graph.inputs[0]].quant, graph[graph.outputs[0]].quant
    assert source.item() == (np.float32(0.1), 7)
    for x in inputs():
        real = source.dequantize(x)
        np.testing.assert_array_equal(source.quantize(real), x)
        np.testing.assert_array_equal(target.dequantize(ir.run(graph, x)), result(reference, real))


@pytest.mark.parametrize("scale", [0.1, 0.2, 0.033, 0.0501])
@pytest.mark.parametrize("at", ["input", "inside"])
def test_dequantize_then_quantize_is_one_quantize_through_float(scale, at, tmp_path):
    m = ModelWriter()
    first = m.tensor(SHAPE, **IN)
    y = relu(m, first) if at == "inside" else first
    real = m.op("DEQUANTIZE", [y], m.tensor(SHAPE, dtype="float32"), options("Dequantize"))
    last = m.op("QUANTIZE", [real], m.tensor(SHAPE, scale=scale, zero_point=7), options("Quantize"))
    graph, reference = read(m, first, last, tmp_path)
    assert graph.nodes[-1].attrs == A.Quantize(through_float=True)
    for x in inputs():
        np.testing.assert_array_equal(ir.run(graph, x), result(reference, x))


def test_through_float_is_another_rounding_than_through_integers():
    """The control: for some scales the two tables differ."""
    from graph_cases import one_op

    from tinyml_edu.ir import Kind, Quant, Tensor
    from tinyml_edu.ir.lookup_tables import requantize_table

    different = 0
    for factor in (0.5, 2.0, 4.0, 1.5):
        x = Tensor("x", (1, 256), "int8", Kind.INPUT, quant=Quant.per_tensor(0.1, 3))
        y = Quant.per_tensor(float(np.float32(0.1)) * factor, -5)
        tables = [
            requantize_table(g, g.nodes[0])
            for g in (one_op("QUANTIZE", A.Quantize(f), x, out_quant=y) for f in (False, True))
        ]
        different += int((tables[0] != tables[1]).sum())
    assert different > 0


def test_one_float_input_may_be_quantized_twice_alike(tmp_path):
    m = ModelWriter()
    first, a, b = m.tensor(SHAPE, dtype="float32"), m.tensor(SHAPE, **IN), m.tensor(SHAPE, **IN)
    m.op("QUANTIZE", [first], a, options("Quantize"))
    m.op("QUANTIZE", [first], b, options("Quantize"))
    last = m.op("ADD", [a, b], m.tensor(SHAPE, **OUT), options("Add"))
    graph, reference = read(m, first, last, tmp_path)
    assert graph.nodes[0].inputs == graph.inputs * 2
    for x in inputs():
        real = graph[graph.inputs[0]].quant.dequantize(x)
        np.testing.assert_array_equal(ir.run(graph, x), result(reference, real))


@pytest.mark.parametrize(
    ("op", "out", "extra", "kind"),
    [
        ("SQUEEZE", (1, 4, 2), None, options("Squeeze", squeezeDims=[1])),
        ("SQUEEZE", (4, 2), None, options("Squeeze", squeezeDims=[-3, 0])),
        ("EXPAND_DIMS", (1, 1, 1, 4, 2), [1], None),
        ("EXPAND_DIMS", (1, 1, 4, 2, 1), [-1], None),
        ("RESHAPE", (1, 8), [1, -1], None),
        ("RESHAPE", (1, 4, 2), None, options("Reshape", newShape=[1, 4, 2])),
    ],
)
def test_views_are_reshapes(op, out, extra, kind, tmp_path):
    m, shape = ModelWriter(), (1, 1, 4, 2)
    x = m.tensor(shape, **IN)
    ids = [x] if extra is None else [x, m.tensor((len(extra),), data=np.array(extra), dtype="int32")]
    y = m.op(op, ids, m.tensor(out, **IN), kind)
    graph, reference = read(m, x, y, tmp_path)
    assert [node.op for node in graph.nodes] == ["RESHAPE"]
    for values in codes(np.random.default_rng(0), shape):
        want = result(reference, values)
        assert want.shape == out
        np.testing.assert_array_equal(ir.run(graph, values), want)


def test_a_shape_that_is_computed_is_that_of_the_output(tmp_path):
    """Keras flattens with SHAPE, STRIDED_SLICE and PACK where the batch is open."""
    m = ModelWriter()
    x, shape = m.tensor(SHAPE, **IN), m.tensor((4,), dtype="int32")
    m.op("SHAPE", [x], shape, options("Shape", outType=schema.TensorType.INT32))
    parts = [m.tensor((1,), data=np.array([v]), dtype="int32") for v in (0, 1, 1)]
    batch = m.tensor((), dtype="int32")
    m.op("STRIDED_SLICE", [shape, *parts], batch, options("StridedSlice", shrinkAxisMask=1))
    rest, wanted = m.tensor((), data=np.array(-1), dtype="int32"), m.tensor((2,), dtype="int32")
    m.op("PACK", [batch, rest], wanted, options("Pack", valuesCount=2))
    y = m.op("RESHAPE", [x, wanted], m.tensor((1, 32), **IN), options("Reshape"))
    graph, reference = read(m, x, y, tmp_path)
    assert [node.op for node in graph.nodes] == ["RESHAPE"]
    for values in inputs():
        np.testing.assert_array_equal(ir.run(graph, values), result(reference, values))


@pytest.mark.parametrize(
    ("shapes", "out"),
    [
        (((1, 4, 4, 2), (2,)), (1, 4, 4, 2)),
        (((1, 4, 4, 2), ()), (1, 4, 4, 2)),
        (((4, 1), (1, 4, 4, 2)), (1, 4, 4, 2)),
        (((1, 1, 4, 1), (1, 4, 1, 2)), (1, 4, 4, 2)),
    ],
)
@pytest.mark.parametrize("op", ["ADD", "SUB", "MUL"])
def test_a_constant_of_fewer_axes_repeats_as_in_litert(op, shapes, out, tmp_path):
    m, rng = ModelWriter(), np.random.default_rng(1)
    flows = 0 if len(shapes[0]) == 4 else 1  # the operand of four axes is data, the other a constant
    ids = []
    for k, shape in enumerate(shapes):
        data = None if k == flows else rng.integers(-128, 128, shape, dtype=np.int8)
        ids.append(m.tensor(shape, data=data, **(IN if k else OUT)))
    scale = {"scale": 0.2 if op != "MUL" else 0.05, "zero_point": 3}
    y = m.op(op, ids, m.tensor(out, **scale), options(op.capitalize()))
    graph, reference = read(m, ids[flows], y, tmp_path)
    for values in codes(rng, shapes[flows]):
        np.testing.assert_array_equal(ir.run(graph, values), result(reference, values))
    batch = np.concatenate(codes(rng, shapes[flows]))
    np.testing.assert_array_equal(
        ir.run(graph, batch), np.concatenate([ir.run(graph, one[None]) for one in batch])
    )


@pytest.mark.parametrize("old", ["LOGISTIC", "RELU6", "TANH"])
def test_of_two_codes_of_an_operator_the_larger_counts(old, tmp_path):
    """A damaged file: LiteRT takes the larger, and so must we (found by benchmarks.fuzz, file 3318)."""
    m = ModelWriter()
    x = m.tensor(SHAPE, **IN)
    y = m.op("TANH" if old != "TANH" else "RELU6", [x], m.tensor(SHAPE, scale=1 / 128))
    m.old_codes[m.codes[0]] = getattr(schema.BuiltinOperator, old)
    graph, reference = read(m, x, y, tmp_path)
    assert [node.op for node in graph.nodes] == ["TANH"]
    for values in inputs():
        np.testing.assert_array_equal(ir.run(graph, values), result(reference, values))


def between(op: str, kind, **tensor) -> tuple[ModelWriter, int, int]:
    m = ModelWriter()
    x = m.tensor(SHAPE, **IN)
    return m, x, m.op(op, [x], m.tensor(SHAPE, **tensor), kind)


def test_what_cannot_be_codes_is_refused(tmp_path):
    def refuses(m, first, last, message):
        path = tmp_path / "model.tflite"
        path.write_bytes(m.pack([first], [last]))
        with pytest.raises(UnsupportedOpError, match=message) as caught:
            ir.read_tflite(path)
        assert "\n" not in str(caught.value)

    m, x, real = between("DEQUANTIZE", options("Dequantize"), dtype="float32")
    softmax = m.op("TANH", [real], m.tensor(SHAPE, dtype="float32"))
    y = m.op("QUANTIZE", [softmax], m.tensor(SHAPE, **OUT), options("Quantize"))
    refuses(m, x, y, r"is float32; convert the model with full integer quantization")
    m = ModelWriter()
    x = m.tensor(SHAPE, **UNSIGNED)
    refuses(
        m, x, m.op("RELU", [x], m.tensor(SHAPE, **UNSIGNED)), "RELU at position 0 computes with uint8, 't0'"
    )
    m, x, y = between("QUANTIZE", options("Quantize"), dtype="int16", scale=0.01)
    refuses(m, x, y, "is INT16; the engine has int8 data")
    m = ModelWriter()
    first, a, b = m.tensor(SHAPE, dtype="float32"), m.tensor(SHAPE, **IN), m.tensor(SHAPE, **OUT)
    m.op("QUANTIZE", [first], a, options("Quantize"))
    m.op("QUANTIZE", [first], b, options("Quantize"))
    refuses(m, first, m.op("ADD", [a, b], m.tensor(SHAPE, **OUT), options("Add")), "a second scale")


def test_a_reshape_that_its_output_contradicts_is_refused(tmp_path):
    m = ModelWriter()
    x = m.tensor(SHAPE, **IN)
    wanted = m.tensor((2,), data=np.array([2, 16]), dtype="int32")
    y = m.op("RESHAPE", [x, wanted], m.tensor((1, 32), **IN))
    (tmp_path / "model.tflite").write_bytes(m.pack([x], [y]))
    with pytest.raises(DataError, match=r"reshapes to \[2, 16\], but its output says \(1, 32\)"):
        ir.read_tflite(tmp_path / "model.tflite")
