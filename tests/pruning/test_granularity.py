"""Each granularity removes whole units, exactly as many as it says, the lowest first.

Scores are small integers, so that sums of a unit are exact and ties are frequent.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyml_edu.errors import UsageError
from tinyml_edu.pruning.granularity import (
    GRANULARITIES,
    channel_mask,
    element_mask,
    input_channel_mask,
    kernel_mask,
    pattern_mask,
    two_four_mask,
    vector_mask,
)
from tinyml_edu.pruning.n_m import n_m_mask, search_permutation

UNITS = {
    "element": (element_mask, "oihw"),
    "vector": (vector_mask, "oih"),
    "kernel": (kernel_mask, "oi"),
    "channel": (channel_mask, "o"),
    "input_channel": (input_channel_mask, "i"),
}


@st.composite
def score_tensors(draw, min_channels=1):
    shape = (draw(st.integers(1, 4)), draw(st.integers(min_channels, 9)))
    if draw(st.booleans()):
        shape += (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    seed = draw(st.integers(0, 2**32 - 1))
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(seed)).float()


def as_4d(t):
    return t if t.dim() == 4 else t[:, :, None, None]


@pytest.mark.parametrize("name", UNITS)
@given(scores=score_tensors(), sparsity=st.floats(0, 1))
def test_whole_units_go_lowest_first_and_lower_index_on_a_tie(name, scores, sparsity):
    function, axes = UNITS[name]
    mask = function(scores, sparsity)
    assert mask.shape == scores.shape
    assert mask.dtype == torch.bool
    wide, kept = as_4d(scores), as_4d(mask)
    ranges = [range(wide.shape["oihw".index(a)]) for a in axes]
    units = []
    for place in itertools.product(*ranges):
        at = tuple(place[axes.index(a)] if a in axes else slice(None) for a in "oihw")
        members = kept[at].flatten().tolist()
        assert len(set(members)) == 1, "a unit was split"
        units.append((int(wide[at].sum()), len(units), members[0]))
    removed = round(sparsity * len(units))
    assert [kept for _, _, kept in sorted(units)] == [False] * removed + [True] * (len(units) - removed)


def test_a_coarser_unit_removes_other_weights_than_single_ones():
    scores = torch.tensor([[[[9.0, 0.0]], [[1.0, 1.0]]]])  # (1, 2, 1, 2)
    assert element_mask(scores, 0.5).flatten().tolist() == [True, False, False, True]
    assert kernel_mask(scores, 0.5).flatten().tolist() == [True, True, False, False]


def group_oracle(scores, n, m):
    """Loop over every group; the kept ones are the last n of a sort by (score, place in the group)."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    wide = as_4d(scores)
    out = as_4d(mask)
    for o, h, w in itertools.product(range(wide.shape[0]), range(wide.shape[2]), range(wide.shape[3])):
        for first in range(0, wide.shape[1], m):
            group = range(first, min(first + m, wide.shape[1]))
            order = sorted(group, key=lambda i: (float(wide[o, i, h, w]), i))
            for i in order[max(0, len(order) - n) :]:
                out[o, i, h, w] = True
    return mask


@given(scores=score_tensors(), n=st.integers(0, 5), extra=st.integers(0, 3))
def test_each_group_keeps_its_n_highest(scores, n, extra):
    m = max(1, n + extra)
    mask = n_m_mask(scores, n, m)
    assert torch.equal(mask, group_oracle(scores, n, m))


@given(scores=score_tensors(), seed=st.integers(0, 1000))
def test_a_permutation_changes_who_is_in_a_group_and_nothing_else(scores, seed):
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(seed))
    mask = n_m_mask(scores, 2, 4, permutation=order)
    assert torch.equal(mask[:, order], group_oracle(scores[:, order], 2, 4))


def test_two_four_is_half_and_follows_the_sparsity():
    scores = torch.randn(8, 16, 3, 3)
    for sparsity, kept in ((0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1), (1.0, 0)):
        mask = two_four_mask(scores, sparsity)
        assert mask.sum() == scores.numel() * kept // 4
    assert not torch.equal(two_four_mask(scores, 0.5), element_mask(scores, 0.5))


def kept_sum(scores, n, m, order):
    return float(scores[n_m_mask(scores, n, m, permutation=order)].double().sum())


