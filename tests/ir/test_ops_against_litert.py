"""Each op, as a one-op .tflite file with random legal shapes, options and scales, against LiteRT.

The files are those of `ir.write_tflite`, so that kernel and writer are checked together; what only other
exporters write goes through the raw writer and `ir.read_tflite`.
"""

from __future__ import annotations

import importlib.util
import sys
from decimal import Decimal, localcontext

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the oracle of these tests")
pytest.importorskip("tflite", reason="writing .tflite needs the tflite package")

from litert_cases import (
    CASES,
    activation,
    case,
    output_quant,
    scale,
    weight_scales,
    zero_point,
)
from litert_oracle import ACTIVATIONS, Comparison, ModelWriter, Reference, codes, compare, options

from tinyml_edu import ir
from tinyml_edu.ir import Quant, fixed_point, integer_kernels
from tinyml_edu.ir.tflite_writer import tflite_bytes

FAST_CASES, SLOW_CASES = 40, 400

TWO_ROUNDINGS = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "MEAN")


def compare_case(op: str, seed: int) -> Comparison:
    graph, rng = case(op, seed)
    inputs = [codes(rng, graph[name].shape) for name in graph.inputs]
    return compare(graph, tflite_bytes(graph), inputs)


def check(op: str, seeds: range) -> None:
    results = [compare_case(op, seed) for seed in seeds]
    for seed, (compared, different, fast) in zip(seeds, results, strict=True):
        assert compared >= 4, (op, seed, "each case has four inputs and at least one output")
        assert different == 0, (op, seed, f"{different} of {compared} codes differ")
        assert fast <= 1, (op, seed, "fast is more than one code away")


def test_every_op_of_the_table_is_compared():
    assert set(CASES) == set(ir.OPS)


@pytest.mark.parametrize("op", CASES)
def test_op_equals_the_reference_kernel(op):
    check(op, range(FAST_CASES))


@pytest.mark.slow
@pytest.mark.parametrize("op", CASES)
def test_op_equals_the_reference_kernel_at_length(op):
    check(op, range(FAST_CASES, FAST_CASES + SLOW_CASES))


@pytest.mark.parametrize("op", [*TWO_ROUNDINGS, "FULLY_CONNECTED"])
def test_the_reference_notices_the_other_rounding(op, monkeypatch):
    """The control: with single and double rounding swapped, the same cases differ from LiteRT."""
    monkeypatch.setattr(integer_kernels, "requant_double", fixed_point.requant_single)
    monkeypatch.setattr(integer_kernels, "requant_single", fixed_point.requant_double)
    assert any(compare_case(op, seed).different for seed in range(2 * FAST_CASES))


@pytest.mark.parametrize("op", TWO_ROUNDINGS)
def test_exact_and_fast_are_two_roundings(op):
    """The control of the bound on "fast": somewhere it does differ, by its one code."""
    assert max(compare_case(op, seed).fast for seed in range(2 * FAST_CASES)) == 1


