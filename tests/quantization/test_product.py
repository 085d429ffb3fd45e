"""The layer that looks up is the dense layer of its own weight, and its bytes are those that it keeps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from tinyml_edu.errors import UsageError
from tinyml_edu.quantization import ProductQuantizedLinear, product_quantize
from tinyml_edu.quantization.product import ProductCode, _spread, label_bits, pack_labels, unpack_labels


def integer_layer(rng, outputs=9, pieces=4, k=5, d=3) -> ProductQuantizedLinear:
    """A layer of small integers: float32 arithmetic on them is exact, in any order."""
    codebooks = torch.from_numpy(rng.integers(-9, 10, (pieces, k, d))).float()
    labels = torch.from_numpy(rng.integers(0, k, (outputs, pieces)))
    return ProductQuantizedLinear(ProductCode(codebooks, labels), torch.arange(float(outputs)))


@pytest.mark.parametrize("shape", [(12,), (7, 12), (2, 3, 12)])
def test_looking_up_equals_the_dense_layer_exactly_on_integers(shape, rng):
    layer = integer_layer(rng)
    x = torch.from_numpy(rng.integers(-9, 10, shape)).float()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.code().weight(), layer.bias))


def test_a_wrong_place_in_the_row_is_noticed(rng):
    layer = integer_layer(rng)
    x = torch.from_numpy(rng.integers(-9, 10, (7, 12))).float()
    code = layer.code()
    shifted = ProductCode(code.codebooks.roll(1, 0), code.labels).weight()
    assert not torch.equal(layer(x), nn.functional.linear(x, shifted, layer.bias))


def test_looking_up_equals_the_dense_layer_within_rounding(rng):
    torch.manual_seed(0)
    layer = ProductQuantizedLinear.from_linear(nn.Linear(64, 30), 4, 8)
    x, weight = torch.randn(5, 64), layer.code().weight()
    # Two float32 sums of 65 terms in different orders: each is off by 65 * eps / 2 of the absolute terms.
    bound = 65 * 2.0**-23 * (x.abs() @ weight.abs().T + layer.bias.abs())
    assert ((layer(x) - nn.functional.linear(x, weight, layer.bias)).abs() <= bound).all()


def test_the_weight_is_put_together_from_its_codewords(rng):
    code = integer_layer(rng).code()
    weight = code.weight()
    for o in range(9):
        for p in range(4):
            assert torch.equal(weight[o, 3 * p : 3 * p + 3], code.codebooks[p, code.labels[o, p]])


@pytest.mark.parametrize("subvector", [1, 2, 4, 8])
def test_more_codewords_leave_less_error_and_one_for_each_row_leaves_none(subvector):
    torch.manual_seed(0)
    weight = torch.randn(64, 32)
    errors = [
        float((product_quantize(weight, subvector, k).weight() - weight).square().mean())
        for k in (2, 4, 8, 16, 32, 64)
    ]
    assert all(b < a for a, b in pairwise(errors)), errors
    assert errors[-1] == 0


def test_a_label_is_the_nearest_codeword_and_a_codeword_the_mean_of_its_pieces():
    torch.manual_seed(0)
    weight = torch.randn(50, 12)
    code = product_quantize(weight, 3, 6)
    pieces = weight.view(50, 4, 3).double()
    distances = (pieces[:, :, None] - code.codebooks.double()).square().sum(-1)  # (O, pieces, k)
    assert torch.equal(distances.argmin(-1), code.labels)
    for p in range(4):
        for k in range(6):
            mean = pieces[code.labels[:, p] == k, p].mean(0)
            # Found in float64, stored in float32: half a unit of the last place.
            assert ((mean - code.codebooks[p, k]).abs() <= mean.abs() * 2.0**-24 + 1e-12).all()


def test_the_error_is_that_of_scikit_learn_give_or_take_the_start():
    torch.manual_seed(0)
    weight = torch.randn(200, 4)
    ours = float((product_quantize(weight, 4, 16).weight() - weight).square().sum())
    theirs = [KMeans(16, n_init=1, random_state=s).fit(weight.numpy()).inertia_ for s in range(10)]
    assert min(theirs) * 0.9 <= ours <= max(theirs) * 1.1
    random = weight[torch.randperm(200)[:16]]
    assert float(torch.cdist(weight, random).min(1).values.square().sum()) > max(theirs) * 1.1


def test_no_piece_is_drawn_twice_as_a_first_codeword_while_another_differs():
    torch.manual_seed(0)
    points = torch.randn(3, 20, 2).double()
    points[:, 10:] = points[:, :10]  # each twice
    first = _spread(points, 10, seed=0)
    for place in range(3):
        assert len(first[place].unique(dim=0)) == 10


def test_equal_rows_leave_no_codeword_undefined():
    weight = torch.ones(10, 4)
    weight[:2] = 3.0
    code = product_quantize(weight, 2, 8)
    assert torch.isfinite(code.codebooks).all()
    assert torch.equal(code.weight(), weight)


@pytest.mark.parametrize("codewords", [2, 3, 4, 5, 16, 17, 255, 256])
def test_packed_labels_come_back_from_as_few_bits_as_possible(codewords, rng):
    labels = torch.from_numpy(rng.integers(0, codewords, 77))
    packed = pack_labels(labels, codewords)
    assert label_bits(codewords) == int(np.ceil(np.log2(codewords)))
    assert packed.numel() == -(-77 * label_bits(codewords) // 8)
    assert torch.equal(unpack_labels(packed, 77, codewords), labels)


def test_the_bytes_are_those_of_all_that_the_layer_keeps():
    layer = ProductQuantizedLinear.from_linear(nn.Linear(64, 100), 4, 16)
    assert layer.nbytes == 16 * 16 * 4 * 4 + 100 * 16 // 2 + 100 * 4  # codewords, 4-bit labels, bias
    assert layer.nbytes == sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert layer.macs == 16 * 64


def test_a_state_dict_is_enough_to_restore_the_layer():
    torch.manual_seed(0)
    first, second = (ProductQuantizedLinear.from_linear(nn.Linear(8, 20), 2, 5) for _ in range(2))
    x = torch.randn(3, 8)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_codewords_get_the_gradients_of_the_weights_that_they_stand_for(rng):
    layer = integer_layer(rng)
    x = torch.from_numpy(rng.integers(-3, 4, (7, 12))).float()
    code = layer.code()
    weight = code.weight().detach().requires_grad_()
    nn.functional.linear(x, weight, layer.bias).square().sum().backward()
    layer(x).square().sum().backward()
    expected = torch.zeros_like(layer.codebooks)
    for o in range(9):
        for p in range(4):
            expected[p, code.labels[o, p]] += weight.grad[o, 3 * p : 3 * p + 3]
    assert torch.equal(layer.codebooks.grad, expected)  # integers below 2**24: exact


def test_the_seed_decides_the_start_and_the_global_generator_is_left_alone():
    weight = torch.randn(40, 6)
    state = torch.get_rng_state()
    first, again, other = (product_quantize(weight, 2, 5, seed=s).codebooks for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("weight", "subvector", "codewords", "message"),
    [
        (torch.ones(4, 6), 4, 2, "does not divide"),
        (torch.ones(4, 6), 0, 2, "does not divide"),
        (torch.ones(4, 6), 2, 1, "2 to 256"),
        (torch.ones(4, 6), 2, 257, "2 to 256"),
        (torch.ones(4), 2, 2, "matrix"),
        (torch.full((2, 2), float("inf")), 2, 2, "finite"),
    ],
)
def test_a_wrong_request_is_refused(weight, subvector, codewords, message):
    with pytest.raises(UsageError, match=message):
        product_quantize(weight, subvector, codewords)
