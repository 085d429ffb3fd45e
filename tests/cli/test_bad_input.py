"""Bad input: one clear line on stderr, exit code 1 or 2, no traceback, nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from tinyml_edu.cli import main
from tinyml_edu.zoo import checkpoints

MODEL = "resnet8.glyphs32"


@pytest.fixture
def cli(monkeypatch, capsys):
    """Call ``tinyml`` in this process and return (exit code, last line of stderr, all of stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinyml", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        error = capsys.readouterr().err
        return int(stop.value.code or 0), (error.strip().splitlines() or [""])[-1], error

    return call


def assert_clear(result, code, *words):
    """One line that names the trouble and the next step."""
    got, last, everything = result
    assert got == code, everything
    assert "Traceback" not in everything
    for word in words:
        assert word in last, last
    assert last.startswith("error: ")
    assert "internal error" not in last


def test_unknown_board_suggests_a_known_one(cli, tmp_path):
    out = tmp_path / "out"
    assert_clear(cli("deploy", MODEL, "--board", "stm32f421", "--out", out), 2, "stm32f421", "stm32f412")
    assert not out.exists()


def test_unknown_data_set(cli):
    assert_clear(cli("data", "get", "cifar11"), 2, "cifar11", "cifar10")


def test_unknown_model(cli):
    assert_clear(cli("profile", "resnet8.glyphs23"), 2, "resnet8.glyphs23", "resnet8.glyphs32")


def test_unknown_demo_data(cli, tmp_path):
    assert_clear(cli("demo", "--data", "mnist", "--out", tmp_path / "o"), 2, "mnist", "glyphs32")
    assert not (tmp_path / "o").exists()


def test_unknown_demo_board(cli, tmp_path):
    assert_clear(cli("demo", "--board", "esp32", "--out", tmp_path / "o"), 2, "esp32")
    assert not (tmp_path / "o").exists()


def test_unknown_lab(cli):
    assert_clear(cli("lab", "check", "lab99"), 2, "lab99", "lab00")


def test_unknown_planner(cli, tmp_path):
    out = tmp_path / "out"
    result = cli("deploy", MODEL, "--board", "stm32f412", "--out", out, "--planner", "greedi")
    assert_clear(result, 2, "greedi", "greedy")
    assert not out.exists()


def test_patches_are_refused_for_now(cli, tmp_path):
    out = tmp_path / "out"
    result = cli("deploy", MODEL, "--board", "stm32f412", "--out", out, "--patch", "2x2@3")
    assert_clear(result, 2, "patch")
    assert not out.exists()


def test_a_model_that_does_not_fit_names_the_bytes(cli, tmp_path):
    out = tmp_path / "out"
    result = cli("deploy", MODEL, "--board", "stm32f103", "--out", out)
    assert_clear(result, 1, "stm32f103", "30,720 B of SRAM are missing")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_file(cli):
    assert_clear(cli("profile", "nowhere.tflite"), 1, "nowhere.tflite")
    assert_clear(cli("profile", "nowhere.safetensors"), 1, "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a flatbuffer", bytes(range(256)) * 8])
def test_a_corrupt_tflite_file(cli, tmp_path, content):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    assert_clear(cli("plan", path), 1, "broken.tflite")


