"""Lab 1, hidden inputs: seeded random networks that no student has seen, and cases where shortcuts break."""

from __future__ import annotations

import numpy as np

from tinyml_edu.checks.lab01 import (
    LAB,
    chain_case,
    channels_case,
    gaps_mask,
    mask_case,
    scan_case,
    steps_case,
    tensor_case,
    weight_case,
)
from tinyml_edu.checks.protocol import Arrays

Rng = np.random.Generator


def _draw(rng: Rng, low: int, high: int, n: int) -> list[int]:
    return rng.integers(low, high, n).tolist()


def _different(rng: Rng, low: int, high: int, n: int) -> list[int]:
    """Return ``n`` different channel counts, so that no wrong axis fits by accident."""
    return (low + rng.permutation(high - low)[:n]).tolist()


# q1


def q1_random(rng: Rng) -> Arrays:
    return tensor_case(rng.normal(size=_draw(rng, 3, 9, 4)), float(rng.uniform(0.2, 0.9)))


def q1_ties(rng: Rng) -> Arrays:
    """Few magnitudes, each of them many times: a threshold cannot give the right count."""
    return tensor_case(rng.integers(-3, 4, size=(7, 5, 3, 3)), float(rng.uniform(0.3, 0.7)))


def q1_all_equal(rng: Rng) -> Arrays:
    return tensor_case(np.full((3, 5), -0.5), int(rng.integers(3, 12)) / 15)


def q1_rounding(rng: Rng) -> Arrays:
    """The share falls between two counts, nearer to the upper one."""
    n = int(rng.integers(20, 30))
    return tensor_case(rng.normal(size=n), (int(rng.integers(3, 15)) + 0.7) / n)


def q1_nothing(rng: Rng) -> Arrays:
    return tensor_case(rng.normal(size=(4, 4)), 0.0)


def q1_everything(rng: Rng) -> Arrays:
    return tensor_case(rng.normal(size=(4, 4)), 1.0)


# q2


def q2_random(rng: Rng) -> Arrays:
    return steps_case(rng, [3, *_draw(rng, 4, 9, 3)], rng.uniform(0.2, 0.9, 3).tolist())


def q2_scales(rng: Rng) -> Arrays:
    """One layer's weights are a thousand times larger: one threshold for all would empty the others."""
    case = steps_case(rng, [2, 5, 6], [0.5, 0.5])
    case["state/features.1.conv.weight"] *= np.float32(1000)
    return case


def q2_pooled(rng: Rng) -> Arrays:
    return steps_case(rng, [3, 6, 4, 5], [0.0, 0.8, 0.25], pools=(0, 1))


# q3


def q3_random(rng: Rng) -> Arrays:
    return scan_case(rng, [3, *_draw(rng, 3, 7, 2)], sorted(rng.uniform(0.2, 0.9, 3).tolist()))


def q3_descending(rng: Rng) -> Arrays:
    """From sparse to dense: weights that were removed before must be back."""
    return scan_case(rng, [2, 5, 4], [0.9, 0.3, 0.6], pools=(0,))


def q3_one_sparsity(rng: Rng) -> Arrays:
    return scan_case(rng, [3, 4, 6, 4], [float(rng.uniform(0.3, 0.8))], kernel=1)


# q4


def q4_edges(rng: Rng) -> Arrays:
    """Gaps of one less than, exactly, and one more than the index can bridge, and a long end."""
    gaps = rng.permutation([14, 15, 16, 17, 31, 32, 33, 47, 48, 160]).tolist()
    return mask_case(gaps_mask(gaps, end=int(rng.integers(20, 90))))


def q4_narrow(rng: Rng) -> Arrays:
    return mask_case(gaps_mask(_draw(rng, 0, 30, 25), end=9), value_bits=5, index_bits=2)


def q4_random(rng: Rng) -> Arrays:
    return mask_case(rng.random((9, 7, 3, 3)) < rng.uniform(0.02, 0.08), value_bits=7, index_bits=3)


def q4_dense(rng: Rng) -> Arrays:
    return mask_case(np.ones((int(rng.integers(3, 9)), 5)), value_bits=4)


def q4_empty(rng: Rng) -> Arrays:
    return mask_case(np.zeros((int(rng.integers(3, 9)), 13)))


# q5


def q5_random(rng: Rng) -> Arrays:
    ratios = rng.choice([0.15, 0.35, 0.45, 0.65], size=2, replace=False).tolist()
    pairs = [(int(c), 0.37) for c in _draw(rng, 11, 99, 4)]
    return channels_case(rng, _different(rng, 5, 14, 4), ratios, pairs)


def q5_square(rng: Rng) -> Arrays:
    """Equal widths: cutting the wrong axis gives the right shape and the wrong weights."""
    return channels_case(rng, [6, 6, 6, 6], [0.35, 0.35], [(6, 0.35), (40, 0.3)], pools=(0, 1))


def q5_last_channel(rng: Rng) -> Arrays:
    """A ratio that would leave nothing."""
    return channels_case(rng, [3, 4, 7, 5], [0.95, 0.1], [(4, 0.95), (2, 0.9), (9, 1.0)])


# q6


def q6_random(rng: Rng) -> Arrays:
    o, i = _different(rng, 4, 12, 2)
    return weight_case(rng.normal(size=(o, i, 3, 3)))


def q6_square(rng: Rng) -> Arrays:
    """As many outputs as inputs: the wrong axis shows in the values only."""
    return weight_case(rng.normal(size=(6, 6, 3, 3)) * 1.3 ** rng.permutation(6)[:, None, None, None])


def q6_zero_channel(rng: Rng) -> Arrays:
    weight = rng.normal(size=(5, 4, 1, 3))
    weight[:, int(rng.integers(4))] = 0
    return weight_case(weight)


# q7


def q7_random(rng: Rng) -> Arrays:
    return chain_case(rng, _different(rng, 4, 11, 4))


def q7_square(rng: Rng) -> Arrays:
    return chain_case(rng, [7, 7, 7, 7], pools=(1,))


def q7_two_layers(rng: Rng) -> Arrays:
    return chain_case(rng, [1, int(rng.integers(5, 9)), 1], kernel=1)


QUESTIONS = [
    LAB["q1"].hidden(inputs=(q1_nothing, q1_everything, q1_rounding, q1_all_equal, q1_ties, q1_random)),
    LAB["q2"].hidden(inputs=(q2_scales, q2_pooled, q2_random)),
    LAB["q3"].hidden(inputs=(q3_one_sparsity, q3_descending, q3_random)),
    LAB["q4"].hidden(inputs=(q4_empty, q4_dense, q4_edges, q4_narrow, q4_random)),
    LAB["q5"].hidden(inputs=(q5_last_channel, q5_square, q5_random)),
    LAB["q6"].hidden(inputs=(q6_zero_channel, q6_square, q6_random)),
    LAB["q7"].hidden(inputs=(q7_two_layers, q7_square, q7_random)),
    LAB["n1"].hidden(),
    LAB["n2"].hidden(),
]
