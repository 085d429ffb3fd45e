"""Fewer than 8 bits: codes never leave their width, layers stay within one code, codes and scales by hand."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_post_training import LINEAR, batch, largest_code_errors, linear_graph, oracle_quants, prepared

from tinyml_edu import ir
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.ir import Graph, GraphError, Kind, Node, Quant, Tensor
from tinyml_edu.ir.attrs import Add, Conv2D, FullyConnected, Mean, Softmax
from tinyml_edu.quantization import (
    OBSERVERS,
    QuantConfig,
    QuantizedModel,
    activation_widths,
    calibrate,
    quantize,
    quantize_graph,
    symmetric_scale,
    weight_scales,
)

everything = cache(prepared)  # no test here changes what it returns


def mean_graph(seed: int = 0) -> Graph:
    """conv -> MEAN (with a scale of its own) -> + constant -> FC -> softmax -> FC: what `prepared` lacks."""
    rng = np.random.default_rng(seed)
    graph = Graph("mean", inputs=("x",), outputs=("y",))
    graph.add(Tensor("x", (1, 4, 5, 3), "float32", Kind.INPUT))
    shapes = {"c": (1, 4, 5, 6), "m": (1, 6), "a": (1, 6), "f": (1, 4), "s": (1, 4), "y": (1, 3)}
    for name, shape in shapes.items():
        graph.add(Tensor(name, shape, "float32", Kind.ACTIVATION))
    for name, shape in {"w": (6, 3, 3, 3), "k": (1, 6), "v": (4, 6), "u": (3, 4)}.items():
        data = rng.normal(size=shape).astype(np.float32)
        graph.add(Tensor(name, shape, "float32", Kind.CONSTANT, data))
    graph.nodes += [
        Node("c", "CONV_2D", ("x", "w"), ("c",), Conv2D((1, 1), (1, 1, 1, 1))),
        Node("m", "MEAN", ("c",), ("m",), Mean((1, 2))),
        Node("a", "ADD", ("m", "k"), ("a",), Add("none")),
        Node("f", "FULLY_CONNECTED", ("a", "v"), ("f",), FullyConnected()),
        Node("s", "SOFTMAX", ("f",), ("s",), Softmax(1.0)),
        Node("y", "FULLY_CONNECTED", ("s", "u"), ("y",), FullyConnected()),
    ]
    return graph.validate()


def outside(graph: Graph, x: np.ndarray, requant: str = "exact") -> list[str]:
    """Return the tensors of which a code leaves its width for the real inputs ``x``."""
    codes = graph[graph.inputs[0]].quant.quantize(x)
    values = ir.run(graph, codes, keep=True, requant=requant)
    values |= {t.name: t.data for t in graph.constants() if t.dtype == "int8"}
    limits = {name: graph[name].quant.limits for name in values}
    return [n for n, v in values.items() if v.min() < limits[n][0] or v.max() > limits[n][1]]


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.sampled_from(["exact", "fast"]), st.integers(0, 100))
def test_codes_never_leave_their_width_however_large_the_inputs(weight_bits, bits, requant, seed):
    config = QuantConfig(weight_bits, bits)
    for graph, shape in ((mean_graph(seed), (4, 5, 3)), (everything()[0], (19, 22, 3))):
        x = batch(4, shape, seed)
        # Calibrated on a tenth of what is fed: every layer saturates.
        int8 = quantize_graph(graph, calibrate(graph, x / 10), config)
        assert outside(int8, x, requant) == []


@pytest.mark.parametrize("name", ["c", "m", "a", "f"])
def test_without_its_width_the_output_of_each_op_would_leave_it(name):
    graph, x = mean_graph(), batch(4, (4, 5, 3))
    int8 = quantize_graph(graph, calibrate(graph, x / 10), QuantConfig(activation_bits=4))
    narrow = int8[name].quant
    int8.update(name, quant=replace(narrow, bits=8))
    codes = ir.run(int8, int8["x"].quant.quantize(x), keep=True)[name]
    assert codes.max() > narrow.limits[1] or codes.min() < narrow.limits[0]


@pytest.mark.parametrize(("weight_bits", "bits"), [(8, 4), (4, 8), (4, 4), (2, 2), (3, 6), (8, 7)])
def test_every_layer_is_within_one_code_at_any_width(weight_bits, bits):
    graph, _, ranges, x = everything()
    int8 = quantize_graph(graph, ranges, QuantConfig(weight_bits, bits))
    for images in (x, 3 * x):
        errors = largest_code_errors(graph, int8, ranges, images, weight_bits, bits)
        assert max(errors.values()) <= 1, errors


@pytest.mark.parametrize("wrong", [(5, 8), (3, 8), (4, 7)])
def test_the_one_code_bound_tells_one_bit_apart(wrong):
    graph, _, ranges, x = everything()
    int8 = quantize_graph(graph, ranges, QuantConfig(4, 8))
    assert max(largest_code_errors(graph, int8, ranges, x, *wrong).values()) > 1


def test_ends_and_softmax_keep_eight_bits_and_all_else_is_narrow():
    graph = mean_graph()
    assert activation_widths(graph, 3) == {
        "x": 8, "c": 3, "m": 3, "k": 3, "a": 3, "f": 3, "s": 8, "y": 8,
    }  # fmt: skip
    every = everything()[0]
    expected = {name: width for name, (_, _, width) in oracle_quants(every, everything()[2], 5).items()}
    assert activation_widths(every, 5) == expected
    assert sorted(set(expected.values())) == [5, 8]
    int8 = quantize_graph(graph, calibrate(graph, batch(2, (4, 5, 3))), QuantConfig(activation_bits=3))
    assert {n: int8[n].quant.bits for n in activation_widths(graph, 3)} == activation_widths(graph, 3)


def test_a_pool_before_the_output_keeps_the_eight_bits_of_the_output():
    """Their kernels have no multiplier: a pool's input cannot have another width than its output."""
    graph = mean_graph()
    graph.add(Tensor("r", (3, 1), "float32", Kind.ACTIVATION))
    graph.nodes.append(Node("r", "RESHAPE", ("y",), ("r",), ir.attrs.Reshape((3, 1))))
    graph.outputs = ("r",)
    assert activation_widths(graph, 4)["y"] == 8


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_use_all_symmetric_codes_of_their_width(bits):
    graph, _, ranges, _ = everything()
    int8 = quantize_graph(graph, ranges, QuantConfig(weight_bits=bits))
    for node in int8.nodes:
        if node.op in LINEAR:
            weight = int8[node.inputs[1]]
            assert weight.quant.bits == bits
            assert np.abs(weight.data.astype(int)).max() == 2 ** (bits - 1) - 1


