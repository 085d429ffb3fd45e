"""Reading firmware images: sizes, symbols, segments, and what a damaged file gives."""

from __future__ import annotations

import contextlib
import shutil
import subprocess

import pytest
from firmware_projects import ARENA, assembly, firmware
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyml_edu.errors import DataError
from tinyml_edu.mcu import toolchain
from tinyml_edu.mcu.elf import read_elf

pytestmark = pytest.mark.c

SECTIONS_C = """
const int8_t table[1000] = {1, 2, 3};
static int32_t counter = 7;
static volatile uint8_t zeros[33];
__attribute__((noinline)) int model_layer_0(int k) { zeros[k] = 1; return table[k] + counter++; }
int model_invoke(void) { te_arena[1] = (int8_t)model_layer_0(te_arena[0]); return 0; }
"""


@pytest.fixture(scope="module")
def image_path(tmp_path_factory):
    return firmware(tmp_path_factory.mktemp("elf"), "stm32f412", SECTIONS_C, stack_bytes=1024)


def test_sizes_are_those_of_the_source(image_path):
    image = read_elf(image_path)
    up = 16  # every section is padded to 16 bytes
    assert (image.stack, image.data) == (1024, up)
    assert image.weights == -(-1000 // up) * up
    assert image.bss == -(-(256 + 33) // up) * up
    assert image.flash_bytes == image.code + 1008 + 16
    assert image.ram_bytes == 1024 + 16 + image.bss


def test_flash_bytes_are_the_bytes_a_programmer_would_write(image_path):
    image = read_elf(image_path)
    assert sum(len(segment.data) for segment in image.segments) == image.flash_bytes
    assert min(segment.address for segment in image.segments) == 0x0800_0000


def test_initial_values_lie_in_flash(image_path):
    image = read_elf(image_path)
    flash = b"".join(s.data for s in sorted(image.segments, key=lambda s: s.address))
    offset = (
        image.code + image.weights + image.symbol("counter").address - image.symbol("te_data_start").address
    )
    assert flash[offset : offset + 4] == (7).to_bytes(4, "little")
    assert bytes([1, 2, 3, 0]) in flash[image.code : image.code + 1008]


def test_symbols_have_even_addresses_and_their_size(image_path):
    image = read_elf(image_path)
    assert image.symbol("te_arena").size == 256
    assert image.symbol("te_arena").address % 16 == 0
    assert image.symbol("table").size == 1000
    layer = image.symbol("model_layer_0")
    assert (layer.kind, layer.address % 2) == ("STT_FUNC", 0)
    assert image.where(layer.address + 2) == "model_layer_0+0x2"
    assert image.where(0x1234_5678) == "0x12345678"


def test_a_missing_symbol_is_named(image_path):
    with pytest.raises(DataError, match="'model_layer_9'"):
        read_elf(image_path).symbol("model_layer_9")


@pytest.mark.parametrize("board", ["rp2040", "stm32f103", "stm32f412"])
def test_literal_pools_are_not_instructions(tmp_path, board):
    code = assembly("model_invoke", "ldr r1, =0x12345678", "b 1f", ".ltorg", "1: movs r0, #0", "bx lr")
    image = read_elf(firmware(tmp_path, board, code))
    text = next(s for s in image.segments if s.executable)
    literal = text.address + text.data.index((0x12345678).to_bytes(4, "little"))
    start = image.symbol("model_invoke").address
    assert not any(a <= literal < b for a, b in image.machine_ranges)
    assert any(a <= start < b for a, b in image.machine_ranges)  # the control


@pytest.mark.parametrize(
    ("board", "architecture"),
    [("rp2040", "Armv6-M"), ("stm32f103", "Armv7-M"), ("stm32f412", "Armv7E-M"), ("stm32f746", "Armv7E-M")],
)
def test_the_architecture_is_read(tmp_path, board, architecture):
    image = read_elf(firmware(tmp_path, board, SECTIONS_C))
    assert image.architecture == architecture


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no firmware image at .*nothing\.elf"):
        read_elf(tmp_path / "nothing.elf")


def test_a_program_for_this_computer_is_no_firmware(tmp_path):
    (tmp_path / "model.c").write_text(ARENA.format(size=16))
    with pytest.raises(DataError, match=r"not for a little-endian Arm core|not a readable firmware"):
        read_elf(toolchain.compile_host(tmp_path))


@pytest.mark.parametrize("kept", [0, 3, 20, 52, 500, 0.5, 0.9])
def test_a_truncated_image_is_refused(image_path, tmp_path, kept):
    whole = image_path.read_bytes()
    (tmp_path / "cut.elf").write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(DataError):
        read_elf(tmp_path / "cut.elf")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_headers_give_a_data_error_or_a_reading(image_path, tmp_path_factory, data):
    """No other exception escapes, whatever eight bytes of the headers or tables are changed."""
    whole = bytearray(image_path.read_bytes())
    tables = [*range(52 + 32 * 6), *range(len(whole) - 2000, len(whole))]
    for place in data.draw(st.lists(st.sampled_from(tables), min_size=1, max_size=8)):
        whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "damaged.elf"
    path.write_bytes(whole)
    with contextlib.suppress(DataError):
        read_elf(path)


@pytest.mark.qemu
def test_sizes_agree_with_the_gnu_tools(image_path):
    tool = shutil.which("arm-none-eabi-size")
    listing = subprocess.run([tool, "-A", str(image_path)], capture_output=True, text=True, check=True).stdout
    sizes = {row.split()[0]: int(row.split()[1]) for row in listing.splitlines() if row.startswith(".")}
    image = read_elf(image_path)
    assert [image.code, image.weights, image.data, image.bss, image.stack] == [
        sizes[name] for name in (".text", ".rodata", ".data", ".bss", ".stack")
    ]
