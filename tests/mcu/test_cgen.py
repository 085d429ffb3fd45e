"""The generated project: complete, free of numbers that the generator made up, refused where it must be."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import ALL_OPS, inputs, random_layer, random_network

from tinyml_edu import ir
from tinyml_edu.errors import UnknownNameError, UnsupportedOpError, UsageError
from tinyml_edu.ir import attrs as A
from tinyml_edu.ir import int_params
from tinyml_edu.ir.graph import Graph, Kind, Node, Quant, Tensor
from tinyml_edu.mcu import cgen, planning
from tinyml_edu.mcu.cgen_layers import comment_text

HAS_TOOLS = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("gcc")), reason="make or gcc is not installed"
)


def project(graph, **options):
    return cgen.generate(graph, planning.plan(graph), **options)


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def network():
    return random_network(3, layers=10)


def test_a_project_holds_only_the_kernels_that_it_uses():
    files = project(random_layer("MAX_POOL_2D", 1))
    kernels = {name for name in files if name.endswith(".c") and name.startswith("te_")}
    assert kernels == {"te_max_pool2d_s8.c"}
    assert "te_dot.h" not in files
    assert {
        "model.c",
        "model.h",
        "te_config.h",
        "te_runtime.h",
        "Makefile",
        "README.md",
        "example/run.c",
    } <= set(files)


def test_every_include_of_a_project_is_part_of_it(network):
    files = project(network)
    for name, text in files.items():
        for header in re.findall(r'#include "(.+)"', text):
            assert header in files, (name, header)


def test_every_op_of_the_table_has_an_emitter():
    assert set(cgen.EMITTERS) == set(ALL_OPS)


def test_the_header_states_sizes_scales_and_offsets(network):
    made = planning.plan(network)
    header = cgen.generate(network, made)["model.h"]
    x = network[network.inputs[0]]
    assert f"#define MODEL_ARENA_BYTES {made.arena_bytes}\n" in header
    assert f"#define MODEL_INPUT_COUNT {x.nbytes}\n" in header
    assert f"#define MODEL_INPUT_OFFSET {made.offsets[x.name]}\n" in header
    scale, zero_point = x.quant.item()
    text = re.search(r"MODEL_INPUT_SCALE (\S+)f\n", header)[1]
    assert np.float32(text) == np.float32(scale)
    assert f"#define MODEL_INPUT_ZERO_POINT ({zero_point})" in header


@pytest.mark.parametrize(
    ("scale", "text"), [(1.0, "1.0f"), (0.5, "0.5f"), (2.0**-30, "9.31322575e-10f"), (3e8, "300000000.0f")]
)
def test_scales_are_valid_c_floats(scale, text):
    assert cgen._c_float(scale) == text


def test_the_numbers_in_model_c_are_those_of_int_params():
    for op in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        graph = random_layer(op, 4)
        text = project(graph)["model.c"]
        p = int_params.conv_params(graph, graph.nodes[0])
        arrays = {
            name: [int(v.strip().rstrip("u"), 0) for v in body.split(",") if v.strip()]
            for name, body in re.findall(r"(\w+)\[\d+\] = \{(.*?)\};", text, re.DOTALL)
        }
        assert arrays["multiplier_0"] == p.multiplier.tolist()
        assert arrays["exponent_0"] == p.exponent.tolist()
        assert arrays["w_0"] == graph[graph.nodes[0].inputs[1]].data.ravel().tolist()


def test_each_layer_has_its_own_function_and_a_reshape_has_none():
    graph = random_network(1, layers=10)
    symbols = cgen.layer_symbols(graph, planning.plan(graph))
    text = project(graph)["model.c"]
    assert any(node.op == "RESHAPE" for node in graph.nodes)
    for i, node in enumerate(graph.nodes):
        assert (node.name in symbols) == (node.op != "RESHAPE")
        assert (f"TE_NOINLINE te_status model_layer_{i}(void)" in text) == (node.op != "RESHAPE")


def without_dsp(text: str) -> str:
    """Return C without the branches for cores with the DSP extension."""
    return re.sub(r"^#if TE_DSP\n.*?^#else\n", "", text, flags=re.MULTILINE | re.DOTALL)


def test_plain_kernels_of_fast_and_exact_differ_in_te_config_only(network):
    # The others have the rounding in their constants; plain ones read te_config.h.
    exact, fast = (project(network, requant=r) for r in ("exact", "fast"))
    differing = {name for name in exact if without_dsp(exact[name]) != without_dsp(fast[name])}
    assert differing == {"te_config.h", "README.md"}
    assert "#define TE_REQUANT_FAST 1" in fast["te_config.h"]


def test_generation_repeats_byte_for_byte(network):
    assert project(network) == project(network)


def test_a_shared_constant_stands_in_flash_once():
    graph, quant = Graph("shared"), Quant.per_tensor(0.1, 0)
    w_quant = Quant.per_tensor(0.01, 0)
    graph.add(Tensor("x", (1, 4), "int8", Kind.INPUT, quant=quant))
    graph.add(Tensor("w", (4, 4), "int8", Kind.CONSTANT, np.eye(4, dtype=np.int8), w_quant))
    for i, (source, target) in enumerate([("x", "a"), ("a", "b")]):
        graph.add(Tensor(target, (1, 4), "int8", Kind.ACTIVATION, quant=quant))
        graph.nodes.append(Node(f"fc{i}", "FULLY_CONNECTED", (source, "w"), (target,), A.FullyConnected()))
    graph.inputs, graph.outputs = ("x",), ("b",)
    text = project(graph.validate())["model.c"]
    assert "w_0[16]" in text
    assert "w_1[16]" not in text


def test_names_cannot_end_a_comment():
    assert "*/" not in comment_text("evil */ int x; /* name")
    assert "??/" not in comment_text("a??/b")
    graph = random_layer("SOFTMAX", 0)
    graph.nodes[0] = replace(graph.nodes[0], name="*/ #error injected\n/*")
    assert "#error" not in re.sub(r"/\*.*?\*/", "", project(graph)["model.c"], flags=re.DOTALL)


def test_graphs_without_a_c_form_are_refused(network):
    made = planning.plan(network)
    floats = random_layer("SOFTMAX", 0)
    floats.update("x", dtype="float32")
    with pytest.raises(UsageError, match=r"float32.*quantize"):
        project(floats)
    two = random_network(3, layers=10)
    two.outputs = (two.outputs[0], two.inputs[0])
    with pytest.raises(UsageError, match="1 inputs and 2 outputs"):
        project(two)
    with pytest.raises(UsageError, match="plan"):
        cgen.generate(random_network(4, layers=10), made)
    with pytest.raises(UnknownNameError, match="fast"):
        project(network, requant="fas")
    with pytest.raises(UnknownNameError, match="size"):
        project(network, optimize="siz")
    odd = random_layer("SOFTMAX", 0)
    odd.nodes[0] = replace(odd.nodes[0], op="COS")
    with pytest.raises(UnsupportedOpError, match=r"COS.*supported: ADD"):
        project(odd)


@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)])
@pytest.mark.c
def test_mean_over_every_choice_of_axes_equals_numpy(tmp_path, axes):
    import host_build

    graph = Graph(f"mean{axes}")
    graph.add(Tensor("x", (1, 3, 4, 5), "int8", Kind.INPUT, quant=Quant.per_tensor(0.1, 7)))
    shape = tuple(n for i, n in enumerate((1, 3, 4, 5)) if i not in axes)
    graph.add(Tensor("y", shape, "int8", Kind.ACTIVATION, quant=Quant.per_tensor(0.03, -9)))
    graph.nodes.append(Node("mean", "MEAN", ("x",), ("y",), A.Mean(axes)))
    graph.inputs, graph.outputs = ("x",), ("y",)
    x = inputs(graph, 0)
    (run,) = host_build.build(tmp_path, [graph.validate()])
    assert np.array_equal(run(x).ravel(), ir.run(graph, x).ravel())


@pytest.mark.c
def test_images_folded_into_the_batch_axis_are_computed_one_by_one(tmp_path):
    import host_build

    graph, quant = Graph("folded"), Quant.per_tensor(0.1, 3)
    graph.add(Tensor("x", (1, 3, 16), "int8", Kind.INPUT, quant=quant))
    graph.add(Tensor("images", (3, 4, 4, 1), "int8", Kind.ACTIVATION, quant=quant))
    graph.add(
        Tensor(
            "w",
            (2, 3, 3, 1),
            "int8",
            Kind.CONSTANT,
            np.arange(18, dtype=np.int8).reshape(2, 3, 3, 1),
            Quant.per_tensor(0.01, 0),
        )
    )
    graph.add(Tensor("y", (3, 4, 4, 2), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(0.4, -20)))
    graph.add(Tensor("pooled", (3, 2, 2, 2), "int8", Kind.ACTIVATION, quant=Quant.per_tensor(0.4, -20)))
    graph.nodes += [
        Node("fold", "RESHAPE", ("x",), ("images",), A.Reshape((3, 4, 4, 1))),
        Node("conv", "CONV_2D", ("images", "w"), ("y",), A.Conv2D(padding=(1, 1, 1, 1))),
        Node("pool", "AVERAGE_POOL_2D", ("y",), ("pooled",), A.Pool2D((2, 2), (2, 2))),
    ]
    graph.inputs, graph.outputs = ("x",), ("pooled",)
    x = inputs(graph, 0)
    (run,) = host_build.build(tmp_path, [graph.validate()])
    assert np.array_equal(run(x).ravel(), ir.run(graph, x).ravel())


@pytest.mark.c
@HAS_TOOLS
@pytest.mark.parametrize("seed", [2, 9])
def test_a_project_builds_and_runs_on_its_own(tmp_path, seed):
    # What an engineer does: make host, feed codes, read codes; and make check under the sanitizers.
    graph = random_network(seed, layers=10)
    write(tmp_path, project(graph))
    for name, content in cgen.example_files(graph).items():
        (tmp_path / name).write_bytes(content)
    for target in ("host", "check"):
        subprocess.run(["make", "-s", target, "CC=gcc"], cwd=tmp_path, check=True)
    # The project's own check must notice an output that is not the network's.
    expected = bytearray((tmp_path / "example" / "expected.bin").read_bytes())
    expected[-1] ^= 1
    (tmp_path / "example" / "expected.bin").write_bytes(expected)
    failed = subprocess.run(["make", "-s", "check", "CC=gcc"], cwd=tmp_path, capture_output=True, check=False)
    assert failed.returncode != 0
    x = inputs(graph, 0)
    done = subprocess.run(["build/run"], cwd=tmp_path, input=x.tobytes(), capture_output=True, check=True)
    assert done.stdout == ir.run(graph, x).tobytes()
    short = subprocess.run(
        ["build/run"], cwd=tmp_path, input=x.tobytes()[:-1], capture_output=True, check=False
    )
    assert short.returncode == 1
    assert b"the last input" in short.stderr


@pytest.mark.c
@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="arm-none-eabi-gcc is not installed")
@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m0plus"])
def test_a_project_compiles_for_a_core_with_the_arm_gcc(tmp_path, cpu):
    write(tmp_path, project(random_network(2, layers=10)))
    subprocess.run(["make", "-s", "arm", f"CPU={cpu}"], cwd=tmp_path, check=True)
    assert (tmp_path / "build" / "libmodel.a").exists()


@pytest.mark.c
def test_a_project_compiles_for_a_core_with_zig(tmp_path):
    import sys

    write(tmp_path, project(random_network(2, layers=10)))
    subprocess.run(["make", "-s", "zig", f"ZIG={sys.executable} -m ziglang"], cwd=tmp_path, check=True)
    assert (tmp_path / "build" / "libmodel-zig.a").exists()
