"""Compiling: the cache, the budget that the linker enforces, and what goes wrong in words."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from firmware_projects import MIXED_C, assembly, firmware, mixed_reference, project

from tinyml_edu.errors import DoesNotFitError, ToolchainError, UnknownNameError, UsageError
from tinyml_edu.mcu import toolchain
from tinyml_edu.mcu.boards import BOARDS
from tinyml_edu.mcu.elf import read_elf
from tinyml_edu.mcu.emulator import emulate

pytestmark = pytest.mark.c

EMPTY = assembly("model_invoke", "movs r0, #0", "bx lr")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYML_EDU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_the_host_library_computes_what_the_source_says(tmp_path, optimize, rng):
    library = ctypes.CDLL(str(toolchain.compile_host(project(tmp_path, MIXED_C), optimize=optimize)))
    arena = (ctypes.c_int8 * 256).in_dll(library, "te_arena")
    codes = rng.integers(-128, 128, 64).tolist()
    arena[:64] = codes
    assert library.model_invoke() == 0
    assert arena[64:128] == mixed_reference(codes)


def test_sources_in_sub_folders_are_left_out(tmp_path):
    folder = project(tmp_path, EMPTY)
    (tmp_path / "example").mkdir()
    (tmp_path / "example" / "run.c").write_text("#error not part of the firmware\n")
    assert toolchain.compile_firmware(folder, "stm32f412").exists()
    (tmp_path / "run.c").write_text("#error part of it\n")  # the control
    with pytest.raises(ToolchainError, match="part of it"):
        toolchain.compile_firmware(folder, "stm32f412")


def test_headers_in_sub_folders_are_found(tmp_path):
    project(tmp_path, '#include "inner.h"\nint model_invoke(void) { return INNER; }\n')
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "inner.h").write_text("#define INNER 42\n")
    assert ctypes.CDLL(str(toolchain.compile_host(tmp_path))).model_invoke() == 42


# -- cache --------------------------------------------------------------------------------------


def test_the_same_sources_compile_once(tmp_path, own_cache, monkeypatch):
    folder = project(tmp_path / "p", EMPTY)
    first = [
        toolchain.compile_firmware(folder, "rp2040"),
        toolchain.compile_host(project(tmp_path / "h", MIXED_C)),
    ]
    monkeypatch.setattr(toolchain, "_build", lambda *_, **__: pytest.fail("compiled again"))
    again = [toolchain.compile_firmware(folder, "rp2040"), toolchain.compile_host(tmp_path / "h")]
    assert again == first
    with pytest.raises(pytest.fail.Exception):  # the control: the patch does intercept compiling
        toolchain.compile_firmware(folder, "stm32f412")


def test_whatever_matters_changes_the_key(tmp_path):
    folder = project(tmp_path, EMPTY)
    (tmp_path / "extra.h").write_text("#define A 1\n")
    seen = [toolchain.compile_firmware(folder, "stm32f412")]
    seen.append(toolchain.compile_firmware(folder, "stm32f401"))
    seen.append(toolchain.compile_firmware(folder, "stm32f412", optimize="size"))
    seen.append(toolchain.compile_firmware(folder, "stm32f412", stack_bytes=2048))
    seen.append(toolchain.compile_firmware(folder, "stm32f412", flags=["-DB=1"]))
    (tmp_path / "extra.h").write_text("#define A 2\n")
    seen.append(toolchain.compile_firmware(folder, "stm32f412"))
    (tmp_path / "model.c").write_text((tmp_path / "model.c").read_text() + "int more;\n")
    seen.append(toolchain.compile_firmware(folder, "stm32f412"))
    assert len(set(seen)) == len(seen)


def test_cpu_features_and_compiler_version_are_part_of_the_key(tmp_path, monkeypatch):
    folder = project(tmp_path, MIXED_C)
    here = toolchain.compile_host(folder)
    monkeypatch.setattr(toolchain, "_host_features", lambda: "another computer")
    assert toolchain.compile_host(folder) != here
    image = toolchain.compile_firmware(folder, "rp2040")
    monkeypatch.setattr(toolchain, "_zig_version", lambda: "0.0.0")
    assert toolchain.compile_firmware(folder, "rp2040") != image


def test_equal_sources_in_two_folders_give_equal_bytes(tmp_path, monkeypatch):
    images = []
    for name in ("a", "b"):
        monkeypatch.setenv("TINYML_EDU_CACHE", str(tmp_path / f"cache-{name}"))
        images.append(firmware(tmp_path / name, "stm32f412", MIXED_C).read_bytes())
    assert images[0] == images[1]


def test_two_processes_may_fill_the_cache_at_once(tmp_path, own_cache):
    folder = project(tmp_path / "p", MIXED_C)
    script = (
        "import sys; from tinyml_edu.mcu import toolchain, elf;"
        "image = toolchain.compile_firmware(sys.argv[1], 'stm32f412');"
        "elf.read_elf(image); print(image, toolchain.compile_host(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(answers) == 1
    assert sorted(p.suffix for p in (own_cache / "compiled").iterdir()) == [".elf", ".so"]
    assert (own_cache / "zig").is_dir()


def test_a_failed_build_leaves_nothing_behind(tmp_path, own_cache):
    with pytest.raises(ToolchainError):
        firmware(tmp_path / "p", "stm32f412", "int model_invoke(void) { return missing; }\n")
    assert list((own_cache / "compiled").iterdir()) == []


def test_an_image_can_be_written_where_asked(tmp_path):
    out = tmp_path / "build" / "firmware.elf"
    assert firmware(tmp_path / "p", "stm32f412", EMPTY, out=out) == out
    assert out.read_bytes() == firmware(tmp_path / "p", "stm32f412", EMPTY).read_bytes()
    assert [p.name for p in out.parent.iterdir()] == ["firmware.elf"]


def test_a_cache_that_cannot_be_made_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYML_EDU_CACHE", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="set TINYML_EDU_CACHE"):
        toolchain.cache_dir()


# -- budget -------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_the_last_byte_of_ram_may_be_used_and_no_more(tmp_path, board):
    free = BOARDS[board].sram_bytes - toolchain.DEFAULT_STACK_BYTES
    image = read_elf(firmware(tmp_path / "fits", board, EMPTY, arena_bytes=free))
    assert image.ram_bytes == BOARDS[board].sram_bytes
    with pytest.raises(DoesNotFitError, match=rf"on {board}: 16 bytes of RAM are missing"):
        firmware(tmp_path / "over", board, EMPTY, arena_bytes=free + 16)


@pytest.mark.parametrize("board", ["stm32f103", "rp2040"])
def test_the_last_byte_of_flash_may_be_used_and_no_more(tmp_path, board):
    table = "const int8_t table[{size}] = {{1}};\nint model_invoke(void) {{ return table[te_arena[0]]; }}\n"
    code = read_elf(firmware(tmp_path / "small", board, table.format(size=16))).code
    free = BOARDS[board].usable_flash_bytes - code
    assert read_elf(firmware(tmp_path / "fits", board, table.format(size=free))).flash_bytes == code + free
    with pytest.raises(DoesNotFitError, match="32 bytes of FLASH are missing"):
        firmware(tmp_path / "over", board, table.format(size=free + 32))


def test_both_overflows_are_reported_with_all_their_bytes(tmp_path):
    table = "const int8_t table[100000] = {1};\nint model_invoke(void) { return table[te_arena[0]]; }\n"
    with pytest.raises(DoesNotFitError) as caught:
        firmware(tmp_path, "stm32f103", table, arena_bytes=30000)
    message = str(caught.value)
    assert f"{30000 + 4096 - 20480} bytes of RAM are missing (it has 20480)" in message
    assert "bytes of FLASH are missing (it has 65536)" in message
    assert "larger board" in message
    assert "\n" not in message


@pytest.mark.parametrize("stack_bytes", [0, -16, 100])
def test_a_stack_must_be_a_multiple_of_sixteen(stack_bytes):
    with pytest.raises(UsageError, match="multiple of 16"):
        toolchain.linker_script(BOARDS["stm32f412"], stack_bytes)


# -- code generation ----------------------------------------------------------------------------


def test_a_four_byte_memcpy_is_one_load(tmp_path):
    """-fhosted: without it the compiler calls memcpy, as the control shows."""
    body = """#include <string.h>
    int model_invoke(void) {
        int32_t v;
        memcpy(&v, te_arena + 1, 4);
        te_arena[8] = (int8_t)(v + 1);
        return 0; }\n"""
    x = np.zeros((1, 16), np.int8)
    count = [
        emulate(firmware(tmp_path, "stm32f412", body, flags=flags), "stm32f412", x, 16).instructions
        for flags in ([], ["-ffreestanding"])
    ]
    assert count[0] < 10
    assert count[1] > 2 * count[0]


def test_size_is_smaller_and_speed_is_faster(tmp_path):
    sizes, counts = [], []
    for optimize in ("size", "speed"):
        path = firmware(tmp_path, "stm32f412", MIXED_C, optimize=optimize)
        sizes.append(read_elf(path).code)
        counts.append(
            emulate(path, "stm32f412", np.zeros((1, 64), np.int8), 64, output_offset=64).instructions
        )
    assert sizes[0] < sizes[1]
    assert counts[0] > counts[1]


@pytest.mark.qemu
@pytest.mark.parametrize("board", sorted(BOARDS))
def test_gcc_computes_the_same(tmp_path, board, rng):
    codes = rng.integers(-128, 128, (1, 64), np.int8)
    path = firmware(tmp_path, board, MIXED_C, compiler="gcc")
    result = emulate(path, board, codes, 64, output_offset=64)
    assert result.outputs[0].tolist() == mixed_reference(codes[0].tolist())


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compile_it", [toolchain.compile_host, lambda p: toolchain.compile_firmware(p, "rp2040")]
)
def test_a_missing_compiler_is_a_message(tmp_path, own_cache, monkeypatch, compile_it):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else found(name))
    toolchain._zig_version.cache_clear()
    toolchain._host_features.cache_clear()
    with pytest.raises(ToolchainError, match=r"pip install 'tinyml_edu\[mcu\]'"):
        compile_it(project(tmp_path, EMPTY))


def test_a_missing_gcc_is_a_message(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="arm-none-eabi-gcc is not on the PATH"):
        firmware(tmp_path / "p", "stm32f412", EMPTY, compiler="gcc")


def test_a_syntax_error_names_file_and_line(tmp_path):
    with pytest.raises(ToolchainError, match=r"model\.c:3:\d+: error: .*undeclared") as caught:
        toolchain.compile_host(project(tmp_path, "int model_invoke(void) { return missing; }\n"))
    assert "\n" not in str(caught.value)
    assert "missing" in caught.value.__notes__[0]  # the whole log comes along


def test_a_folder_without_sources_is_refused(tmp_path):
    with pytest.raises(ToolchainError, match="no C source"):
        toolchain.compile_firmware(tmp_path, "stm32f412")


def test_unknown_choices_are_refused(tmp_path):
    folder = project(tmp_path, EMPTY)
    with pytest.raises(UnknownNameError, match="optimization goal 'fast'"):
        toolchain.compile_host(folder, optimize="fast")
    with pytest.raises(UnknownNameError, match="compiler 'clang'"):
        toolchain.compile_firmware(folder, "stm32f412", compiler="clang")


def test_the_self_test_works_and_detects_a_wrong_result(monkeypatch):
    assert "agree" in toolchain.self_test()
    right = toolchain.compile_host
    monkeypatch.setattr(
        toolchain, "compile_host", lambda folder: right(folder, flags=["-Dreturn=return 1 +"])
    )
    with pytest.raises(ToolchainError, match="wrong result"):
        toolchain.self_test()
