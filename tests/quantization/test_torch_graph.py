"""A float graph in PyTorch against the NumPy interpreter.

Bound: every op but SOFTMAX sums at most K products (or values) of float32.  Any order of summation is within
``(K + 2) * 2**-24 * sum |x| |w|`` of the exact sum, so that two orders are within twice that.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyml_edu import ir, mcu, models, train
from tinyml_edu.data import Dataset
from tinyml_edu.errors import UnsupportedOpError, UsageError
from tinyml_edu.ir import Graph, Kind, Node, Tensor
from tinyml_edu.ir import attrs as A
from tinyml_edu.quantization import TorchGraph, quantize
from tinyml_edu.quantization.torch_graph import KERNELS, from_stored, to_stored

UNIT = 2.0**-24

SUMS = {"ADD": A.Add, "SUB": A.Sub, "MUL": A.Mul}


def case(op: str, rng: np.random.Generator) -> Graph:
    """Return a random float graph of one node."""
    kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, 3, 2)) for _ in range(3))
    x = (1, *(int(v) for v in rng.integers(5, 9, 3)))
    activation = str(rng.choice(["none", "relu", "relu6"]))
    padding = tuple(int(v) for v in rng.integers(-1, 3, 4))  # a negative one crops
    constants: list[tuple[int, ...]] = []
    if op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        out = x[3] * int(rng.integers(1, 3))
        constants = [(out, *kernel, x[3]) if op == "CONV_2D" else (1, *kernel, out), (out,)]
        kind = A.Conv2D if op == "CONV_2D" else A.DepthwiseConv2D
        attrs = kind(stride, padding, dilation, activation)
    elif op == "FULLY_CONNECTED":
        x, constants, attrs = x[:2], [(4, x[1]), (4,)], A.FullyConnected(activation)
    elif op in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        inside = tuple(int(rng.integers(-1, k)) for k in (*kernel, *kernel))  # no window in the padding only
        attrs = A.Pool2D(kernel, (1, 1), inside, activation)
    elif op == "MEAN":
        attrs = A.Mean([(1, 2), (1,), (3,), (1, 2, 3)][rng.integers(4)], bool(rng.integers(2)))
    elif op == "PAD":
        pairs = ((0, 0), *((int(a), int(b)) for a, b in rng.integers(0, 3, (3, 2))))
        attrs = A.Pad(pairs, float(rng.choice([0.0, 1.5])))
    elif op == "RESHAPE":
        attrs = A.Reshape([(1, x[1] * x[2] * x[3]), (1, x[2], x[3], x[1])][rng.integers(2)])
    elif op == "RESIZE_NEAREST_NEIGHBOR":
        size = tuple(int(v) for v in rng.integers(1, 15, 2))
        attrs = A.ResizeNearest(size, *[(False, False), (True, False), (False, True)][rng.integers(3)])
    elif op in ("LEAKY_RELU", "QUANTIZE"):
        attrs = A.LeakyRelu(0.2) if op == "LEAKY_RELU" else A.Quantize()
    elif op in ("LOGISTIC", "TANH", "HARD_SWISH", "RELU", "RELU6", "RELU_N1_TO_1"):
        attrs = A.Elementwise()
    elif op in SUMS:
        attrs = SUMS[op](activation)
    else:
        attrs = A.Concatenation(int(rng.integers(1, 4))) if op == "CONCATENATION" else A.Softmax(0.7)
    graph = Graph(op, inputs=("x", "x2") if op in (*SUMS, "CONCATENATION") else ("x",), outputs=("y",))
    for name in graph.inputs:
        graph.add(Tensor(name, x, "float32", Kind.INPUT))
    if op in SUMS:
        graph.update("x2", shape=(1, *(n if rng.random() < 0.5 else 1 for n in x[1:])))
    for name, shape in zip(("w", "b"), constants, strict=False):
        graph.add(Tensor(name, shape, "float32", Kind.CONSTANT, rng.normal(size=shape).astype(np.float32)))
    reads = (*graph.inputs, *("w", "b")[: len(constants) - int(rng.integers(2) if constants else 0)])
    graph.nodes.append(Node("node", op, reads, ("y",), attrs))
    shape = ir.OPS[op].infer_shape(attrs, *(graph[name].shape for name in reads))
    graph.add(Tensor("y", shape, "float32", Kind.ACTIVATION))
    return graph.validate()


def inputs_of(graph: Graph, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {name: graph[name].shape for name in graph.inputs}
    return {name: rng.normal(size=(n * s[0], *s[1:])).astype(np.float32) for name, s in shapes.items()}


def in_torch(module: TorchGraph, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return to_stored(module(*(from_stored(torch.from_numpy(x)) for x in inputs.values()))).numpy()


def bound(graph: Graph, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the largest distance that float32 explains, by the docstring: ``|op|`` on magnitudes."""
    positive = Graph(graph.name, dict(graph.tensors), [], graph.inputs, graph.outputs)
    for tensor in list(graph.constants()):
        positive.update(tensor.name, data=np.abs(tensor.data))
    for node in graph.nodes:
        plain = replace(node.attrs, activation="none") if hasattr(node.attrs, "activation") else node.attrs
        positive.nodes.append(replace(node, attrs=plain))
    sums = ir.run(positive, {name: np.abs(x) for name, x in inputs.items()})
    terms = max(int(np.prod(t.shape)) for t in graph.tensors.values())  # more than any K here
    return 2 * (terms + 2) * UNIT * sums


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ir.OPS)), st.integers(0, 10_000), st.integers(1, 3))
def test_every_op_computes_what_the_interpreter_does(op, seed, n):
    rng = np.random.default_rng(seed)
    graph = case(op, rng)
    inputs = inputs_of(graph, n, rng)
    expected, got = ir.run(graph, inputs), in_torch(TorchGraph(graph), inputs)
    assert got.shape == expected.shape
    # exp is not correctly rounded anywhere: 8 units for the two libraries together, on values up to 1.
    allowed = (64 + 8) * 2 * UNIT if op in ("SOFTMAX", "LOGISTIC") else bound(graph, inputs)
    if op == "SUB":  # the magnitudes are added, not subtracted
        allowed = 2 * 2 * UNIT * sum(np.abs(x) for x in inputs.values())
    assert np.all(np.abs(got - expected) <= allowed), (op, seed)


