"""When to prune: at once, in rounds, along a cubic while training, or in rounds that rewind the weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UsageError
from .fine_grained import Masks, apply_masks, fine_grained_prune, prunable_weights, sparsity_by_weight
from .granularity import element_mask

AfterStep = Callable[[nn.Module], None]
Train = Callable[[nn.Module, AfterStep], object]
"""``train(model, after_step)`` trains in place, e.g. ``lambda m, h: fit(m, ..., after_step=h)``."""


def one_shot(sparsity: float, steps: int = 1) -> tuple[float, ...]:
    """Return the sparsity after each step: everything goes in the first.

    Examples
    --------
    >>> one_shot(0.8, 3)
    (0.8, 0.8, 0.8)
    """
    _check(sparsity, steps)
    return (sparsity,) * steps


def iterative(sparsity: float, steps: int) -> tuple[float, ...]:
    """Return the sparsity after each step: each removes the same share of what is left [1]_.

    References
    ----------
    .. [1] Frankle and Carbin, ICLR 2019, section 2: ``p^(1/n)`` a round.  https://arxiv.org/abs/1803.03635

    Examples
    --------
    >>> [round(s, 3) for s in iterative(0.875, 3)]
    [0.5, 0.75, 0.875]
    """
    _check(sparsity, steps)
    kept = 1 - sparsity
    return (*(1 - kept ** (t / steps) for t in range(1, steps)), sparsity)


def cubic(sparsity: float, steps: int) -> tuple[float, ...]:
    """Return the sparsity after each step, from 0 along `cubic_sparsity`.

    Examples
    --------
    >>> [round(s, 3) for s in cubic(0.8, 4)]
    [0.463, 0.7, 0.788, 0.8]
    """
    _check(sparsity, steps)
    return tuple(cubic_sparsity(t, final=sparsity, interval=1, count=steps) for t in range(1, steps + 1))


def cubic_sparsity(
    step: int, *, final: float, initial: float = 0.0, begin: int = 0, interval: int, count: int
) -> float:
    """Return the sparsity at an optimizer step [1]_.

    ``s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))³`` for ``t`` in ``t_0, t_0 + Δt, ..., t_0 + n Δt``;
    between these steps it stays, before them it is ``initial``, after them ``final``.

    Parameters
    ----------
    step : int
        ``t``.
    final, initial : float
        ``s_f`` and ``s_i``, 0 to 1.
    begin, interval, count : int
        ``t_0``, ``Δt >= 1`` in optimizer steps, and ``n >= 1``.

    References
    ----------
    .. [1] Zhu and Gupta, To prune, or not to prune, 2017, eq. 1.  https://arxiv.org/abs/1710.01878
    """
    if not (0 <= initial <= final <= 1 and interval >= 1 and count >= 1):
        raise UsageError("the cubic schedule needs 0 <= initial <= final <= 1, interval >= 1 and count >= 1")
    done = min(max((step - begin) // interval, 0), count) / count
    return final + (initial - final) * (1 - done) ** 3


SCHEDULES: dict[str, Callable[[float, int], tuple[float, ...]]] = {
    "one_shot": one_shot,
    "iterative": iterative,
    "cubic": cubic,
}


class GradualPruner:
    """Prunes by magnitude along the cubic schedule while the network trains.

    Pass :meth:`after_step` to :func:`tinyml_edu.train.fit`.  Every ``interval`` optimizer steps the masks are
    chosen anew and after every step they are applied.  A removed weight is zero, so it goes first again:
    without a change of schedule nothing returns.

    Parameters
    ----------
    model : nn.Module
    final : float or mapping of str to float
        Sparsity at the end, of every weight or by parameter name.
    begin, interval, count : int
        See :func:`cubic_sparsity`.

    Attributes
    ----------
    masks : dict of str to Tensor
        bool, those in force.
    steps : int
        Optimizer steps seen.
    """

    def __init__(
        self,
        model: nn.Module,
        final: float | Mapping[str, float],
        *,
        begin: int = 0,
        interval: int = 10,
        count: int = 20,
    ) -> None:
        names = prunable_weights(model)
        self.final = dict(final) if isinstance(final, Mapping) else dict.fromkeys(names, final)
        self.begin, self.interval, self.count = begin, interval, count
        self.steps = 0
        self.masks: Masks = {}
        self._choose(model)

    def after_step(self, model: nn.Module) -> None:
        """Count one optimizer step, choose new masks where the schedule moves, apply them in place."""
        self.steps += 1
        past = self.steps - self.begin
        if past >= 0 and past % self.interval == 0 and past <= self.interval * self.count:
            self._choose(model)
        apply_masks(model, self.masks)

    def _choose(self, model: nn.Module) -> None:
        position = {"begin": self.begin, "interval": self.interval, "count": self.count}
        for name, final in self.final.items():
            sparsity = cubic_sparsity(self.steps, final=final, **position)
            self.masks[name] = fine_grained_prune(model.get_parameter(name), sparsity)


@dataclass(frozen=True)
class Ticket:
    """One round of :func:`lottery_ticket`: which weights were trained.

    Attributes
    ----------
    masks : dict of str to Tensor
        bool, by parameter name.
    sparsity_by_weight : dict of str to float
        Share of removed weights, 0 to 1.
    model : nn.Module
        The rewound weights under the masks, ready to be trained: the ticket itself.
    """

    masks: Masks
    sparsity_by_weight: dict[str, float]
    model: nn.Module


def lottery_ticket(
    model: nn.Module,
    train: Train,
    *,
    sparsity: float,
    rounds: int,
    rewind_to: Mapping[str, torch.Tensor] | None = None,
) -> list[Ticket]:
    """Train, prune the smallest weights of each layer, rewind the others, and repeat [1]_.

    Parameters
    ----------
    model : nn.Module
        At initialisation.  It is not changed.
    train : callable
        ``train(model, after_step)``: trains in place and calls ``after_step(model)`` after every optimizer
        step.
    sparsity : float
        Of every weight after the last round, reached by `iterative`.
    rounds : int
        Times to train and prune.
    rewind_to : state dict, optional
        Default: the state of ``model``.  Its state after the first few hundred steps makes late rewinding
        [2]_.  Batch-norm statistics are rewound too.

    Returns
    -------
    list of Ticket
        One a round.  A weight that one round removes stays removed in the next.

    References
    ----------
    .. [1] Frankle and Carbin, ICLR 2019, section 2.  https://arxiv.org/abs/1803.03635
    .. [2] Frankle et al., Linear Mode Connectivity, ICML 2020.  https://arxiv.org/abs/1912.05671
    """
    state = {k: v.detach().clone() for k, v in (rewind_to or model.state_dict()).items()}
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    trained = copy.deepcopy(model)
    tickets = []
    for target in iterative(sparsity, rounds):
        train(trained, functools.partial(apply_masks, masks=masks))
        masks = _pruned_further(trained, masks, target)
        ticket = copy.deepcopy(model)
        ticket.load_state_dict(state)
        apply_masks(ticket, masks)
        tickets.append(Ticket(masks, sparsity_by_weight(masks), ticket))
        trained = copy.deepcopy(ticket)
    return tickets


def _pruned_further(model: nn.Module, masks: Masks, sparsity: float) -> Masks:
    """Return masks of the given sparsity in which all that was removed stays removed."""
    chosen = {}
    for name, mask in masks.items():
        magnitude = model.get_parameter(name).detach().cpu().abs()
        # Removed weights rank below a live weight that is exactly zero.
        chosen[name] = element_mask(magnitude.masked_fill(~mask.cpu(), -1.0), sparsity)
    return chosen


def _check(sparsity: float, steps: int) -> None:
    if not 0 <= sparsity <= 1 or steps < 1:
        raise UsageError(f"a schedule needs 0 <= sparsity <= 1 and steps >= 1, got {sparsity} and {steps}")
