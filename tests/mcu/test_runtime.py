"""The C runtime computes exactly what the NumPy kernels compute, and each way to get it wrong is noticed."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import host_build
import numpy as np
import pytest
from random_graphs import ALL_OPS, inputs, random_layer, random_network

from tinyml_edu import ir
from tinyml_edu.ir.fixed_point import INT32_MAX, INT32_MIN, requant_double, requant_single
from tinyml_edu.mcu import cgen, planning, toolchain

pytestmark = pytest.mark.c

LAYERS = [random_layer(op, seed) for op in ALL_OPS for seed in range(20)]
# Single and double rounding of FULLY_CONNECTED differ in under 1 % of outputs: it takes many to see one.
LAYERS += [random_layer("FULLY_CONNECTED", seed) for seed in range(20, 80)]
NETWORKS = [random_network(seed) for seed in range(30)]
INPUTS = {g.name: inputs(g, 7, n=9) for g in LAYERS + NETWORKS}


def expected(graphs, requant="exact"):
    return {g.name: ir.run(g, INPUTS[g.name], requant=requant) for g in graphs}


# --- requantization ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim():
    source = Path(__file__).parents[1] / "c" / "requant_shim.c"
    headers = sorted(host_build.RUNTIME.glob("*.h"))
    return ctypes.CDLL(
        str(toolchain.compile_shared([source, *headers], name="requant", include=[host_build.RUNTIME]))
    )


def _corner_cases(rng):
    """All exponents; accumulators at each power of two and beside it; extreme and random multipliers."""
    edges = np.array(
        [s * (2**k + d) for k in range(31) for d in (-1, 0, 1) for s in (1, -1)] + [INT32_MAX, -INT32_MAX]
    )
    acc = np.unique(
        np.concatenate([edges, rng.integers(-(2**31) + 1, 2**31, 3000), rng.integers(-4000, 4000, 3000)])
    )
    multiplier = np.array(
        [0, 2**29 + 1, 2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1, *rng.integers(2**30, 2**31, 20)]
    )
    grid = np.meshgrid(acc, multiplier, np.arange(-31, 31), indexing="ij")
    return [np.ascontiguousarray(a.ravel(), dtype=np.int32) for a in grid]


@pytest.mark.parametrize(("name", "reference"), [("double", requant_double), ("single", requant_single)])
def test_requantization_equals_numpy_on_all_exponents_and_corner_cases(shim, rng, name, reference):
    acc, multiplier, exponent = _corner_cases(rng)
    y = np.empty_like(acc)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (acc, multiplier, exponent, y)]
    getattr(shim, f"requant_{name}_all")(ctypes.c_int32(acc.size), *pointers)
    # NumPy's single rounding may leave int32 where a factor is above 1; C saturates there.
    wanted = np.clip(reference(acc, multiplier, exponent), INT32_MIN, INT32_MAX)
    wrong = np.flatnonzero(wanted != y)
    assert not wrong.size, [(int(a[wrong[0]])) for a in (acc, multiplier, exponent, y, wanted)]
    other = requant_single if name == "double" else requant_double
    assert np.any(np.clip(other(acc, multiplier, exponent), INT32_MIN, INT32_MAX) != y)  # the two do differ


def test_codes_are_clamped_before_they_are_narrowed(shim):
    for scaled, y_zp in [(1000, 0), (INT32_MAX, 127), (INT32_MAX, -128)]:
        assert shim.narrow(scaled, y_zp, -128, 127) == 127
        assert shim.narrow(-scaled, y_zp, -128, 127) == -128
    assert shim.narrow(INT32_MIN, -128, -100, 20) == -100
    assert shim.narrow(5, -3, -128, 127) == 2


# --- kernels against NumPy -----------------------------------------------------------------------------


@pytest.mark.parametrize("requant", ["exact", "fast"])
def test_random_layers_and_networks_equal_numpy(tmp_path, requant):
    graphs = LAYERS + NETWORKS
    runners = host_build.build(tmp_path, graphs, requant=requant)
    assert host_build.differences(graphs, runners, expected(graphs, requant), INPUTS) == {}


def test_the_random_graphs_use_every_op_and_are_not_saturated():
    used = {node.op for g in NETWORKS for node in g.nodes}
    assert used == set(ALL_OPS)
    outputs = expected(LAYERS)
    for op in ALL_OPS:
        codes = np.concatenate([y.ravel() for name, y in outputs.items() if name.rpartition("_")[0] == op])
        inside = np.mean((codes > -128) & (codes < 127))
        assert inside > 0.3, (op, inside)
        assert len(np.unique(codes)) > 128 or op == "SOFTMAX", op


def test_the_two_rounding_modes_differ(tmp_path):
    # The control of the test above: had te_config.h no effect, "fast" C would not equal "fast" NumPy.
    graphs = LAYERS + NETWORKS
    runners = host_build.build(tmp_path, graphs, requant="fast")
    assert host_build.differences(graphs, runners, expected(graphs, "exact"), INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("requant", ["exact", "fast"])
@pytest.mark.parametrize("part", range(5))
def test_hundreds_more_random_layers_and_networks_equal_numpy(tmp_path, part, requant):
    start = 100 + 40 * part
    graphs = [random_layer(op, seed) for op in ALL_OPS for seed in range(start, start + 40)]
    graphs += [random_network(seed, layers=16) for seed in range(start, start + 40)]
    x = {g.name: inputs(g, part) for g in graphs}
    wanted = {g.name: ir.run(g, x[g.name], requant=requant) for g in graphs}
    assert (
        host_build.differences(graphs, host_build.build(tmp_path, graphs, requant=requant), wanted, x) == {}
    )


MUTATIONS = {
    "accumulates in 16 bits": (
        "te_dot.h",
        "int32_t a0 = acc[0], a1 = acc[1]",
        "int16_t a0 = (int16_t)acc[0]; int32_t a1 = acc[1]",
    ),
    "pads with 0, not with the zero point": ("te_pad_s8.c", "(int8_t)p->code", "(int8_t)0"),
    "reads one tap beyond the border": (
        "te_window.h",
        "t.begin = (-origin + dilation - 1)",
        "t.begin = (-origin)",
    ),
    "forgets the zero point of the input": ("te_dot.h", "*x++ - x_zp", "*x++"),
    "narrows before it clamps": (
        "te_requant.h",
        "(int8_t)(te_clamp(scaled, y_min - y_zp, y_max - y_zp) + y_zp)",
        "(int8_t)te_clamp((int8_t)(scaled + y_zp), y_min, y_max)",
    ),
    "rounds half up in the second step": ("te_requant.h", "(high + (high >> 31))", "high"),
    "rounds FULLY_CONNECTED twice": ("te_fully_connected_s8.c", "te_requant_single", "te_requant_double"),
    "counts padding in the average": (
        "te_average_pool2d_s8.c",
        "count = rows * cols",
        "count = p->kernel_h * p->kernel_w",
    ),
    "truncates the average": (
        "te_average_pool2d_s8.c",
        "(sum > 0 ? sum + count / 2 : sum - count / 2)",
        "sum",
    ),
    "swaps the strides": ("te_conv2d_s8.c", "te_taps_inside(j, p->stride_w", "te_taps_inside(j, p->stride_h"),
    "ignores dilation": ("te_depthwise_conv2d_s8.c", "a.x_col = p->dilation_w *", "a.x_col ="),
    "shares one channel's multiplier": (
        "te_finish.h",
        "multiplier[j], exponent[j]",
        "multiplier[0], exponent[0]",
    ),
    "lets padding win the maximum": (
        "te_max_pool2d_s8.c",
        "int32_t best = x[0];",
        "int32_t best = x[0] > 0 ? x[0] : 0;",
    ),
    "shifts ADD by one bit less": ("te_sum.h", "LEFT_SHIFT 20", "LEFT_SHIFT 19"),
    "drops the clamp of a fused activation": (
        "te_add_s8.c",
        "p->y_zp, p->y_min, p->y_max)",
        "p->y_zp, -128, 127)",
    ),
    "adds instead of subtracting": ("te_sub_s8.c", "s1 - s2", "s1 + s2"),
    "forgets the zero point of the second factor": ("te_mul_s8.c", "(*b - p->x2_zp)", "*b"),
    "repeats the first channel of a factor": ("te_mul_s8.c", "b += p->x2.channel;", ""),
    "does not repeat a factor along the columns": ("te_mul_s8.c", "j * p->x2.column", "j * p->x1.column"),
    "does not repeat a term along the columns": ("te_add_s8.c", "j * p->x2.column", "j * p->x1.column"),
    "repeats the first channel of the minuend": ("te_sub_s8.c", "a += p->x1.channel;", ""),
    "drops the clamp of a product": ("te_mul_s8.c", "p->y_zp, p->y_min, p->y_max)", "p->y_zp, -128, 127)"),
    "joins along the rows": ("te_concatenation_s8.c", "x[k] + i * sizes[k]", "x[k]"),
    "takes codes for indices": ("te_lookup_s8.c", "centre[x[i]]", "table[(uint8_t)x[i]]"),
    "resizes along one axis only": ("te_resize_nearest_s8.c", "p->columns[j] *", "(j % p->in.width) *"),
    "means over one group only": ("te_mean_s8.c", "s < p->reduce[1]", "s < 1"),
    "loses half a unit of the softmax": ("te_softmax_s8.c", "return q + (e >= s);", "return q;"),
    "lets the softmax wrap at 1": (
        "te_softmax_s8.c",
        "(int8_t)te_clamp(q - 128, -128, 127)",
        "(int8_t)(q - 128)",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_comparison_catches_a_kernel_that(tmp_path, mutation, monkeypatch):
    # A mutant may well be code that -Werror refuses; what is tested is that the comparison notices it.
    monkeypatch.setattr(host_build, "STRICT", ("-std=c99", "-w"))
    file = MUTATIONS[mutation][0]
    graphs = [g for g in LAYERS if file in cgen.generate(g, planning.plan(g))][:80]
    runners = host_build.build(tmp_path, graphs, mutation=MUTATIONS[mutation])
    assert host_build.differences(graphs, runners, expected(graphs), INPUTS)


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc with its sanitizers is not installed")
def test_kernels_are_clean_under_address_and_undefined_behaviour_sanitizers(tmp_path):
    graphs = LAYERS + NETWORKS
    batches = [INPUTS[g.name] for g in graphs]
    outputs = host_build.run_sanitized(tmp_path, graphs, batches, len(batches[0]))
    wanted = expected(graphs)
    for graph, y in zip(graphs, outputs, strict=True):
        assert np.array_equal(y.ravel(), wanted[graph.name].ravel()), graph.name


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc with its sanitizers is not installed")
def test_the_sanitizers_would_stop_a_read_outside_the_image(tmp_path):
    mutation = ("te_window.h", "(size - 1 - origin) / dilation + 1", "(size + 4000 - origin) / dilation + 1")
    with pytest.raises(AssertionError, match="overflow"):
        host_build.run_sanitized(tmp_path, LAYERS, [INPUTS[g.name] for g in LAYERS], 12, mutation=mutation)


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.parametrize("define", ["-DTE_REQUANT_FAST=0", "-DTE_REQUANT_FAST=1", "-DTE_DEBUG"])
def test_gcc_finds_nothing_to_warn_about(tmp_path, define):
    import subprocess

    flags = [*host_build.STRICT, "-Wpedantic", "-Wsign-conversion", "-Wcast-align", "-Wundef", "-O2", define]
    for source in sorted(host_build.RUNTIME.glob("*.c")):
        subprocess.run(["gcc", *flags, "-c", str(source), "-o", str(tmp_path / "a.o")], check=True)


def test_the_runtime_has_no_allocation_no_mutable_global_no_recursion_and_no_float():
    import re

    for path in host_build.RUNTIME.iterdir():
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        if path.name.startswith("te_wide"):
            continue  # vector units of a computer compute in float; a board never compiles it:
        code, wide = re.subn(r"#if TE_WIDE\n.*?#endif", "", code, flags=re.DOTALL)
        assert "te_wide" not in code, path.name
        assert wide == 0 or path.suffix == ".c", path.name
        assert not re.search(r"\b(malloc|calloc|realloc|alloca|float|double|goto)\b", code), path.name
        # At file scope only functions, types, macros and declarations: no variable, constant or not.
        assert not re.search(r"^(static )?(const )?u?int\w+_t \w+(\[\w*\])?( =|;)", code, re.MULTILINE), (
            path.name
        )
        for function, body in re.findall(
            r"^\w[^;{}()]*\b(\w+)\([^;{}]*\) \{\n(.*?)^\}", code, re.MULTILINE | re.DOTALL
        ):
            assert not re.search(rf"\b{function}\(", body), (path.name, function)
