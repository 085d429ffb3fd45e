"""Lab 1, pruning: the questions, their visible inputs, and how each runs a student's function."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import lab01_judges as judges
from .protocol import Arrays, Lab, Namespace, Question, numeric

Rng = np.random.Generator
_NORM = ("weight", "bias", "running_mean", "running_var")


def _number(value: Any) -> np.ndarray:
    """Return what a student's function gave as an array without dimensions; None becomes NaN."""
    return np.asarray(np.nan if value is None else value).reshape(())


def _array(value: Any) -> np.ndarray:
    """Return a tensor as an array of its own; None becomes NaN."""
    if value is None:
        return np.array(np.nan)
    return value.detach().numpy().copy() if hasattr(value, "detach") else np.array(value)


def _asked(value: Any) -> Any:
    """Return a result that the driver goes on with; None says that nothing was written yet."""
    if value is None:
        raise NotImplementedError("the function returns None; write the answer cell first")
    return value


# Networks: a chain of convolutions with batch norms, pooling where asked for, and a linear layer.


def chain_case(rng: Rng, channels: list[int], *, kernel: int = 3, pools: tuple[int, ...] = ()) -> Arrays:
    """Return the weights of a chain with ``channels`` (inputs first) and a pooling after each of ``pools``.

    The norms of a convolution's input channels are a random order of a geometric series, so that no
    rounding decides which is larger.
    """
    state: Arrays = {}
    place = 0
    for layer in range(len(channels) - 1):
        i, o = channels[layer : layer + 2]
        weight = rng.normal(size=(o, i, kernel, kernel))
        places = rng.permutation(i)
        if i > 1 and np.all(np.diff(places) < 0):
            places = places[::-1]  # channels that are sorted already would let "do nothing" pass
        weight *= (1.1**places / judges.input_norms(weight))[:, None, None]
        state[f"features.{place}.conv.weight"] = weight
        for name in _NORM:
            state[f"features.{place}.bn.{name}"] = rng.uniform(0.5, 1.5, o)
        place += 2 if layer in pools else 1
    state["linear.weight"] = rng.normal(size=(5, channels[-1]))
    state["linear.bias"] = rng.normal(size=5)
    arrays = {f"state/{name}": value.astype(np.float32) for name, value in state.items()}
    return {
        "channels": np.array(channels),
        "kernel": np.array(kernel),
        "pools": np.array(pools, int),
        **arrays,
    }


def _network(arrays: Arrays) -> Any:
    import torch
    from torch import nn

    from ..models import Classifier, ConvBN

    channels = arrays["channels"].tolist()
    layers: list[nn.Module] = []
    for layer in range(len(channels) - 1):
        layers.append(ConvBN(channels[layer], channels[layer + 1], int(arrays["kernel"])))
        layers += [nn.MaxPool2d(2)] if layer in arrays["pools"].tolist() else []
    model = Classifier(nn.Sequential(*layers), channels[-1], 5)
    state = {name: torch.from_numpy(value) for name, value in judges.parameters_of(arrays).items()}
    model.load_state_dict(state, strict=False)  # counters of seen batches are not part of a case
    return model.eval()


def _state(model: Any, prefix: str) -> Arrays:
    return {f"{prefix}/{name}": _array(value) for name, value in model.state_dict().items()}


# q1: fine_grained_prune(tensor, sparsity)


def tensor_case(tensor: np.ndarray, sparsity: float) -> Arrays:
    """Weights of any shape and the share to remove."""
    return {"tensor": np.asarray(tensor, np.float32), "sparsity": np.array(sparsity)}


def _q1_visible_small(rng: Rng) -> Arrays:  # noqa: ARG001
    return tensor_case(np.array([3.0, -1.0, 2.0, -4.0]), 0.5)


def _q1_visible(rng: Rng) -> Arrays:
    return tensor_case(rng.normal(size=(4, 3, 3, 3)), 0.7)


def _q1_visible_ties(rng: Rng) -> Arrays:
    return tensor_case(rng.choice([-2.0, -1.0, 1.0, 2.0], size=(5, 6)), 0.4)


def _q1_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    tensor = torch.from_numpy(arrays["tensor"].copy())
    mask = namespace["fine_grained_prune"](tensor, float(arrays["sparsity"]))
    return {"mask": _array(mask), "tensor": _array(tensor)}


# q2: FineGrainedPruner(model, sparsity_dict), .apply(model)


def steps_case(rng: Rng, channels: list[int], sparsities: list[float], **kinds: Any) -> Arrays:
    """A chain, sparsities of all its weights but the first, and what an optimizer step adds to each."""
    arrays = chain_case(rng, channels, **kinds)
    updates = {
        f"update/{name}": rng.normal(size=value.shape).astype(np.float32)
        for name, value in judges.parameters_of(arrays).items()
        if "running" not in name
    }
    return {**arrays, **updates, "sparsities": np.array(sparsities)}


