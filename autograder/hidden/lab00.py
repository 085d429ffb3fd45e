"""Lab 0, hidden inputs: seeded random shapes that no student has seen, and cases where shortcuts break."""

from __future__ import annotations

import numpy as np

from tinyml_edu.checks.lab00 import (
    DTYPES,
    LAB,
    bits_case,
    conv_case,
    energy_case,
    latency_case,
    network_case,
    parameters_case,
    roofline_case,
    schedule_case,
)
from tinyml_edu.checks.protocol import Arrays

Rng = np.random.Generator


def _draw(rng: Rng, low: int, high: int, n: int) -> list[int]:
    return rng.integers(low, high, n).tolist()


# q1


def q1_random(rng: Rng) -> Arrays:
    return parameters_case(_draw(rng, 2, 20, 4), int(rng.integers(1, 6)), bias=bool(rng.integers(2)))


def q1_frozen(rng: Rng) -> Arrays:
    return parameters_case(_draw(rng, 2, 20, 3), 3, frozen=True)


def q1_shared(rng: Rng) -> Arrays:
    return parameters_case(_draw(rng, 2, 20, 3), 1, bias=False, shared=True)


# q2


def q2_random(rng: Rng) -> Arrays:
    """Nothing square, nothing equal in height and width."""
    i, o, h, w = _draw(rng, 3, 12, 2) + _draw(rng, 17, 40, 2)
    kernel = (int(rng.integers(1, 4)), int(rng.integers(4, 7)))
    stride, padding = (1, 2) if rng.integers(2) else (3, 1), tuple(_draw(rng, 0, 3, 2))
    return conv_case((i, o), (h, w), kernel, stride=stride, padding=(padding[0], padding[1]))


def q2_groups(rng: Rng) -> Arrays:
    groups, i, o = int(rng.integers(2, 5)), int(rng.integers(2, 5)), int(rng.integers(2, 7))
    return conv_case((groups * i, groups * o), (15, 22), (3, 3), padding=(1, 1), groups=groups, bias=False)


def q2_depthwise_multiplier(rng: Rng) -> Arrays:
    channels = int(rng.integers(3, 9))
    return conv_case(
        (channels, 2 * channels), (13, 9), (5, 3), stride=(2, 2), padding=(2, 1), groups=channels
    )


def q2_dilation(rng: Rng) -> Arrays:
    return conv_case((4, int(rng.integers(2, 9))), (21, 26), (3, 3), padding=(2, 1), dilation=(2, 3))


def q2_one_pixel(rng: Rng) -> Arrays:
    """One channel in and out, and a kernel that covers the whole image."""
    n = int(rng.integers(2, 9))
    return conv_case((1, 1), (n, n + 1), (n, n + 1))


# q3


def q3_random(rng: Rng) -> Arrays:
    size = (int(rng.integers(5, 14)), int(rng.integers(15, 24)))
    return network_case(size, int(rng.integers(3, 12)))


def q3_batch(rng: Rng) -> Arrays:
    return network_case((9, 11), int(rng.integers(3, 12)), batch=int(rng.integers(2, 6)))


def q3_repeated(rng: Rng) -> Arrays:
    """One module object that the forward pass calls several times."""
    return network_case((7, 12), int(rng.integers(3, 12)), repeats=int(rng.integers(2, 5)))


def q3_tokens(rng: Rng) -> Arrays:
    """A linear layer that is applied to every pixel."""
    return network_case((8, 6), int(rng.integers(3, 12)), batch=2, per_token=True)


# q4


def q4_random(rng: Rng) -> Arrays:
    return bits_case(_draw(rng, 1, 100_000, 6), _draw(rng, 1, 33, 6))


def q4_odd(rng: Rng) -> Arrays:
    """Every tensor ends inside a byte, so that one rounding for all of them shows."""
    return bits_case([2 * n + 1 for n in _draw(rng, 1, 50, 9)], [4] * 9)


def q4_binary(rng: Rng) -> Arrays:
    return bits_case([1, 8, *_draw(rng, 9, 16, 2)], [1, 1, 1, 3])


# q5


def q5_chain(rng: Rng) -> Arrays:
    n = int(rng.integers(5, 10))
    sizes = _draw(rng, 1, 100, n + 1)
    return schedule_case([[i + 1, i] for i in range(n)], sizes, [n])


