"""Pruning: whole channels out of chain-shaped networks, single weights out of a tensor.

`shrink` returns a smaller network that computes what the original computes with those channels at zero.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .errors import UnknownNameError, UsageError
from .ir.graph import Graph, Node
from .mcu.capturing import transcribe

_PASSING_OPS = ("ACTIVATION", "AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE", "SOFTMAX")
"""Ops that treat each channel alone and hold no parameters."""

_CHAIN_OPS = ("BATCH_NORM", "CONV_2D", "FULLY_CONNECTED", *_PASSING_OPS)


@dataclass(frozen=True)
class _Link:
    """A convolution, the batch norms on its output, and the layer that reads it; all are module paths."""

    conv: str
    norms: tuple[str, ...]
    reader: str


def shrink(
    model: nn.Module,
    example: torch.Tensor,
    ratios: float | Mapping[str, float],
    *,
    multiple: int = 4,
) -> nn.Module:
    """Return a copy of ``model`` with its least important convolution channels removed.

    The importance of an output channel is the L1 norm of its filter [1]_.

    Parameters
    ----------
    model : nn.Module
        A chain: convolutions, each with its batch norms and activations, read by one convolution or,
        through pooling and a flatten, one linear layer.  It is not changed.
    example : torch.Tensor
        Input (N, C, H, W).
    ratios : float or mapping of str to float
        Share of channels to remove, ``0 <= ratio < 1``: of every convolution that another layer reads, or by
        the path of the convolution (``"features.0.conv"``), the others staying whole.
    multiple : int, default=4
        Where channels are removed, the number kept is rounded to a multiple of this, at least one of it.

    Returns
    -------
    nn.Module
        Of the same class, with fewer channels, in the mode of ``model``.

    Raises
    ------
    UsageError
        If a ratio is out of range, a path is not one of the convolutions, or the network is no chain.

    Notes
    -----
    The result equals ``model`` with the removed channels set to zero, up to the order of float sums.

    References
    ----------
    .. [1] Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.  https://arxiv.org/abs/1608.08710
    """
    links = _links(model, example)
    kept = _select(model, links, ratios, multiple)
    small = copy.deepcopy(model)
    for link in links:
        keep, channels = kept[link.conv], _conv(small, link.conv).out_channels
        if len(keep) < channels:
            _keep_outputs(small, link, keep)
            _keep_inputs(small.get_submodule(link.reader), keep, channels)
    return small


def kept_channels(
    model: nn.Module, example: torch.Tensor, ratios: float | Mapping[str, float], *, multiple: int = 4
) -> dict[str, torch.Tensor]:
    """Return the output channels that `shrink` keeps: int64, ascending, by the path of the convolution."""
    return _select(model, _links(model, example), ratios, multiple)


def fine_grained_prune(tensor: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return the mask that removes the smallest weights of a tensor [1]_.

    Parameters
    ----------
    tensor : torch.Tensor
        Weights of any shape; they are not changed.
    sparsity : float
        Share of weights to remove, 0 to 1.

    Returns
    -------
    torch.Tensor
        bool, of the same shape, True where a weight stays.  Exactly ``round(sparsity * n)`` (ties to even) of
        the ``n`` entries are False; of equal magnitudes the one with the lower flat index goes first.

    References
    ----------
    .. [1] Han et al., Learning both Weights and Connections, NeurIPS 2015.  https://arxiv.org/abs/1506.02626

    Examples
    --------
    >>> fine_grained_prune(torch.tensor([3.0, -1.0, 1.0, -2.0]), 0.5)
    tensor([ True, False, False,  True])
    """
    if not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity must lie between 0 and 1, got {sparsity}")
    if not torch.isfinite(tensor).all():
        raise UsageError("the tensor holds values that are not finite; their magnitudes cannot be ranked")
    removed = round(sparsity * tensor.numel())
    order = torch.argsort(tensor.detach().abs().flatten(), stable=True)
    mask = torch.ones(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[order[:removed]] = False
    return mask.reshape(tensor.shape)


def _links(model: nn.Module, example: torch.Tensor) -> list[_Link]:
    """Return the convolutions whose channels can go, in execution order."""
    chain = list(_chain(transcribe(model, example)))
    weighted = [i for i, node in enumerate(chain) if node.op in ("CONV_2D", "FULLY_CONNECTED")]
    links = []
    for first, last in itertools.pairwise(weighted):
        if chain[first].op == "CONV_2D":
            norms = tuple(node.name for node in chain[first:last] if node.op == "BATCH_NORM")
            links.append(_Link(chain[first].name, norms, chain[last].name))
    for link in links:
        _check_modules(model, link)
    return links


def _chain(graph: Graph) -> Iterator[Node]:
    """Yield the nodes of a graph in which each reads the one before it; refuse any other."""
    previous = graph.inputs[0]
    for node in graph.nodes:
        chained = node.inputs[0] == previous and len(graph.consumers(previous)) == 1
        if node.op not in _CHAIN_OPS or not chained or len(graph.inputs) != 1:
            raise UsageError(
                f"shrink cannot prune {graph.name}: {node.name!r} ({node.op}) is not part of a plain chain "
                "of convolutions; residual and depthwise networks come with the pruning release, until then "
                "use a network such as models.vgg_lite"
            )
        previous = node.outputs[0]
        yield node


def _check_modules(model: nn.Module, link: _Link) -> None:
    modules = dict(model.named_modules())
    for path, kinds in (
        (link.conv, (nn.Conv2d,)),
        *((norm, (nn.BatchNorm2d, nn.BatchNorm1d)) for norm in link.norms),
        (link.reader, (nn.Conv2d, nn.Linear)),
    ):
        if not isinstance(modules.get(path), kinds):
            raise UsageError(
                f"shrink cannot prune at {path!r}: it must be a {kinds[0].__name__} module that runs once; "
                "write the network with modules of its own for each layer"
            )
        if isinstance(modules[path], nn.BatchNorm1d):
            raise UsageError(f"shrink cannot prune past {path!r}: a batch norm of flattened features")


def _conv(model: nn.Module, path: str) -> nn.Conv2d:
    module = model.get_submodule(path)
    assert isinstance(module, nn.Conv2d)
    return module


def _select(
    model: nn.Module, links: list[_Link], ratios: float | Mapping[str, float], multiple: int
) -> dict[str, torch.Tensor]:
    paths = [link.conv for link in links]
    if isinstance(ratios, Mapping):
        for path in ratios:
            if path not in paths:
                raise UnknownNameError("prunable convolution", path, paths)
        by_path = {path: ratios.get(path, 0.0) for path in paths}
    else:
        by_path = dict.fromkeys(paths, ratios)
    if multiple < 1 or not all(0 <= ratio < 1 for ratio in by_path.values()):
        raise UsageError(
            f"pruning ratios must satisfy 0 <= ratio < 1 and multiple >= 1, got {ratios}, {multiple}"
        )
    kept = {}
    for path, ratio in by_path.items():
        weight = _conv(model, path).weight.detach()  # (O, I, KH, KW)
        importance = weight.abs().sum(dim=(1, 2, 3), dtype=torch.float64)
        best = torch.argsort(importance, descending=True, stable=True)
        kept[path] = best[: _count(len(weight), ratio, multiple)].sort().values
    return kept


def _count(channels: int, ratio: float, multiple: int) -> int:
    """Return how many of ``channels`` stay.

    Examples
    --------
    >>> _count(32, 0.5, 4), _count(32, 0.45, 4), _count(32, 0.99, 4), _count(10, 0.0, 4)
    (16, 16, 4, 10)
    """
    if ratio == 0:
        return channels
    return min(channels, multiple * max(1, math.floor(channels * (1 - ratio) / multiple + 0.5)))


def _keep_outputs(model: nn.Module, link: _Link, keep: torch.Tensor) -> None:
    conv = _conv(model, link.conv)
    _select_rows(conv, ("weight", "bias"), keep)
    conv.out_channels = len(keep)
    for path in link.norms:
        norm = model.get_submodule(path)
        assert isinstance(norm, nn.BatchNorm2d)
        _select_rows(norm, ("weight", "bias", "running_mean", "running_var"), keep)
        norm.num_features = len(keep)


def _keep_inputs(reader: nn.Module, keep: torch.Tensor, channels: int) -> None:
    """Keep the weights that read the channels ``keep`` out of ``channels`` of the layer before."""
    if isinstance(reader, nn.Conv2d):
        reader.weight = _parameter(reader.weight[:, keep], reader.weight)
        reader.in_channels = len(keep)
        return
    assert isinstance(reader, nn.Linear)
    by_channel = reader.weight.reshape(reader.out_features, channels, -1)  # (O, C, H * W): flatten is C-major
    reader.weight = _parameter(by_channel[:, keep].flatten(1), reader.weight)
    reader.in_features = reader.weight.shape[1]


def _select_rows(module: nn.Module, names: tuple[str, ...], keep: torch.Tensor) -> None:
    for name in names:
        value = getattr(module, name)
        if isinstance(value, nn.Parameter):
            setattr(module, name, _parameter(value[keep], value))
        elif value is not None:
            setattr(module, name, value[keep].clone())


def _parameter(value: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)
