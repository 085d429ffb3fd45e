"""What a run consists of besides the model: device, optimizer, and the tensors that are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer; only tensors with two or more axes decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=True)


def choose_device(name: str) -> torch.device:
    """Return the device that ``TrainConfig.device`` names; "auto" takes a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' was asked for but there is no usable GPU; take device='auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether the forward pass runs in bf16; "auto" asks for native multiply instructions."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions oneDNN converts back and forth, slower than float32.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers without their gradients; the tensors are the model's own."""
    return {name: value.detach() for name, value in model.state_dict().items()}


@torch.no_grad()
def arrange(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out all four-axis weights as ``memory_format``; their values do not change."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name starts with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors on ``device``."""
    return {k: v.to(device) for k, v in tensors.items()}


@contextlib.contextmanager
def swapped(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Put ``weights`` into ``model`` for the duration; nothing happens if there are none."""
    if not weights:
        yield
        return
    own = {k: v.clone() for k, v in weights_of(model).items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
