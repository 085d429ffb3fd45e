"""Networks with exact arithmetic, and the oracle of surgery: channels that are zero wherever they are read.

Parameters and inputs are small integers, batch norms scale by powers of two and average pools cover 1, 2, 4
or 16 pixels, so that float64 is exact whatever the order of summation.
"""

import copy

import torch
from torch import nn

WEIGHTED = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def with_integers(module: nn.Module, seed: int, terms: float = 3.0) -> nn.Module:
    """Return ``module`` in float64 with integer weights, on average ``terms`` not zero in a filter.

    Few terms keep a deep network's sums below 2**53 steps.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(values, shape):
        return torch.tensor(values)[torch.randint(len(values), shape, generator=g)]

    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, NORMS):
                m.eps = 0.0
                m.running_var.copy_(draw([0.25, 1.0, 4.0], m.running_var.shape))
                m.running_mean.copy_(draw([-2.0, 0.0, 3.0], m.running_mean.shape))
                m.weight.copy_(draw([-1.0, 1.0, 0.5], m.weight.shape))
                m.bias.copy_(draw([1.0, 2.0, 0.0], m.bias.shape))
            elif isinstance(m, WEIGHTED):
                used = torch.rand(m.weight.shape, generator=g) < terms / m.weight[0].numel()
                m.weight.copy_(draw([-1.0, 1.0, 2.0], m.weight.shape) * used)
                if m.bias is not None:
                    m.bias.copy_(draw([-1.0, 1.0, 2.0], m.bias.shape))
    return module.double().eval()


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


def zeroed(model: nn.Module, kept: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return what ``model`` computes if removed channels are zero wherever a layer reads them.

    A removed channel is marked by NaN where it is written; the mark passes batch norms, activations, pools,
    sums and concatenations by itself, and each convolution or linear layer reads it as zero.
    """
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            module.register_forward_pre_hook(lambda _, args: tuple(a.nan_to_num(nan=0.0) for a in args))
        if name in kept:
            gone = torch.ones(len(module.weight), dtype=torch.bool)
            gone[kept[name]] = False
            module.register_forward_hook(lambda _module, _args, y, gone=gone: _marked(y, gone))
    with torch.no_grad():
        return model(x)


def _marked(y: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[:, gone] = float("nan")
    return y


def agrees(small: nn.Module, model: nn.Module, kept: dict[str, torch.Tensor], x: torch.Tensor) -> bool:
    """Whether the cut network runs and computes, bit for bit, what the zeroed one computes."""
    expected = zeroed(model, kept, x)
    assert expected.isfinite().all()
    assert (expected != expected[:1]).any(), "the outputs do not depend on the input"
    try:
        with torch.no_grad():
            return torch.equal(small(x), expected)
    except RuntimeError:
        return False
