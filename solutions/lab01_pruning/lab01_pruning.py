# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 1 · Pruning and sparsity
#
# {{COLAB_BADGE}}
#
# **Time** {{MINUTES}} minutes, of which the machine needs three · **Points** {{POINTS}}, of which a person
# gives {{MANUAL_POINTS}} · **Before you start** Lab 0, and enough PyTorch to read a training loop ·
# **You leave with** a pruned network, its size with all indices counted, and a firmware image of it whose
# instructions and flash you compare with those of the original.

# %% [markdown]
# ## Question and budget
#
# A trained network reads ten letters from 32 × 32 images. Most of its weights are close to zero. How many
# can go before it stops reading, and what does a microcontroller gain from their absence?
#
# The budget: **half of the flash and half of the instructions**, for at most **ten points** of validation
# accuracy, with one short epoch of fine-tuning. Two ways lead there, single weights and whole channels. One
# of them keeps its promise on paper only; this lab measures which.

# %% [markdown]
# ## Setup
#
# On Colab the first cell installs the course's package; anywhere else it does nothing. The next cells import
# what the lab needs, load the trained network and a part of the data, and define four small helpers.
# Everything is chosen on the **validation** split; the test split is touched once, at the end.

# %%
# {{COLAB_INSTALL}}

# %% tags=["setup"]
import copy
import math
import os
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from tinyml_edu import checks, data, explore, mcu, models, plots, profile, quantization, train, zoo
from tinyml_edu import pruning as ref  # the library's pruning: compare with it, do not call it

torch.set_num_threads(1)
torch.manual_seed(0)
dense, card = zoo.load("vgg_lite.glyphs32")  # trained; do not change it, work on copies
image = torch.zeros(1, 3, 32, 32)  # (N, C, H, W)

# %% [markdown]
# `conv_blocks` lists the convolutions of a plain network; each has a `conv` and a `bn`, and pooling may stand
# between two. `take` is the surgeon's knife of questions 5 and 7: `take(layer, ["weight"], index, dim=1)`
# replaces the weight by its entries `index` along axis 1, in that order, and keeps the layer's own notes on
# its channels in step.