def test_every_op_of_the_table_has_a_kernel():
    assert KERNELS.keys() == ir.OPS.keys()


MISTAKES = {
    "CONV_2D": lambda a: replace(a, padding=a.padding[::-1]),
    "DEPTHWISE_CONV_2D": lambda a: replace(a, padding=(a.padding[2], *a.padding[1:])),
    "AVERAGE_POOL_2D": lambda a: replace(a, padding=a.padding[::-1]),
    "PAD": lambda a: replace(a, padding=(a.padding[0], *(pair[::-1] for pair in a.padding[1:]))),
}


@pytest.mark.parametrize("op", sorted(MISTAKES))
def test_the_comparison_sees_a_padding_on_the_wrong_side(op):
    caught = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        graph = case(op, rng)
        module = TorchGraph(graph)
        node = graph.nodes[0]
        wrong = replace(node, attrs=MISTAKES[op](node.attrs))
        if wrong.attrs == node.attrs:
            continue
        try:
            same_size = ir.infer_shape(graph, wrong) == graph["y"].shape
        except ir.GraphError:
            continue
        inputs = inputs_of(graph, 2, rng)
        expected = ir.run(graph, inputs)
        module.graph = replace(graph, nodes=[wrong])
        if same_size:
            caught += bool(np.any(np.abs(in_torch(module, inputs) - expected) > bound(graph, inputs)))
    assert caught > 0


def unlike_identity(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and parameters that matter; evaluation mode."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0, 0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
        (nn.Conv2d(4, 8, 3, groups=4, stride=2), nn.BatchNorm2d(8)),
        (nn.Linear(6, 5), nn.BatchNorm1d(5)),
    ],
)
def test_a_folded_layer_is_the_layer_and_its_batch_norm(layer, norm):
    """Folded weights and biases are rounded to float32, half a unit each; the rest is float64."""
    torch.manual_seed(0)
    model = unlike_identity(nn.Sequential(layer, norm))
    x = torch.randn(4, 6) if isinstance(layer, nn.Linear) else torch.randn(4, layer.in_channels, 8, 8)
    with torch.no_grad():
        module = TorchGraph(mcu.capture(model, x)).double()
        expected, got = model.double()(x.double()), module(x.double())
        for parameter in module.parameters():
            parameter.abs_()
        assert torch.all((got - expected).abs() <= UNIT * module(x.double().abs()) * (1 + 1e-6))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2_tiny"])
def test_folded_networks_equal_the_model_in_evaluation_mode(name):
    """In float64 only the folded weights' rounding is left: some 2**-24 of the values in each layer.

    No bound, since values cancel; 8 units a layer.  The control below moves the result 1,000 times as far.
    """
    torch.manual_seed(0)
    model = unlike_identity(models.build(name, width=0.25))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        graph = mcu.capture(model, x)
        expected, got = model.double()(x.double()), TorchGraph(graph).double()(x.double())
    assert float((got - expected).norm() / expected.norm()) <= 8 * len(graph.nodes) * UNIT


