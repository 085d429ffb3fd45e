"""One training loop for all labs: :func:`fit`, with :func:`evaluate` and :func:`predict_logits`.

A run is a function of the model's first weights, the data and the configuration.  Every epoch draws its
order and its augmentation from a generator seeded by ``(seed, epoch)`` and the learning rate is a formula of
the step, so a run that stops and is started again by the same call ends with the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _checkpoints
from .data.dataset import Dataset
from .errors import DataError, UsageError

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``loss(logits (n, classes), x (n, C, H, W), y (n,), indices (n,)) -> scalar``."""


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


def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    config: TrainConfig | None = None,
    *,
    loss: Loss | None = None,
    checkpoint: str | Path | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
) -> History:
    """Train ``model`` in place.

    Parameters
    ----------
    model : nn.Module
        Takes (n, C, H, W), returns logits (n, classes).  It ends on the processor, in evaluation mode.
    train, validation : Dataset
        ``train`` is shuffled each epoch, its last incomplete batch dropped; ``validation`` is only measured.
    config : TrainConfig, optional
    loss : callable, optional
        ``loss(logits, x, y, indices)`` for distillation and the like: ``x`` is the augmented batch and
        ``indices`` (n,) are the rows of ``train``.  The default is cross-entropy with label smoothing.
    checkpoint : path, optional
        Written after each epoch, whole or not at all.  The same call with the same file goes on where the
        run stopped.
    after_step : callable, optional
        Called with the model after each optimizer step, e.g. to put masked weights back to zero.

    Returns
    -------
    History

    Raises
    ------
    UsageError
        If ``train`` is smaller than a batch, or the loss is not finite.
    DataError
        If ``checkpoint`` is corrupt or belongs to another run.
    """
    config = config or TrainConfig()
    if len(train) < config.batch_size:
        raise UsageError(f"{len(train)} training examples are fewer than one batch of {config.batch_size}")
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with _threads(config.threads), torch.random.fork_rng(devices=gpus):
        run = _Run(model, train, config, loss, after_step)
        first = run.resume(Path(checkpoint)) if checkpoint is not None else 0
        for epoch in range(first, config.epochs):
            run.epoch(epoch, validation)
            if checkpoint is not None:
                run.save(Path(checkpoint))
        return run.finish()