# %% tags=["setup"]
def conv_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the convolutions of ``model`` in order; block.conv is followed by block.bn."""
    return [block for block in model.features if hasattr(block, "conv")]


def take(layer: nn.Module, names: list[str], index: torch.Tensor, dim: int = 0) -> None:
    """Replace each named tensor of ``layer`` by its entries ``index`` along axis ``dim``."""
    for name in names:
        value = getattr(layer, name)
        chosen = value.detach().index_select(dim, index)
        setattr(layer, name, nn.Parameter(chosen) if isinstance(value, nn.Parameter) else chosen)
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    else:
        layer.num_features = len(layer.weight)


# %%
fast = os.environ.get("TINYML_EDU_FAST") == "1"  # a shorter run, for machines that only test this notebook
training = data.load("glyphs32", "train").take(slice(1024 if fast else 4000))
validation = data.load("glyphs32", "validation")
recipe = train.TrainConfig(epochs=1, learning_rate=0.02, schedule="cosine", shift=2, progress=False)


def accuracy(model: nn.Module, images: int = 300 if fast else 1000) -> float:
    """Return the share of the first ``images`` validation images that ``model`` reads correctly."""
    return train.evaluate(model, validation.take(slice(images)))


def fine_tune(model: nn.Module, after_step=None) -> float:
    """Train ``model`` in place for one epoch on ``training``; return its accuracy."""
    train.fit(model, training, validation.take(slice(100)), recipe, after_step=after_step)
    return accuracy(model)


def reveal(guess: float, measured: float, unit: str) -> None:
    """Print a prediction beside the measurement; being wrong costs nothing, not guessing does."""
    print(f"you predicted {guess:,} {unit}; measured {measured:,.5g} {unit}")


baseline = accuracy(dense)
print(f"{sum(p.numel() for p in dense.parameters()):,} parameters, validation accuracy {baseline:.3f}")

# %% [markdown]
# ## Idea
#
# A weight $w$ that is near zero adds little to the sum it stands in. **Magnitude pruning** takes $|w|$ for
# the importance of a weight, removes the least important share $s$, the *sparsity*, and multiplies the
# tensor by a mask $m$:
#
# $$\hat{W} = W \odot m, \qquad m_i = 0 \text{ for the } \operatorname{round}(s\,n) \text{ smallest } |w_i|$$
#
# (Han et al., 2015). The figure shows the weights of three layers. Which of them could lose most weights?
# What would one threshold for all layers do to the first?

# %%
plots.show(explore.weight_histograms(dense, ["features.0.conv", "features.4.conv", "features.7.conv"]))

# %% [markdown]
# ## Build
#
# ### 1 · Fine-grained pruning
#
# **Why.** The mask decides what is lost. A threshold seems the natural way, `tensor.abs() > t`, and it has a
# trap: weights that are *equal* in magnitude stay or go together. Quantized weights are full of equals, so
# the count would be wrong.
#
# **Your turn.** Write `fine_grained_prune`. Exactly `round(sparsity * n)` of the `n` weights go; of equal
# magnitudes the one with the lower flat index goes first. `torch.argsort` has an argument `stable`. Return a
# bool mask, True where a weight stays, and leave the tensor as it is.


# %% nbgrader={"grade_id": "q1", "solution": true}
def fine_grained_prune(tensor: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return the mask (bool, shape of ``tensor``) that removes the smallest magnitudes."""
    ### BEGIN SOLUTION
    order = torch.argsort(tensor.abs().flatten(), stable=True)
    mask = torch.ones(tensor.numel(), dtype=torch.bool)
    mask[order[: round(sparsity * tensor.numel())]] = False
    return mask.reshape(tensor.shape)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q1_check", "grade": true}
checks.check("lab01.q1")

# %% [markdown]
# **Find out.** Prune every weight tensor of the trained network to the same sparsity, without training
# afterwards. Predict: at 80 %, how accurate is it still, in percent? The last line prunes at random, as a
# control: is magnitude worth anything?

# %%
guess = 80


@torch.no_grad()
def pruned_copy(model, sparsity, score=lambda weight: weight):
    """Return a copy whose weight tensors have lost the share ``sparsity`` of smallest |score|."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(fine_grained_prune(score(parameter), sparsity))
    return model


one_shot = {s: accuracy(pruned_copy(dense, s), 500) for s in (0.3, 0.5, 0.7, 0.8, 0.9)}
reveal(guess, 100 * one_shot[0.8], "% accuracy at a sparsity of 0.8")
print("  ".join(f"{s:.0%}: {a:.3f}" for s, a in one_shot.items()))
print(f"random 50%: {accuracy(pruned_copy(dense, 0.5, score=torch.rand_like), 500):.3f}")

# %% [markdown]
# ### 2 · Masks that last
#
# **Why.** Fine-tuning lets the remaining weights make up for the lost ones. But the optimizer knows no mask:
# gradient, momentum and weight decay move every weight, also those at zero. After one step the network is
# dense again and nobody notices, because its accuracy is fine.
#
# **Your turn.** Write `FineGrainedPruner`. The constructor makes one mask for each name in `sparsity_dict`,
# each layer with its own sparsity and its own ranking. `apply` sets the weights under these masks to zero,
# always the *same* masks; the training loop calls it after every step. Names are those of
# `model.named_parameters()`; a tensor that is not in the dictionary stays whole.


# %% nbgrader={"grade_id": "q2", "solution": true}
class FineGrainedPruner:
    """Keeps chosen weights of a model at zero."""

    def __init__(self, model: nn.Module, sparsity_dict: dict[str, float]) -> None:
        ### BEGIN SOLUTION
        self.masks = {
            name: fine_grained_prune(parameter.detach(), sparsity_dict[name])
            for name, parameter in model.named_parameters()
            if name in sparsity_dict
        }
        ### END SOLUTION

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set the pruned weights of ``model`` to zero."""
        ### BEGIN SOLUTION
        for name, parameter in model.named_parameters():
            if name in self.masks:
                parameter.mul_(self.masks[name])
        ### END SOLUTION