def exact_softmax(x: np.ndarray, scale: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ``256 * softmax`` over the last axis, in 50 digits, and the relative error of a float32 kernel.

    The error counts a unit of ``2**-24`` for each of the ``n`` additions, 2 for the product under the
    exponential, each times its size, and 8 for the exponential, the inverse and the last products; a sum
    of positive terms is off by no more than its worst term.
    """
    k = x.astype(int).max(axis=-1, keepdims=True) - x.astype(int)
    with localcontext() as context:
        context.prec = 50
        e = np.vectorize(lambda v: (-Decimal(beta) * Decimal(scale) * Decimal(int(v))).exp(), otypes="O")(k)
        p = 256 * e / e.sum(axis=-1, keepdims=True)
    worst = 2 * scale * beta * k.max(axis=-1, keepdims=True)
    return p, (x.shape[-1] + 2 * worst + 8) * 2.0**-24 * p.astype(float)


@pytest.mark.parametrize("seed", [1717, 2354])
def test_softmax_may_differ_only_where_float32_cannot_tell_a_tie(seed):
    """Two of 3000 cases have outputs in which LiteRT, on x86, takes the neighbour of the right code."""
    graph, rng = case("SOFTMAX", seed)
    reference, near_ties = Reference(tflite_bytes(graph)), 0
    for x in codes(rng, graph["x"].shape):
        p, error = exact_softmax(x, graph["x"].quant.item()[0], graph.nodes[0].attrs.beta)
        want, got = reference.run(x)["y"].astype(int), ir.run(graph, x).astype(int)
        right = np.minimum(np.floor(p + Decimal("0.5")).astype(int) - 128, 127)
        near = np.abs((p % 1).astype(float) - 0.5) <= error
        near_ties += int(near.sum())
        np.testing.assert_array_equal(got, right)
        np.testing.assert_array_equal(want[~near], right[~near])
        assert np.abs(want - right).max() <= 1
    assert 0 < near_ties < 20


def test_the_parity_benchmark_counts_what_is_compared(repository, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("parity_benchmark", repository / "benchmarks" / "parity.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the module adds a folder to it
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "QUICK_SEEDS", 3)
    monkeypatch.setattr(module, "_networks", lambda _: iter([("network", iter([Comparison(5, 2, 1)]))]))
    results = module.figures(quick=True)
    for op in CASES:
        compared, different, fast = zip(*(compare_case(op, seed) for seed in range(3)), strict=True)
        assert results[f"parity.{op.lower()}.compared"] == (sum(compared), "outputs")
        assert results[f"parity.{op.lower()}.different"] == (sum(different), "outputs")
        assert results[f"parity.{op.lower()}.fast_largest_difference"] == (max(fast), "codes")
    assert results["parity.network.different"] == (2, "outputs")  # the control: a difference is reported
    assert len(results) == 3 * (len(CASES) + 1)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(CASES) + 1


# -- as other exporters write it ---------------------------------------------------------------------------


def fully_connected_file(rng: np.random.Generator) -> tuple[bytes, tuple[int, ...]]:
    """Return a file whose input has 2 to 4 axes, kept or not, with a bias or the index -1 for none."""
    fan_in, o = (int(v) for v in rng.integers(1, 80, 2))
    m, x_quant = ModelWriter(), Quant.per_tensor(scale(rng), zero_point(rng))
    w_scale = weight_scales(rng, o)
    shape = [(1, fan_in), (1, 1, 1, fan_in), (1, 2, fan_in)][rng.integers(3)]
    keep = bool(rng.integers(2))
    x = m.tensor(shape, scale=x_quant.scale, zero_point=x_quant.item()[1])
    w = m.tensor((o, fan_in), scale=w_scale, data=rng.integers(-127, 128, (o, fan_in), dtype=np.int8))
    out_scale, out_zero = output_quant(rng, x_quant, w_scale, fan_in).item()
    y_shape = (*shape[:-1], o) if keep else (2 if len(shape) == 3 else 1, o)
    y = m.tensor(y_shape, scale=out_scale, zero_point=out_zero)
    bias = -1
    if rng.random() < 0.8:
        data = rng.integers(-4000 * fan_in, 4000 * fan_in, o, dtype=np.int32)
        bias = m.tensor((o,), scale=x_quant.scale * w_scale, data=data, dtype="int32")
    kind = options("FullyConnected", fusedActivationFunction=ACTIVATIONS[activation(rng)], keepNumDims=keep)
    m.op("FULLY_CONNECTED", [x, w, bias], y, kind)
    return m.pack([x], [y]), shape


def mean_file(rng: np.random.Generator) -> tuple[bytes, tuple[int, ...]]:
    """Return a file whose axes are in any order and counted from the end here and there."""
    shape = (1, *(int(v) for v in rng.integers(1, 13, 3)))
    axes = rng.permutation([(1, 2), (2, 3), (1, 3)][rng.integers(3)])
    keep = bool(rng.integers(2))
    m, x_scale = ModelWriter(), scale(rng)
    x = m.tensor(shape, scale=x_scale, zero_point=zero_point(rng))
    y_shape = tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)
    y = m.tensor(y_shape, scale=x_scale * np.exp(rng.uniform(-3, 1)), zero_point=zero_point(rng))
    mixed = np.array([a - 4 if rng.random() < 0.3 else a for a in axes])
    m.op("MEAN", [x, m.tensor((2,), data=mixed, dtype="int32")], y, options("Reducer", keepDims=keep))
    return m.pack([x], [y]), shape


@pytest.mark.parametrize("make", [fully_connected_file, mean_file])
def test_files_of_other_exporters_run_as_the_reference_does(make, tmp_path):
    path = tmp_path / "model.tflite"
    for seed in range(FAST_CASES):
        rng = np.random.default_rng(seed)
        content, shape = make(rng)
        path.write_bytes(content)
        compared, different, _ = compare(ir.read_tflite(path), content, [codes(rng, shape)])
        assert compared >= 4, seed
        assert different == 0, (seed, f"{different} of {compared} codes differ")