def q5_random(rng: Rng) -> Arrays:
    """Each step reads one or two earlier tensors, some of them long ago."""
    n = int(rng.integers(8, 14))
    steps = [[i, i - 1, *_draw(rng, 0, i, 1)] for i in range(1, n)]
    steps = [[row[0], *dict.fromkeys(row[1:])] for row in steps]
    return schedule_case(steps, _draw(rng, 1, 100, n), [n - 1])


def q5_early_exit(rng: Rng) -> Arrays:
    """A large output that is written early and never read: it must outlive everything."""
    a, b = _draw(rng, 10, 30, 2)
    return schedule_case([[1, 0], [2, 1], [3, 1], [4, 3], [5, 4]], [a, b, 60, 50, 55, 5], [2, 5])


def q5_late_reader(rng: Rng) -> Arrays:
    """A residual around a wide middle: at the peak, the waiting tensor is no operand."""
    wait = int(rng.integers(40, 60))
    return schedule_case([[1, 0], [2, 1], [3, 2], [4, 3], [5, 4, 1]], [10, wait, 90, 95, 20, 20], [5])


def q5_two_inputs(rng: Rng) -> Arrays:
    """The second input of the network is read late and waits from the start."""
    return schedule_case([[2, 0], [3, 2], [4, 3, 1]], [*_draw(rng, 10, 60, 2), 80, 20, 10], [4])


# q6


def _ticks(rng: Rng, warmup: int, repeats: int) -> list[int]:
    """Slow warm-up runs; one run that something interrupted, which moves a mean and no median."""
    runs = _draw(rng, 2, 60, repeats)
    runs[int(rng.integers(repeats))] = 900
    return _draw(rng, 400, 800, warmup) + runs


def q6_random(rng: Rng) -> Arrays:
    warmup = int(rng.integers(2, 6))
    return latency_case(_ticks(rng, warmup, int(rng.integers(6, 12))), warmup)


def q6_no_warmup(rng: Rng) -> Arrays:
    return latency_case(_ticks(rng, 0, 5), 0)


def q6_many_warmups(rng: Rng) -> Arrays:
    return latency_case(_ticks(rng, 9, 4), 9)


# q7


def q7_memory(rng: Rng) -> Arrays:
    peak, bandwidth = _draw(rng, 50, 500, 1)[0], _draw(rng, 5, 50, 1)[0]
    return roofline_case(int(rng.integers(10, 100)), int(rng.integers(1000, 9000)), peak, bandwidth)


def q7_compute(rng: Rng) -> Arrays:
    peak, bandwidth = _draw(rng, 50, 100, 1)[0], _draw(rng, 50, 90, 1)[0]
    return roofline_case(int(rng.integers(10_000, 90_000)), int(rng.integers(100, 900)), peak, bandwidth)


# q8


def _energy(rng: Rng, dtype: str) -> Arrays:
    macs, dram, sram = _draw(rng, 10_000, 10_000_000, 3)
    return energy_case(macs, dram, sram, dtype)


def q8_int8(rng: Rng) -> Arrays:
    return _energy(rng, DTYPES[0])


def q8_float16(rng: Rng) -> Arrays:
    return _energy(rng, DTYPES[1])


def q8_float32(rng: Rng) -> Arrays:
    return _energy(rng, DTYPES[2])


def q8_arithmetic_only(rng: Rng) -> Arrays:
    """No memory traffic, so that the price of a MAC stands alone."""
    return energy_case(int(rng.integers(10_000, 10_000_000)), 0, 0, DTYPES[0])


QUESTIONS = [
    LAB["q1"].hidden(inputs=(q1_random, q1_frozen, q1_shared)),
    LAB["q2"].hidden(inputs=(q2_one_pixel, q2_random, q2_groups, q2_depthwise_multiplier, q2_dilation)),
    LAB["q3"].hidden(inputs=(q3_random, q3_batch, q3_repeated, q3_tokens)),
    LAB["q4"].hidden(inputs=(q4_binary, q4_odd, q4_random)),
    LAB["q5"].hidden(inputs=(q5_chain, q5_two_inputs, q5_early_exit, q5_late_reader, q5_random)),
    LAB["q6"].hidden(inputs=(q6_no_warmup, q6_many_warmups, q6_random)),
    LAB["q7"].hidden(inputs=(q7_memory, q7_compute)),
    LAB["q8"].hidden(inputs=(q8_arithmetic_only, q8_int8, q8_float16, q8_float32)),
    LAB["n1"].hidden(),
    LAB["n2"].hidden(),
]
