"""How much does each channel matter, judged by what flows through it?

The signature is that of :mod:`~tinyml_edu.pruning.criteria`; scores have one entry a channel: (O, 1, 1, 1)
or (O, 1) for the channels a layer writes, (1, I, 1, 1) or (1, I) for those it reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._modes import evaluating
from ..errors import UsageError
from .criteria import Batches, Scores, checked
from .fine_grained import prunable_weights

_FOLLOWERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardtanh)


def apoz(model: nn.Module, batches: Batches, *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score an output channel by the share of its activations that are positive: 1 - APoZ [1]_.

    Measured behind the layer's own batch norm and activation.  Where no activation follows directly (before
    a residual sum, at the logits) a negative value counts as zero, as behind a ReLU.

    References
    ----------
    .. [1] Hu et al., Network Trimming, 2016, eq. 1 (average percentage of zeros).
       https://arxiv.org/abs/1607.03250
    """
    positive: dict[str, Tensor] = {}  # (O,) each
    seen: dict[str, int] = {}
    for x, _ in checked(batches):
        for name, y in _activations(model, x).items():  # y (N, O, H, W) or (N, O)
            dims = [d for d in range(y.dim()) if d != 1]
            positive[name] = positive.get(name, 0) + (y > 0).sum(dims)
            seen[name] = seen.get(name, 0) + y.numel() // y.shape[1]
    return {
        name: (positive[name].double() / seen[name]).reshape(-1, *[1] * (weight.dim() - 1))
        for name, weight in prunable_weights(model).items()
    }


def activation_entropy(model: nn.Module, batches: Batches, *, seed: int = 0, bins: int = 32) -> Scores:  # noqa: ARG001
    """Score an output channel by the entropy, in nats, of its mean activation over the examples [1]_.

    Each example gives one number a channel, the mean over H and W.  Their histogram has ``bins`` equal bins
    over the range of the whole layer, so that a channel which hardly moves scores near 0; at most
    ``log(min(bins, examples))``.

    References
    ----------
    .. [1] Luo and Wu, An Entropy-based Pruning Method for CNN Compression, 2017, section 3.
       https://arxiv.org/abs/1706.05791
    """
    parts: dict[str, list[Tensor]] = {}
    for x, _ in checked(batches):
        for name, y in _activations(model, x).items():
            parts.setdefault(name, []).append(y.flatten(2).mean(2) if y.dim() > 2 else y)
    scores = {}
    for name, weight in prunable_weights(model).items():
        means = torch.cat(parts[name]).double()  # (examples, O)
        low, high = means.min(), means.max()
        width = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        index = ((means - low) / width * bins).long().clamp(0, bins - 1)
        p = F.one_hot(index, bins).double().mean(0)  # (O, bins)
        scores[name] = -torch.special.xlogy(p, p).sum(1).reshape(-1, *[1] * (weight.dim() - 1))
    return scores


def reconstruction(model: nn.Module, batches: Batches, *, seed: int = 0, samples: int = 1000) -> Scores:
    """Score an input channel by when ThiNet's greedy search removes it: 0 first, I - 1 last [1]_.

    Each of ``samples`` random output values of a layer is the sum of one contribution a channel (before
    bias).  The channel whose removal, with those already gone, loses the least squared sum goes next.

    Grouped convolutions, whose inputs are tied to their outputs, have no score.

    References
    ----------
    .. [1] Luo et al., ThiNet, ICCV 2017, eq. 6 and algorithm 1.  https://arxiv.org/abs/1707.06342
    """
    scores = {}
    for name, parts in channel_contributions(model, batches, seed=seed, samples=samples).items():
        weight = model.get_parameter(name)
        scores[name] = _removal_order(parts).reshape(1, -1, *[1] * (weight.dim() - 2))
    return scores