def test_an_unsupported_op_is_named_with_what_is_supported(cli, tmp_path, monkeypatch, repository):
    pytest.importorskip("ai_edge_litert", reason="LiteRT's schema writes the file of this test")
    monkeypatch.syspath_prepend(repository / "tests" / "ir")
    from litert_oracle import ModelWriter

    writer = ModelWriter()
    ends = [writer.tensor((1, 4, 4, 2), scale=0.1), writer.tensor((1, 4, 4, 2), scale=1 / 128)]
    writer.op("ELU", ends[:1], ends[1])
    path, out = tmp_path / "elu.tflite", tmp_path / "out"
    path.write_bytes(writer.pack(ends[:1], ends[1:]))
    result = cli("deploy", path, "--board", "stm32f412", "--out", out)
    assert_clear(result, 1, "ELU at position 0", "supported: CONV_2D")
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b'\x10\0\0\0\0\0\0\0{"a": 1}       ', b"x" * 4096])
def test_a_corrupt_checkpoint_file(cli, tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    assert_clear(cli("profile", path), 1, "broken.safetensors")


def test_a_corrupt_zoo_checkpoint(cli, tmp_path, monkeypatch):
    for file in checkpoints.FOLDER.glob(f"{MODEL}.*"):
        content = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            content[len(content) // 2] ^= 1
        (tmp_path / file.name).write_bytes(content)
    for function in (checkpoints.load, checkpoints.card, checkpoints.names):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    assert_clear(cli("profile", MODEL), 1, "sha256")


def test_no_network_and_no_data_names_the_stand_in(cli, tmp_path, monkeypatch):
    monkeypatch.delenv("TINYML_EDU_DATA", raising=False)
    monkeypatch.setenv("TINYML_EDU_CACHE", str(tmp_path))
    monkeypatch.setenv("TINYML_EDU_OFFLINE", "1")
    assert_clear(cli("data", "get", "cifar10"), 1, "cifar10", "glyphs32")


def test_a_network_that_refuses_names_the_stand_in(cli, tmp_path, monkeypatch):
    monkeypatch.delenv("TINYML_EDU_DATA", raising=False)
    monkeypatch.delenv("TINYML_EDU_OFFLINE", raising=False)
    monkeypatch.setenv("TINYML_EDU_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert_clear(cli("data", "get", "cifar10"), 1, "cifar10", "glyphs32")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size]


@pytest.mark.c
def test_inputs_that_do_not_match(cli, tmp_path):
    assert_clear(cli("run", tmp_path / "nowhere", "--input", tmp_path / "x.npy"), 1, "nowhere")


@pytest.mark.c
def test_bad_input_files_of_run(cli, tmp_path):
    monkey = tmp_path / "project"
    assert cli("deploy", MODEL, "--board", "stm32f412", "--out", monkey)[0] == 0
    x = tmp_path / "x.npy"
    y = tmp_path / "y.npy"
    assert_clear(cli("run", monkey, "--input", x, "--output", y), 1, "x.npy")
    x.write_bytes(b"no array")
    assert_clear(cli("run", monkey, "--input", x, "--output", y), 1, "x.npy")
    np.save(x, np.zeros((2, 5, 5, 3), np.int8))
    assert_clear(cli("run", monkey, "--input", x, "--output", y), 2, "shape")
    np.save(x, np.full((1, 32, 32, 3), np.nan, np.float32))
    assert_clear(cli("run", monkey, "--input", x, "--output", y), 2, "not a number")
    assert not y.exists()


def test_no_compiler_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['ziglang'] = None\n"
        "from tinyml_edu.cli import main\n"
        f"sys.argv = ['tinyml', 'deploy', {MODEL!r}, '--board', 'rp2040', '--out', {str(tmp_path / 'o')!r}]"
        "\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "pip install 'tinyml_edu[mcu]'" in result.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--json", "--picture"])
def test_an_output_that_cannot_be_written_is_refused_first(cli, tmp_path, option):
    (tmp_path / "file").write_text("in the way")
    assert_clear(cli("plan", MODEL, option, tmp_path), 2, "is a folder")
    assert_clear(cli("plan", MODEL, option, tmp_path / "file" / "x.png"), 2, "cannot write")
    assert_clear(cli("plan", MODEL, "--picture", tmp_path / "map.xyz"), 2, ".png")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    """/dev/stdout is what a shell user names to see the JSON; a pipe stands for it here."""
    result = subprocess.run(
        [sys.executable, "-m", "tinyml_edu.cli", "data", "list", "--json", "/dev/stdout"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"name": "glyphs32"' in result.stdout


@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "KWS.TFLITE"])
def test_files_that_are_not_models_say_what_to_do(cli, name):
    words = {"net.onnx": ".tflite", "net.pt": "QuantizedModel.save", "KWS.TFLITE": "KWS.TFLITE"}[name]
    code = 1 if name == "KWS.TFLITE" else 2
    assert_clear(cli("plan", name), code, words)


def test_upper_case_gets_a_suggestion(cli, tmp_path):
    assert_clear(cli("deploy", MODEL, "--board", "STM32F412", "--out", tmp_path / "o"), 2, "'stm32f412'")


def test_a_demo_whose_images_differ_fails(cli, tmp_path, monkeypatch):
    from tinyml_edu import demo

    step = {"name": "int8", "accuracy": 0.5, "parameters": 1, "macs": 1, "weight_bytes": 1}
    sizes = {"sram_bytes": {"total": 1}, "flash_bytes": {"total": 1}}
    deployed = {"accuracy": 0.5, "images_compared": 4, "instructions": 1, "estimated_ms": 1.0, **sizes}
    for different, code in ((0, 0), (1, 1)):
        report = {"dataset": "d", "board": "b", "seconds": 1.0, "steps": [step]}
        report["deployed"] = deployed | {"images_different": different}
        monkeypatch.setattr(demo, "run", Mock(return_value=report))
        result = cli("demo", "--out", tmp_path / "o", "--json", tmp_path / "r.json")
        assert result[0] == code
        assert (tmp_path / "r.json").exists()
    assert_clear(result, 1, "1 of 4 images differ")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tinyml", "--debug", "profile", "nowhere.tflite"])
    with pytest.raises(Exception, match="nowhere"):
        main()


def test_wrong_usage_is_exit_code_2(cli):
    assert cli("deploy")[0] == 2
    assert cli("no-such-command")[0] == 2
