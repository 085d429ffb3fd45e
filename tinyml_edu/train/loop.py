"""The loop itself.

A run is a function of the model's first weights, the data and the configuration.  Every epoch draws its
order and its augmentation from a generator seeded by ``(seed, epoch)`` and the learning rate is a formula of
the step, so a run that stops and is started again by the same call ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _checkpoints
from .._threads import torch_threads
from ..data.dataset import Dataset
from ..errors import DataError, UsageError
from .batches import augment, evaluate, shared_tensor
from .config import History, TrainConfig, learning_rate_at
from .state import (
    arrange,
    choose_device,
    make_optimizer,
    moved,
    swapped,
    under,
    uses_bf16,
    weights_of,
)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``loss(logits (n, classes), x (n, C, H, W), y (n,), indices (n,)) -> scalar``."""


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
    with torch_threads(config.threads), torch.random.fork_rng(devices=gpus):
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
        self.device = choose_device(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        # channels_last keeps the pixels where NHWC data has them, and the processor's bf16 kernels want it:
        # batches arrive without a copy and no layer reorders them.
        self.model = model.to(device=self.device)
        arrange(self.model, torch.channels_last)
        self.optimizer = make_optimizer(model, config)
        self.loss = loss or _cross_entropy(config.label_smoothing)
        self.after_step = after_step
        self.x = shared_tensor(train.x).to(self.device)  # (n, H, W, C)
        self.y = shared_tensor(train.y).long().to(self.device)  # (n,)
        self.history = History(precision="bf16" if self.bf16 else "float32", device=str(self.device))
        self.average = {k: v.clone() for k, v in weights_of(model).items()} if config.ema else {}
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
        for name, value in weights_of(self.model).items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _validate(self, row: dict[str, float], validation: Dataset) -> None:
        """Measure the weights that would be kept, and remember them if they are the best so far."""
        with swapped(self.model, self.average):
            accuracy = evaluate(self.model, validation)
            row["validation_accuracy"] = accuracy
            earlier = [r["validation_accuracy"] for r in self.history.epochs]
            if not earlier or accuracy > max(earlier):
                self.history.best_epoch = int(row["epoch"])
                if self.config.keep == "best":
                    self.best = {k: v.clone() for k, v in weights_of(self.model).items()}
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
        arrange(self.model, torch.contiguous_format)
        self.model.eval()
        return self.history

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        tensors = {f"model.{k}": v for k, v in weights_of(self.model).items()}
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
        self.model.load_state_dict(under("model.", tensors))
        self.average = moved(under("average.", tensors), self.device)
        self.best = moved(under("best.", tensors), self.device)
        parameters = dict(self.model.named_parameters())
        for name, value in under("optimizer.", tensors).items():
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
        shapes = {k: list(v.shape) for k, v in weights_of(self.model).items()}
        what = [config, shapes, list(self.x.shape), self.device.type, self.bf16]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _cross_entropy(smoothing: float) -> Loss:
    def loss(logits: Tensor, x: Tensor, y: Tensor, indices: Tensor) -> Tensor:  # noqa: ARG001
        return F.cross_entropy(logits, y, label_smoothing=smoothing)

    return loss


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch  # a prime above any number of epochs keeps the seeds of two runs apart