def is_local_optimum(scores, n, m, order):
    for a, b in itertools.combinations(range(len(order)), 2):
        swapped = order.clone()
        swapped[[a, b]] = order[[b, a]]
        if kept_sum(scores, n, m, swapped) > kept_sum(scores, n, m, order):
            return False
    return True


@given(scores=score_tensors(min_channels=5), m=st.sampled_from([2, 4]))
def test_the_permutation_search_ends_where_no_swap_helps(scores, m):
    order = search_permutation(scores, m // 2, m)
    identity = torch.arange(scores.shape[1])
    assert sorted(order.tolist()) == identity.tolist()
    assert kept_sum(scores, m // 2, m, order) >= kept_sum(scores, m // 2, m, identity)
    movable = scores.shape[1]
    assert is_local_optimum(scores, m // 2, m, order), (scores, order[:movable])


def test_the_local_optimum_check_can_fail():
    scores = torch.tensor([[4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 4.0, 0.0]])
    assert not is_local_optimum(scores, 2, 4, torch.arange(8))


def test_the_search_finds_the_best_grouping_of_small_layers_most_of_the_time():
    """All 35 ways to split 8 channels into two groups: greedy swaps reach the best in at least half."""
    reached = 0
    for seed in range(12):
        scores = torch.rand(4, 8, generator=torch.Generator().manual_seed(seed))
        splits = [list(c) for c in itertools.combinations(range(8), 4) if 0 in c]
        orders = [torch.tensor(c + [i for i in range(8) if i not in c]) for c in splits]
        best = max(kept_sum(scores, 2, 4, order) for order in orders)
        found = kept_sum(scores, 2, 4, search_permutation(scores))
        assert found <= best * (1 + 1e-12)
        reached += found >= best * (1 - 1e-12)
    assert len(splits) == 35
    assert reached >= 6, reached


@given(scores=score_tensors(), sparsity=st.floats(0, 1), patterns=st.integers(1, 4))
def test_every_kernel_keeps_the_best_pattern_of_a_small_library(scores, sparsity, patterns):
    mask = as_4d(pattern_mask(scores, sparsity, patterns=patterns)).flatten(2).flatten(0, 1)
    kernels = as_4d(scores).flatten(2).flatten(0, 1)
    size = kernels.shape[1]
    assert (mask.sum(1) == size - round(sparsity * size)).all()
    assert len(mask.unique(dim=0)) <= patterns
    for kernel, chosen in zip(kernels, mask):
        sums = [float(kernel[other].sum()) for other in mask]
        assert float(kernel[chosen].sum()) == max(sums), "another kernel's pattern would keep more"


def test_with_a_large_library_a_kernel_keeps_its_own_largest():
    scores = torch.rand(4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = pattern_mask(scores, 0.5, patterns=6)  # all of "2 of 4"
    expected = torch.stack([element_mask(kernel, 0.5) for kernel in scores.flatten(0, 1)])
    assert torch.equal(mask.flatten(0, 1), expected)
    assert not torch.equal(pattern_mask(scores, 0.5, patterns=2), mask)


def test_the_library_is_made_of_the_most_common_patterns():
    rows = [[2.0, 1.0]] * 3 + [[1.0, 2.0]] * 2
    mask = pattern_mask(torch.tensor(rows).reshape(5, 1, 1, 2), 0.5, patterns=1)
    assert mask.reshape(5, 2).tolist() == [[True, False]] * 5


@pytest.mark.parametrize("name", GRANULARITIES)
@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_out_of_range_is_refused(name, sparsity):
    with pytest.raises(UsageError, match="between 0 and 1"):
        GRANULARITIES[name](torch.ones(2, 4, 3, 3), sparsity)


@pytest.mark.parametrize("name", GRANULARITIES)
def test_scores_that_are_not_numbers_are_refused(name):
    with pytest.raises(UsageError, match="numbers"):
        GRANULARITIES[name](torch.full((2, 4, 3, 3), float("nan")), 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: n_m_mask(torch.ones(2, 4), 3, 2),
        lambda: n_m_mask(torch.ones(2, 4), permutation=torch.tensor([0, 1, 2, 2])),
        lambda: n_m_mask(torch.ones(4)),
        lambda: search_permutation(-torch.ones(2, 4)),
        lambda: kernel_mask(torch.ones(4), 0.5),
        lambda: pattern_mask(torch.ones(1, 1, 2, 2), 0.5, patterns=0),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(call):
    with pytest.raises(UsageError):
        call()
