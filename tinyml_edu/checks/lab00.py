"""Lab 0, efficiency metrics: the questions, their visible inputs, and how each runs a student's function."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from . import lab00_judges as judges
from .protocol import Arrays, Lab, Namespace, Question, numeric

DTYPES = tuple(judges.MAC_PJ)


def _number(value: Any) -> np.ndarray:
    """Return what a student's function gave as an array without dimensions; None becomes NaN."""
    return np.asarray(np.nan if value is None else value).reshape(())


# q1: count_parameters(model)


def parameters_case(
    channels: list[int], kernel: int, *, bias: bool = True, frozen: bool = False, shared: bool = False
) -> Arrays:
    """Channels of a chain of convolutions, each with a batch norm, and two linear layers at the end."""
    flags = np.array([bias, frozen, shared])
    return {"channels": np.array(channels), "kernel": np.array(kernel), "bias_frozen_shared": flags}


def _q1_visible_small(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return parameters_case([1, 2], 1)


def _q1_visible(rng: np.random.Generator) -> Arrays:
    return parameters_case([3, *rng.integers(4, 12, 2).tolist()], 3, bias=False)


def _q1_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    from torch import nn

    bias, frozen, shared = arrays["bias_frozen_shared"].tolist()
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(arrays["channels"].tolist()):
        layers += [nn.Conv2d(i, o, int(arrays["kernel"]), bias=bias), nn.BatchNorm2d(o), nn.ReLU()]
    features = int(arrays["channels"][-1])
    first, second = nn.Linear(features, features), nn.Linear(features, features)
    model = nn.Sequential(*layers, nn.Flatten(), first, first if shared else second)
    if frozen:
        layers[0].requires_grad_(False)
    return {"parameters": _number(namespace["count_parameters"](model))}


# q2: conv2d_macs(layer, height, width)

_CONV = ("channels", "kernel", "stride", "padding", "dilation", "size")


def conv_case(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    bias: bool = True,
) -> Arrays:
    """(in, out) channels; pairs are (height, width)."""
    values = (channels, kernel, stride, padding, dilation, size)
    case = {name: np.array(value) for name, value in zip(_CONV, values)}
    return {**case, "groups": np.array(groups), "bias": np.array(bias)}


def _q2_visible_small(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return conv_case((1, 1), (3, 3), (2, 2))


def _q2_visible(rng: np.random.Generator) -> Arrays:
    width = int(rng.integers(4, 9))
    return conv_case((3, width), (12, 12), (3, 3), stride=(2, 2), padding=(1, 1))


def _q2_visible_groups(rng: np.random.Generator) -> Arrays:
    width = int(rng.integers(4, 9))
    return conv_case((width, width), (8, 8), (3, 3), padding=(1, 1), groups=width, bias=False)


def _q2_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    from torch import nn

    pair: dict[str, Any] = {name: tuple(arrays[name].tolist()) for name in _CONV}
    inputs, outputs = pair["channels"]
    layer = nn.Conv2d(
        inputs, outputs, pair["kernel"], stride=pair["stride"], padding=pair["padding"],
        dilation=pair["dilation"], groups=int(arrays["groups"]), bias=bool(arrays["bias"]),
    )  # fmt: skip
    return {"macs": _number(namespace["conv2d_macs"](layer, *pair["size"]))}


# q3: model_macs(model, example)


def network_case(
    size: tuple[int, int], width: int, *, batch: int = 1, repeats: int = 1, per_token: bool = False
) -> Arrays:
    """A strided stem, ``repeats`` passes through one depthwise and pointwise pair, and a linear layer."""
    return {
        "size": np.array(size),
        "width_batch_repeats": np.array([width, batch, repeats]),
        "per_token": np.array(per_token),
    }


def _q3_visible_small(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return network_case((4, 4), 2)


def _q3_visible(rng: np.random.Generator) -> Arrays:
    return network_case((8, 8), int(rng.integers(3, 8)), batch=2)


def _q3_network(arrays: Arrays) -> Any:
    from torch import Tensor, nn

    width, _, repeats = arrays["width_batch_repeats"].tolist()
    per_token = bool(arrays["per_token"])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width))
            self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.pointwise = nn.Conv2d(width, width, 1)
            self.head = nn.Linear(width, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            for _ in range(repeats):
                x = x + self.pointwise(self.depthwise(x))
            tokens = x.flatten(2).transpose(1, 2)  # (N, H * W, width)
            return self.head(tokens).mean(1) if per_token else self.head(tokens.mean(1))

    return Network()


def _q3_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    network = _q3_network(arrays).train()
    example = torch.zeros(int(arrays["width_batch_repeats"][1]), 3, *arrays["size"].tolist())
    macs = _number(namespace["model_macs"](network, example))
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
    return {
        "macs": macs,
        "hooks": np.array(hooks),
        "training": np.array([m.training for m in network.modules()]),
        "batches_seen": network.stem[1].num_batches_tracked.numpy(),
    }


# q4: weight_bytes(counts, bits)


def bits_case(counts: list[int], bits: list[int]) -> Arrays:
    """Elements of each tensor and bits of each of its elements."""
    return {"counts": np.array(counts), "bits": np.array(bits)}


def _q4_visible_small(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return bits_case([3], [4])


def _q4_visible(rng: np.random.Generator) -> Arrays:
    return bits_case(rng.integers(1, 1000, 3).tolist(), [32, 8, 4])


def _q4_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    return {"bytes": _number(namespace["weight_bytes"](arrays["counts"].tolist(), arrays["bits"].tolist()))}


# q5: peak_activation_bytes(schedule, sizes, outputs)


def schedule_case(steps: list[list[int]], sizes: list[int], outputs: list[int]) -> Arrays:
    """Each step is [written, read, ...] in tensor numbers; tensors that nothing writes are inputs."""
    wide = max(map(len, steps))
    table = [step + [-1] * (wide - len(step)) for step in steps]
    return {"steps": np.array(table), "sizes": np.array(sizes), "outputs": np.array(outputs)}


def _q5_visible_small(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return schedule_case([[1, 0], [2, 1]], [100, 400, 50], [2])


def _q5_visible_residual(rng: np.random.Generator) -> Arrays:
    sizes = rng.integers(10, 100, 5).tolist()
    return schedule_case([[1, 0], [2, 1], [3, 2], [4, 3, 1]], sizes, [4])


def _named(arrays: Arrays) -> tuple[list[tuple[str, list[str]]], dict[str, int], list[str]]:
    rows = [[f"t{n}" for n in row if n >= 0] for row in arrays["steps"].tolist()]
    sizes = {f"t{n}": int(size) for n, size in enumerate(arrays["sizes"])}
    return [(row[0], row[1:]) for row in rows], sizes, [f"t{n}" for n in arrays["outputs"]]


def _q5_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    return {"peak": _number(namespace["peak_activation_bytes"](*_named(arrays)))}


# q6: measure_latency(call, warmup, repeats, clock)


def latency_case(ticks: list[int], warmup: int) -> Arrays:
    """Durations of the runs, warm-up first, in 1/1024 s: a double holds each of them exactly."""
    return {"durations_s": np.array(ticks) / 1024, "warmup": np.array(warmup)}


def _q6_visible_small(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return latency_case([900, 10, 10, 40], 1)


def _q6_visible(rng: np.random.Generator) -> Arrays:
    return latency_case([*rng.integers(500, 900, 2).tolist(), *rng.integers(1, 50, 5).tolist()], 2)


def _q6_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    now, calls = [64.0], [0]

    def call() -> None:
        # A student who runs it too often gets long runs, and the judge sees the count.
        spare = calls[0] >= len(arrays["durations_s"])
        now[0] += 4.0 if spare else float(arrays["durations_s"][calls[0]])
        calls[0] += 1

    warmup = int(arrays["warmup"])
    repeats = len(arrays["durations_s"]) - warmup
    result = namespace["measure_latency"](call, warmup=warmup, repeats=repeats, clock=lambda: now[0])
    return {"latency_ms": np.asarray(result, np.float64), "calls": np.array(calls[0])}


# q7: arithmetic_intensity(macs, bytes_moved), attainable_gflops(intensity, peak_gflops, bandwidth_gbs)


def roofline_case(macs: float, bytes_moved: float, peak: float, bandwidth: float) -> Arrays:
    """One kernel and one machine."""
    return {
        "macs": np.array(macs),
        "bytes_moved": np.array(bytes_moved),
        "peak_gflops": np.array(peak),
        "bandwidth_gbs": np.array(bandwidth),
    }


def _q7_visible_memory(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return roofline_case(1000, 4000, 100.0, 10.0)


def _q7_visible_compute(rng: np.random.Generator) -> Arrays:
    return roofline_case(int(rng.integers(50_000, 90_000)), 1000, 100.0, 10.0)


def _q7_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    macs, moved, peak, bandwidth = (value.item() for value in arrays.values())
    # The second function is asked with the true intensity, so that one mistake is not paid for twice.
    return {
        "intensity": _number(namespace["arithmetic_intensity"](macs, moved)),
        "attainable": _number(namespace["attainable_gflops"](2 * macs / moved, peak, bandwidth)),
    }


# q8: inference_energy_uj(macs, dram_bytes, sram_bytes, dtype)


def energy_case(macs: int, dram_bytes: int, sram_bytes: int, dtype: str) -> Arrays:
    """Counts of one inference and the index of its data type in ``DTYPES``."""
    counts = np.array([macs, dram_bytes, sram_bytes])
    return {"macs_dram_sram": counts, "dtype": np.array(DTYPES.index(dtype))}


def _q8_visible_small(rng: np.random.Generator) -> Arrays:  # noqa: ARG001
    return energy_case(1_000_000, 4_000_000, 0, "float32")


def _q8_visible(rng: np.random.Generator) -> Arrays:
    macs, dram, sram = rng.integers(10_000, 1_000_000, 3).tolist()
    return energy_case(macs, dram, sram, "int8")


def _q8_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    macs, dram, sram = arrays["macs_dram_sram"].tolist()
    energy = namespace["inference_energy_uj"](
        macs, dram_bytes=dram, sram_bytes=sram, dtype=DTYPES[int(arrays["dtype"])]
    )
    return {"energy_uj": _number(energy)}


LAB = Lab(
    id="lab00",
    title="Efficiency metrics",
    minutes=75,
    questions=(
        Question(
            "q1", "count the parameters", 8, ("count_parameters",),
            inputs=(_q1_visible_small, _q1_visible), drive=_q1_drive, judge=judges.q1,
        ),
        Question(
            "q2", "MACs of a convolution", 12, ("conv2d_macs",),
            inputs=(_q2_visible_small, _q2_visible, _q2_visible_groups), drive=_q2_drive, judge=judges.q2,
        ),
        Question(
            "q3", "MACs of a model", 12, ("model_macs",), ("conv2d_macs",),
            inputs=(_q3_visible_small, _q3_visible), drive=_q3_drive, judge=judges.q3,
        ),
        Question(
            "q4", "bytes of the weights", 8, ("weight_bytes",),
            inputs=(_q4_visible_small, _q4_visible), drive=_q4_drive, judge=judges.q4,
        ),
        Question(
            "q5", "peak activation memory", 14, ("peak_activation_bytes",),
            inputs=(_q5_visible_small, _q5_visible_residual), drive=_q5_drive, judge=judges.q5,
        ),
        Question(
            "q6", "an honest stopwatch", 12, ("measure_latency",),
            inputs=(_q6_visible_small, _q6_visible), drive=_q6_drive, judge=judges.q6,
        ),
        Question(
            "q7", "intensity and roofline", 8, ("arithmetic_intensity", "attainable_gflops"),
            inputs=(_q7_visible_memory, _q7_visible_compute), drive=_q7_drive, judge=judges.q7,
        ),
        Question(
            "q8", "energy of an inference", 8, ("inference_energy_uj",),
            inputs=(_q8_visible_small, _q8_visible), drive=_q8_drive, judge=judges.q8,
        ),
        numeric(
            "n1", "half the width, twice the resolution", 4, name="macs_half_width_double_resolution",
            truth=judges.truth_n1, uses=("conv2d_macs", "model_macs"), unit="MACs",
            look_at="call model_macs on the network with width=0.5 and an example of 64 by 64 pixels",
        ),
        numeric(
            "n2", "peak memory of ResNet-8", 4, name="resnet8_peak_int8_bytes",
            truth=judges.truth_n2, uses=("peak_activation_bytes",), unit="bytes",
            look_at="one int8 activation is one byte; schedule_of gives sizes in elements",
        ),
        Question("w1", "why fewer MACs can be slower", 5, kind="written"),
        Question("w2", "choose a network for a board", 5, kind="written"),
    ),
    reference={
        "count_parameters": "tinyml_edu.profile.counting:count_parameters",
        "conv2d_macs": "tinyml_edu.profile.counting:conv2d_macs",
        "model_macs": "tinyml_edu.profile.counting:model_macs",
        "weight_bytes": "tinyml_edu.profile.counting:weight_bytes",
        "peak_activation_bytes": "tinyml_edu.profile.liveness:peak_activation_bytes",
        "measure_latency": "tinyml_edu.profile.latency:measure_latency",
        "arithmetic_intensity": "tinyml_edu.profile.roofline:arithmetic_intensity",
        "inference_energy_uj": "tinyml_edu.profile.energy:inference_energy_uj",
    },
)  # fmt: skip