class _Run:
    """The state of one call of :func:`fit`."""

    def __init__(
        self,
        model: nn.Module,
        train: Dataset,
        config: TrainConfig,
        loss: Loss | None,
        after_step: Callable[[nn.Module], None] | None,
    ) -> None:
        self.config = config
        self.device = _device(config.device)
        self.bf16 = _uses_bf16(config.precision, self.device)
        # channels_last keeps the pixels where NHWC data has them, and the processor's bf16 kernels want it:
        # batches arrive without a copy and no layer reorders them.
        self.model = model.to(device=self.device)
        _arrange(self.model, torch.channels_last)
        self.optimizer = _optimizer(model, config)
        self.loss = loss or _cross_entropy(config.label_smoothing)
        self.after_step = after_step
        self.x = _tensor(train.x).to(self.device)  # (n, H, W, C)
        self.y = _tensor(train.y).long().to(self.device)  # (n,)
        self.history = History(precision="bf16" if self.bf16 else "float32", device=str(self.device))
        self.average = {k: v.clone() for k, v in _weights(model).items()} if config.ema else {}
        self.best: dict[str, Tensor] = {}

    def epoch(self, epoch: int, validation: Dataset) -> None:
        """Train one epoch (from 0), validate, add a row to the history."""
        started, cpu_started = time.perf_counter(), time.process_time()
        generator = torch.Generator().manual_seed(_epoch_seed(self.config.seed, epoch))
        torch.manual_seed(_epoch_seed(self.config.seed, epoch))
        order = torch.randperm(len(self.y), generator=generator).to(self.device)
        size = self.config.batch_size
        steps = len(order) // size
        total_loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.model.train()
        for i in range(steps):
            step = epoch * steps + i
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(self.config, step, steps)
            value, hits = self._step(order[i * size : (i + 1) * size], generator)
            total_loss += value
            correct += hits
            self._update_average(step)
        rate = self.optimizer.param_groups[0]["lr"]
        if not torch.isfinite(total_loss):
            raise UsageError(f"the loss is not finite in epoch {epoch + 1}; lower learning_rate ({rate:.3g})")
        row = {
            "epoch": epoch + 1,
            "learning_rate": rate,
            "train_loss": float(total_loss) / steps,
            "train_accuracy": int(correct) / (steps * size),
        }
        self._validate(row, validation)
        row["seconds"] = time.perf_counter() - started
        row["cpu_seconds"] = time.process_time() - cpu_started
        self._report(row)

    def _step(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return the loss and the number of correct predictions."""
        x = augment(self.x, indices, flip=self.config.flip, shift=self.config.shift, generator=generator)
        y = self.y[indices]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(x)
        logits = logits.float()
        value = self.loss(logits, x, y, indices)
        value.backward()
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step(self.model)
        return value.detach(), (logits.detach().argmax(1) == y).sum()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Move the average towards the weights; early on it follows faster than ``ema`` says.

        The ramp is that of Tarvainen and Valpola 2017 (arXiv:1703.01780) as usually implemented.
        """
        if not self.average:
            return
        decay = min(self.config.ema, (1 + step) / (10 + step))
        for name, value in _weights(self.model).items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _validate(self, row: dict[str, float], validation: Dataset) -> None:
        """Measure the weights that would be kept, and remember them if they are the best so far."""
        with _swapped(self.model, self.average):
            accuracy = evaluate(self.model, validation)
            row["validation_accuracy"] = accuracy
            earlier = [r["validation_accuracy"] for r in self.history.epochs]
            if not earlier or accuracy > max(earlier):
                self.history.best_epoch = int(row["epoch"])
                if self.config.keep == "best":
                    self.best = {k: v.clone() for k, v in _weights(self.model).items()}
        self.history.epochs.append(row)

    def _report(self, row: dict[str, float]) -> None:
        if self.config.progress:
            print(
                f"epoch {row['epoch']:>3}/{self.config.epochs}  loss {row['train_loss']:.4f}  "
                f"train {row['train_accuracy']:.4f}  validation {row['validation_accuracy']:.4f}  "
                f"{row['seconds']:.1f} s",
                flush=True,
            )

    def finish(self) -> History:
        """Leave the chosen weights in the model, on the processor and in evaluation mode."""
        chosen = self.best if self.config.keep == "best" else self.average
        if chosen:
            self.model.load_state_dict(chosen)
        self.model.to(device="cpu")
        _arrange(self.model, torch.contiguous_format)
        self.model.eval()
        return self.history

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        tensors = {f"model.{k}": v for k, v in _weights(self.model).items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"optimizer.{name}|{key}"] = torch.as_tensor(value)
        state = {"run": self._fingerprint(), "history": asdict(self.history)}
        _checkpoints.save(path, tensors, state)

    def resume(self, path: Path) -> int:
        """Take over the state in ``path`` if it exists; return the number of epochs already done."""
        if not path.exists():
            return 0
        tensors, state = _checkpoints.load(path)
        if state.get("run") != self._fingerprint():
            raise DataError(
                f"checkpoint {path} belongs to another run (model, data size, configuration or hardware "
                "differ); delete it or name another file"
            )
        self.model.load_state_dict(_under("model.", tensors))
        self.average = _to(_under("average.", tensors), self.device)
        self.best = _to(_under("best.", tensors), self.device)
        parameters = dict(self.model.named_parameters())
        for name, value in _under("optimizer.", tensors).items():
            parameter_name, key = name.split("|")
            parameter = parameters[parameter_name]
            # A buffer of the parameter's shape also takes its memory format, as the optimizer made it.
            like = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            self.optimizer.state[parameter][key] = like.detach()
        self.history = History(**state["history"])
        return len(self.history.epochs)

    def _fingerprint(self) -> str:
        """Return a digest of what must be equal for a run to be continued."""
        config = {k: v for k, v in asdict(self.config).items() if k != "progress"}
        shapes = {k: list(v.shape) for k, v in _weights(self.model).items()}
        what = [config, shapes, list(self.x.shape), self.device.type, self.bf16]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def augment(
    x: Tensor,
    indices: Tensor,
    *,
    flip: bool = False,
    shift: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the batch ``x[indices]``, normalised, randomly mirrored and shifted.

    Parameters
    ----------
    x : Tensor
        uint8 or float (N, H, W, C).
    indices : Tensor
        int64 (n,).
    flip : bool
        Mirror each image left to right with probability 1/2.
    shift : int
        Move each image by up to this many pixels along H and W; what enters is mirrored at the edge.
        Less than H and W.
    generator : torch.Generator, optional
        On the processor, so that all devices draw the same.

    Returns
    -------
    Tensor
        float32 (n, C, H, W) in channels_last memory format.
    """
    n, (height, width) = len(indices), x.shape[1:3]
    if not flip and not shift:
        return _as_input(x[indices])
    columns = torch.arange(width).expand(n, width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    moves = torch.randint(-shift, shift + 1, (2, n, 1), generator=generator)
    rows = _mirrored(torch.arange(height) + moves[0], height)  # (n, H)
    columns = _mirrored(columns + moves[1], width)  # (n, W)
    rows, columns = rows.to(x.device), columns.to(x.device)
    return _as_input(x[indices[:, None, None], rows[:, :, None], columns[:, None, :]])


def evaluate(model: nn.Module, dataset: Dataset, *, batch_size: int = 256) -> float:
    """Return the share (0 to 1) of ``dataset`` that ``model`` classifies correctly, in float32."""
    logits = predict_logits(model, dataset.x, batch_size=batch_size)
    return float((logits.argmax(1).numpy() == dataset.y).mean())


@torch.no_grad()
def predict_logits(model: nn.Module, x: np.ndarray, *, batch_size: int = 256) -> Tensor:
    """Return the logits of ``model`` in evaluation mode, computed in float32.

    Parameters
    ----------
    model : nn.Module
        Its mode is put back afterwards.
    x : ndarray
        Examples (n, H, W, C), uint8 or float, as in a :class:`~tinyml_edu.data.Dataset`.

    Returns
    -------
    Tensor
        float32 (n, classes), on the processor.
    """
    if len(x) == 0:
        raise UsageError("there are no examples to evaluate; the data set is empty")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        batches = (_tensor(x[i : i + batch_size]) for i in range(0, len(x), batch_size))
        return torch.cat([model(_as_input(batch.to(device))).float().cpu() for batch in batches])
    finally:
        model.train(was_training)


def _tensor(x: np.ndarray) -> Tensor:
    """Share memory with ``x``, or copy it where torch could not: read-only or not contiguous."""
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))


def _as_input(batch: Tensor) -> Tensor:
    """Turn (n, H, W, C) into the float32 (n, C, H, W) of :func:`tinyml_edu.data.to_tensor`, no copy."""
    x = batch.permute(0, 3, 1, 2)
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Reflect positions in ``(-size, 2 * size - 1)`` into ``[0, size)`` without repeating the edge."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch  # a prime above any number of epochs keeps the seeds of two runs apart


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers without their gradients; the tensors are the model's own."""
    return {name: value.detach() for name, value in model.state_dict().items()}


@torch.no_grad()
def _arrange(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out all four-axis weights as ``memory_format``; their values do not change."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _to(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {k: v.to(device) for k, v in tensors.items()}


def _cross_entropy(smoothing: float) -> Loss:
    def loss(logits: Tensor, x: Tensor, y: Tensor, indices: Tensor) -> Tensor:  # noqa: ARG001
        return F.cross_entropy(logits, y, label_smoothing=smoothing)

    return loss


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
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


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' was asked for but there is no usable GPU; take device='auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether the forward pass runs in bf16; "auto" asks for native multiply instructions."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions oneDNN converts back and forth, slower than float32.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _swapped(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Put ``weights`` into ``model`` for the duration; nothing happens if there are none."""
    if not weights:
        yield
        return
    own = {k: v.clone() for k, v in _weights(model).items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
