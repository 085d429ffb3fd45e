"""Lab 0, wrong answers that the hidden judges must catch, each at the price of its own question."""

from __future__ import annotations

from textwrap import dedent

from tinyml_edu.checks.lab00 import LAB
from tinyml_edu.checks.protocol import Mutant


def _mutant(name: str, question: str, why: str, source: str) -> Mutant:
    """Return a mutant that loses its whole question: a score is that of the worst case."""
    return Mutant(name, question, dedent(source).lstrip(), {question: LAB[question].points}, why)


def _conv(sizes: str, products: str = "layer.in_channels // layer.groups", extra: str = "") -> str:
    return f"""
        def conv2d_macs(layer, height, width):
            (kh, kw), (sh, sw) = layer.kernel_size, layer.stride
            (ph, pw), (dh, dw) = layer.padding, layer.dilation
            h, w = {sizes}
            return layer.out_channels * h * w * (({products}) * kh * kw{extra})
        """


_SIZES = "(height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1"
_BIAS = " + (layer.bias is not None)"
_UNDILATED = "(height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1"
_SQUARE = "((height + 2 * ph - dh * (kh - 1) - 1) // sh + 1,) * 2"


def _model(kinds: str = "nn.Conv2d, nn.Linear", **changes: str) -> str:
    parts = {
        "run": "model.eval()(example[:1])",
        "linear": "output.numel() * layer.in_features",
        "end": "[h.remove() for h in handles]",
        "guard": "True",
    }
    parts.update(changes)
    return f"""
        def model_macs(model, example):
            was_training, total, seen = model.training, 0, set()

            def count(layer, inputs, output):
                nonlocal total
                if {parts["guard"]}:
                    if isinstance(layer, nn.Conv2d):
                        total += conv2d_macs(layer, *inputs[0].shape[-2:])
                    else:
                        total += {parts["linear"]}
                seen.add(layer)

            handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, ({kinds},))]
            with torch.no_grad():
                {parts["run"]}
            {parts["end"]}
            model.train(was_training)
            return total
        """


def _peak(body: str) -> str:
    return "def peak_activation_bytes(schedule, sizes, outputs):\n" + body


_LIVES = """\
    first, last = {}, {}
    for step, (written, read) in enumerate(schedule):
        first[written] = last[written] = step
        for name in read:
            first.setdefault(name, 0)
            last[name] = step
"""
_FIRST_USE = "last[name] = step if last.get(name, 0) in (0, first[name]) else last[name]"
_KEEP = """\
    for name in outputs:
        last[name] = len(schedule) - 1
"""
_SUM = """\
    steps = range(len(schedule))
    return max(sum(sizes[n] for n in first if first[n] <= step <= last[n]) for step in steps)
"""


def _latency(body: str, result: str = "tuple(np.quantile(samples, [0.5, 0.25, 0.75]))") -> str:
    return f"""
        def measure_latency(call, warmup, repeats, clock=time.perf_counter):
            samples = []
            for i in range({body}):
                start = clock()
                call()
                samples.append(1e3 * (clock() - start))
            samples = samples[-repeats:] if {"warmup" in body} else samples
            return {result}
        """


def _energy(mac: str, dram: str = "dram_bytes / 4 * 640.0", sram: str = "sram_bytes / 4 * 5.0") -> str:
    return f"""
        def inference_energy_uj(macs, dram_bytes, sram_bytes, dtype):
            add = "int32_add" if dtype == "int8" else dtype + "_add"
            return 1e-6 * (macs * ({mac}) + {dram} + {sram})
        """


_MAC = "PICOJOULES[dtype + '_mul'] + PICOJOULES[add]"