def test_the_folding_test_sees_statistics_that_were_left_out():
    torch.manual_seed(0)
    model = models.build("vgg_lite", width=0.25).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = TorchGraph(mcu.capture(model, x))(x)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_var.fill_(0.9)
        assert float((before - model(x)).norm() / model(x).norm()) > 1e-2


def tiny() -> Graph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    return mcu.capture(net, torch.zeros(1, 3, 8, 8))


def test_the_graph_comes_back_with_the_present_weights():
    graph = tiny()
    module = TorchGraph(graph)
    same = module.to_graph()
    for tensor in graph.constants():
        assert np.array_equal(same[tensor.name].data, tensor.data)
        assert same[tensor.name].shape == tensor.shape
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    moved = module.to_graph()
    for tensor in graph.constants():
        assert np.array_equal(moved[tensor.name].data, tensor.data * np.float32(1.5))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(in_torch(module, {"x": x}), ir.run(moved, x), rtol=1e-4, atol=1e-5)


def test_the_given_graph_does_not_change():
    graph = tiny()
    before = {t.name: t.data.copy() for t in graph.constants()}
    with torch.no_grad():
        for parameter in TorchGraph(graph).parameters():
            parameter.zero_()
    assert all(np.array_equal(graph[name].data, data) for name, data in before.items())


def test_gradients_are_those_of_the_model():
    """Two computations of one function: relative to their norm they differ by float32 rounding only."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU6(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 3)
    ).double()
    graph = mcu.capture(net.float(), torch.zeros(1, 3, 8, 8))
    module, x = TorchGraph(graph).double(), torch.randn(2, 3, 8, 8).double()
    net = net.double()
    module(x).square().sum().backward()
    net(x).square().sum().backward()
    for ours, theirs in zip(module.tensors.values(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_training_with_fit_learns_and_only_weights_decay():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 256)
    x = (rng.normal(size=(256, 8, 8, 3)) * 0.3 + y[:, None, None, None] / 2).astype(np.float32)
    dataset = Dataset("steps", "train", x, y, tuple("abcde"))
    module = TorchGraph(tiny())
    before = train.evaluate(module, dataset)
    config = train.TrainConfig(epochs=6, batch_size=32, learning_rate=0.05, progress=False)
    train.fit(module, dataset, dataset, config)
    assert before < 0.5
    assert train.evaluate(module, dataset) > 0.7
    groups = train.state.make_optimizer(module, config).param_groups
    assert [{p.ndim for p in group["params"]} for group in groups] == [{2, 4}, {1}]
    assert [group["weight_decay"] for group in groups] == [config.weight_decay, 0.0]


def test_a_constant_operand_is_added_to_each_image_and_not_trained():
    graph = Graph("constant", inputs=("x",), outputs=("y",))
    graph.add(Tensor("x", (1, 2, 3, 4), "float32", Kind.INPUT))
    graph.add(Tensor("y", (1, 2, 3, 4), "float32", Kind.ACTIVATION))
    data = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    graph.add(Tensor("c.d", data.shape, "float32", Kind.CONSTANT, data))
    for order in (("x", "c.d"), ("c.d", "x")):
        graph.nodes = [Node("n", "ADD", order, ("y",), A.Add())]
        module = TorchGraph(graph)
        x = np.random.default_rng(0).normal(size=(3, 2, 3, 4)).astype(np.float32)
        assert np.array_equal(in_torch(module, {"x": x}), x + data)
        assert not any(p.requires_grad for p in module.parameters())


def test_several_inputs_and_outputs_keep_their_order():
    rng = np.random.default_rng(1)
    graph = case("ADD", rng)
    graph.outputs = ("y", "x")
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in inputs_of(graph, 2, rng).values())
    y, x = TorchGraph(graph)(a, b)
    assert torch.equal(x, a)
    assert y.shape == a.shape
    with pytest.raises(UsageError, match="got 1 tensors"):
        TorchGraph(graph)(a)


def test_what_cannot_be_run_is_said():
    graph = tiny()
    x = np.zeros((4, 8, 8, 3), np.float32)
    with pytest.raises(UsageError, match="int8 already; pass the float graph"):
        TorchGraph(quantize(graph, calibration=x + 1).graph)
    with pytest.raises(UsageError, match=r"must have shape \(N, 3, 8, 8\), got \(1, 8, 8, 3\)"):
        TorchGraph(graph)(torch.zeros(1, 8, 8, 3))
    weight = graph.nodes[0].inputs[1]
    graph.update(weight, kind=Kind.INPUT, data=None)
    with pytest.raises(UnsupportedOpError, match="must be a constant"):
        TorchGraph(graph)
