"""How much does each weight matter?  One function a criterion, one signature for all.

``criterion(model, batches, *, seed=0) -> scores``:

* ``model`` is used in evaluation mode and returned as it was: weights, gradients, buffers, modes.
* ``batches`` is a sequence of ``(x, y)``, float (N, C, H, W) and int64 (N,); a criterion that needs no data
  ignores it, one that needs only shapes reads the first.
* ``scores`` maps the parameter name of each convolution and linear weight to a tensor that broadcasts to the
  weight's shape, (O, I, KH, KW) or (O, I), high where the weight matters.  Here all have that shape in full;
  those in :mod:`~tinyml_edu.pruning.activation_criteria` have one score a channel.

Sums over batches weigh every example alike.  :data:`~tinyml_edu.pruning.masking.CRITERIA` lists them all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .._modes import evaluating
from ..errors import UsageError
from .fine_grained import prunable_weights

Batches = Sequence[tuple[Tensor, Tensor]]
Scores = dict[str, Tensor]
Criterion = Callable[..., Scores]


def l1(model: nn.Module, batches: Batches = (), *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by ``|w|`` [1]_; summed over a filter, its L1 norm [2]_.

    References
    ----------
    .. [1] Han et al., NeurIPS 2015, section 3.  https://arxiv.org/abs/1506.02626
    .. [2] Li et al., ICLR 2017, section 3.1: ``s_j = sum |K|``.  https://arxiv.org/abs/1608.08710
    """
    return {name: weight.detach().abs() for name, weight in prunable_weights(model).items()}


