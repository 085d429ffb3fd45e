"""Our int8 post-training quantization beside torchao's and onnxruntime's: the same network, the same images.

    pip install -c constraints.txt -e ".[dev,peers]"
    python -m benchmarks.quantization_peers --data glyphs32    # one table
    python -m benchmarks.quantization_peers                    # both

VGG-lite, 8-bit weights and activations.  Every tool calibrates with the 256 training images that seed 0 gives
to `benchmarks.quantization`, and is judged on the whole test split.  ``agree`` is the part of the images that
get the class that the float32 network gives them.  ``bytes`` is the size of the file that each tool writes:
ours ``.tflite``, onnxruntime's QDQ ``.onnx``, torchao's ``torch.export.save``.  Each observer has the options
that its tool gives it by default, so rows of one name are not one algorithm.

Control: onnxruntime's float32 model must give the classes of the network that it was exported from.
LiteRT runs our file of the row ``ours_minmax``; ``different`` counts its output codes that are not ours.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks import peer_onnxruntime, peer_torchao
from benchmarks.quantization import PLANS, Table
from benchmarks.saved import saved_row
from tinyml_edu import quantization
from tinyml_edu.data.dataset import normalised
from tinyml_edu.errors import UsageError
from tinyml_edu.quantization import QuantConfig, QuantizedModel

SEED = 0
PACKAGES = {
    "ai_edge_litert": "ai-edge-litert",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "torchao": "torchao",
}
"""What must be installed: distribution by the name of its import."""

UNITS = {
    "accuracy": "fraction",
    "drop": "fraction",
    "agreement": "fraction",
    "bytes": "bytes",
    "compared": "outputs",
    "different": "outputs",
    "largest_difference": "codes",
}

Row = dict[str, float]


def require_packages() -> None:
    """Raise if a tool of the comparison is missing.

    Raises
    ------
    UsageError
        It names the missing packages and says how to install them.
    """
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"the comparison needs {', '.join(missing)}; "
            'run: pip install -c constraints.txt -e ".[dev,peers]"'
        )


class Comparison:
    """One data set: the float32 network, the images, and what each tool makes of them.

    Parameters
    ----------
    data : str
        A key of `benchmarks.quantization.PLANS`.
    folder : Path
        For the files that the tools write.
    """

    def __init__(self, data: str, folder: Path) -> None:
        self.table, self.folder = Table(PLANS[data]), folder
        self.dense = self.table.dense.eval()
        self.images = self.table.calibration(SEED)  # uint8 (n, H, W, C)
        self.test = self.table.splits["test"]
        self.float_classes = self._classes(peer_torchao.predictor(self.dense))
        self._codes: dict[QuantConfig, np.ndarray] = {}

    def rows(self) -> dict[str, Callable[[], Row]]:
        """Return what is compared, by the name of its key."""
        rows: dict[str, Callable[[], Row]] = {
            "float32": self.float32,
            "onnxruntime_float32": self.onnx_float32,
        }
        for observer in ("minmax", "percentile", "kl", "mse"):
            rows[f"ours_{observer}"] = functools.partial(self.ours, QuantConfig(observer=observer))
        tensor = QuantConfig(per_channel=False)
        rows["ours_minmax_per_tensor"] = functools.partial(self.ours, tensor)
        rows["litert_reference"] = functools.partial(self.litert, "BUILTIN_REF")
        rows["litert_xnnpack"] = functools.partial(self.litert, "AUTO")
        for method in peer_onnxruntime.METHODS:
            for per_channel, suffix in ((True, ""), (False, "_per_tensor")):
                rows[f"onnxruntime_{method}{suffix}"] = functools.partial(self.onnx, method, per_channel)
        for setting in peer_torchao.SETTINGS:
            rows[f"torchao_{setting}"] = functools.partial(self.torchao, setting)
        return rows

    def float32(self) -> Row:
        """Return the network as it is, in a ``.safetensors`` file."""
        path = self.folder / "network.safetensors"
        save_file(self.dense.state_dict(), path)
        return self._row(self.float_classes, path)

    def ours(self, config: QuantConfig) -> Row:
        """Return our integers, run by the NumPy kernels."""
        model, path = self._quantized(config)
        return self._row(self._predicted(model, config).argmax(1), path)

    def litert(self, resolver: str) -> Row:
        """Return our ``.tflite`` run by LiteRT, and how many output codes differ from ours."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        config = QuantConfig()
        model, path = self._quantized(config)
        kernels = getattr(OpResolverType, resolver)
        interpreter = Interpreter(str(path), experimental_op_resolver_type=kernels)
        interpreter.allocate_tensors()
        x, y = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        found = []
        for code in model.input_codes(self.test.x):
            interpreter.set_tensor(x, code[None])
            interpreter.invoke()
            found.append(interpreter.get_tensor(y))
        codes = np.concatenate(found)
        gap = np.abs(codes.astype(int) - self._predicted(model, config))
        compared = {"compared": gap.size, "different": int((gap > 0).sum())}
        return self._row(codes.argmax(1), path) | compared | {"largest_difference": int(gap.max())}

    def onnx_float32(self) -> Row:
        """Return onnxruntime's float32 kernels on the exported network."""
        path = self._onnx_file
        row = self._row(self._classes(peer_onnxruntime.predictor(path)), path)
        # Another order of float32 sums may turn a near tie; more would be other weights or other inputs.
        assert row["agreement"] >= 0.999, row
        return row

    def onnx(self, method: str, per_channel: bool) -> Row:
        """Return onnxruntime's integers, run by onnxruntime."""
        path, x = self.folder / "int8.onnx", channels_first(self.images)
        peer_onnxruntime.quantize(self._onnx_file, x, method, per_channel=per_channel, path=path)
        return self._row(self._classes(peer_onnxruntime.predictor(path)), path)

    def torchao(self, setting: str) -> Row:
        """Return torchao's PT2E, run by PyTorch."""
        path, x = self.folder / "int8.pt2", torch.from_numpy(channels_first(self.images))
        module = peer_torchao.quantize(self.dense, x, setting, path)
        return self._row(self._classes(peer_torchao.predictor(module)), path)

    def _quantized(self, config: QuantConfig) -> tuple[QuantizedModel, Path]:
        model, path = (
            quantization.quantize(self.table.graph, config, self.images),
            self.folder / "int8.tflite",
        )
        model.write_tflite(path)
        return model, path

    def _predicted(self, model: QuantizedModel, config: QuantConfig) -> np.ndarray:
        """Return our output codes, int8 (n, classes), of the test split; kept, for three rows need one."""
        if config not in self._codes:
            self._codes[config] = model.predict(self.test.x)
        return self._codes[config]

    @functools.cached_property
    def _onnx_file(self) -> Path:
        path = self.folder / "float.onnx"
        peer_onnxruntime.export(self.dense, torch.from_numpy(channels_first(self.images[:2])), path)
        return path

    def _classes(self, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        starts = range(0, len(self.test.x), 100)
        parts = [predict(channels_first(self.test.x[i : i + 100])).argmax(1) for i in starts]
        return np.concatenate(parts)

    def _row(self, classes: np.ndarray, path: Path) -> Row:
        labels = np.asarray(self.test.y)
        right, base = int((classes == labels).sum()), int((self.float_classes == labels).sum())
        return {
            "accuracy": right / len(labels),
            "drop": (base - right) / len(labels),
            "agreement": float((classes == self.float_classes).mean()),
            "bytes": path.stat().st_size,
        }


def channels_first(images: np.ndarray) -> np.ndarray:
    """Return uint8 (n, H, W, C) as the networks read it: float32 (n, C, H, W), normalised."""
    return np.ascontiguousarray(normalised(images).transpose(0, 3, 1, 2))


def figures(names: tuple[str, ...] = tuple(PLANS)) -> dict[str, tuple[float, str]]:
    """Compare the tools on the data sets, by default all; prints a table as it goes."""
    require_packages()
    results: dict[str, tuple[float, str]] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            results |= _run(name, Comparison(name, Path(folder)))
    return results


def _run(data: str, comparison: Comparison) -> dict[str, tuple[float, str]]:
    versions = {name: importlib.metadata.version(name) for name in (*PACKAGES.values(), "torch")}
    images, judged = len(comparison.images), len(comparison.test.x)
    print(f"vgg_lite on {data}: {images} calibration images, {judged} test images; {_listed(versions)}")
    print(f"{'row':34} {'accuracy':>8} {'drop':>8} {'agree':>7} {'bytes':>10} {'of fp32':>8}")
    results: dict[str, tuple[float, str]] = {}
    fp32 = 0.0
    for key, compute in comparison.rows().items():
        inputs = {"row": key, "data": data, "checkpoint": comparison.table.card["sha256"], "seed": SEED}
        row = saved_row("quantization_peers", inputs | versions | {"images": [images, judged]}, compute)
        fp32 = fp32 or row["bytes"]
        print(_line(key, row, fp32), flush=True)
        for name, value in row.items():
            results[f"quantization_peers.vgg_lite.{data}.{key}.{name}"] = (value, UNITS[name])
    return results


def _line(key: str, row: Row, fp32: float) -> str:
    line = (
        f"{key:34} {row['accuracy']:8.4f} {row['drop']:+8.4f} {row['agreement']:7.4f} {row['bytes']:10,.0f} "
    )
    line += f"{fp32 / row['bytes']:7.2f}x"
    if "compared" in row:
        line += f"  {row['different']:,} of {row['compared']:,} codes differ, "
        line += f"by {row['largest_difference']:.0f} at most"
    return line


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=PLANS, help="one data set; default: all")
    options = parser.parse_args()
    try:
        figures((options.data,) if options.data else tuple(PLANS))
    except UsageError as error:
        raise SystemExit(f"quantization_peers: {error}") from None