def test_layers_get_the_bits_that_are_named_for_them():
    graph, _, ranges, _ = everything()
    names = [node.name for node in graph.nodes if node.op in LINEAR]
    config = QuantConfig(weight_bits_by_layer={names[0]: 2, names[2]: 5})
    int8 = quantize_graph(graph, ranges, config)
    bits = {n.name: int8[n.inputs[1]].quant.bits for n in int8.nodes if n.op in LINEAR}
    assert bits == {name: {0: 2, 2: 5}.get(i, 8) for i, name in enumerate(names)}
    pool = next(node.name for node in graph.nodes if node.op == "MAX_POOL_2D")
    for wrong in ("no_such_layer", pool):
        with pytest.raises(UnknownNameError, match="weight_bits_by_layer"):
            quantize_graph(graph, ranges, QuantConfig(weight_bits_by_layer={wrong: 4}))


def test_a_configuration_does_not_follow_its_mapping_and_can_be_a_key():
    mapping = {"conv": 4}
    config = QuantConfig(weight_bits_by_layer=mapping)
    mapping["conv"] = 2
    assert config.weight_bits_by_layer == {"conv": 4}
    assert len({config, QuantConfig(weight_bits_by_layer={"conv": 4})}) == 1
    assert config != QuantConfig()


@pytest.mark.parametrize("per_channel", [True, False])
def test_weight_scales_are_those_of_the_graph_and_symmetric(per_channel):
    graph, _, ranges, _ = everything()
    config = QuantConfig(weight_bits=3, per_channel=per_channel)
    scales, int8 = weight_scales(graph, ranges, config), quantize_graph(graph, ranges, config)
    assert set(scales) == {n.inputs[1] for n in graph.nodes if n.op in LINEAR}
    for node in graph.nodes:
        if node.op in LINEAR:
            name = node.inputs[1]
            axis = (3 if node.op == "DEPTHWISE_CONV_2D" else 0) if per_channel else None
            assert np.array_equal(scales[name], int8[name].quant.scale)
            assert np.array_equal(
                scales[name], symmetric_scale(graph[name].data, axis, bits=3).astype(np.float32)
            )


