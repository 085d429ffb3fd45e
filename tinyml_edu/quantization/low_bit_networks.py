"""Networks whose layers have weights of two or three values, made from real ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UnknownNameError, UsageError
from ..models import VGG_PLAN, Classifier, scaled
from .binary import BinaryConv2d, BinaryLinear
from .checking import require_module
from .ternary import TTQ, TWN


def binarize_layers(
    model: nn.Module,
    *,
    method: Literal["binary_connect", "binary_weight"] = "binary_weight",
    stochastic: bool = False,
    skip: Iterable[str] | None = None,
) -> nn.Module:
    """Return a copy of a network whose convolutions and linear layers have binary weights.

    Parameters
    ----------
    model : nn.Module
    method : {"binary_weight", "binary_connect"}
        With or without scale.  Binary inputs need another order of layers, see `BinaryConv2d`.
    stochastic : bool, default=False
        As in `BinaryLinear`.
    skip : iterable of str, optional
        Paths of layers that stay real.  Default: the first and the last, as in XNOR-Net.

    Raises
    ------
    UsageError
        If a name in ``skip`` is no such layer, no layer is left, or one is parametrized.
    """
    if method == "xnor":
        raise UsageError("behind a ReLU every input's sign is +1; build XNOR networks with BinaryConv2d")
    result = copy.deepcopy(model)
    for path in _replaceable(result, skip):
        parent, _, name = path.rpartition(".")
        made = _binary_like(result.get_submodule(path), method, stochastic)
        setattr(result.get_submodule(parent), name, made)
    return result


def ternarize_layers(
    model: nn.Module, *, method: str = "ttq", skip: Iterable[str] | None = None
) -> nn.Module:
    """Return a copy of a network whose convolutions and linear layers have ternary weights.

    Parameters
    ----------
    model : nn.Module
    method : {"ttq", "twn"}
    skip : iterable of str, optional
        Paths of layers that stay real.  Default: the first and the last, as in the paper.

    Raises
    ------
    UsageError
        If a name in ``skip`` is no such layer, no layer is left, or one is parametrized.
    """
    if method not in ("twn", "ttq"):
        raise UnknownNameError("ternary method", method, ("twn", "ttq"))
    result = copy.deepcopy(model)
    for path in _replaceable(result, skip):
        layer = result.get_submodule(path)
        made: nn.Module = TTQ(cast(Tensor, layer.weight)) if method == "ttq" else TWN()
        parametrize.register_parametrization(layer, "weight", made)
    return result


def xnor_vgg_lite(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """Return `models.vgg_lite` as an XNOR network: binary weights and binary inputs.

    The order of a block is that of [1]_, figure 4: batch norm, sign, convolution, pooling.  The first
    convolution and the last linear layer stay real.  Train it with ``after_step=clip_weights``.

    Parameters
    ----------
    classes, in_channels, width : int, int, float
        As in `models.vgg_lite`.

    References
    ----------
    .. [1] Rastegari et al., XNOR-Net, ECCV 2016.  https://arxiv.org/abs/1603.05279
    """
    first, *rest = VGG_PLAN
    channels = scaled(cast(int, first), width)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
    for step in rest:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
            continue
        outputs = scaled(step, width)
        layers += [nn.BatchNorm2d(channels), BinaryConv2d(channels, outputs, 3, padding=1, bias=False)]
        channels = outputs
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), channels, classes)


def _replaceable(model: nn.Module, skip: Iterable[str] | None) -> list[str]:
    """Return the paths of convolutions and linear layers, without ``skip`` (default: first and last)."""
    require_module(model)
    paths = [p for p, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and p]
    skipped = {*paths[:1], *paths[-1:]} if skip is None else set(skip)
    if unknown := skipped - set(paths):
        raise UnknownNameError("layer to skip", sorted(unknown)[0], paths)
    kept = [path for path in paths if path not in skipped]
    for path in kept:
        if parametrize.is_parametrized(model.get_submodule(path)):
            raise UsageError(f"{path} has a parametrized weight already; start from the real network")
    if not kept:
        raise UsageError(f"none of the {len(paths)} layers is left to change; pass a shorter skip")
    return kept


def _binary_like(layer: nn.Module, method: str, stochastic: bool) -> nn.Module:
    """Return a binary layer with the sizes, weights, mode and device of a real one."""
    options: dict[str, Any] = {"bias": layer.bias is not None, "method": method, "stochastic": stochastic}
    made: nn.Module
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise UsageError(f"padding_mode={layer.padding_mode!r} has no binary form; use zeros")
        options |= {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        kernel = cast(tuple[int, int], layer.kernel_size)
        made = BinaryConv2d(layer.in_channels, layer.out_channels, kernel, **options)
    else:
        made = BinaryLinear(cast(int, layer.in_features), cast(int, layer.out_features), **options)
    made.register_parameter("weight", cast(nn.Parameter, layer.weight))
    made.register_parameter("bias", cast(nn.Parameter | None, layer.bias))
    return made.train(layer.training)