def _q2_visible_small(rng: Rng) -> Arrays:
    return steps_case(rng, [1, 2, 2], [0.5, 0.5], kernel=1)


def _q2_visible(rng: Rng) -> Arrays:
    return steps_case(rng, [3, 4, 6], [0.75, 0.3])


def _q2_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    model = _network(arrays)
    names = judges.sparsity_names(judges.parameters_of(arrays))
    pruner = namespace["FineGrainedPruner"](model, dict(zip(names, arrays["sparsities"].tolist())))
    seen: Arrays = {}
    for step in range(3):
        with torch.no_grad():
            for name, parameter in model.named_parameters() if step else ():
                parameter.add_(torch.from_numpy(arrays[f"update/{name}"]))
        pruner.apply(model)
        seen |= {f"{step}/{name}": _array(value) for name, value in model.named_parameters()}
    return seen


# q3: sensitivity_scan(model, evaluate, sparsities)


def scan_case(rng: Rng, channels: list[int], sparsities: list[float], **kinds: Any) -> Arrays:
    """A chain, the sparsities to try, and the factors of the checksum that stands in for an accuracy."""
    arrays = chain_case(rng, channels, **kinds)
    factors = {
        f"factor/{name}": rng.normal(size=value.shape)
        for name, value in judges.parameters_of(arrays).items()
        if "running" not in name
    }
    return {**arrays, **factors, "sparsities": np.array(sparsities)}


def _q3_visible_small(rng: Rng) -> Arrays:
    return scan_case(rng, [1, 2], [0.5], kernel=1)


def _q3_visible(rng: Rng) -> Arrays:
    return scan_case(rng, [3, 4, 5], [0.3, 0.6, 0.9])


def _q3_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    model = _network(arrays)

    def evaluate(network: Any) -> float:
        return judges.checksum({n: _array(p) for n, p in network.named_parameters()}, arrays)

    curves = _asked(namespace["sensitivity_scan"](model, evaluate, arrays["sparsities"].tolist()))
    names = [name for name, _ in model.named_parameters()]
    found = {f"has/{name}": np.array(name in curves) for name in names}
    found |= {f"curve/{name}": np.asarray(curves[name], float) for name in names if name in curves}
    return found | {f"after/{name}": _array(value) for name, value in model.named_parameters()}


# q4: bitmask_bytes(mask, value_bits), relative_index_bytes(mask, value_bits, index_bits)


def mask_case(mask: np.ndarray, value_bits: int = 8, index_bits: int = 4) -> Arrays:
    """Where a tensor is not zero, and the bits of a value and of a relative index."""
    return {"mask": np.asarray(mask, bool), "bits": np.array([value_bits, index_bits])}


def gaps_mask(gaps: list[int], end: int = 0) -> np.ndarray:
    """Return a mask in which the i-th kept weight comes after ``gaps[i]`` zeros, and ``end`` zeros follow."""
    return np.array([bit for gap in gaps for bit in [0] * gap + [1]] + [0] * end, bool)


def _q4_visible_small(rng: Rng) -> Arrays:  # noqa: ARG001
    return mask_case(gaps_mask([2, 0, 18]))


def _q4_visible(rng: Rng) -> Arrays:
    return mask_case(rng.random((8, 5, 3, 3)) < 0.3)


def _q4_visible_edges(rng: Rng) -> Arrays:  # noqa: ARG001
    return mask_case(gaps_mask([15, 16, 31, 32], end=40))


def _q4_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    mask, (value_bits, index_bits) = torch.from_numpy(arrays["mask"]), arrays["bits"].tolist()
    return {
        "bitmask": _number(namespace["bitmask_bytes"](mask, value_bits)),
        "relative": _number(namespace["relative_index_bytes"](mask, value_bits, index_bits)),
    }


# q5: get_num_channels_to_keep(channels, prune_ratio), channel_prune(model, prune_ratio)


def channels_case(
    rng: Rng, channels: list[int], ratios: list[float], pairs: list[tuple[int, float]], **kinds: Any
) -> Arrays:
    """A chain, a ratio for each convolution but the last, and (channels, ratio) pairs for the count."""
    return {
        **chain_case(rng, channels, **kinds),
        "ratios": np.array(ratios),
        "channels_and_ratios": np.array(pairs),
    }


def _q5_visible_small(rng: Rng) -> Arrays:
    return channels_case(rng, [1, 4, 3], [0.5], [(4, 0.5), (10, 0.3)], kernel=1)


def _q5_visible(rng: Rng) -> Arrays:
    return channels_case(rng, [3, 6, 10, 4], [0.5, 0.7], [(64, 0.1), (7, 0.4)], pools=(0,))


