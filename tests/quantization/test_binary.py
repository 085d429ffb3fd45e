"""Binary weights and inputs: exact sums, optimal scales, gradients as defined, and training that works."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinyml_edu import data, train, zoo
from tinyml_edu.errors import UnknownNameError, UsageError
from tinyml_edu.models import ConvBN, vgg_lite
from tinyml_edu.quantization.binary import BinaryConv2d, BinaryLinear, binarize, clip_weights, sign_ste
from tinyml_edu.quantization.low_bit_networks import binarize_layers, xnor_vgg_lite
from tinyml_edu.quantization.runtime.packed_layer import PackedLayer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def signs(x):
    return np.where(np.asarray(x) >= 0, 1.0, -1.0)


# Signs and their gradient ----------------------------------------------------------------------------------


def test_the_gradient_passes_up_to_one_and_stops_beyond():
    x = torch.tensor([-3.0, -1.0001, -1.0, -0.2, 0.0, 0.7, 1.0, 1.0001, 9.0], requires_grad=True)
    weights = torch.arange(1.0, 10.0)
    (sign_ste(x) * weights).sum().backward()
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0]


def test_without_the_estimator_nothing_would_learn():
    x = torch.tensor([0.5, -0.5], requires_grad=True)
    torch.sign(x).sum().backward()
    assert x.grad.tolist() == [0, 0]  # the control: the true derivative
    x.grad = None
    binarize(x).sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_deterministic_weights_are_signs_and_zero_is_positive():
    w = torch.tensor([[-0.3, -0.0], [0.0, 4.0]])
    assert binarize(w).tolist() == [[-1, 1], [1, 1]]
    with pytest.raises(UsageError, match="NaN"):
        binarize(torch.tensor([float("nan")]))


def test_stochastic_weights_have_the_clipped_weight_as_mean():
    w = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.3, 0.9, 1.0, 5.0])
    n = 20_000
    draws = binarize(w.repeat(n, 1), stochastic=True, generator=torch.Generator().manual_seed(1))
    assert set(draws.unique().tolist()) == {-1.0, 1.0}
    # Hoeffding: a mean of n values in [-1, 1] is off by t with probability at most 2 exp(-n t^2 / 2).
    bound = (2 * np.log(2 * len(w) / 1e-9) / n) ** 0.5
    error = (draws.mean(dim=0) - w.clamp(-1, 1)).abs()
    assert error.max() <= bound
    assert (draws.mean(dim=0) - w.sign()).abs().max() > bound  # the control: the deterministic form
    assert error[[0, 1, 6, 7]].max() == 0  # at and beyond 1 nothing is left to chance


def test_stochastic_weights_have_the_same_gradient():
    w = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    (binarize(w, stochastic=True) * torch.arange(1.0, 5.0)).sum().backward()
    assert w.grad.tolist() == [0, 2, 3, 0]


# Scales ----------------------------------------------------------------------------------------------------


def test_sign_and_mean_magnitude_are_the_nearest_binary_weights(rng):
    """Brute force over all sign patterns, each with its own best scale."""
    for _ in range(20):
        layer = BinaryLinear(6, 1)
        layer.weight.data = torch.from_numpy(rng.standard_normal((1, 6)))
        w, alpha = layer.weight.detach().numpy()[0], float(layer.alpha().detach())
        error = np.sum((w - alpha * signs(w)) ** 2)
        best = min(
            np.sum((w - max(np.dot(w, b) / 6, 0) * np.array(b)) ** 2)
            for b in itertools.product((-1, 1), repeat=6)
        )
        assert error == pytest.approx(best, rel=1e-12)
        assert np.sum((w - 1.1 * alpha * signs(w)) ** 2) > best * (1 + 1e-9)  # the control


def test_the_gradient_of_a_weight_is_the_chain_rule_with_the_gate():
    layer = BinaryLinear(3, 2, bias=False, method="binary_weight").double()
    layer.weight.data = torch.tensor([[0.5, -2.0, 0.25], [1.5, 0.1, -0.9]]).double()
    x, g = torch.tensor([[1.0, 2.0, -3.0]]).double(), torch.tensor([[2.0, -1.0]]).double()
    (layer(x) * g).sum().backward()
    w, b = layer.weight.detach(), torch.from_numpy(signs(layer.weight.detach()))
    alpha = w.abs().mean(dim=1, keepdim=True)
    # y_o = alpha_o * (b_o . x): through the signs where |w| <= 1, and through alpha = mean |w|.
    wanted = g.T * (alpha * x * (w.abs() <= 1) + b / 3 * (b @ x.T))
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-12, atol=1e-12)


# Layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["binary_connect", "binary_weight", "xnor"])
def test_a_linear_layer_multiplies_signs(method, rng):
    layer = BinaryLinear(37, 5, method=method)
    x = rng.integers(-4, 5, (3, 37)).astype(np.float32)  # whole numbers: every sum is exact
    w, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    alpha = 1 if method == "binary_connect" else layer.alpha().detach().numpy()
    inputs = signs(x) if method == "xnor" else x
    wanted = (inputs @ signs(w).T).astype(np.float32) * alpha + bias
    np.testing.assert_array_equal(layer(torch.from_numpy(x)).detach().numpy(), wanted)


def naive_conv(x, w, stride, padding, dilation):
    """Sums of signs in plain loops, (N, O, OH, OW); the frame is +1, as the sign of a padded 0."""
    frame = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    reach = [(w.shape[2] - 1) * dilation[0] + 1, (w.shape[3] - 1) * dilation[1] + 1]
    rows = range(0, frame.shape[2] - reach[0] + 1, stride[0])
    columns = range(0, frame.shape[3] - reach[1] + 1, stride[1])
    y = np.zeros((len(x), len(w), len(rows), len(columns)))
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            window = frame[:, :, r : r + reach[0] : dilation[0], c : c + reach[1] : dilation[1]]
            y[:, :, i, j] = np.einsum("nihw,oihw->no", signs(window), signs(w))
    return y


CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": 3, "dilation": (2, 1), "padding": (2, 1), "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_sums_signs_with_a_frame_of_plus_one(options, rng):
    layer = BinaryConv2d(7, 5, **options)
    x = rng.standard_normal((2, 7, 6, 9)).astype(np.float32)
    sums = naive_conv(x, layer.weight.detach().numpy(), layer.stride, layer.padding, layer.dilation)
    wanted = sums.astype(np.float32) * layer.alpha().detach().numpy()[:, None, None]
    if layer.bias is not None:
        wanted = wanted + layer.bias.detach().numpy()[:, None, None]
    np.testing.assert_array_equal(layer(torch.from_numpy(x)).detach().numpy(), wanted)


def test_real_inputs_are_framed_by_zeros():
    layer = BinaryConv2d(3, 4, 3, padding=1, method="binary_connect")
    x = torch.randint(-4, 5, (2, 3, 5, 5)).float()
    wanted = F.conv2d(x, torch.from_numpy(signs(layer.weight.detach())).float(), padding=1)
    assert torch.equal(layer(x), wanted + layer.bias[:, None, None])


def test_the_input_scale_is_the_mean_magnitude_of_each_window(rng):
    layer = BinaryConv2d(4, 3, 3, stride=2, padding=1, bias=False, input_scale=True).double()
    plain = BinaryConv2d(4, 3, 3, stride=2, padding=1, bias=False).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.from_numpy(rng.standard_normal((2, 4, 7, 7)))
    frame = F.pad(x.abs(), (1, 1, 1, 1))
    scale = torch.stack([frame[:, :, r : r + 3, c : c + 3].mean(dim=(1, 2, 3)) for r, c in
                         itertools.product((0, 2, 4, 6), repeat=2)], dim=1)  # fmt: skip
    torch.testing.assert_close(layer(x), plain(x) * scale.reshape(2, 1, 4, 4), rtol=1e-12, atol=1e-12)
    row = BinaryLinear(4, 3, bias=False, input_scale=True).double()
    torch.testing.assert_close(
        row(x[:, :, 0, 0]), F.linear(sign_ste(x[:, :, 0, 0]), sign_ste(row.weight)) * row.alpha()
        * x[:, :, 0, 0].abs().mean(dim=1, keepdim=True),
    )  # fmt: skip


def test_draws_happen_in_training_only():
    layer = BinaryLinear(50, 20, method="binary_connect", stochastic=True)
    x = torch.ones(1, 50)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), F.linear(x, sign_ste(layer.weight)) + layer.bias)


def test_behind_a_relu_every_sign_is_the_same():
    """Why XNOR networks put a batch norm before each binary layer."""
    layer = BinaryLinear(30, 4)
    outputs = layer(torch.relu(torch.randn(20, 30)))
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))
    assert len(layer(nn.BatchNorm1d(30)(torch.relu(torch.randn(20, 30)))).unique(dim=0)) > 10


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UnknownNameError, match="binary method"):
        BinaryLinear(3, 3, method="xor")
    with pytest.raises(UsageError, match="input_scale"):
        BinaryLinear(3, 3, method="binary_weight", input_scale=True)
    with pytest.raises(UsageError, match="padding='same'"):
        BinaryConv2d(3, 3, 3, padding="same")


# Packed layers ---------------------------------------------------------------------------------------------


@pytest.mark.c
@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("input_scale", [False, True])
def test_a_packed_convolution_gives_the_same_bits(options, input_scale):
    layer = BinaryConv2d(7, 11, **options, input_scale=input_scale)
    x = torch.randn(3, 7, 8, 10)
    assert torch.equal(PackedLayer(layer)(x), layer(x))


@pytest.mark.c
def test_a_packed_linear_layer_gives_the_same_bits_until_a_weight_flips():
    for input_scale in (False, True):
        layer, x = BinaryLinear(130, 9, input_scale=input_scale), torch.randn(17, 130)
        packed = PackedLayer(layer)
        assert torch.equal(packed(x), layer(x))
        packed.bits.words[8, 2] ^= np.uint64(2)  # input 129 of output 8
        assert not torch.equal(packed(x), layer(x))


def test_a_packed_layer_counts_every_byte():
    layer = BinaryConv2d(64, 128, 3)
    packed = PackedLayer(layer)
    assert packed.bits.nbytes * 32 == layer.weight.nbytes
    assert packed.nbytes == 128 * 64 * 9 // 8 + 4 * 128 + 4 * 128  # bits, alpha, bias
    for bad in (BinaryLinear(3, 3, method="binary_weight"), BinaryConv2d(4, 4, 3, groups=2)):
        with pytest.raises(UsageError, match="packed"):
            PackedLayer(bad)


# Networks --------------------------------------------------------------------------------------------------


def test_first_and_last_layer_stay_real_and_the_network_is_copied():
    net = nn.Sequential(ConvBN(3, 8), ConvBN(8, 8), nn.Flatten(), nn.Linear(8 * 16, 6), nn.Linear(6, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = binarize_layers(net, stochastic=True)
    binary = [p for p, m in made.named_modules() if isinstance(m, BinaryConv2d | BinaryLinear)]
    assert binary == ["1.conv", "3"]
    assert made.state_dict().keys() == before.keys()
    made(torch.randn(4, 3, 4, 4)).sum().backward()
    for parameter in made.parameters():
        parameter.data += 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert binarize_layers(net, skip=()).get_submodule("0.conv").method == "binary_weight"


def test_networks_that_cannot_be_binarized_are_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UsageError, match="none of the 2 layers"):
        binarize_layers(net)
    with pytest.raises(UnknownNameError, match="layer to skip"):
        binarize_layers(net, skip=["2"])
    with pytest.raises(UsageError, match="ReLU"):
        binarize_layers(net, method="xnor")


def test_an_xnor_vgg_has_the_shape_of_the_real_one_and_reads_signs_of_both_kinds():
    net, real = xnor_vgg_lite(width=0.25), vgg_lite(width=0.25)
    binary = [m for m in net.modules() if isinstance(m, BinaryConv2d)]
    convolutions = [m for m in real.modules() if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape for m in binary] == [m.weight.shape for m in convolutions[1:]]
    assert all(m.method == "xnor" for m in binary)
    shares = {}
    for name, module in net.named_modules():
        if isinstance(module, BinaryConv2d):
            module.register_forward_pre_hook(
                lambda _, x, name=name: shares.update({name: float((x[0] >= 0).float().mean())})
            )
    assert net(torch.randn(16, 3, 32, 32)).shape == (16, 10)
    # Batch norm centres each channel, so both signs are there, also behind a maximum over pixels.
    assert len(shares) == len(binary)
    assert all(0.1 < share < 0.9 for share in shares.values()), shares


def test_clipping_holds_real_weights_within_one():
    net = nn.Sequential(BinaryLinear(4, 4), nn.Linear(4, 4))
    for layer in net:
        layer.weight.data.fill_(3.0)
    clip_weights(net)
    assert net[0].weight.unique().tolist() == [1.0]
    assert net[1].weight.unique().tolist() == [3.0]


def test_an_xnor_network_learns_and_needs_the_estimator():
    """A product of two signs: no layer without a trained hidden one separates it."""
    x = torch.randn(400, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()

    def accuracy(estimator):
        torch.manual_seed(0)
        lift = nn.Linear(2, 64)
        for parameter in lift.parameters():
            parameter.requires_grad = False
        net = nn.Sequential(lift, nn.BatchNorm1d(64), BinaryLinear(64, 32), nn.BatchNorm1d(32),
                            BinaryLinear(32, 2), nn.BatchNorm1d(2))  # fmt: skip
        if not estimator:  # the control: the true gradient of the signs, which is 0
            net[2].weight.requires_grad = net[4].weight.requires_grad = False
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 0.01)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            clip_weights(net)
        return float((net.eval()(x).argmax(dim=1) == y).float().mean())

    assert accuracy(True) > 0.9 > accuracy(False)


def test_one_epoch_with_the_estimator_beats_binarization_after_training():
    model, _ = zoo.load("resnet8.glyphs32")
    images, held_out = (data.load("glyphs32", s, size=n) for s, n in (("train", 2000), ("test", 500)))
    binary = binarize_layers(model)
    after_training = train.evaluate(binary, held_out)
    config = train.TrainConfig(
        epochs=1, batch_size=50, learning_rate=1e-3, optimizer="adamw", progress=False, device="cpu"
    )
    history = train.fit(binary, images, held_out, config, after_step=clip_weights)
    # Ten letters: 0.1 is chance.
    assert after_training < 0.25
    assert history.validation_accuracy > 0.6