def test_given_codes_are_taken_as_they_are():
    graph, _, ranges, _ = everything()
    config = QuantConfig(weight_bits=4)
    name = graph.nodes[0].inputs[1]
    scale = weight_scales(graph, ranges, config)[name].reshape(-1, 1, 1, 1)
    up = np.clip(np.ceil(graph[name].data / scale), -7, 7)  # whole numbers in a float array
    int8, nearest = (quantize_graph(graph, ranges, config, weight_codes=c) for c in ({name: up}, None))
    assert np.array_equal(int8[name].data, up)
    assert int8[name].data.dtype == np.int8
    assert not np.array_equal(nearest[name].data, up)
    others = [t for t in int8.tensors if t != name and int8[t].data is not None]
    assert all(np.array_equal(int8[t].data, nearest[t].data) for t in others)


def test_given_scales_replace_the_symmetric_ones_and_clip():
    graph, _, ranges, _ = everything()
    name, config = graph.nodes[0].inputs[1], QuantConfig(weight_bits=4)
    half = weight_scales(graph, ranges, config)[name] / 2
    int8 = quantize_graph(graph, ranges, config, weight_scales={name: half})
    assert np.array_equal(int8[name].quant.scale, half)
    expected = np.clip(np.rint(graph[name].data.astype(np.float64) / half.reshape(-1, 1, 1, 1)), -7, 7)
    assert np.array_equal(int8[name].data, expected)
    step = int8[graph.inputs[0]].quant.item()[0] * half.astype(np.float64)
    assert np.array_equal(
        int8[graph.nodes[0].inputs[2]].data, np.rint(graph[graph.nodes[0].inputs[2]].data / step)
    )


def test_a_given_scale_too_small_for_the_bias_is_raised():
    graph = linear_graph(np.array([[1.0, -2.0]]), np.array([3.0]))
    ranges = calibrate(graph, batch(20, (2,)))
    tiny = {"w": np.array([1e-12])}
    raised = weight_scales(graph, ranges, given=tiny)["w"]
    x_scale = quantize_graph(graph, ranges)["x"].quant.item()[0]
    assert 3.0 / (x_scale * raised[0]) <= 2**30 * (1 + 1e-6)
    int8 = quantize_graph(graph, ranges, weight_scales=tiny)
    assert np.array_equal(int8["w"].quant.scale, raised)
    assert abs(int8["b"].data[0] * x_scale * float(raised[0]) - 3.0) <= 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weight_codes": {"w": np.zeros((2, 2))}}, r"must have shape \(1, 2\)"),
        ({"weight_codes": {"w": np.array([[8, 0]])}}, "from -7 to 7"),
        ({"weight_codes": {"w": np.array([[-8, 0]])}}, "from -7 to 7"),
        ({"weight_codes": {"w": np.array([[0.5, 0]])}}, "whole numbers"),
        ({"weight_codes": {"w": np.array([[np.nan, 0]])}}, "whole numbers"),
        ({"weight_codes": {"b": np.zeros(1)}}, "name in weight_codes 'b'"),
        ({"weight_scales": {"y": np.ones(1)}}, "name in weight_scales 'y'"),
        ({"weight_scales": {"w": np.ones(2)}}, "positive, finite numbers"),
        ({"weight_scales": {"w": np.zeros(1)}}, "positive, finite numbers"),
        ({"weight_scales": {"w": np.array([np.nan])}}, "positive, finite numbers"),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_a_usage_error(arguments, words):
    graph = linear_graph(np.array([[1.0, -2.0]]), np.array([3.0]))
    ranges = calibrate(graph, batch(20, (2,)))
    with pytest.raises(UsageError, match=words):
        quantize_graph(graph, ranges, QuantConfig(weight_bits=4), **arguments)


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_a_width_that_int8_cannot_hold_is_refused(bits):
    with pytest.raises(GraphError, match="2 to 8 bits"):
        Quant.per_tensor(1.0, 0, bits)


