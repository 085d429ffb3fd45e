"""One training loop for all labs: :func:`fit`, with :func:`evaluate` and :func:`predict_logits`."""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:  # so that the names serve as types
    from .batches import augment as augment
    from .batches import evaluate as evaluate
    from .batches import predict_logits as predict_logits
    from .config import History as History
    from .config import TrainConfig as TrainConfig
    from .config import learning_rate_at as learning_rate_at
    from .loop import Loss as Loss
    from .loop import fit as fit

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["batches", "config", "loop", "state"],
    attributes={
        "batches": ["augment", "evaluate", "predict_logits"],
        "config": ["History", "TrainConfig", "learning_rate_at"],
        "loop": ["Loss", "fit"],
    },
)
