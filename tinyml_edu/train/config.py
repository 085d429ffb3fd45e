"""How to train, what a run did, and the learning rate as a formula of the step; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes
    ----------
    epochs, batch_size : int
        Passes over the data; examples per optimizer step.
    learning_rate : float
        Peak of the schedule.
    optimizer : {"sgd", "adamw"}
        SGD uses Nesterov momentum.
    weight_decay : float
        Applied to weights with two or more axes only, not to biases and batch norms.
    schedule : {"one_cycle", "cosine", "constant"}
        One cycle rises linearly for ``warmup`` of the run and then falls by a cosine to zero; cosine only
        falls.
    schedule_unit : {"step", "epoch"}
        What the schedule counts: it moves after each optimizer step, or after each epoch.
    label_smoothing : float
        Share of the target spread over all classes.  Ignored where a loss is passed to :func:`fit`.
    flip : bool
        Mirror half of the images left to right.  Wrong for letters.
    shift : int
        Largest random shift along each axis in pixels, edges mirrored.
    ema : float
        Decay per step of an exponential average of the weights; 0 switches it off.  The average is what is
        validated and kept.
    keep : {"last", "best"}
        Which epoch's weights the model ends with; "best" is by validation accuracy, the first on a tie.
    seed : int
        Seeds order, augmentation and dropout.
    threads : int
        Threads of the processor during the run.  One is fastest for these small networks on a shared
        machine, and the bits depend on it.
    precision : {"auto", "bf16", "float32"}
        Of the forward pass.  "auto" takes bf16 where the device multiplies it natively.
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where there is one.
    """

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    schedule_unit: Literal["step", "epoch"] = "step"
    warmup: float = 0.2
    label_smoothing: float = 0.0
    flip: bool = False
    shift: int = 0
    ema: float = 0.0
    keep: Literal["last", "best"] = "last"
    seed: int = 0
    threads: int = 1
    precision: Literal["auto", "bf16", "float32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.threads < 1:
            raise UsageError("training needs epochs >= 1, batch_size >= 2 and threads >= 1")
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1 and 0 <= self.ema < 1 and self.shift >= 0):
            raise UsageError("training needs learning_rate > 0, 0 <= warmup < 1, 0 <= ema < 1 and shift >= 0")


@dataclass
class History:
    """What a run did: one row an epoch, and how it computed.

    Attributes
    ----------
    epochs : list of dict
        ``epoch`` (from 1), ``learning_rate`` of the last step, ``train_loss``, ``train_accuracy`` (on the
        augmented batches, while the weights move), ``validation_accuracy``, ``seconds`` of wall clock,
        ``cpu_seconds`` of the processor, which do not count what other programs took.
    best_epoch : int
        Epoch of the highest validation accuracy, the first on a tie; 0 before the first epoch.
    precision, device : str
        What "auto" resolved to.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    precision: str = "float32"
    device: str = "cpu"

    @property
    def seconds(self) -> float:
        """Wall-clock seconds over all epochs, those before an interruption included."""
        return sum(row["seconds"] for row in self.epochs)

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds over all epochs, those before an interruption included."""
        return sum(row["cpu_seconds"] for row in self.epochs)

    @property
    def validation_accuracy(self) -> float:
        """Validation accuracy (0 to 1) of the last epoch."""
        return self.epochs[-1]["validation_accuracy"]


def learning_rate_at(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimizer step ``step`` (from 0).

    Examples
    --------
    >>> config = TrainConfig(epochs=10, learning_rate=1.0, warmup=0.5)
    >>> [round(learning_rate_at(config, s, 2), 3) for s in (0, 9, 19)]
    [0.1, 1.0, 0.024]
    """
    unit = steps_per_epoch if config.schedule_unit == "epoch" else 1
    position, total = step // unit, config.epochs * steps_per_epoch // unit
    if config.schedule == "constant":
        return config.learning_rate
    rise = round(config.warmup * total) if config.schedule == "one_cycle" else 0
    if position < rise:
        return config.learning_rate * (position + 1) / rise
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (position - rise) / (total - rise)))
