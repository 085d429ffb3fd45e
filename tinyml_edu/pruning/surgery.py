"""Cutting channels out of single modules, in place.

`structured` decides which; what is here knows how a convolution, a linear layer and a batch norm shrink.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .._modes import evaluating
from ..errors import UsageError
from .dependency import Layer

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def cut(module: nn.Module, layer: Layer, stays: np.ndarray) -> None:
    """Remove from one module the channels that do not stay, in place."""
    inputs, outputs = (torch.from_numpy(np.flatnonzero(stays[x])) for x in (layer.inputs, layer.outputs))
    if len(outputs) < len(layer.outputs):
        keep_outputs(module, outputs)
    if len(inputs) < len(layer.inputs) and layer.op != "BATCH_NORM":
        keep_inputs(module, inputs)


def keep_outputs(module: nn.Module, index: torch.Tensor) -> None:
    """Reduce a Conv2d, Linear or batch norm to the output channels ``index`` (O',), in this order."""
    names = ("weight", "bias", "running_mean", "running_var")
    for name in names if isinstance(module, _NORMS) else names[:2]:
        value = getattr(module, name)
        if isinstance(value, nn.Parameter):
            setattr(module, name, _parameter(value[index.to(value.device)], value))
        elif value is not None:
            setattr(module, name, value[index.to(value.device)].clone())
    if isinstance(module, nn.Conv2d):
        module.out_channels = len(index)
    elif isinstance(module, nn.Linear):
        module.out_features = len(index)
    elif isinstance(module, _NORMS):
        module.num_features = len(index)


def keep_inputs(module: nn.Module, index: torch.Tensor) -> None:
    """Reduce a Conv2d or Linear to the input channels ``index`` (I',), in this order.

    A depthwise convolution loses the groups of the other channels; its outputs are cut by `keep_outputs`.  In
    another grouped convolution ``index`` holds the same positions of every group.
    """
    weight = module.get_parameter("weight")
    index = index.to(weight.device)
    if isinstance(module, nn.Linear):
        module.weight, module.in_features = _parameter(weight[:, index], weight), len(index)
        return
    assert isinstance(module, nn.Conv2d)
    if weight.shape[1] == 1 < module.groups:
        module.groups = len(index)
    else:
        columns = index[index < weight.shape[1]]  # the positions within the first group
        module.weight = _parameter(weight[:, columns], weight)
    module.in_channels = len(index)


def _parameter(value: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def check_runs(model: nn.Module, example: Any) -> None:
    """Run the cut network once: its Python code may hold the old number of channels."""
    like = next(model.parameters())
    examples = example if isinstance(example, tuple) else (example,)
    try:
        with evaluating(model), torch.no_grad():
            model(*(x[:1].to(like.device, like.dtype) for x in examples))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the forward pass of {type(model).__name__} fixes a number of channels ({reason}); "
            "write x.flatten(1) instead of a view with that number"
        ) from error
