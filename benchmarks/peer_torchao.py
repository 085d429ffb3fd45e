"""Post-training quantization by torchao: PT2E with the quantizer for x86, written by ``torch.export.save``.

What PT2E converts to are float32 convolutions between quantize and dequantize operators with int8 weights;
a compiler for a device turns these into integer kernels.  The accuracies are those of the operators as they
stand, and the logits stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peer_onnxruntime import quiet

SETTINGS = ("histogram", "histogram_per_tensor", "minmax")
"""Observer of the activations; weights have one scale for each output channel but where it says per tensor.

``histogram`` is the quantizer's own configuration: the range of least squared error of a histogram.
"""


def quantize(model: nn.Module, x: torch.Tensor, setting: str, path: Path, batch_size: int = 32) -> nn.Module:
    """Write the int8 form of a model as ``.pt2`` and return what the file holds.

    Parameters
    ----------
    model : Module
        (n, C, H, W) -> (n, classes); it is not changed.
    x : Tensor float32 (n, C, H, W)
        Calibration inputs.
    setting : str
        One of `SETTINGS`.
    path : Path
        Of the file to write.
    """
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        prepared = prepare_pt2e(_exported(model, x).module(), _quantizer(setting))
        with torch.no_grad():
            for start in range(0, len(x), batch_size):
                prepared(x[start : start + batch_size])
        converted = convert_pt2e(prepared)
        _drop_unread(converted)
        torch.export.save(_exported(converted, x), path)
        return torch.export.load(path).module()


def predictor(module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Return what maps inputs, float32 (n, C, H, W), to logits (n, classes)."""

    def predict(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    return predict


def _exported(model: nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    # A file keeps its example inputs: two of them, not the storage behind all the calibration images.
    shapes = ({0: torch.export.Dim("n", min=1, max=4096)},)
    return torch.export.export(model, (x[:2].clone(),), dynamic_shapes=shapes)


def _drop_unread(module: torch.fx.GraphModule) -> None:
    """Remove parameters that no node reads: conversion leaves the float weights beside the int8 ones."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_parameters() if name not in read]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)


def _quantizer(setting: str) -> Any:
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    if setting == "minmax":
        activation = replace(config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
        config = replace(config, input_activation=activation, output_activation=activation)
    elif setting == "histogram_per_tensor":
        weight = replace(
            config.weight,
            qscheme=torch.per_tensor_symmetric,
            ch_axis=None,
            observer_or_fake_quant_ctr=MinMaxObserver,
        )
        config = replace(config, weight=weight)
    return x86.X86InductorQuantizer().set_global(config)
