"""Lab 2, hidden inputs: seeded random tensors and layers, and cases where shortcuts break."""

from __future__ import annotations

import numpy as np

from tinyml_edu.checks.lab02 import LAB, channels_case, clusters_case, codes_case, range_case
from tinyml_edu.checks.lab02_integers import conv_case, factors_case, fake_case, layer_case, off_ties
from tinyml_edu.checks.protocol import Arrays

Rng = np.random.Generator


def _draw(rng: Rng, low: int, high: int, n: int) -> tuple[int, ...]:
    return tuple(rng.integers(low, high, n).tolist())


# q1


def q1_random(rng: Rng) -> Arrays:
    return clusters_case(rng, rng.normal(size=_draw(rng, 3, 7, 4)), 3)


def q1_sixteen(rng: Rng) -> Arrays:
    return clusters_case(rng, rng.standard_t(3, size=(12, 9)), 4)


def q1_empty(rng: Rng) -> Arrays:
    """Values at the two ends of the range: every centroid in between loses its cluster."""
    ends = [rng.normal(centre, 0.05, int(rng.integers(5, 9))) for centre in (-7, 7)]
    return clusters_case(rng, np.concatenate(ends), 3)


def q1_equal(rng: Rng) -> Arrays:
    return clusters_case(rng, np.full((3, 5), rng.normal()), 2)


def q1_few_values(rng: Rng) -> Arrays:
    """Fewer different values than centroids."""
    return clusters_case(rng, rng.permutation(np.repeat([-1.5, 0.25, 4.0], 5)), 3)


# q2


def q2_random(rng: Rng) -> Arrays:
    bits = int(rng.integers(3, 9))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.float32(rng.uniform(0.01, 0.5))
    zero_point = int(rng.integers(1, high + 1))
    values = off_ties(rng, scale, low - zero_point - 3, high - zero_point + 3, _draw(rng, 3, 8, 3))
    return codes_case(values, bits, scale, zero_point)


def q2_saturated(rng: Rng) -> Arrays:
    """Codes that would wrap on both sides: 200 becomes -56."""
    steps = rng.permutation(np.concatenate([np.arange(-260, -130, 10), np.arange(130, 260, 10)]))
    return codes_case(steps * 0.25, 8, 0.25, int(rng.integers(1, 9)))


def q2_ties(rng: Rng) -> Arrays:
    """Halves go to the even neighbour, before an odd zero point is added."""
    return codes_case(rng.permutation(np.arange(-20, 21) * 0.25), 8, 0.5, int(rng.choice([-7, 3, 11])))


def q2_per_channel(rng: Rng) -> Arrays:
    scale = rng.uniform(0.01, 0.3, (5, 1, 1, 1)).astype(np.float32)
    return codes_case(off_ties(rng, scale, -130, 130, (5, 4, 3, 3)), 8, scale, int(rng.integers(1, 5)))


def q2_wide(rng: Rng) -> Arrays:
    scale = np.float32(2.0**-6)
    return codes_case(
        off_ties(rng, scale, -33000, 33000, (40,)), 16, scale, int(rng.integers(1, 90)), "int32"
    )


# q3


def q3_random(rng: Rng) -> Arrays:
    values = rng.normal(rng.uniform(-0.5, 0.5), rng.uniform(0.1, 4), size=_draw(rng, 3, 7, 3))
    return range_case(values, int(rng.integers(3, 9)))


def q3_positive(rng: Rng) -> Arrays:
    return range_case(rng.uniform(3, 9, size=(4, 5)), 8)


def q3_negative(rng: Rng) -> Arrays:
    return range_case(-rng.uniform(0.5, 2, size=(4, 5)), 6)


def q3_relu(rng: Rng) -> Arrays:
    return range_case(np.maximum(rng.normal(size=(6, 6)), 0), 8)


def q3_one_value(rng: Rng) -> Arrays:
    return range_case(np.full((2, 3), float(rng.choice([-1, 1]) * rng.uniform(0.5, 3))), 8)


def q3_zeros(rng: Rng) -> Arrays:
    return range_case(np.zeros(_draw(rng, 2, 5, 2)), 8)


# q4


def q4_random(rng: Rng) -> Arrays:
    o, i = (3 + rng.permutation(6)[:2]).tolist()
    return channels_case(rng, rng.normal(size=(o, i, 3, 3)) * rng.uniform(0.1, 3, (o, 1, 1, 1)), 8)


def q4_square(rng: Rng) -> Arrays:
    """As many inputs as outputs: the wrong axis shows in the values only."""
    weight = rng.normal(size=(5, 5, 3, 3)) * 3.0 ** rng.permutation(5)[:, None, None, None]
    return channels_case(rng, weight, int(rng.integers(3, 8)))


def q4_linear(rng: Rng) -> Arrays:
    return channels_case(rng, rng.normal(size=_draw(rng, 4, 9, 2)), 8, one_scale=True)


def q4_dead_channel(rng: Rng) -> Arrays:
    """A pruned filter has no range."""
    weight = rng.normal(size=(4, 3, 1, 3))
    weight[int(rng.integers(4))] = 0
    return channels_case(rng, weight, 4)


