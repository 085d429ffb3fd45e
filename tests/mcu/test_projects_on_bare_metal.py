"""A generated project, built from its folder alone: three compilers, no warning, QEMU agrees."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fast_layers import KINDS, layer, random_layer
from random_graphs import random_network

from tinyml_edu import ir
from tinyml_edu.ir.graph import Graph
from tinyml_edu.mcu import cgen, planning, toolchain
from tinyml_edu.mcu.boards import QEMU_M4
from tinyml_edu.mcu.emulator import Machine, emulate

pytestmark = pytest.mark.c

CLANG = f"{sys.executable} -m ziglang cc"
STRICT = "-std=c99 -Wall -Wextra -Wconversion -Wshadow -Wsign-conversion -Wundef -Werror"
HAS_MAKE = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("gcc")), reason="make or gcc is not installed"
)
HAS_ARM_GCC = pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="no arm-none-eabi-gcc")
MLPERF = ("kws_ref_model", "vww_96_int8", "pretrainedResnet_quant")
TIMER_INSTRUCTIONS = 16
"""More than reading the timer twice and calling `model_invoke` takes."""


def write_project(folder: Path, graph: Graph, optimize: str = "speed") -> Path:
    files = cgen.generate(graph, planning.plan(graph), optimize=optimize)
    contents = {name: text.encode() for name, text in files.items()} | cgen.example_files(graph)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["make", "-s", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def qemu_counts(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"(\d+) instructions", text)]


# -- builds -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Most ops, and the depthwise, pointwise and direct kernels of the DSP extension."""
    return write_project(tmp_path_factory.mktemp("project"), random_network(2, layers=10))


@HAS_MAKE
@pytest.mark.parametrize(
    "arguments",
    [
        ("host", "CC=gcc"),
        ("host", f"CC={CLANG}"),
        ("host", "CC=gcc", f"CFLAGS={STRICT} -DTE_WIDE=1 -march=native"),
        ("host", f"CC={CLANG}", f"CFLAGS={STRICT} -DTE_WIDE=1"),
        pytest.param(("arm", "CPU=cortex-m4"), marks=HAS_ARM_GCC),
        pytest.param(("arm", "CPU=cortex-m0plus"), marks=HAS_ARM_GCC),
        ("zig", "CPU=cortex-m4", f"ZIG={sys.executable} -m ziglang"),
        ("zig", "CPU=cortex-m7", f"ZIG={sys.executable} -m ziglang"),
    ],
)
def test_every_compiler_builds_it_without_a_warning_and_hosts_compute_the_same(project, arguments):
    flags = () if any(a.startswith("CFLAGS") for a in arguments) else (f"CFLAGS={STRICT}",)
    build = f"BUILD=build{abs(hash(arguments))}"
    done = make(project, *arguments, *flags, build)
    assert "warning" not in done.stderr
    if arguments[0] == "host":
        run = subprocess.run(
            [project / build.removeprefix("BUILD=") / "run"],
            input=(project / "example" / "input.bin").read_bytes(),
            capture_output=True,
            check=True,
        )
        assert run.stdout == (project / "example" / "expected.bin").read_bytes()


