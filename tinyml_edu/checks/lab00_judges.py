"""Lab 0, efficiency metrics: how the answers are judged.

The truth of q1 to q8 is a closed form over the inputs, so that it shares no code with the library's
counters nor with a student's answer; that of n1 and n2 is measured by the library, which its own tests
compare with other counters.  Beside it stand the values that common mistakes give; one that equals
the truth in some case does no harm there, because a right answer is not compared with them.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from .compare import all_of, close, true
from .protocol import Arrays, Verdict

# Answers of a handful of double operations: each rounds by at most 2^-53, so 1e-12 leaves a wide margin
# for another order of the same operations and none for another formula.
RTOL = 1e-12


# q1: count_parameters(model)


def q1(arrays: Arrays, outputs: Arrays) -> Verdict:
    bias, frozen, shared = (int(flag) for flag in arrays["bias_frozen_shared"])
    pairs = list(itertools.pairwise(arrays["channels"].tolist()))
    area = int(arrays["kernel"]) ** 2
    convolutions = [i * o * area + bias * o for i, o in pairs]
    outs, features = sum(o for _, o in pairs), int(arrays["channels"][-1])
    linear = features * features + features
    total = sum(convolutions) + 2 * outs + linear * (1 if shared else 2)
    mistakes = {
        # A batch norm has a running mean and variance for each channel, and one step counter.
        "buffers are counted too: a batch norm's running statistics are not parameters": total
        + 2 * outs
        + len(pairs),
    }
    if frozen:
        mistakes["frozen parameters are left out; they must be stored all the same"] = total - convolutions[0]
    if shared:
        mistakes["a layer that stands twice in the model is stored once"] = total + linear
    return close(outputs["parameters"], total, name="count_parameters(model)", mistakes=mistakes)


# q2: conv2d_macs(layer, height, width)


def q2(arrays: Arrays, outputs: Arrays) -> Verdict:
    (i, o), (h, w) = arrays["channels"].tolist(), arrays["size"].tolist()
    (kh, kw), (sh, sw) = arrays["kernel"].tolist(), arrays["stride"].tolist()
    (ph, pw), (dh, dw) = arrays["padding"].tolist(), arrays["dilation"].tolist()
    groups = int(arrays["groups"])

    def out(n: int, k: int, s: int, p: int, d: int) -> int:
        return (n + 2 * p - d * (k - 1) - 1) // s + 1

    pixels = out(h, kh, sh, ph, dh) * out(w, kw, sw, pw, dw)
    products = i // groups * kh * kw
    macs = o * pixels * products
    mistakes = {
        "the bias is counted as a MAC": macs + o * pixels,
        "groups are ignored: each output reads C_in / groups channels": macs * groups,
        "the sums run over input pixels; count one for each output pixel": o * h * w * products,
        "padding is added on one side only": o
        * products
        * ((h + ph - dh * (kh - 1) - 1) // sh + 1)
        * ((w + pw - dw * (kw - 1) - 1) // sw + 1),
        "dilation is ignored: a dilated kernel covers d * (k - 1) + 1 pixels": o
        * products
        * out(h, kh, sh, ph, 1)
        * out(w, kw, sw, pw, 1),
        "the output is not square: height and width have their own kernel, stride and padding": o
        * products
        * out(h, kh, sh, ph, dh) ** 2,
        "these are FLOP, twice the MACs": 2 * macs,
    }
    return close(outputs["macs"], macs, name="conv2d_macs(layer, height, width)", mistakes=mistakes)


# q3: model_macs(model, example)


def q3(arrays: Arrays, outputs: Arrays) -> Verdict:
    width, batch, repeats = arrays["width_batch_repeats"].tolist()
    h, w = ((int(n) - 1) // 2 + 1 for n in arrays["size"])  # kernel 3, stride 2, padding 1
    pixels = h * w
    stem, pair = pixels * width * 27, pixels * width * (9 + width)
    head = 5 * width * (pixels if arrays["per_token"] else 1)
    macs = stem + repeats * pair + head
    mistakes = {
        "the whole batch is counted; count one image": macs * batch,
        "the linear layer counts the whole batch; run example[:1]": macs + head * (batch - 1),
        "a layer that runs several times counts each time": stem + pair + head,
        "a linear layer that is applied to many vectors costs in * out for each": stem
        + repeats * pair
        + 5 * width,
        "linear layers are left out": macs - head,
        "depthwise layers are counted as dense ones": macs + repeats * pixels * width * 9 * (width - 1),
    }
    return all_of(
        close(outputs["macs"], macs, name="model_macs(model, example)", mistakes=mistakes),
        true(int(outputs["hooks"]) == 0, "a hook is left on the model", look_at="call handle.remove()"),
        true(
            int(outputs["batches_seen"]) == 0,
            "a batch norm has updated its running statistics",
            look_at="run the model in eval mode",
        ),
        true(
            bool(np.all(outputs["training"])),
            "the model came in train mode and is left in eval mode",
            look_at="model.train(was_training) at the end",
        ),
    )


# q4: weight_bytes(counts, bits)


def q4(arrays: Arrays, outputs: Arrays) -> Verdict:
    each = arrays["counts"].astype(np.int64) * arrays["bits"]
    size = int(np.sum((each + 7) // 8))
    mistakes = {
        "a last byte that is not full is dropped; round up": int(np.sum(each // 8)),
        "rounding happens once over all tensors; each tensor starts at a new byte": math.ceil(each.sum() / 8),
        "these are bits": int(each.sum()),
        "every element is rounded up to whole bytes; codes below 8 bits are packed": int(
            np.sum(arrays["counts"] * ((arrays["bits"] + 7) // 8))
        ),
    }
    return close(outputs["bytes"], size, name="weight_bytes(counts, bits)", mistakes=mistakes)


# q5: peak_activation_bytes(schedule, sizes, outputs)


def _alive(arrays: Arrays, step: int, *, long_reads: bool = True, keep_outputs: bool = True) -> int:
    """Bytes that exist during ``step``, found by asking of each tensor whether it is still needed."""
    steps = [[n for n in row if n >= 0] for row in arrays["steps"].tolist()]
    total = 0
    for n, size in enumerate(arrays["sizes"].tolist()):
        written = next((i for i, row in enumerate(steps) if row[0] == n), 0)
        reads = [i for i, row in enumerate(steps) if n in row[1:]]
        last = (max(reads) if long_reads else min(reads)) if reads else written
        if keep_outputs and n in arrays["outputs"]:
            last = len(steps) - 1
        total += size if written <= step <= last else 0
    return total


def q5(arrays: Arrays, outputs: Arrays) -> Verdict:
    steps, sizes = arrays["steps"], arrays["sizes"]
    peak = max(_alive(arrays, step) for step in range(len(steps)))
    reads = [[n for n in row if n >= 0] for row in steps.tolist()]
    mistakes = {
        "this is the sum of all tensors; memory is used again when a tensor is dead": int(sizes.sum()),
        "this is the largest single tensor; a step needs its inputs and its output at once": int(sizes.max()),
        "this looks at the inputs and the output of one step; a tensor that a later step reads waits in "
        "memory too": max(int(sizes[list(set(row))].sum()) for row in reads),
        "a tensor with two readers dies at the first": max(
            _alive(arrays, step, long_reads=False) for step in range(len(steps))
        ),
        "an output of the network must stay until the end": max(
            _alive(arrays, step, keep_outputs=False) for step in range(len(steps))
        ),
    }
    return close(outputs["peak"], peak, name="peak_activation_bytes(...)", mistakes=mistakes)


# q6: measure_latency(call, warmup, repeats, clock)


def q6(arrays: Arrays, outputs: Arrays) -> Verdict:
    durations, warmup = 1e3 * arrays["durations_s"], int(arrays["warmup"])
    kept = durations[warmup:]

    def three(values: np.ndarray) -> np.ndarray:
        return np.quantile(values, [0.5, 0.25, 0.75])

    want = three(kept)
    mistakes = {
        "the first value is the mean of the runs; use the median": np.array([kept.mean(), *want[1:]]),
        "the warm-up runs are among the samples": three(durations),
        "these are seconds": want / 1e3,
        "the order is (median, first quartile, third quartile)": np.sort(want),
    }
    calls = int(outputs["calls"])
    return all_of(
        true(
            calls == len(durations),
            f"call() ran {calls} times, expected warmup + repeats = {len(durations)}",
            look_at="first warmup runs that are not timed, then repeats runs that are",
        ),
        close(outputs["latency_ms"], want, rtol=RTOL, name="measure_latency(...)", mistakes=mistakes),
    )


# q7: arithmetic_intensity(macs, bytes_moved), attainable_gflops(intensity, peak_gflops, bandwidth_gbs)


def q7(arrays: Arrays, outputs: Arrays) -> Verdict:
    macs, moved, peak, bandwidth = (value.item() for value in arrays.values())
    intensity = 2 * macs / moved
    attainable = min(peak, intensity * bandwidth)
    first = close(
        outputs["intensity"],
        intensity,
        rtol=RTOL,
        name="arithmetic_intensity(macs, bytes_moved)",
        mistakes={
            "upside down: intensity is operations for each byte": moved / (2 * macs),
            "one MAC is two operations, a multiplication and an addition": macs / moved,
        },
    )
    second = close(
        outputs["attainable"],
        attainable,
        rtol=RTOL,
        name="attainable_gflops(intensity, peak_gflops, bandwidth_gbs)",
        mistakes={"both ceilings hold: the lower one counts": max(peak, intensity * bandwidth)},
    )
    return all_of(first, second)


# q8: inference_energy_uj(macs, dram_bytes, sram_bytes, dtype)


MAC_PJ = {"int8": 0.2 + 0.1, "float16": 1.1 + 0.4, "float32": 3.7 + 0.9}
"""Picojoules of a product and a sum, by data type; a case holds the index of its data type here."""


def q8(arrays: Arrays, outputs: Arrays) -> Verdict:
    macs, dram, sram = arrays["macs_dram_sram"].tolist()
    mac_pj = list(MAC_PJ.values())[int(arrays["dtype"])]

    def energy(one_mac_pj: float, dram_words: float, sram_words: float) -> float:
        return (macs * one_mac_pj + dram_words * 640.0 + sram_words * 5.0) * 1e-6

    want = energy(mac_pj, dram / 4, sram / 4)
    mistakes = {
        "DRAM and SRAM are swapped": energy(mac_pj, sram / 4, dram / 4),
        "the table prices a 32-bit word; bytes are counted as words": energy(mac_pj, dram, sram),
        "these are picojoules": want * 1e6,
        "an int8 product is added to a 32-bit accumulator": energy(0.2 + 0.03, dram / 4, sram / 4),
        "float32 arithmetic is charged whatever the dtype": energy(MAC_PJ["float32"], dram / 4, sram / 4),
    }
    return close(outputs["energy_uj"], want, rtol=RTOL, name="inference_energy_uj(...)", mistakes=mistakes)


# n1, n2: numbers that the notebook measures and the judge recomputes


def truth_n1() -> float:
    """MACs of VGG-lite at half the width and twice the resolution."""
    import torch

    from .. import models
    from ..profile import model_macs

    return float(model_macs(models.build("vgg_lite", classes=10, width=0.5), torch.zeros(1, 3, 64, 64)))


def truth_n2() -> float:
    """Peak of live int8 activations of ResNet-8 on a 32 by 32 image."""
    import torch

    from .. import models
    from ..profile import profile

    return float(profile(models.build("resnet8", classes=10), torch.zeros(1, 3, 32, 32)).peak_bytes("int8"))