def channel_contributions(
    model: nn.Module, batches: Batches, *, seed: int = 0, samples: int = 1000
) -> dict[str, Tensor]:
    """Return what each input channel adds to randomly chosen outputs of each layer.

    Returns
    -------
    dict of str to Tensor
        float64 (samples, I) by parameter name; a row's sum is one output value of the layer less its bias.
    """
    generator = torch.Generator().manual_seed(seed)
    share = -(-samples // len(checked(batches)))
    parts: dict[str, list[Tensor]] = {}

    def record(name: str, layer: nn.Module, x: Tensor) -> None:
        parts.setdefault(name, []).append(_contributions(layer, x.double().cpu(), share, generator))

    for x, _ in batches:
        handles = [
            layer.register_forward_pre_hook(lambda m, args, name=name: record(name, m, args[0]))
            for name, layer in _layers(model).items()
            if getattr(layer, "groups", 1) == 1
        ]
        _run(model, x, handles)
    return {name: torch.cat(values)[:samples] for name, values in parts.items()}


def least_squares_scales(contributions: Tensor, keep: Tensor) -> Tensor:
    """Return the factors on the kept channels that best restore the full sums [1]_.

    Parameters
    ----------
    contributions : Tensor
        (samples, I), see :func:`channel_contributions`.
    keep : Tensor
        bool (I,).

    Returns
    -------
    Tensor
        float64 (I,): multiply the input channels of the weight by it; 0 where a channel is removed.

    References
    ----------
    .. [1] Luo et al., ThiNet, ICCV 2017, eq. 7.  https://arxiv.org/abs/1707.06342
    """
    scales = torch.zeros(len(keep), dtype=torch.float64)
    target = contributions.sum(1, keepdim=True)
    # gelsd: the smallest solution where channels depend on each other (a dead channel, few samples)
    solution = torch.linalg.lstsq(contributions[:, keep], target, driver="gelsd").solution
    scales[keep] = solution[:, 0]
    return scales


def _contributions(layer: nn.Module, x: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Return (samples, I) for an input ``x`` (N, I, H, W) or (N, I), by positions drawn with replacement."""
    weight = layer.get_parameter("weight").detach().double().cpu()
    outputs = torch.randint(len(weight), (samples,), generator=generator)
    if isinstance(layer, nn.Linear):
        rows = torch.randint(len(x), (samples,), generator=generator)
        return x[rows] * weight[outputs]
    weight = weight.flatten(2)  # (O, I, K) with K = KH * KW
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        raise UsageError("give the padding of the convolution in numbers")
    windows = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # (N, I K, L)
    windows = windows.unflatten(1, weight.shape[1:]).permute(0, 3, 1, 2).flatten(0, 1)  # (N L, I, K)
    rows = torch.randint(len(windows), (samples,), generator=generator)
    return (windows[rows] * weight[outputs]).sum(2)


def _removal_order(contributions: Tensor) -> Tensor:
    """Return float64 (I,): the step at which the greedy search removes each channel."""
    gram = contributions.T @ contributions  # (I, I)
    step = torch.full((len(gram),), torch.nan, dtype=torch.float64)
    cross = torch.zeros(len(gram), dtype=torch.float64)  # of each channel with the sum of those removed
    for i in range(len(gram)):
        # |removed + x_j|² = |removed|² + 2 removed · x_j + |x_j|²; the first term is the same for all j
        added = (2 * cross + gram.diagonal()).masked_fill(~step.isnan(), torch.inf)
        j = int(added.argmin())
        step[j] = i
        cross += gram[j]
    return step


def _activations(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return each layer's output (N, O, ...) behind the batch norm and activation that follow directly."""
    last: dict[str, Tensor] = {}

    def start(name: str, y: Tensor) -> None:
        last[name] = y

    def follow(x: Tensor, y: Tensor) -> None:
        for name, tensor in last.items():
            if tensor is x:
                last[name] = y

    handles = [
        layer.register_forward_hook(lambda _m, _x, y, name=name: start(name, y))
        for name, layer in _layers(model).items()
    ]
    handles += [
        module.register_forward_hook(lambda _m, x, y: follow(x[0], y))
        for module in model.modules()
        if isinstance(module, _FOLLOWERS)
    ]
    _run(model, x, handles)
    return last


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name.rpartition(".")[0]) for name in prunable_weights(model)}


def _run(model: nn.Module, x: Tensor, handles: list) -> None:
    try:
        with evaluating(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