def _q5_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    pairs, ratios = arrays["channels_and_ratios"].tolist(), arrays["ratios"].tolist()
    counts = [_number(namespace["get_num_channels_to_keep"](int(c), r)) for c, r in pairs]
    model = _network(arrays)
    # One number is a legal argument too, and means the same share everywhere.
    small = _asked(namespace["channel_prune"](model, ratios if len(set(ratios)) > 1 else ratios[0]))
    return {"counts": np.array(counts), **_state(small, "new"), **_state(model, "old")}


# q6: get_input_channel_importance(weight)


def weight_case(weight: np.ndarray) -> Arrays:
    """Weight of a convolution (O, I, KH, KW)."""
    return {"weight": weight.astype(np.float32)}


def _q6_visible_small(rng: Rng) -> Arrays:  # noqa: ARG001
    return weight_case(np.array([[3.0, 0.0], [-4.0, 2.0]])[:, :, None, None])


def _q6_visible(rng: Rng) -> Arrays:
    return weight_case(rng.normal(size=(4, 6, 3, 3)))


def _q6_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    import torch

    return {
        "importance": _array(namespace["get_input_channel_importance"](torch.from_numpy(arrays["weight"])))
    }


# q7: apply_channel_sorting(model)


def _q7_visible_small(rng: Rng) -> Arrays:
    return chain_case(rng, [1, 3, 2], kernel=1)


def _q7_visible(rng: Rng) -> Arrays:
    return chain_case(rng, [3, 5, 5, 4], pools=(1,))


def _q7_drive(namespace: Namespace, arrays: Arrays) -> Arrays:
    model = _network(arrays)
    return {**_state(_asked(namespace["apply_channel_sorting"](model)), "new"), **_state(model, "old")}


LAB = Lab(
    id="lab01",
    title="Pruning and sparsity",
    minutes=90,
    questions=(
        Question(
            "q1", "fine-grained pruning", 12, ("fine_grained_prune",),
            inputs=(_q1_visible_small, _q1_visible, _q1_visible_ties), drive=_q1_drive, judge=judges.q1,
        ),
        Question(
            "q2", "masks that last", 12, ("FineGrainedPruner",), ("fine_grained_prune",),
            inputs=(_q2_visible_small, _q2_visible), drive=_q2_drive, judge=judges.q2,
        ),
        Question(
            "q3", "sensitivity scan", 12, ("sensitivity_scan",), ("fine_grained_prune",),
            inputs=(_q3_visible_small, _q3_visible), drive=_q3_drive, judge=judges.q3,
        ),
        Question(
            "q4", "bytes of a sparse layer", 14, ("bitmask_bytes", "relative_index_bytes"),
            inputs=(_q4_visible_small, _q4_visible, _q4_visible_edges), drive=_q4_drive, judge=judges.q4,
        ),
        Question(
            "q5", "channel pruning", 14, ("get_num_channels_to_keep", "channel_prune"),
            inputs=(_q5_visible_small, _q5_visible), drive=_q5_drive, judge=judges.q5,
        ),
        Question(
            "q6", "importance of a channel", 6, ("get_input_channel_importance",),
            inputs=(_q6_visible_small, _q6_visible), drive=_q6_drive, judge=judges.q6,
        ),
        Question(
            "q7", "channel sorting", 12, ("apply_channel_sorting",), ("get_input_channel_importance",),
            inputs=(_q7_visible_small, _q7_visible), drive=_q7_drive, judge=judges.q7,
        ),
        numeric(
            "n1", "bytes of a layer at 90 %", 4, name="relative_index_bytes_at_90",
            truth=judges.truth_n1, uses=("fine_grained_prune", "relative_index_bytes"), unit="bytes",
            look_at="mask dense.features[7].conv.weight at 0.9, then 8-bit values and 4-bit indices",
        ),
        numeric(
            "n2", "MACs with half the channels", 4, name="macs_half_channels",
            truth=judges.truth_n2, uses=("channel_prune",), unit="MACs",
            look_at="channel_prune(dense, 0.5), then profile.model_macs on an image of 32 by 32",
        ),
        Question("w1", "zeros that do not pay", 5, kind="written"),
        Question("w2", "what to prune for a board", 5, kind="written"),
    ),
    reference={
        "fine_grained_prune": "tinyml_edu.pruning.fine_grained:fine_grained_prune",
        "FineGrainedPruner": "tinyml_edu.pruning.fine_grained:FineGrainedPruner",
        "sensitivity_scan": "tinyml_edu.pruning.ratios:sensitivity_scan",
        "relative_index_bytes": "tinyml_edu.checks.lab01_judges:relative_index_bytes",
        "get_num_channels_to_keep": "tinyml_edu.pruning.channels:get_num_channels_to_keep",
        "channel_prune": "tinyml_edu.pruning.channels:channel_prune",
        "get_input_channel_importance": "tinyml_edu.pruning.channels:get_input_channel_importance",
        "apply_channel_sorting": "tinyml_edu.pruning.channels:apply_channel_sorting",
    },
)  # fmt: skip
