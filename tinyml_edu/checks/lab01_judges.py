"""Lab 1, pruning: how the answers are judged.

The truth is recomputed in NumPy over the inputs and shares no code with the library's pruning nor with a
student's answer.  Weights that are only selected or set to zero keep their bits, so those comparisons are
exact; no judge looks at an accuracy.
"""

from __future__ import annotations

import itertools

import numpy as np

from .compare import all_of, close, true
from .protocol import Arrays, Verdict

# A norm or checksum adds at most a few thousand float32 or float64 terms of the same sign or of
# order one: float32 rounding is 6e-8 a step and grows with the square root of the count, so 1e-5 leaves
# room for any order of summation and none for another formula.
RTOL = 1e-5


def keep_mask(weights: np.ndarray, sparsity: float) -> np.ndarray:
    """Return 1 where a weight stays: the ``round(sparsity * n)`` smallest magnitudes go, low index first."""
    mask = np.ones(weights.size, dtype=bool)
    order = np.argsort(np.abs(weights).ravel(), kind="stable")
    mask[order[: round(float(sparsity) * weights.size)]] = False
    return mask.reshape(weights.shape)


def parameters_of(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return the state of the case's network, by the names of its state dict."""
    return {name[6:]: value for name, value in arrays.items() if name.startswith("state/")}


# q1: fine_grained_prune(tensor, sparsity)


def q1(arrays: Arrays, outputs: Arrays) -> Verdict:
    tensor, sparsity = arrays["tensor"], float(arrays["sparsity"])
    want, got = keep_mask(tensor, sparsity), outputs["mask"]
    kept, found = int(want.sum()), int(np.count_nonzero(got))
    counted = true(
        got.shape != want.shape or found == kept,
        f"the mask keeps {found} of {want.size} weights, expected {kept}",
        look_at="equal magnitudes: a threshold keeps or removes all of them at once; count positions instead",
    )
    mistakes = {
        "the mask is upside down: 1 stands where a weight stays": ~want,
        "the sign counts here; the smallest magnitudes go": _signed_mask(tensor, sparsity),
        "of equal magnitudes the one with the lower index goes first": _last_ties_first(tensor, sparsity),
    }
    return all_of(
        close(outputs["tensor"], tensor, name="the tensor after the call", look_at="leave it unchanged"),
        counted,
        close(got.astype(float), want.astype(float), name="the mask", mistakes=_as_float(mistakes)),
    )


def _signed_mask(tensor: np.ndarray, sparsity: float) -> np.ndarray:
    return keep_mask(tensor - tensor.min(), sparsity)


def _last_ties_first(tensor: np.ndarray, sparsity: float) -> np.ndarray:
    return keep_mask(tensor.ravel()[::-1], sparsity)[::-1].reshape(tensor.shape)


def _as_float(mistakes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {phrase: value.astype(float) for phrase, value in mistakes.items()}


# q2: FineGrainedPruner(model, sparsity_dict), .apply(model)


def q2(arrays: Arrays, outputs: Arrays) -> Verdict:
    """Follow the weights through a first ``apply`` and two optimizer steps, each followed by ``apply``."""
    state = {n: v for n, v in parameters_of(arrays).items() if f"update/{n}" in arrays}
    chosen = dict(zip(sparsity_names(state), arrays["sparsities"].tolist()))
    masks = {n: keep_mask(v, chosen[n]) if n in chosen else np.ones(v.shape, bool) for n, v in state.items()}
    verdicts = []
    weights = {n: v * masks[n] for n, v in state.items()}
    for step in range(3):
        if step:
            weights = {n: (v + arrays[f"update/{n}"]) * masks[n] for n, v in weights.items()}
        verdicts += [_q2_step(n, step, w, masks[n], outputs[f"{step}/{n}"]) for n, w in weights.items()]
    return all_of(*verdicts)


def sparsity_names(state: dict[str, np.ndarray]) -> list[str]:
    """Return the tensors that the case prunes: every weight with two or more axes, but the first."""
    return [name for name, value in state.items() if value.ndim > 1][1:]


def _q2_step(name: str, step: int, want: np.ndarray, mask: np.ndarray, got: np.ndarray) -> Verdict:
    when = "after apply(model)" if step == 0 else f"after step {step} and apply(model)"
    same_zeros = got.shape == want.shape and bool(np.all((got == 0) == (want == 0)))
    if step and not same_zeros and got.shape == want.shape and np.any(got[~mask]):
        hint = "a pruned weight is back: multiply by the mask after every step"
    elif step and not same_zeros:
        hint = "other weights are zero than at first: make the masks once, in the constructor"
    else:
        hint = "each tensor has its own sparsity and threshold; a tensor without one stays whole"
    return close(got, want, name=f"{name} {when}", look_at=hint)


# q3: sensitivity_scan(model, evaluate, sparsities)


def checksum(state: dict[str, np.ndarray], arrays: Arrays) -> float:
    """Return the stand-in for an accuracy: a weighted sum of all parameters, so that every change shows."""
    return float(sum(np.vdot(arrays[f"factor/{n}"], v.astype(np.float64)) for n, v in state.items()))


def q3(arrays: Arrays, outputs: Arrays) -> Verdict:
    state = {n: v for n, v in parameters_of(arrays).items() if f"factor/{n}" in arrays}
    sparsities = arrays["sparsities"].tolist()
    names = [name for name, value in state.items() if value.ndim > 1]
    listed = [name for name in sorted(state) if bool(outputs[f"has/{name}"])]
    verdicts = [
        true(
            listed == sorted(names),
            f"the result has the layers {listed}, expected {sorted(names)}",
            look_at="scan parameters with two or more axes: weights of convolutions and linear layers",
        )
    ]
    for name in names if not any(v.score < 1 for v in verdicts) else []:
        want = [
            checksum({**state, name: state[name] * keep_mask(state[name], s)}, arrays) for s in sparsities
        ]
        verdicts.append(
            close(
                outputs[f"curve/{name}"],
                want,
                rtol=RTOL,
                atol=RTOL,
                name=f"the curve of {name}",
                look_at="one layer at a time, each time from the original weights: restore them in between",
            )
        )
    verdicts += [
        close(outputs[f"after/{n}"], v, name=f"{n} after the scan", look_at="put the original weights back")
        for n, v in state.items()
    ]
    return all_of(*verdicts)


# q4: bitmask_bytes(mask, value_bits), relative_index_bytes(mask, value_bits, index_bits)


def entries(mask: np.ndarray, index_bits: int) -> int:
    """Return the stored entries of EIE's relative index, by walking over the positions one by one."""
    longest, run, count = 2**index_bits - 1, 0, 0
    waiting = 0  # entries of a run that a non-zero has still to confirm: trailing zeros are not stored
    for kept in mask.ravel().astype(bool).tolist():
        if kept:
            count, run, waiting = count + waiting + 1, 0, 0
        elif run == longest:
            run, waiting = 0, waiting + 1
        else:
            run += 1
    return count


def relative_index_bytes(mask: np.ndarray, value_bits: int = 8, index_bits: int = 4) -> int:
    """Return the bytes of a mask's kept values with relative indices, padding zeros included."""
    return (entries(np.asarray(mask), index_bits) * (value_bits + index_bits) + 7) // 8


def q4(arrays: Arrays, outputs: Arrays) -> Verdict:
    mask, (value_bits, index_bits) = arrays["mask"], arrays["bits"].tolist()
    kept, n = int(mask.sum()), mask.size
    stored = entries(mask, index_bits)
    width = value_bits + index_bits
    padded_end = entries(np.append(mask.ravel(), True), index_bits) - 1
    first = close(
        outputs["bitmask"],
        (n + 7) // 8 + (kept * value_bits + 7) // 8,
        name="bitmask_bytes(mask, value_bits)",
        mistakes={
            "the mask itself must be stored too, one bit a weight": (kept * value_bits + 7) // 8,
            "a bit takes a bit, not a byte": n + (kept * value_bits + 7) // 8,
            "round up to whole bytes": n // 8 + kept * value_bits // 8,
        },
    )
    second = close(
        outputs["relative"],
        (stored * width + 7) // 8,
        name="relative_index_bytes(mask, value_bits, index_bits)",
        mistakes={
            "a gap that does not fit in the index needs padding entries": (kept * width + 7) // 8,
            "a padding entry stands at a position of its own and bridges 2**index_bits of them": (
                _bridging(mask, 2**index_bits - 1) * width + 7
            )
            // 8,
            "zeros after the last value need no entry": (padded_end * width + 7) // 8,
            "indices must be stored too": (stored * value_bits + 7) // 8,
            "round up to whole bytes": stored * width // 8,
        },
    )
    return all_of(first, second)


def _bridging(mask: np.ndarray, step: int) -> int:
    """Return the entries if a padding entry bridged ``step`` positions."""
    gaps = np.diff(np.flatnonzero(mask.ravel()), prepend=-1) - 1
    return int(mask.sum() + (gaps // step).sum())


# q5: get_num_channels_to_keep(channels, prune_ratio), channel_prune(model, prune_ratio)


def count(channels: int, ratio: float) -> int:
    """Return the channels that stay, at least one."""
    return max(1, round(channels * (1 - ratio)))


def q5(arrays: Arrays, outputs: Arrays) -> Verdict:
    pairs = arrays["channels_and_ratios"].tolist()
    wanted = [count(int(c), r) for c, r in pairs]
    counts = close(
        outputs["counts"],
        wanted,
        name="get_num_channels_to_keep(channels, prune_ratio)",
        mistakes={
            "this is the number that goes": [round(c * r) for c, r in pairs],
            "round to the nearest, not down": [max(1, int(c * (1 - r))) for c, r in pairs],
            "at least one channel must stay": [round(c * (1 - r)) for c, r in pairs],
        },
    )
    state = parameters_of(arrays)
    keeps = [count(o, r) for (o, _), r in zip(conv_shapes(state), arrays["ratios"].tolist())]
    want = _cut(state, [np.arange(keep) for keep in keeps])
    return all_of(counts, _same_state(outputs, want, "channel_prune"), _untouched(outputs, state))


def conv_shapes(state: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Return (O, I) of each convolution in order."""
    return [(v.shape[0], v.shape[1]) for n, v in state.items() if n.endswith("conv.weight")]


def _cut(state: dict[str, np.ndarray], keeps: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the state with the output channels ``keeps[i]`` of convolution ``i``, in that order."""
    blocks = [n.removesuffix(".conv.weight") for n in state if n.endswith("conv.weight")]
    new = dict(state)
    for keep, (block, reader) in zip(keeps, itertools.pairwise(blocks)):
        for name in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            new[f"{block}.{name}"] = new[f"{block}.{name}"][keep]
        new[f"{reader}.conv.weight"] = new[f"{reader}.conv.weight"][:, keep]
    return new


def _same_state(outputs: Arrays, want: dict[str, np.ndarray], call: str) -> Verdict:
    return all_of(*(_same_tensor(n, outputs[f"new/{n}"], v, call) for n, v in want.items()))


def _same_tensor(name: str, got: np.ndarray, want: np.ndarray, call: str) -> Verdict:
    if name.endswith("conv.weight"):
        hint = "output channels are axis 0; the next convolution reads them on axis 1"
    elif ".bn." in name:
        hint = "each of a batch norm's four vectors follows the channels of the convolution before it"
    else:
        hint = "the last convolution and the linear layer stay as they are"
    if name.endswith("conv.weight") and got.shape != want.shape and got.shape[0] == want.shape[0]:
        hint = "the next convolution must lose its input channels, axis 1; zeros still cost MACs and bytes"
    verdict = close(got, want, name=f"{name} after {call}", look_at=hint)
    return verdict if verdict.passed or verdict.look_at == hint else Verdict(0.0, verdict.reason, hint)


def _untouched(outputs: Arrays, state: dict[str, np.ndarray]) -> Verdict:
    return all_of(
        *(
            close(outputs[f"old/{n}"], v, name=f"{n} of the original", look_at="work on copy.deepcopy(model)")
            for n, v in state.items()
        )
    )


# q6: get_input_channel_importance(weight)


def q6(arrays: Arrays, outputs: Arrays) -> Verdict:
    weight = arrays["weight"].astype(np.float64)
    want = input_norms(weight)
    return close(
        outputs["importance"],
        want,
        rtol=RTOL,
        name="get_input_channel_importance(weight)",
        mistakes={
            "these are the norms of the output channels (axis 0)": np.sqrt((weight**2).sum((1, 2, 3))),
            "this is the L1 norm": np.abs(weight).sum((0, 2, 3)),
            "this is the squared norm": want**2,
            "signs cancel in a plain sum": weight.sum((0, 2, 3)),
        },
        look_at="one number for each input channel: the L2 norm over the other three axes",
    )


def input_norms(weight: np.ndarray) -> np.ndarray:
    """Return the L2 norm of each input channel of a convolution's weight (O, I, KH, KW): (I,)."""
    return np.sqrt((weight.astype(np.float64) ** 2).sum((0, 2, 3)))


# q7: apply_channel_sorting(model)


def q7(arrays: Arrays, outputs: Arrays) -> Verdict:
    state = parameters_of(arrays)
    readers = [v for n, v in state.items() if n.endswith("conv.weight")][1:]
    # A row order of the reader does not change the norms of its columns, so all orders come from the
    # original weights; the cases keep the norms a tenth apart.
    orders = [np.argsort(-input_norms(reader), kind="stable") for reader in readers]
    want = _cut(state, orders)
    unsorted = all(np.array_equal(outputs[f"new/{n}"], v) for n, v in state.items())
    return all_of(
        true(not unsorted, "no channel has moved", look_at="order by importance, the largest first"),
        _same_state(outputs, want, "apply_channel_sorting"),
        _untouched(outputs, state),
    )


# n1, n2: numbers that the notebook measures and the judge recomputes


def truth_n1() -> float:
    """Bytes of the widest layer of the trained VGG-lite at 90 % sparsity, as int8 with a relative index."""
    from .. import zoo

    weight = zoo.load("vgg_lite.glyphs32")[0].get_submodule("features.7.conv").weight
    return float(relative_index_bytes(keep_mask(weight.detach().numpy(), 0.9)))


def truth_n2() -> float:
    """MACs of VGG-lite on 32 by 32 pixels when every convolution but the last has half its channels."""
    channels, pixels = [3, 16, 16, 32, 32, 64, 64, 128], [1024, 1024, 256, 256, 64, 64, 16]
    convolutions = sum(n * 9 * i * o for n, (i, o) in zip(pixels, itertools.pairwise(channels)))
    return float(convolutions + 128 * 10)