def q4_negative(rng: Rng) -> Arrays:
    """The largest weight of every filter is negative."""
    return channels_case(rng, -np.abs(rng.normal(size=(4, 2, 3, 3))), 8)


# q5


def q5_random(rng: Rng) -> Arrays:
    return factors_case(rng, 10.0 ** rng.uniform(-5, -0.3, 6))


def q5_powers(rng: Rng) -> Arrays:
    """Powers of two: many sums lie exactly between two codes."""
    return factors_case(rng, 2.0 ** -rng.permutation(9)[:5])


def q5_above_one(rng: Rng) -> Arrays:
    return factors_case(rng, rng.uniform(1, 7, 4))


def q5_edges(rng: Rng) -> Arrays:
    """Fractions that round up to 1, and their neighbours."""
    return factors_case(rng, rng.permutation([1 - 2.0**-40, 1 - 2.0**-30, 0.5, 2.0**-7 * (1 - 2.0**-38)]))


# q6


def q6_random(rng: Rng) -> Arrays:
    n, i, o = _draw(rng, 3, 9, 3)
    return layer_case(rng, (n, i), (o, i))


def q6_ties(rng: Rng) -> Arrays:
    return layer_case(rng, (60, 6), (7, 6), ties=True, weight_bits=3)


def q6_narrow(rng: Rng) -> Arrays:
    return layer_case(rng, (20, 16), (6, 16), bits=4, weight_bits=3, spread=90)


def q6_saturated(rng: Rng) -> Arrays:
    return layer_case(rng, (20, 8), (5, 8), spread=120)


def q6_one_scale(rng: Rng) -> Arrays:
    return layer_case(rng, (9, 300), (3, 300), one_scale=True, zero_point=-128)


# q7


def q7_random(rng: Rng) -> Arrays:
    i, o = (2 + rng.permutation(5)[:2]).tolist()
    return conv_case(rng, (2, i, *_draw(rng, 5, 9, 2)), (o, i, 3, 3))


def q7_ties(rng: Rng) -> Arrays:
    return conv_case(rng, (3, 2, 9, 9), (6, 2, 2, 2), ties=True, weight_bits=3)


def q7_strided(rng: Rng) -> Arrays:
    """Padding on two sides only, as an even input with stride 2 has it."""
    return conv_case(rng, (2, 3, 8, 6), (5, 3, 3, 3), stride=2, padding=(0, 1, 0, 1))


def q7_depthwise(rng: Rng) -> Arrays:
    return conv_case(rng, (2, 6, 7, 7), (6, 1, 3, 3), groups=6)


def q7_grouped(rng: Rng) -> Arrays:
    return conv_case(rng, (2, 4, 9, 7), (6, 2, 3, 2), groups=2, dilation=2, padding=(2, 1, 0, 3))


def q7_narrow(rng: Rng) -> Arrays:
    return conv_case(rng, (2, 3, 6, 6), (4, 3, 1, 1), bits=4, weight_bits=4, spread=90)


def q7_saturated(rng: Rng) -> Arrays:
    return conv_case(rng, (2, 3, 6, 6), (4, 3, 3, 3), spread=120, zero_point=-128)


def q7_one_scale(rng: Rng) -> Arrays:
    return conv_case(rng, (1, 5, 6, 6), (5, 5, 3, 3), one_scale=True)


# q8


def q8_random(rng: Rng) -> Arrays:
    return fake_case(rng, _draw(rng, 4, 7, 3), rng.uniform(0.05, 0.8), -8, 7)


def q8_per_channel(rng: Rng) -> Arrays:
    return fake_case(rng, (4, 5, 3, 3), rng.uniform(0.05, 0.8, (4, 1, 1, 1)), -3, 3)


def q8_affine(rng: Rng) -> Arrays:
    """After a ReLU: all codes lie above the zero point."""
    return fake_case(rng, (8, 9), rng.uniform(0.05, 0.8), 0, 15)


QUESTIONS = [
    LAB["q1"].hidden(inputs=(q1_random, q1_sixteen, q1_empty, q1_equal, q1_few_values)),
    LAB["q2"].hidden(inputs=(q2_random, q2_saturated, q2_ties, q2_per_channel, q2_wide)),
    LAB["q3"].hidden(inputs=(q3_random, q3_positive, q3_negative, q3_relu, q3_one_value, q3_zeros)),
    LAB["q4"].hidden(inputs=(q4_random, q4_square, q4_linear, q4_dead_channel, q4_negative)),
    LAB["q5"].hidden(inputs=(q5_random, q5_powers, q5_above_one, q5_edges)),
    LAB["q6"].hidden(inputs=(q6_random, q6_ties, q6_narrow, q6_saturated, q6_one_scale)),
    LAB["q7"].hidden(
        inputs=(
            q7_random,
            q7_ties,
            q7_strided,
            q7_depthwise,
            q7_grouped,
            q7_narrow,
            q7_saturated,
            q7_one_scale,
        )
    ),
    LAB["q8"].hidden(inputs=(q8_random, q8_per_channel, q8_affine)),
    LAB["n1"].hidden(),
    LAB["n2"].hidden(),
]