def test_quantize_clamps_to_the_width_but_not_int32():
    quant = Quant.per_tensor(1.0, 2, 3)
    assert quant.quantize(np.array([-100.0, 0.4, 100.0])).tolist() == [-4, 2, 3]
    assert quant.quantize(np.array([1000.0]), "int32").tolist() == [1002]


@pytest.fixture(scope="module")
def narrow() -> tuple[QuantizedModel, np.ndarray]:
    graph, x = mean_graph(), batch(30, (4, 5, 3))
    config = QuantConfig(4, 5, weight_bits_by_layer={"f": 3}, observer="mse")
    return quantize(graph, config, x), x


def test_widths_survive_saving(narrow, tmp_path):
    model, x = narrow
    model.save(tmp_path / "m.safetensors")
    back = QuantizedModel.load(tmp_path / "m.safetensors")
    assert {n: t.quant.bits for n, t in back.graph.tensors.items()} == {
        n: t.quant.bits for n, t in model.graph.tensors.items()
    }
    assert {t.quant.bits for t in back.graph.tensors.values()} == {3, 4, 5, 8}
    assert np.array_equal(back.predict(5 * x), model.predict(5 * x))
    assert back.packed_weight_bytes == model.packed_weight_bytes


def test_packed_bytes_count_codes_at_their_width_and_scales(narrow):
    model, _ = narrow
    w, k, v, u = 6 * 27 * 4 / 8 + 4 * 6, 4 + 4, 9 + 4 * 4, 6 + 4 * 3  # k: 6 codes of 5 bits, 30 bits
    assert model.packed_weight_bytes == w + k + v + u
    assert model.weight_bytes == 6 * 27 + 6 + 24 + 12  # as the int8 graph stores them


def test_packed_bytes_count_biases_in_full():
    graph = linear_graph(np.ones((2, 5)), np.ones(2))
    model = quantize(graph, QuantConfig(weight_bits=3), batch(5, (5,)))
    assert model.packed_weight_bytes == 4 + 4 * 2 + 4 * 2  # 30 bits, two scales, two int32 biases


def test_more_bits_are_nearer_to_the_float_network(narrow):
    graph, x = mean_graph(), narrow[1]
    real = ir.run(graph, x)
    errors = [
        float(np.square(quantize(graph, QuantConfig(b, b), x).logits(x) - real).mean()) for b in (2, 4, 6, 8)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("observer", ["minmax", "ema", "percentile", "kl", "mse"])
def test_every_observer_quantizes_a_network(observer):
    graph, x = mean_graph(), batch(40, (4, 5, 3))
    model = quantize(graph, QuantConfig(8, 6, observer=observer), x)
    real = ir.run(graph, x)
    # A network that answered with the mean would have the variance as its squared error.
    assert np.square(model.logits(x) - real).mean() < real.var(axis=0).mean() / 2


@pytest.mark.parametrize("name", ["minmax", "mse", "kl"])
def test_calibrate_feeds_each_activation_to_an_observer_of_its_width(name):
    graph, x = mean_graph(), batch(40, (4, 5, 3))
    ranges = calibrate(graph, x, observer=name, bits=3, batch_size=40)
    values, widths = ir.run(graph, x, keep=True), activation_widths(graph, 3)
    assert set(ranges) == set(values)
    for tensor, value in values.items():
        observer = OBSERVERS[name](bits=widths[tensor])
        observer.update(value)
        low, high = observer.range()
        assert ranges[tensor] == (min(low, 0.0), max(high, 0.0))
    wide = calibrate(graph, x, observer=name, bits=8, batch_size=40)
    if name != "kl":  # so few values may give one threshold for both widths
        assert (wide["c"] == ranges["c"]) == (name == "minmax")  # control: the width matters where it should
    assert wide["x"] == ranges["x"]


def test_calibrate_refuses_an_unknown_observer():
    with pytest.raises(UnknownNameError, match="did you mean 'minmax'"):
        calibrate(mean_graph(), batch(2, (4, 5, 3)), observer="min-max")