# %% nbgrader={"grade_id": "q2_check", "grade": true}
checks.check("lab01.q2")

# %% [markdown]
# **Find out.** One epoch of fine-tuning at 80 % sparsity, with the masks kept and with the masks forgotten.
# Predict the accuracy with masks in percent. Which of the two is more accurate, and which one is pruned?

# %%
guess = 60
names = [name for name, p in dense.named_parameters() if p.dim() > 1]
uniform = dict.fromkeys(names, 0.8)
tuned, forgotten = copy.deepcopy(dense), copy.deepcopy(dense)
pruner = FineGrainedPruner(dense, uniform)
pruner.apply(tuned)
pruner.apply(forgotten)
results = {
    "masks kept": (tuned, fine_tune(tuned, after_step=pruner.apply)),
    "masks forgotten": (forgotten, fine_tune(forgotten)),
}
reveal(guess, 100 * results["masks kept"][1], "% accuracy after one epoch")
for name, (model, score) in results.items():
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.dim() > 1])
    print(f"{name:<16} accuracy {score:.3f}, {(weights == 0).double().mean():.1%} of the weights are zero")

# %% [markdown]
# ### 3 · Sensitivity scan
#
# **Why.** Layers are not equal, and neither depth nor size says which of them has weights to spare. A scan
# asks: it prunes *one* layer at a time, the others staying whole, and notes the accuracy.
#
# **Your turn.** Write `sensitivity_scan` for parameters with two or more axes. For each name return the list
# of `evaluate(model)`, one value for each sparsity in the given order, which need not ascend. Every value
# starts from the original weights, and at the end the model is as it came: exactly, not nearly.


# %% nbgrader={"grade_id": "q3", "solution": true}
@torch.no_grad()
def sensitivity_scan(model: nn.Module, evaluate, sparsities: list[float]) -> dict[str, list[float]]:
    """Return for each weight tensor's name the values of ``evaluate(model)`` with only it pruned."""
    curves = {}
    ### BEGIN SOLUTION
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            original = parameter.clone()
            curves[name] = []
            for sparsity in sparsities:
                parameter.copy_(original * fine_grained_prune(original, sparsity))
                curves[name].append(evaluate(model))
            parameter.copy_(original)
    ### END SOLUTION
    return curves


# %% nbgrader={"grade_id": "q3_check", "grade": true}
checks.check("lab01.q3")

# %% [markdown]
# **Find out.** Before you run the scan: which layer will fall first, and which one last? Put the number of
# the layer that you expect to be most robust into `guess` (0 for the first convolution, 7 for the linear
# layer). The largest layer is number 5: does it have most to spare? On 400 images, two curves that differ by
# 2 points are equal.

# %%
guess = 7
sparsities = [0.5, 0.7, 0.8, 0.9]
scanned = 100 if fast else 400
curves = sensitivity_scan(dense, partial(accuracy, images=scanned), sparsities)
robust = max(curves, key=lambda name: sum(curves[name]))
print(f"you predicted layer {guess} as the most robust; it is layer {list(curves).index(robust)} ({robust})")
plots.show(explore.sensitivity_curves(sparsities, curves, accuracy(dense, scanned)))