MUTANTS = [
    _mutant(
        "buffers are parameters",
        "q1",
        "state_dict() holds running statistics too",
        "def count_parameters(model):\n    return sum(v.numel() for v in model.state_dict().values())\n",
    ),
    _mutant(
        "frozen parameters are free",
        "q1",
        "trainable is taken for stored",
        "def count_parameters(model):\n"
        "    return sum(p.numel() for p in model.parameters() if p.requires_grad)\n",
    ),
    _mutant(
        "shared layer counted twice",
        "q1",
        "modules are walked without asking which were seen",
        "def count_parameters(model):\n    return sum(p.numel() for m in model for p in m.parameters())\n",
    ),
    _mutant(
        "bias is a MAC", "q2", "an addition is taken for a multiply-accumulate", _conv(_SIZES, extra=_BIAS)
    ),
    _mutant(
        "groups ignored",
        "q2",
        "every output is thought to read all inputs",
        _conv(_SIZES, "layer.in_channels"),
    ),
    _mutant("input resolution", "q2", "sums are placed at input pixels", _conv("height, width")),
    _mutant("dilation ignored", "q2", "a dilated kernel is thought to cover K pixels", _conv(_UNDILATED)),
    _mutant(
        "square image", "q2", "the height stands for the width", _conv(_SIZES.replace("width", "height"))
    ),
    _mutant("square output", "q2", "the output is taken to be square", _conv(_SQUARE)),
    _mutant("batch counted", "q3", "the whole example is run", _model(run="model.eval()(example)")),
    _mutant(
        "linear as in times out",
        "q3",
        "a linear layer is thought to see one vector",
        _model(linear="layer.in_features * layer.out_features"),
    ),
    _mutant("no linear layers", "q3", "only convolutions get a hook", _model("nn.Conv2d")),
    _mutant(
        "repeats counted once", "q3", "a layer is thought to run once", _model(guard="layer not in seen")
    ),
    _mutant("hooks stay", "q3", "handles are forgotten, and the next count doubles", _model(end="pass")),
    _mutant("train mode", "q3", "the batch norms learn from the probe", _model(run="model(example[:1])")),
    _mutant(
        "bits floor-divided",
        "q4",
        "the last byte is dropped",
        "def weight_bytes(counts, bits):\n    return sum(n * b // 8 for n, b in zip(counts, bits))\n",
    ),
    _mutant(
        "one rounding for all",
        "q4",
        "tensors are thought to share a byte",
        "def weight_bytes(counts, bits):\n    return -(-sum(n * b for n, b in zip(counts, bits)) // 8)\n",
    ),
    _mutant(
        "whole bytes only",
        "q4",
        "codes below 8 bits are not packed",
        "def weight_bytes(counts, bits):\n    return sum(n * -(-b // 8) for n, b in zip(counts, bits))\n",
    ),
    _mutant("sum of everything", "q5", "no memory is used twice", _peak("    return sum(sizes.values())\n")),
    _mutant(
        "largest tensor",
        "q5",
        "an input and an output are thought to share",
        _peak("    return max(sizes.values())\n"),
    ),
    _mutant(
        "operands only",
        "q5",
        "a tensor that waits for a later reader is forgotten",
        _peak("    return max(sum(sizes[n] for n in {w, *read}) for w, read in schedule)\n"),
    ),
    _mutant("outputs die", "q5", "an early output is overwritten", _peak(_LIVES + _SUM)),
    _mutant(
        "dies one step early",
        "q5",
        "the last reader does not need the tensor while it runs",
        _peak(_LIVES + _KEEP + _SUM.replace("step <= last[n]", "step < max(last[n], first[n] + 1)")),
    ),
    _mutant(
        "first reader frees",
        "q5",
        "the first use is taken for the last",
        _peak(_LIVES.replace("last[name] = step", _FIRST_USE) + _KEEP + _SUM),
    ),
    _mutant(
        "mean",
        "q6",
        "one interrupted run moves it",
        _latency("warmup + repeats", "(np.mean(samples), *np.quantile(samples, [0.25, 0.75]))"),
    ),
    _mutant(
        "warm-up timed",
        "q6",
        "the cold runs are samples",
        _latency("warmup + repeats").replace("[-repeats:]", ""),
    ),
    _mutant("no warm-up", "q6", "the argument is ignored", _latency("repeats")),
    _mutant("seconds", "q6", "the unit is forgotten", _latency("warmup + repeats").replace("1e3 * ", "")),
    _mutant(
        "own clock",
        "q6",
        "the clock that was handed over is ignored",
        _latency("warmup + repeats").replace("clock()", "time.perf_counter()"),
    ),
    _mutant(
        "intensity upside down",
        "q7",
        "bytes for each operation",
        "def arithmetic_intensity(macs, bytes_moved):\n    return bytes_moved / (2 * macs)\n\n\n"
        "def attainable_gflops(intensity, peak_gflops, bandwidth_gbs):\n"
        "    return min(peak_gflops, intensity * bandwidth_gbs)\n",
    ),
    _mutant(
        "a MAC is one operation",
        "q7",
        "the addition is forgotten",
        "def arithmetic_intensity(macs, bytes_moved):\n    return macs / bytes_moved\n\n\n"
        "def attainable_gflops(intensity, peak_gflops, bandwidth_gbs):\n"
        "    return min(peak_gflops, intensity * bandwidth_gbs)\n",
    ),
    _mutant(
        "higher ceiling counts",
        "q7",
        "max in place of min",
        "def arithmetic_intensity(macs, bytes_moved):\n    return 2 * macs / bytes_moved\n\n\n"
        "def attainable_gflops(intensity, peak_gflops, bandwidth_gbs):\n"
        "    return max(peak_gflops, intensity * bandwidth_gbs)\n",
    ),
    _mutant(
        "DRAM and SRAM swapped",
        "q8",
        "the prices change places",
        _energy(_MAC, "dram_bytes / 4 * 5.0", "sram_bytes / 4 * 640.0"),
    ),
    _mutant(
        "bytes as words",
        "q8",
        "an access is 32 bits",
        _energy(_MAC, "dram_bytes * 640.0", "sram_bytes * 5.0"),
    ),
    _mutant(
        "int8 accumulator",
        "q8",
        "an int8 product is added in 8 bits",
        _energy("PICOJOULES[dtype + '_mul'] + PICOJOULES[dtype + '_add']"),
    ),
    _mutant("multiplication only", "q8", "the addition is free", _energy("PICOJOULES[dtype + '_mul']")),
    _mutant(
        "MACs unchanged",
        "n1",
        "half the width is thought to undo twice the resolution exactly",
        "macs_half_width_double_resolution = model_macs(\n"
        "    models.build('vgg_lite', classes=10), torch.zeros(1, 3, 32, 32)\n)\n",
    ),
    _mutant(
        "peak in float32",
        "n2",
        "an activation is taken for 4 bytes",
        "resnet8_graph = mcu.capture(models.build('resnet8', classes=10), torch.zeros(1, 3, 32, 32))\n"
        "resnet8_peak_int8_bytes = 4 * peak_activation_bytes(*ref.schedule_of(resnet8_graph))\n",
    ),
]
