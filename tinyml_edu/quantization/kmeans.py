"""Weights that share few values: n of them become 2**bits centroids and n labels of ``bits`` bits [1]_.

References
----------
.. [1] Han et al., Deep Compression, ICLR 2016, section 3.  https://arxiv.org/abs/1510.00149
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnknownNameError, UsageError
from .checking import is_whole, require_module, require_tensor
from .lloyd import cluster, nearest


class Codebook(NamedTuple):
    """What stands for a tensor: ``centroids[labels]`` are its values, flattened.

    Attributes
    ----------
    centroids : Tensor (k,) of float32
        In ascending order when they come from `k_means_quantize`.
    labels : Tensor (n,) of int64
        0 to k - 1.
    """

    centroids: Tensor
    labels: Tensor


def k_means_quantize(
    fp32_tensor: Tensor,
    bitwidth: int = 4,
    codebook: Codebook | None = None,
    *,
    init: str = "linear",
    seed: int = 0,
) -> Codebook:
    """Replace each value of a tensor, in place, by its centroid, and return the codebook.

    Parameters
    ----------
    fp32_tensor : Tensor
        float32 of any shape, n values.
    bitwidth : int
        1 to 8; there are ``2**bitwidth`` centroids.  Ignored where a codebook is given.
    codebook : Codebook, optional
        Its labels and centroids are taken as they are; by default k-means finds them.
    init, seed
        See `lloyd.cluster`.

    Raises
    ------
    UsageError
        If the tensor is empty or not finite, the bitwidth is out of range, or the codebook does not fit.

    Examples
    --------
    >>> tensor = torch.tensor([0.0, 0.25, 1.0, 0.75])
    >>> k_means_quantize(tensor, bitwidth=1)
    Codebook(centroids=tensor([0.1250, 0.8750]), labels=tensor([0, 0, 1, 1]))
    >>> tensor
    tensor([0.1250, 0.1250, 0.8750, 0.8750])
    """
    require_tensor(fp32_tensor, "what k-means quantizes")
    if codebook is None:
        if not is_whole(bitwidth, 1, 8):
            raise UsageError(f"k-means takes 1 to 8 bits, got bitwidth={bitwidth!r}")
        values = fp32_tensor.detach().cpu().double().reshape(-1).numpy()
        centroids = cluster(values, 2**bitwidth, init=init, seed=seed).astype(np.float32)
        labels = nearest(values, centroids.astype(np.float64))
        device = fp32_tensor.device
        codebook = Codebook(torch.from_numpy(centroids).to(device), torch.from_numpy(labels).to(device))
    _check_fits(fp32_tensor, codebook)
    with torch.no_grad():
        fp32_tensor.copy_(codebook.centroids[codebook.labels].view(fp32_tensor.shape))
    return codebook


@torch.no_grad()
def update_codebook(fp32_tensor: Tensor, codebook: Codebook) -> None:
    """Move each centroid, in place, to the mean of the values that carry its label.

    A centroid without values stays where it is: the mean of nothing is NaN.  After a step of plain SGD of
    rate ``lr`` on shared weights, this moves centroid k by ``-lr / n_k`` times the gradient summed over its
    n_k weights.

    Raises
    ------
    UsageError
        If the codebook does not fit the tensor.
    """
    _check_fits(fp32_tensor, codebook)
    k = codebook.centroids.numel()
    counts = torch.bincount(codebook.labels, minlength=k)
    sums = torch.zeros(k, dtype=torch.float64, device=counts.device)
    sums.index_add_(0, codebook.labels, fp32_tensor.reshape(-1).double())
    means = (sums / counts).to(codebook.centroids.dtype)  # NaN where there is nothing, and not used
    codebook.centroids.copy_(torch.where(counts > 0, means, codebook.centroids))


def summed_by_centroid(gradient: Tensor, codebook: Codebook) -> Tensor:
    """Return the gradient of each centroid (k,): the sum over the weights that share it [1]_.

    ``dL/dC_k = sum_ij dL/dW_ij 1(label_ij = k)``, equation 3 of the paper.

    References
    ----------
    .. [1] Han et al., Deep Compression, ICLR 2016, section 3.3.  https://arxiv.org/abs/1510.00149
    """
    _check_fits(gradient, codebook)
    sums = torch.zeros(codebook.centroids.numel(), dtype=torch.float64, device=gradient.device)
    return sums.index_add_(0, codebook.labels, gradient.reshape(-1).double()).to(gradient.dtype)


class KMeansQuantizer:
    """Shares the weights of a model, in place, and keeps them shared while it is trained.

    Weights that are exactly zero when the quantizer is made (pruned ones) are no part of the clustering and
    stay zero.  There are two ways to train the codebooks:

    * ``train.fit(model, ..., after_step=quantizer.after_step)``: the optimizer moves each weight by itself
      and the centroid goes to the mean, as in the course's lab, at rates of ordinary training.
    * The same call inside ``with quantizer.summed_gradients(model):``: each weight gets the gradient of its
      centroid, summed over all that share it, as in Deep Compression.  The optimizer then does to the weights
      what it would do to the centroids as parameters.  Sums of thousands of gradients want an optimizer that
      normalises them (``optimizer="adamw"``) or a very small rate.

    Parameters
    ----------
    model : nn.Module
        Its parameters with two or more axes are replaced by their centroids.
    bitwidth : int or mapping of str to int
        1 to 8 for all of them, or by parameter name, the others staying as they are.
    init, seed
        See `lloyd.cluster`.

    Attributes
    ----------
    codebook : dict of str to Codebook
        By parameter name; labels (n,) of the n weights that are not zero, in C order.
    kept : dict of str to Tensor
        bool, of the weight's shape, False where it is zero.
    """

    def __init__(
        self,
        model: nn.Module,
        bitwidth: int | Mapping[str, int] = 4,
        *,
        init: str = "linear",
        seed: int = 0,
    ) -> None:
        require_module(model)
        weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
        bits = dict(bitwidth) if isinstance(bitwidth, Mapping) else dict.fromkeys(weights, bitwidth)
        for name in bits:
            if name not in weights:
                raise UnknownNameError("weight", name, weights)
        self.codebook: dict[str, Codebook] = {}
        self.kept: dict[str, Tensor] = {}
        for name, width in bits.items():
            weight = weights[name].detach()
            kept = weight != 0
            if kept.any():  # a layer that was pruned away has nothing to share
                self.kept[name] = kept
                self.codebook[name] = k_means_quantize(weight[kept], width, init=init, seed=seed)
        self.apply(model)

    @torch.no_grad()
    def apply(self, model: nn.Module, update_centroids: bool = False) -> None:
        """Set the weights of ``model`` to their centroids, which first follow the weights if asked to."""
        for name in self.codebook:
            weight = model.get_parameter(name)
            kept, book = self._on(weight.device, name)
            if update_centroids:
                update_codebook(weight[kept], book)
            weight.zero_()
            weight[kept] = book.centroids[book.labels]

    def after_step(self, model: nn.Module) -> None:
        """Hook for :func:`tinyml_edu.train.fit`: centroids follow the optimizer, weights their centroids."""
        self.apply(model, update_centroids=True)

    @contextlib.contextmanager
    def summed_gradients(self, model: nn.Module) -> Iterator[None]:
        """Give each weight its centroid's gradient, see `summed_by_centroid`, as long as the block runs.

        Zero weights get none.  The weights of one centroid then always move together, whatever the optimizer.
        """
        hooks = [model.get_parameter(name).register_hook(self._summing(name)) for name in self.codebook]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _summing(self, name: str) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            kept, book = self._on(gradient.device, name)
            shared = torch.zeros_like(gradient)
            shared[kept] = summed_by_centroid(gradient[kept], book)[book.labels]
            return shared

        return hook

    def _on(self, device: torch.device, name: str) -> tuple[Tensor, Codebook]:
        """Move mask and codebook of one weight to ``device``, once, and return them."""
        book = self.codebook[name]
        self.kept[name] = self.kept[name].to(device)
        self.codebook[name] = Codebook(book.centroids.to(device), book.labels.to(device))
        return self.kept[name], self.codebook[name]


def _check_fits(tensor: Tensor, codebook: Codebook) -> None:
    if codebook.labels.numel() != tensor.numel():
        raise UsageError(
            f"a codebook of {codebook.labels.numel()} labels does not fit a tensor of {tensor.numel()} values"
        )
    labels, k = codebook.labels, codebook.centroids.numel()
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < k:
        raise UsageError(f"a label names none of the {k} centroids; labels lie between 0 and {k - 1}")