def l2(model: nn.Module, batches: Batches = (), *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by ``w²``: the order of `l1` for single weights, that of the L2 norm for groups [1]_.

    References
    ----------
    .. [1] He et al., Soft Filter Pruning, IJCAI 2018, eq. 2 with p = 2.  https://arxiv.org/abs/1808.06866
    """
    return {name: weight.detach().square() for name, weight in prunable_weights(model).items()}


def random(model: nn.Module, batches: Batches = (), *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by uniform random numbers: the control that every criterion has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(weight.shape, generator=generator).to(weight.device)
        for name, weight in prunable_weights(model).items()
    }


def taylor(model: nn.Module, batches: Batches, *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by ``(g w)²``, the squared first-order change of the loss, averaged over the batches [1]_.

    References
    ----------
    .. [1] Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, eq. 8.
       https://arxiv.org/abs/1906.10771
    """
    weights = prunable_weights(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, y in checked(batches):
        gradients = _gradients(model, [(x, y)])
        for name, weight in weights.items():
            total[name] += (gradients[name] * weight.detach()).square() / len(batches)
    return total


def obd(model: nn.Module, batches: Batches, *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by the second-order change of the loss, ``h_kk w² / 2``, diagonal Hessian [1]_.

    ``h_kk`` is the mean over the examples of ``sum_c p_c (d log p_c / dw)²``.  The term that this leaves out
    holds the second derivative of the logits by the weight, which is zero where the activations are piecewise
    linear; so the diagonal is exact for networks of ReLUs with the cross-entropy, and elsewhere the
    Levenberg-Marquardt approximation that the paper proposes.

    Notes
    -----
    Costs one backward pass for each example and class.

    References
    ----------
    .. [1] LeCun et al., Optimal Brain Damage, NeurIPS 1989: ``s_k = h_kk u_k² / 2``.
    """
    weights = {name: weight.detach() for name, weight in prunable_weights(model).items()}
    examples = sum(len(x) for x, _ in checked(batches))
    frozen = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def log_p(values: Scores, x: Tensor, of_class: Tensor) -> Tensor:
        logits = functional_call(model, frozen | values, (x[None],))  # (1, classes)
        return F.log_softmax(logits[0], dim=0) @ of_class

    diagonal = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with evaluating(model):
        for x, _ in batches:
            with torch.no_grad():
                p = model(x).softmax(1)  # (N, classes)
            for c, of_class in enumerate(torch.eye(p.shape[1], dtype=p.dtype, device=p.device)):
                slopes = vmap(grad(log_p), in_dims=(None, 0, None), chunk_size=16)(weights, x, of_class)
                for name in weights:
                    square = slopes[name].square()  # (N, *weight.shape)
                    diagonal[name] += torch.einsum("n,n...->...", p[:, c], square) / examples
    return {name: diagonal[name] * weight.square() / 2 for name, weight in weights.items()}


def snip(model: nn.Module, batches: Batches, *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by ``|g w| / sum |g w|``, the loss's sensitivity to a gate on the connection [1]_.

    References
    ----------
    .. [1] Lee et al., SNIP, ICLR 2019, eq. 5.  https://arxiv.org/abs/1810.02340
    """
    gradients = _gradients(model, batches)
    scores = {
        name: (gradients[name] * weight.detach()).abs() for name, weight in prunable_weights(model).items()
    }
    total = torch.stack([score.sum() for score in scores.values()]).sum()
    if total == 0:
        raise UsageError(
            "every gradient is zero: SNIP cannot rank the weights; use a model that is not saturated"
        )
    return {name: score / total for name, score in scores.items()}


def grasp(model: nn.Module, batches: Batches, *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by ``w (H g)``: what a connection adds to the gradient flow ``g · g`` [1]_.

    The paper's score is the negative, and it removes the highest.

    References
    ----------
    .. [1] Wang et al., Picking Winning Tickets (GraSP), ICLR 2020, eq. 8.  https://arxiv.org/abs/2002.07376
    """
    weights = prunable_weights(model)
    at = {name: gradient.detach() for name, gradient in _gradients(model, batches).items()}
    product = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    examples = sum(len(x) for x, _ in batches)
    with evaluating(model), torch.enable_grad():
        for x, y in batches:
            loss = F.cross_entropy(model(x), y) * (len(x) / examples)
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            along = torch.stack([(g * at[name]).sum() for g, name in zip(gradients, weights)]).sum()
            for name, value in zip(weights, torch.autograd.grad(along, list(weights.values()))):
                product[name] += value
    return {name: weight.detach() * product[name] for name, weight in weights.items()}


def synflow(model: nn.Module, batches: Batches, *, seed: int = 0) -> Scores:  # noqa: ARG001
    """Score by ``w dR/dw`` with ``R`` the sum of the outputs for an input of ones and weights ``|w|`` [1]_.

    Only the shape of the first batch is used.  Biases, batch norms and clipping activations are left out, so
    that ``R`` is the sum over all paths of the product of their weights, and each layer of a chain holds the
    same total.

    References
    ----------
    .. [1] Tanaka et al., Pruning neural networks without any data, NeurIPS 2020, eq. 2.
       https://arxiv.org/abs/2006.05467
    """
    x, _ = checked(batches)[0]
    positive = _without_saturation(copy.deepcopy(model).double().eval())
    weights = prunable_weights(positive)
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
        for module in positive.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.zero_()
    with torch.enable_grad():
        flow = positive(torch.ones_like(x[:1], dtype=torch.float64)).sum()
        slopes = torch.autograd.grad(flow, list(weights.values()))
    return {name: (weight.detach() * slope) for (name, weight), slope in zip(weights.items(), slopes)}


def _without_saturation(module: nn.Module) -> nn.Module:
    """Replace, in place, what is not positively homogeneous on positive inputs by the identity."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.Hardtanh | nn.Dropout):
            setattr(module, name, nn.Identity())
        else:
            _without_saturation(child)
    return module


def _gradients(model: nn.Module, batches: Batches) -> Scores:
    """Return the gradient of the mean cross-entropy over all examples, by parameter name."""
    weights = prunable_weights(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    examples = sum(len(x) for x, _ in checked(batches))
    with evaluating(model), torch.enable_grad():
        for x, y in batches:
            loss = F.cross_entropy(model(x), y) * (len(x) / examples)
            for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values()))):
                total[name] += gradient
    return total


def checked(batches: Batches) -> Batches:
    """Return ``batches``; refuse an empty sequence or batch."""
    if len(batches) == 0 or any(len(x) == 0 for x, _ in batches):
        raise UsageError(
            "this criterion needs data: pass batches=[(x, y), ...] with x (N, C, H, W) and y (N,)"
        )
    return batches