@HAS_ARM_GCC
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7"])
def test_the_support_functions_compile_without_a_warning_of_gcc(tmp_path, core):
    for name in ("support.c", "startup.c"):
        command = [
            "arm-none-eabi-gcc",
            "-c",
            "-O3",
            "-mthumb",
            f"-mcpu={core}",
            "-DTE_FPU=0",
            "-Wall",
            "-Wextra",
        ]
        source = toolchain.FIRMWARE_DIR / name
        done = subprocess.run(
            [*command, source, "-o", tmp_path / "x.o"], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""


# -- the four functions -------------------------------------------------------------------------

INIT_MAIN = """#include "model.h"
void te_main(void) {
    if (model_input() == 0) model_invoke(); /* never: it keeps the network in the image */
    for (;;) {
        model_init();
        __asm volatile("bkpt #0");
    }
}
"""


def init_status(folder: Path, forgets: int | None) -> int:
    """Run model_init on the emulated board, with page ``forgets`` of the arena no memory, but a device."""
    (folder / "main.c").write_text(INIT_MAIN)
    unicorn = pytest.importorskip("unicorn")
    machine = Machine(toolchain.compile_firmware(folder, "stm32f412"), "stm32f412")
    pages = range(machine.arena_address, machine.arena_address + machine.arena_bytes, 4096)
    assert len(pages) > 1
    assert machine.arena_address % 4096 == 0
    if forgets is not None:
        machine._uc.mem_unmap(pages[forgets], 4096)
        machine._uc.mmio_map(pages[forgets], 4096, lambda *_: 0, None, lambda *_: None, None)
    machine._start()
    return machine._uc.reg_read(unicorn.arm_const.UC_ARM_REG_R0)


@pytest.mark.parametrize(("forgets", "status"), [(None, 0), (0, 4), (-1, 4)])
def test_init_tells_memory_from_what_forgets(tmp_path, forgets, status):
    folder = write_project(tmp_path, layer("CONV_2D", (1, 16, 16, 24), np.ones((8, 1, 1, 24)), np.zeros(8)))
    # The arena gets pages of its own: the stack below it stays memory.
    text = (folder / "model.c").read_text()
    (folder / "model.c").write_text(text.replace("aligned(16)", "aligned(4096)"))
    assert init_status(folder, forgets) == status


# -- QEMU ---------------------------------------------------------------------------------------


@pytest.mark.qemu
@HAS_MAKE
def test_a_project_built_by_hand_runs_in_qemu_with_the_expected_outputs(tmp_path, project):
    graph = random_network(2, layers=10)
    counts = qemu_counts(make(project, "qemu", f"CFLAGS={STRICT}").stdout)
    codes = np.fromfile(project / "example" / "input.bin", np.int8).reshape(
        -1, *graph[graph.inputs[0]].shape[1:]
    )
    assert (project / "build" / "qemu.bin").read_bytes() == ir.run(graph, codes).tobytes()
    assert len(counts) == len(codes)
    # The control: one code of the expected outputs changed, and `make qemu` fails.
    copy = shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("build*"))
    expected = bytearray((copy / "example" / "expected.bin").read_bytes())
    expected[0] ^= 1
    (copy / "example" / "expected.bin").write_bytes(expected)
    failed = subprocess.run(["make", "-s", "qemu"], cwd=copy, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "differ" in failed.stdout + failed.stderr
    assert qemu_counts(failed.stdout) == counts


def counts_of_both(folder: Path, graph: Graph, **options) -> tuple[list[int], list[int]]:
    """Return the instructions of each example inference, by QEMU and by the emulator; outputs must agree."""
    write_project(folder, graph)
    inputs = np.fromfile(folder / "example" / "input.bin", np.int8)
    inputs = inputs.reshape(-1, graph[graph.inputs[0]].nbytes)
    plan, output = planning.plan(graph), graph.outputs[0]
    mine = emulate(
        toolchain.compile_firmware(folder, QEMU_M4, **options),
        QEMU_M4,
        inputs,
        graph[output].nbytes,
        input_offset=plan.offsets[graph.inputs[0]],
        output_offset=plan.offsets[output],
    )
    (folder / "build").mkdir()
    shutil.copy(folder / "example" / "qemu.c", folder / "qemu.c")
    elf_path = toolchain.compile_firmware(folder, QEMU_M4, **options)
    command = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-chardev", "stdio,id=sh0", "-semihosting-config", "enable=on,target=native,chardev=sh0"]
    command += ["-icount", "shift=6,align=off,sleep=off", "-kernel", str(elf_path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    assert (folder / "build" / "qemu.bin").read_bytes() == mine.outputs.tobytes()
    return qemu_counts(done.stdout), list(mine.instructions_each)


def assert_same(qemu: list[int], mine: list[int]) -> None:
    assert len(qemu) == len(mine) > 0
    for theirs, ours in zip(qemu, mine, strict=True):
        assert 0 <= theirs - ours <= TIMER_INSTRUCTIONS, (theirs, ours)


@pytest.mark.qemu
@pytest.mark.parametrize("kind", KINDS)
def test_qemu_counts_specialised_kernels_alike(tmp_path, kind):
    graph = random_layer(kind, 0)
    assert "__asm__ volatile" in cgen.generate(graph, planning.plan(graph))["model.c"]
    assert_same(*counts_of_both(tmp_path, graph))


@pytest.mark.qemu
@pytest.mark.data
@pytest.mark.parametrize("name", MLPERF)
def test_qemu_counts_whole_networks_within_a_thousandth(tmp_path, data_dir, name):
    qemu, mine = counts_of_both(tmp_path, ir.read_tflite(data_dir / "mlperf_tiny" / f"{name}.tflite"))
    assert_same(qemu, mine)
    assert max(abs(a - b) / b for a, b in zip(qemu, mine, strict=True)) < 0.001
    # The control: the same network by another compiler differs by more than reading the timer.
    if name == MLPERF[0]:
        gcc, _ = counts_of_both(
            tmp_path / "gcc", ir.read_tflite(data_dir / "mlperf_tiny" / f"{name}.tflite"), compiler="gcc"
        )
        with pytest.raises(AssertionError):
            assert_same(gcc, mine)