# %% [markdown]
# ### 4 · Bytes of a sparse layer
#
# **Why.** Zeros are not stored, but the places of the other weights are. A **bitmask** spends a bit on every
# weight. EIE's **relative index** (Han et al., 2016) stores with each value the number of zeros before it in
# 4 bits, at most 15. If more zeros come, a *padding* entry follows 15 of them: its value is 0, it takes the
# place of the 16th zero, and the count starts again.
#
# **Your turn.** Write both; a mask is read in row-major order, a kept value takes `value_bits`. Round up to
# whole bytes: mask and values of the bitmask apart, the relative index once. Zeros after the last value need
# no entry.


# %% nbgrader={"grade_id": "q4", "solution": true}
def bitmask_bytes(mask: torch.Tensor, value_bits: int = 8) -> int:
    """Return the bytes of one bit for each weight and of the kept values."""
    ### BEGIN SOLUTION
    return (mask.numel() + 7) // 8 + (int(mask.sum()) * value_bits + 7) // 8
    ### END SOLUTION


def relative_index_bytes(mask: torch.Tensor, value_bits: int = 8, index_bits: int = 4) -> int:
    """Return the bytes of (value, zeros before it) entries, padding entries included."""
    ### BEGIN SOLUTION
    positions = mask.flatten().nonzero().flatten()
    gaps = torch.diff(positions, prepend=torch.tensor([-1])) - 1
    entries = len(positions) + int((gaps // 2**index_bits).sum())
    return (entries * (value_bits + index_bits) + 7) // 8
    ### END SOLUTION


# %% nbgrader={"grade_id": "q4_check", "grade": true}
checks.check("lab01.q4")

# %% [markdown]
# **Find out.** The largest layer has 147,456 weights, as many bytes in int8. Predict how many bytes it takes
# with a relative index at 80 % sparsity. At which sparsity does the better format change? Where does sparse
# storage start to pay at all?

# %%
guess = 30_000
largest = dense.features[7].conv.weight.detach()
reveal(guess, relative_index_bytes(fine_grained_prune(largest, 0.8)), "bytes at a sparsity of 0.8")
print(
    f"{'sparsity':>8} {'values only':>12} {'bitmask':>9} {'relative index':>15}   dense {largest.numel():,}"
)
for sparsity in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
    mask = fine_grained_prune(largest, sparsity)
    print(
        f"{sparsity:>8.2f} {int(mask.sum()):>12,} {bitmask_bytes(mask):>9,} {relative_index_bytes(mask):>15,}"
    )

# %% [markdown]
# ### 5 · Channel pruning
#
# **Why.** A layer with whole channels removed is a smaller *dense* layer: no index, no mask, and every kernel
# on every board runs it as it is. But three things hang on an output channel: its filter, its entry in each
# of the batch norm's **four** vectors, and the input channel of the **next** convolution that reads it.
#
# **Your turn.** `get_num_channels_to_keep` rounds `channels * (1 - prune_ratio)` to the nearest, and keeps at
# least one. `channel_prune` returns a copy in which every convolution but the last keeps its *first*
# channels. A weight is (O, I, KH, KW). `prune_ratio` is one number or a list with one for each convolution
# but the last.


# %% nbgrader={"grade_id": "q5", "solution": true}
def get_num_channels_to_keep(channels: int, prune_ratio: float) -> int:
    """Return how many of ``channels`` stay, at least one."""
    ### BEGIN SOLUTION
    return max(1, round(channels * (1 - prune_ratio)))
    ### END SOLUTION


def channel_prune(model: nn.Module, prune_ratio: float | list[float]) -> nn.Module:
    """Return a copy of ``model`` with the first channels of each convolution but the last."""
    model = copy.deepcopy(model)
    blocks = conv_blocks(model)
    ratios = prune_ratio if isinstance(prune_ratio, list) else [prune_ratio] * (len(blocks) - 1)
    for ratio, block, reader in zip(ratios, blocks, blocks[1:]):
        ### BEGIN SOLUTION
        index = torch.arange(get_num_channels_to_keep(block.conv.out_channels, ratio))
        take(block.conv, ["weight"], index)
        take(block.bn, ["weight", "bias", "running_mean", "running_var"], index)
        take(reader.conv, ["weight"], index, dim=1)
        ### END SOLUTION
    return model


# %% nbgrader={"grade_id": "q5_check", "grade": true}
checks.check("lab01.q5")

# %% [markdown]
# **Find out.** Remove 30 % of the channels of every convolution but the last. Predict what share of the MACs
# remains, in percent: 70, or less? Explain the number: how many of a layer's two channel counts shrink?

# %%
guess = 70
thinner = channel_prune(dense, 0.3)
reveal(guess, 100 * profile.model_macs(thinner, image) / profile.model_macs(dense, image), "% of the MACs")
print(f"accuracy {accuracy(thinner):.3f} with the first 70 % of the channels, before fine-tuning")

# %% [markdown]
# ### 6 · Importance of a channel
#
# **Why.** The first channels are no better than the others; keeping them is as good as drawing lots. A
# channel matters as much as the next layer listens to it, so its importance is the norm of the weights that
# *read* it.
#
# **Your turn.** For a weight (O, I, KH, KW) return the L2 norm of each *input* channel, a tensor (I,).


# %% nbgrader={"grade_id": "q6", "solution": true}
def get_input_channel_importance(weight: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm (I,) over all weights that read each input channel."""
    ### BEGIN SOLUTION
    return weight.pow(2).sum(dim=(0, 2, 3)).sqrt()
    ### END SOLUTION


# %% nbgrader={"grade_id": "q6_check", "grade": true}
checks.check("lab01.q6")

# %% [markdown]
# **Find out.** Predict for the second convolution: how many times more important is its most important input
# channel than its least important one?

# %%
guess = 2
importance = get_input_channel_importance(conv_blocks(dense)[1].conv.weight.detach())
reveal(guess, float(importance.max() / importance.min()), "times")

# %% [markdown]
# ### 7 · Channel sorting
#
# **Why.** The order of channels inside a network is free: if a layer writes them in another order and the
# next one reads them in that order, nothing changes outside. So we sort them once, most important first, and
# `channel_prune` then keeps the right ones. Once-for-all networks use the same trick to make every prefix of
# a layer a good small layer.
#
# **Your turn.** Complete `apply_channel_sorting`: order the output channels of `block` by how important they
# are to `reader`, descending. What must move with them is the list of question 5.


# %% nbgrader={"grade_id": "q7", "solution": true}
def apply_channel_sorting(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` that computes the same, its channels sorted by importance."""
    model = copy.deepcopy(model)
    blocks = conv_blocks(model)
    for block, reader in pairwise(blocks):
        ### BEGIN SOLUTION
        importance = get_input_channel_importance(reader.conv.weight.detach())
        order = torch.argsort(importance, descending=True)
        take(block.conv, ["weight"], order)
        take(block.bn, ["weight", "bias", "running_mean", "running_var"], order)
        take(reader.conv, ["weight"], order, dim=1)
        ### END SOLUTION
    return model


# %% nbgrader={"grade_id": "q7_check", "grade": true}
checks.check("lab01.q7")

# %% [markdown]
# **Find out.** Sorting must not change the network: the first line below measures by how much the logits
# differ, and rounding is all that may remain. Then predict: how accurate, in percent, is the network without
# 30 % of its channels when the *least important* ones go?

# %%
guess = 50
sorted_model = apply_channel_sorting(dense)
few = validation.x[:64]
shift = (train.predict_logits(sorted_model, few) - train.predict_logits(dense, few)).abs().max()
print(f"largest change of a logit by sorting: {shift:.1e}")
unsorted_score = accuracy(thinner)
thinner = channel_prune(sorted_model, 0.3)
reveal(guess, 100 * accuracy(thinner), "% accuracy, sorted and pruned by 30 %")
print(
    f"unsorted {unsorted_score:.3f}, sorted {accuracy(thinner):.3f}, then one epoch {fine_tune(thinner):.3f}"
)

# %% [markdown]
# ## Measure
#
# The scan can choose the sparsities: for each layer the largest one that costs at most 3 points when the
# layer is pruned *alone*. Does that beat one sparsity for all, at the same number of weights? The table
# includes the controls that such a comparison needs: random masks, and the dense network with the same extra
# epoch. Predict the order of the four rows. Should the scan lose: what does it not see?

# %%
allowed = accuracy(dense, scanned) - 0.03
by_scan = {
    name: max([s for s, a in zip(sparsities, curve) if a >= allowed], default=0.3)
    for name, curve in curves.items()
}
sizes = {name: p.numel() for name, p in dense.named_parameters() if p.dim() > 1}
overall = sum(by_scan[name] * n for name, n in sizes.items()) / sum(sizes.values())
print("  ".join(f"{name.removesuffix('.weight')}: {s:.0%}" for name, s in by_scan.items()))
print(f"overall {overall:.1%}")


# %%
def pruned_and_tuned(sparsity_dict, random=False):
    """Return the network that is pruned and fine-tuned, with its accuracy before and after."""
    model = copy.deepcopy(dense)
    pruner = FineGrainedPruner(model, sparsity_dict)
    if random:
        drawn = {name: torch.rand(mask.shape) for name, mask in pruner.masks.items()}
        pruner.masks = {n: fine_grained_prune(r, sparsity_dict[n]) for n, r in drawn.items()}
    pruner.apply(model)
    before = accuracy(model)
    return model, before, fine_tune(model, after_step=pruner.apply)


runs = {
    "dense, one more epoch": pruned_and_tuned({}),
    "by the scan": pruned_and_tuned(by_scan),
    "uniform": pruned_and_tuned(dict.fromkeys(sizes, overall)),
    "uniform, random masks": pruned_and_tuned(dict.fromkeys(sizes, overall), random=True),
}

# %%
total = sum(sizes.values())
print(f"{'weights':<23} {'before':>7} {'after':>7} {'zeros':>7} {'bitmask':>9} {'relative':>9}  of {total:,}")
for name, (model, before, after) in runs.items():
    masks = [p.detach() != 0 for p in model.parameters() if p.dim() > 1]
    zeros = 1 - sum(int(mask.sum()) for mask in masks) / total
    bitmask, relative = sum(map(bitmask_bytes, masks)), sum(map(relative_index_bytes, masks))
    print(f"{name:<23} {before:>7.3f} {after:>7.3f} {zeros:>7.1%} {bitmask:>9,} {relative:>9,}")
bars = {"before the epoch": [b for _, b, _ in runs.values()], "after it": [a for _, _, a in runs.values()]}
plots.show(plots.bars(list(runs), bars, x_label="validation accuracy"))

# %% [markdown]
# **Explorer.** Turn sparsity and granularity: single weights, *n* of four neighbouring input channels (2:4
# at one half), kernels that share eight patterns, rows of a kernel, kernels, whole filters. Larger units need
# fewer bits for their places and lose accuracy sooner. Predict before each move which of the two numbers
# changes more. At which sparsity does the bitmask of single weights cost as much as the weights that are
# left? (Accuracy on 200 images, before any fine-tuning.)

# %%
explore.pruning_explorer()

# %% [markdown]
# **Optional: the lottery ticket.** Frankle and Carbin (2019) set a pruned network's weights back to their
# *first* values and train it alone. If it learns better than the same masks with other first values, the
# masks and those values together are a "winning ticket". A quarter of the width, four letters and three
# epochs only hint at the effect: repeat it with other seeds before you believe it, in either direction.

# %%
four = data.load("glyphs32", "train")
four = four.take([i for i, letter in enumerate(four.y) if letter < 4][: 960 if fast else 3000])
four_validation = validation.take([i for i, letter in enumerate(validation.y) if letter < 4])


def fresh(seed):
    torch.manual_seed(seed)
    return models.build("vgg_lite", classes=10, width=0.25)


def learn(model, after_step=None):
    config = train.TrainConfig(epochs=3, batch_size=32, learning_rate=0.05, progress=False)
    train.fit(model, four, four_validation.take(slice(100)), config, after_step=after_step)
    return train.evaluate(model, four_validation)


# %%
grown = fresh(seed=1)
print(f"dense                     {learn(grown):.3f}")
ticket = FineGrainedPruner(grown, {name: 0.8 for name, p in grown.named_parameters() if p.dim() == 4})
for name, seed in (("ticket, first values", 1), ("same masks, other values", 2)):
    restarted = fresh(seed)
    ticket.apply(restarted)
    print(f"{name:<25} {learn(restarted, after_step=ticket.apply):.3f}")

# %% [markdown]
# ## Deploy or compare
#
# Now the board decides. The kernels of the firmware are dense: they multiply by zeros like by any number.
# Three networks go through the same compiler: the original, the one with 80 % of its weights at zero from
# question 2, and one without half of its channels, cut by the library's `shrink` and fine-tuned for one
# epoch. Predict the instructions of the channel-pruned one, in percent of the original.

# %%
guess = 50
small = ref.shrink(dense, image, 0.5)
print(f"accuracy {accuracy(small):.3f} after the cut, {fine_tune(small):.3f} after one epoch")
board, folder = mcu.get_board("stm32f412"), Path(tempfile.mkdtemp(prefix="lab01_"))
finalists = {"dense": dense, "80 % zeros": tuned, "half the channels": small}
pictures = data.to_tensor(validation.x[:64])
deployed, runs_on_board = {}, {}
for name, model in finalists.items():
    quantized = quantization.quantize(model, calibration=pictures)
    deployed[name] = mcu.deploy(quantized.graph, board.name, folder / name.replace(" ", "_"))
    runs_on_board[name] = deployed[name].run(data.normalised(validation.x[:1]), target="emulate")
share = runs_on_board["half the channels"].instructions / runs_on_board["dense"].instructions
reveal(guess, 100 * share, "% of the instructions")

# %%
print(
    f"{'network':<18} {'flash':>8} {'SRAM':>7} {'M MACs':>7} "
    f"{'M instr.':>8} {'est. ms':>8} {'validation':>10}"
)
for name, run in runs_on_board.items():
    report = deployed[name].report
    flash, sram = report["flash_bytes"]["total"], report["sram_bytes"]["total"]
    print(
        f"{name:<18} {flash:>8,} {sram:>7,} {report['macs'] / 1e6:>7.2f} {run.instructions / 1e6:>8.2f} "
        f"{run.estimated_ms:>8.0f} {accuracy(finalists[name]):>10.3f}"
    )
elf = folder / "half_the_channels" / "firmware.elf"
print(f"your artefact: {elf.name}, {elf.stat().st_size:,} bytes on disk with symbols")

# %% [markdown]
# The choice is made, by validation accuracy. Now, and only now, the **test** split says what to expect of
# the chosen network. A number that you have chosen by is no estimate any more; this one is.

# %%
test = data.load("glyphs32", "test")
print(f"test accuracy of the network with half the channels: {train.evaluate(small, test):.3f}")

# %% [markdown]
# ## Reflect
#
# ### n1 · The price of an index
#
# **Predict** how many bytes the layer `dense.features[7].conv` takes at 90 % sparsity with 8-bit values and
# 4-bit relative indices: its 14,746 values at 12 bits each, or more? **Then measure** with your functions of
# questions 1 and 4 and set `relative_index_bytes_at_90`. The measured number is graded, not the guess.

# %% nbgrader={"grade_id": "n1", "solution": true}
### BEGIN SOLUTION
mask_at_90 = fine_grained_prune(dense.features[7].conv.weight.detach(), 0.9)
relative_index_bytes_at_90 = relative_index_bytes(mask_at_90)
### END SOLUTION

# %% nbgrader={"grade_id": "n1_check", "grade": true}
checks.check("lab01.n1")

# %% [markdown]
# **Find out.** How many padding entries come on one value? If zeros fell at random, the answer would be
# $0.9^{16} + 0.9^{32} + \dots$, about 0.23. Does the trained layer need more, and what does that say of where
# its large weights stand?

# %%
without_padding = math.ceil(14_746 * 12 / 8)
print(f"{relative_index_bytes_at_90 / without_padding - 1:.1%} more than without padding entries")

# %% [markdown]
# ### n2 · Half the channels
#
# **Predict** the MACs of VGG-lite on a 32 × 32 image when every convolution but the last has half its
# channels: a half, a quarter, or in between? **Then measure** with your own `channel_prune` and
# `profile.model_macs`, and set `macs_half_channels`.

# %% nbgrader={"grade_id": "n2", "solution": true}
### BEGIN SOLUTION
macs_half_channels = profile.model_macs(channel_prune(dense, 0.5), image)
### END SOLUTION

# %% nbgrader={"grade_id": "n2_check", "grade": true}
checks.check("lab01.n2")

# %% [markdown]
# **Find out.** Most layers lose half of their inputs *and* half of their outputs. Which layers lose only one
# half, and how does it show in the ratio?

# %%
print(f"{macs_half_channels / profile.model_macs(dense, image):.4f} of the original MACs")

# %% [markdown]
# ### w1 · Zeros that do not pay ({{POINTS:w1}} points)
#
# On the board the network with 80 % zeros gains neither flash nor instructions. Explain why, and what would
# have to change in storage and in the kernel to gain from its zeros. Four to six sentences, with your
# figures.
#
# *Rubric.* 1 point: quotes instructions and flash of the deployed networks. 2 points: says that dense kernels
# store and multiply zeros, and what a sparse kernel must do instead. 1 point: counts the indices, with bytes
# from question 4. 1 point: names why channel pruning needs neither.

# %% [markdown] nbgrader={"grade_id": "w1", "grade": true, "solution": true}
# *A model answer.* On the board the network with zeros takes the flash of the dense one, 451 KB, and its
# 114 M instructions; the channel-pruned one takes little more than a quarter of both. The kernel walks over
# every weight in order: a zero is stored as a byte and multiplied like any other. To gain, weights must be
# stored compressed (with a relative index the largest layer shrinks from 147 to 46 KB at 80 % sparsity), and
# the kernel must read each index, jump to the activation and skip the rest, at a cost for every kept weight.
# Channel pruning leaves a smaller dense layer, which needs no index and no new kernel.

# %% [markdown]
# ### w2 · What to prune for a board ({{POINTS:w2}} points)
#
# A product has a board with 64 KB of free flash and may lose five points of accuracy. Would you prune single
# weights, channels, or both, and how would you choose the ratios? Three to six sentences.
#
# *Rubric.* 2 points: compares both ways by bytes with indices and by accuracy, with numbers from the lab. 1
# point: chooses ratios by a scan or search on the validation split. 1 point: names fine-tuning with masks
# kept, and the control it needs. 1 point: says which number only the board can give.

# %% [markdown] nbgrader={"grade_id": "w2", "grade": true, "solution": true}
# *A model answer.* Half the channels alone still take over 110 KB of flash for weights, too much. Single
# weights fit 64 KB only near 95 % sparsity, where the largest layer takes 14 % of its bytes with its indices;
# but 80 % already cost about five points after one epoch, and the board's dense kernel gains nothing. I would
# remove channels down to about a third of the width, with ratios from a scan or search on the validation
# split, fine-tune for longer than one epoch, and prune single weights only for a sparse kernel, masks kept. A
# dense network of that size, trained as long, is the control. Real flash and instructions come from the
# firmware.
