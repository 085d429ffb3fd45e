"""Small reference networks, each a plain ``nn.Module`` of convolutions, batch norms and activations.

Every activation and batch norm is its own module and every shape is static, so that ``torch.export``
captures a network and its batch norms can be folded.  ``width`` scales all channel counts.
Inputs are (N, C, H, W); outputs are logits (N, classes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import UnknownNameError, UsageError

VGG_PLAN: tuple[int | str, ...] = (32, 32, "M", 64, 64, "M", 128, 128, "M", 128)
"""Channels of the 3×3 convolutions of :func:`vgg_lite`; ``"M"`` halves H and W by a 2×2 maximum."""

MOBILENET_PLAN = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2), (4, 64, 2, 2))
"""(expansion, channels, blocks, stride of the first block) of :func:`mobilenet_v2_tiny`."""


def scaled(channels: int, width: float) -> int:
    """Return ``channels * width`` rounded to a multiple of 4, at least 4.

    Multiples of 4 keep int8 rows of weights on 32-bit words.

    Examples
    --------
    >>> scaled(32, 0.5), scaled(16, 0.3)
    (16, 4)
    """
    return max(4, round(channels * width / 4) * 4)


class ConvBN(nn.Sequential):
    """Convolution, batch norm and, unless ``activation`` is None, an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> None:
        if padding is None:
            padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        super().__init__()
        self.add_module("conv", conv)
        self.add_module("bn", nn.BatchNorm2d(outputs))
        if activation is not None:
            self.add_module("relu", activation())


class Classifier(nn.Module):
    """Features (N, C, H, W), their mean over H and W, and a linear layer: logits (N, classes)."""

    def __init__(self, features: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.features(x))))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes [1]_.

    References
    ----------
    .. [1] He et al., CVPR 2016.  https://arxiv.org/abs/1512.03385
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvBN(inputs, outputs, 3, stride=stride)
        self.second = ConvBN(outputs, outputs, 3, activation=None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvBN(inputs, outputs, 1, stride=stride, activation=None)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter by a depthwise 3×3, project by 1×1 without activation [1]_.

    References
    ----------
    .. [1] Sandler et al., CVPR 2018.  https://arxiv.org/abs/1801.04381
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [ConvBN(inputs, hidden, 1, activation=nn.ReLU6)] if expansion != 1 else []
        layers.append(ConvBN(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6))
        layers.append(ConvBN(hidden, outputs, 1, activation=None))
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.adds else y


def vgg_lite(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Return the plain convolutional network of the labs.

    At width 1 on (3, 32, 32) with 10 classes: 436,458 parameters and 41.0 M MACs.

    Parameters
    ----------
    classes : int
        Number of logits.
    in_channels : int
        C of the input (N, C, H, W); H and W are at least 8.
    width : float
        Factor on all channel counts, see :func:`scaled`.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for step in VGG_PLAN:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers.append(ConvBN(channels, scaled(step, width)))
            channels = scaled(step, width)
    return _initialised(Classifier(nn.Sequential(*layers), channels, classes))


def resnet8(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Return ResNet-8, the shape of MLPerf Tiny's image classifier [1]_.

    At width 1 on (3, 32, 32) with 10 classes: 78,042 parameters and 12.5 M MACs.

    References
    ----------
    .. [1] Banbury et al., MLPerf Tiny Benchmark, 2021.  https://arxiv.org/abs/2106.07597
    """
    a, b, c = (scaled(n, width) for n in (16, 32, 64))
    blocks = [ResidualBlock(a, a, 1), ResidualBlock(a, b, 2), ResidualBlock(b, c, 2)]
    return _initialised(Classifier(nn.Sequential(ConvBN(in_channels, a), *blocks), c, classes))


def mobilenet_v2_tiny(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Return a MobileNetV2 for images of 32 to 96 pixels: 7 inverted residuals, stem of stride 1.

    At width 1 on (3, 32, 32) with 10 classes: 86,922 parameters and 6.4 M MACs.
    """
    stem = scaled(16, width)
    layers: list[nn.Module] = [ConvBN(in_channels, stem, activation=nn.ReLU6)]
    channels = stem
    for expansion, outputs, blocks, first_stride in MOBILENET_PLAN:
        for i in range(blocks):
            stride = first_stride if i == 0 else 1
            layers.append(InvertedResidual(channels, scaled(outputs, width), stride, expansion))
            channels = scaled(outputs, width)
    head = scaled(128, width)
    layers.append(ConvBN(channels, head, 1, activation=nn.ReLU6))
    return _initialised(Classifier(nn.Sequential(*layers), head, classes))


def ds_cnn(classes: int = 6, in_channels: int = 1, width: float = 1.0) -> nn.Module:
    """Return the depthwise-separable network for keyword spotting [1]_, also usable on images.

    One input channel is taken as a log-mel picture (1, 49, 10): the first kernel is 10×4 with stride 2, as
    in the paper.  With more channels it is 3×3 with stride 2.

    References
    ----------
    .. [1] Zhang et al., Hello Edge, 2017.  https://arxiv.org/abs/1711.07128
    """
    channels = scaled(64, width)
    kernel = (10, 4) if in_channels == 1 else (3, 3)
    padding = (5, 1) if in_channels == 1 else (1, 1)
    layers: list[nn.Module] = [ConvBN(in_channels, channels, kernel, stride=2, padding=padding)]
    for _ in range(4):
        layers.append(ConvBN(channels, channels, 3, groups=channels))
        layers.append(ConvBN(channels, channels, 1))
    return _initialised(Classifier(nn.Sequential(*layers), channels, classes))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg_lite": vgg_lite,
    "resnet8": resnet8,
    "mobilenet_v2_tiny": mobilenet_v2_tiny,
    "ds_cnn": ds_cnn,
}


def build(name: str, classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Return the network ``name``, randomly initialised from torch's global generator.

    Raises
    ------
    UnknownNameError
        If no network has that name.
    UsageError
        If a size is not positive.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    if classes < 1 or in_channels < 1 or not width > 0:
        raise UsageError(
            f"model {name!r} needs classes >= 1, in_channels >= 1 and width > 0; "
            f"got {classes}, {in_channels} and {width}"
        )
    return MODELS[name](classes=classes, in_channels=in_channels, width=width)


def _initialised(model: nn.Module) -> nn.Module:
    """Draw convolution weights for ReLU networks (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            torch.nn.init.zeros_(module.bias)
    return model
