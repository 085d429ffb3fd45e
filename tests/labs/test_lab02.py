"""Lab 2, what is its own: the library would pass its judges, and its integer truth is that of the engine."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("jupytext", reason="jupytext reads the sources of the labs")

from lab_sources import LABS, seeds

from tinyml_edu import data, ir, quantization, zoo
from tinyml_edu.checks import lab02_integer_judges as integers
from tinyml_edu.checks import lab02_judges
from tinyml_edu.ir import fixed_point

LAB02 = next(lab for lab in LABS if lab.id == "lab02")


@pytest.mark.parametrize("question", ["q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8"])
def test_the_library_passes_the_judges_of_the_lab(question):
    """One meaning for one name: what a student writes could stand in the library."""
    found = LAB02.hidden[question]
    names = {name: LAB02.lab.resolve(name) for name in found.provides} | {"Codebook": quantization.Codebook}
    for seed in seeds(found):
        cases = found.cases(np.random.default_rng(seed))
        outputs = [found.drive(names, case) for case in cases]
        for verdict in found.verdicts(cases, outputs):
            assert verdict.passed, (seed, verdict.reason)


def test_the_roundings_of_the_judge_are_those_of_the_engine():
    """Python's unbounded integers against the engine's 64 bits, ties of both signs included."""
    rng = np.random.default_rng(0)
    for m in [*(10.0 ** rng.uniform(-6, 1, 60)), *(2.0 ** -np.arange(-2, 9)), 1 - 2.0**-40]:
        pair = integers.multiplier_of(m)
        assert pair == fixed_point.quantize_multiplier(m)
        sums = np.concatenate([np.arange(-40, 40), rng.integers(-(2**27), 2**27, 40)])
        assert [integers.once(int(a), *pair) for a in sums] == fixed_point.requant_single(
            sums, *pair
        ).tolist()
        assert [integers.twice(int(a), *pair) for a in sums] == fixed_point.requant_double(
            sums, *pair
        ).tolist()


@pytest.fixture(scope="module")
def int8():
    """ResNet-8 in 8 bits, two images, and every activation's codes."""
    model = zoo.load("resnet8.glyphs32")[0]
    images = data.load("glyphs32", "validation").x[:2]
    quantized = quantization.quantize(model, calibration=data.to_tensor(images))
    return quantized.graph, ir.run(quantized.graph, quantized.input_codes(images), keep=True)


def _case(graph, node, codes):
    """Return a layer of the engine as a case of the lab, N C H W."""
    x, w, b, y = (graph[name] for name in (*node.inputs, *node.outputs))
    image = node.op == "CONV_2D"
    weight = w.data.transpose(0, 3, 1, 2) if image else w.data
    case = {
        "input": codes[x.name].transpose(0, 3, 1, 2) if image else codes[x.name],
        "weight": weight,
        "shifted": integers.shifted_bias(b.data, weight, x.quant.item()[1]),
        "feature_bitwidth": 8,
        "input_zero_point": x.quant.item()[1],
        "output_zero_point": y.quant.item()[1],
        "input_scale": x.quant.item()[0],
        "weight_scale": w.quant.scale,
        "output_scale": y.quant.item()[0],
    }
    if image:
        top, left, bottom, right = node.attrs.padding
        case |= {"padding": (left, right, top, bottom), "stride": node.attrs.stride[0]}
        case |= {"dilation": node.attrs.dilation[0], "groups": 1}
    return {name: np.asarray(value) for name, value in case.items()}


def test_the_codes_that_the_judge_expects_of_a_convolution_are_those_of_the_engine(int8):
    """All nine convolutions of a trained network: what the lab calls exact is what the engine computes."""
    graph, codes = int8
    nodes = [node for node in graph.nodes if node.op == "CONV_2D"]
    assert len(nodes) == 9
    for node in nodes:
        case = _case(graph, node, codes)
        sums = integers.conv_sums(case)
        pairs = np.array([integers.multiplier_of(m) for m in integers.effective(case)]).T[:, :, None, None]
        want = codes[node.outputs[0]].transpose(0, 3, 1, 2)
        # The engine's own rounding here, which the test above compares with the judge's: it is faster.
        twice = integers.finished(fixed_point.requant_double(sums, *pairs), case)
        assert np.array_equal(twice, want), node.name
    once = integers.finished(fixed_point.requant_single(sums, *pairs), case)
    assert np.abs(once - want).max() <= 1


def test_the_codes_that_the_judge_expects_of_a_linear_layer_are_those_of_the_engine(int8):
    graph, codes = int8
    node = graph.nodes[-1]
    case = _case(graph, node, codes)
    sums = case["input"].astype(np.int64) @ case["weight"].astype(np.int64).T + case["shifted"]
    pairs = [integers.multiplier_of(m) for m in integers.effective(case)]
    want = integers.finished(integers.requantized(sums, pairs, integers.once, 1), case)
    assert np.array_equal(want, codes[node.outputs[0]])


@pytest.mark.parametrize("maker", ["q6_ties", "q7_ties"])
def test_the_cases_of_ties_tell_integers_from_floats(maker):
    """Else a float product would pass: halves to even, not up, must show in every draw."""
    make = next(m for m in LAB02.hidden[maker[:2]].makers if m.__name__ == maker)
    for seed in range(20):
        case = make(np.random.default_rng(seed))
        if maker == "q6_ties":
            rule, products = integers.once, case["input"].astype(np.int64) @ case["weight"].astype(np.int64).T
            sums = products + case["shifted"]
        else:
            rule, sums = integers.twice, integers.conv_sums(case)
        m = integers.effective(case)
        exact = integers.requantized(sums, [integers.multiplier_of(v) for v in m], rule, 1)
        floats = np.rint(sums * m.reshape(-1, *[1] * (sums.ndim - 2)))
        moved = integers.finished(floats, case) != integers.finished(exact, case)
        assert moved.sum() >= 3, seed


def test_an_empty_cluster_occurs_in_the_hidden_cases():
    """Else the mean of nothing would pass."""
    make = next(m for m in LAB02.hidden["q1"].makers if m.__name__ == "q1_empty")
    for seed in range(50):
        case = make(np.random.default_rng(seed))
        values, k = case["tensor"].astype(np.float64), 2 ** int(case["bitwidth"])
        labels = np.abs(values[:, None] - lab02_judges.lloyd(values, k)).argmin(1)
        assert len(np.unique(labels)) < k
        assert len(np.unique(case["given_labels"])) < k


def test_the_bytes_of_the_codebooks_are_those_of_the_trained_network():
    weights = [p.numel() for p in zoo.load("resnet8.glyphs32")[0].parameters() if p.dim() > 1]
    assert sorted(weights) == sorted(integers.RESNET8_WEIGHTS)
    assert integers.truth_n1() == sum(n // 2 + 64 for n in weights)


def test_the_second_rounding_moves_about_half_of_one_in_64():
    """At an exponent of -6 a false half is 31.5 to 32 of 64: 1 in 128 sums, with the noise of the draw."""
    share = integers.truth_n2() / 2**16
    assert abs(share - 2**-7) < 5 * (2**-7 / 2**16) ** 0.5
