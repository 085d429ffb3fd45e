"""Knowledge distillation: a small student learns from the soft predictions of a large teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import train as training
from .data.dataset import Dataset
from .errors import UsageError


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``T² · KL(softmax(teacher / T) ‖ softmax(student / T))``, the mean over the batch [1]_.

    The gradient of the divergence falls as ``1 / T²``; the factor ``T²`` keeps its size, so that the balance
    with a loss on the true labels does not move with ``T`` (section 2 of the paper).

    Parameters
    ----------
    student_logits, teacher_logits : Tensor
        (n, classes).  No gradient flows into the teacher.
    temperature : float
        ``T > 0``; large values show the student how the teacher ranks the wrong classes.

    Returns
    -------
    Tensor
        Scalar, in nats, at least 0; 0 only where both give the same probabilities.

    References
    ----------
    .. [1] Hinton, Vinyals and Dean, 2015, eq. (1) and section 2.  https://arxiv.org/abs/1503.02531

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 4.0]])
    >>> float(kd_loss(logits, logits + 7, temperature=4.0))
    0.0
    """
    if not temperature > 0:
        raise UsageError(f"the temperature must be positive, got {temperature}")
    if student_logits.shape != teacher_logits.shape:
        raise UsageError(
            f"the student gives logits {tuple(student_logits.shape)}, the teacher "
            f"{tuple(teacher_logits.shape)}; both must know the same classes"
        )
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def fit(
    student: nn.Module,
    teacher: nn.Module,
    train: Dataset,
    validation: Dataset,
    config: training.TrainConfig | None = None,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    checkpoint: str | Path | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
) -> training.History:
    """Train ``student`` in place on ``alpha * kd_loss + (1 - alpha) * cross_entropy``.

    Parameters
    ----------
    student, teacher : nn.Module
        Take (n, C, H, W), return logits (n, classes).  The teacher does not change.
    train, validation, config, checkpoint, after_step
        As in `tinyml_edu.train.fit`.
    temperature : float, default=4
        Of `kd_loss`.
    alpha : float, default=0.9
        Weight of the teacher, 0 to 1; 0 is plain training.

    Returns
    -------
    History

    Notes
    -----
    Without augmentation the teacher's logits are computed once and looked up.  With it the teacher sees the
    very image that the student sees: matching views matter more than the teacher's time [1]_.

    References
    ----------
    .. [1] Beyer et al., Knowledge distillation: a good teacher is patient and consistent, CVPR 2022.
       https://arxiv.org/abs/2106.05237
    """
    config = config or training.TrainConfig()
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha must lie between 0 and 1, got {alpha}")
    ask = _teacher(teacher, train, augmented=config.flip or config.shift > 0)

    def loss(logits: Tensor, x: Tensor, y: Tensor, indices: Tensor) -> Tensor:
        soft = kd_loss(logits, ask(x, indices), temperature)
        hard = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
        return alpha * soft + (1 - alpha) * hard

    return training.fit(
        student, train, validation, config, loss=loss, checkpoint=checkpoint, after_step=after_step
    )


def _teacher(teacher: nn.Module, train: Dataset, *, augmented: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of a batch (n, C, H, W) and its rows (n,) that gives the teacher's logits."""
    if not augmented:
        cached = training.predict_logits(teacher, train.x)

        def look_up(x: Tensor, indices: Tensor) -> Tensor:
            return cached[indices.cpu()].to(x.device)

        return look_up
    # A copy: the caller's teacher keeps its mode and its device.
    own = copy.deepcopy(teacher).eval().requires_grad_(False)

    def compute(x: Tensor, indices: Tensor) -> Tensor:  # noqa: ARG001
        with torch.no_grad():
            return own.to(x.device)(x).float()

    return compute
