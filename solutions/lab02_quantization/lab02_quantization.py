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
# # Lab 2 · Quantization
#
# {{COLAB_BADGE}}
#
# **Time** {{MINUTES}} minutes, of which the machine needs three · **Points** {{POINTS}}, of which a person
# gives {{MANUAL_POINTS}} · **Before you start** Lab 0, and enough PyTorch to read a training loop; Lab 1
# helps · **You leave with** an int8 network, your own integer convolution that computes its codes bit for
# bit, and a firmware image of it.

# %% [markdown]
# ## Question and budget
#
# A trained network stores each weight in 32 bits and multiplies floats. A microcontroller has little memory
# and often no float unit. How few bits does a network need, and what does arithmetic look like when there
# are only integers?
#
# The budget: **a quarter of the bytes**, no float in the inner loop, and at most **two points** of
# validation accuracy. At the end *every code* of your integer convolution must equal that of the reference:
# not nearly, exactly. An engine that is off by one code here is off by a class there.

# %% [markdown]
# ## Setup
#
# On Colab the first cell installs the course's package; anywhere else it does nothing. The next cells import
# what the lab needs and load the trained network and a part of the data. A `Codebook` is a pair
# `(centroids, labels)`. Everything is chosen on the **validation** split; the test split is touched once.

# %%
# {{COLAB_INSTALL}}

# %% tags=["setup"]
# ruff: noqa: A002, ARG001, PLR0917 (the argument lists of questions 6 and 7 are those of the course 6.5940)
import copy
import math
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tinyml_edu import checks, data, explore, ir, mcu, plots, train, zoo
from tinyml_edu import quantization as ref  # the library's quantization; not for your answers

torch.set_num_threads(1)
torch.manual_seed(0)
network, card = zoo.load("resnet8.glyphs32")  # trained; do not change it, work on copies
Codebook = ref.Codebook  # a pair: centroids (k,) float32 and labels (n,) int64


def effective_scales(input_scale, weight_scale, output_scale, channels: int) -> torch.Tensor:
    """Return s_x * s_w / s_y for each output channel, float64 (channels,)."""
    s_w = torch.as_tensor(weight_scale, dtype=torch.float64).flatten().expand(channels)
    return input_scale * s_w / output_scale


# %%
fast = os.environ.get("TINYML_EDU_FAST") == "1"  # a shorter run, for machines that only test this notebook
training = data.load("glyphs32", "train").take(slice(1024 if fast else 4000))
validation = data.load("glyphs32", "validation")
recipe = train.TrainConfig(
    epochs=1, learning_rate=0.02, schedule="cosine", shift=2, precision="float32", progress=False
)


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


# %%
weights = {name: p.detach() for name, p in network.named_parameters() if p.dim() > 1}
total = sum(w.numel() for w in weights.values())
baseline = accuracy(network)
print(f"{total:,} weights, {4 * total:,} bytes in float32, validation accuracy {baseline:.3f}")

# %% [markdown]
# ## Idea
#
# A code $q$ of $b$ bits stands for a real value. Two ways to choose which:
#
# $$r = s\,(q - \mathrm{zp}) \quad\text{(linear)} \qquad\qquad r = c_q \quad\text{(codebook)}$$
#
# A **linear** code needs a scale $s$ and a zero point zp; sums of products of codes are sums of products
# of values, so a network can compute in codes (Jacob et al., 2018). A **codebook** puts its values where the
# weights are, but $c_q$ must be looked up: it saves memory, not arithmetic (Han et al., 2016). The figure
# shows both with 8 values for one layer. Which of the two has the smaller error? Where does the other waste
# its values?

# %%
plots.show(explore.value_grids(weights["features.3.first.conv.weight"], bits=3))

# %% [markdown]
# ## Build
#
# ### 1 · A codebook by k-means
#
# **Why.** K-means moves $k = 2^b$ centroids to where they lower the squared error. Its trap: a centroid that
# no value is nearest to has no mean, and 0 / 0 turns a layer into NaNs.
#
# **Your turn.** `update_codebook` moves each centroid, in place, to the mean of the values that carry its
# label; one without values stays where it is. `k_means_quantize` starts with `torch.linspace` over the
# range, then repeats *label by the nearest centroid (the lower on a tie), update* until no label changes, at
# most 300 times. It replaces the tensor's values by their centroids, in place. A codebook that is given is
# used as it is.


# %% nbgrader={"grade_id": "q1", "solution": true}
@torch.no_grad()
def update_codebook(fp32_tensor: torch.Tensor, codebook: Codebook) -> None:
    """Move each centroid to the mean of its values, in place; ``labels`` (n,) index them."""
    ### BEGIN SOLUTION
    for k in range(len(codebook.centroids)):
        members = fp32_tensor.flatten()[codebook.labels == k]
        if members.numel():
            codebook.centroids[k] = members.mean()
    ### END SOLUTION


@torch.no_grad()
def k_means_quantize(fp32_tensor: torch.Tensor, bitwidth: int = 4, codebook=None) -> Codebook:
    """Replace the values of a tensor by their centroids, in place; return the codebook."""
    ### BEGIN SOLUTION
    if codebook is None:
        values = fp32_tensor.flatten()
        centroids = torch.linspace(float(values.min()), float(values.max()), 2**bitwidth)
        labels = torch.full((values.numel(),), -1)
        for _ in range(300):
            before, labels = labels, (values[:, None] - centroids).abs().argmin(dim=1)
            if labels.equal(before):
                break
            update_codebook(values, Codebook(centroids, labels))
        codebook = Codebook(centroids, labels)
    fp32_tensor.copy_(codebook.centroids[codebook.labels].view(fp32_tensor.shape))
    return codebook
    ### END SOLUTION


# %% nbgrader={"grade_id": "q1_check", "grade": true}
checks.check("lab02.q1")

# %% [markdown]
# **Find out.** Give every weight tensor a codebook, without training afterwards. Predict the accuracy with 4
# centroids (2 bits), in percent. From how many bits on is nothing lost?

# %%
guess = 60


def with_codebooks(model, bits):
    """Return a copy whose weight tensors hold 2**bits values each, and the codebooks by name."""
    model = copy.deepcopy(model)
    books = {n: k_means_quantize(p.data, bits) for n, p in model.named_parameters() if p.dim() > 1}
    return model, books


shared = {bits: accuracy(with_codebooks(network, bits)[0], 500) for bits in (1, 2, 3, 4)}
reveal(guess, 100 * shared[2], "% accuracy with 2 bits")
print("  ".join(f"{bits} bits: {score:.3f}" for bits, score in shared.items()))

# %% [markdown]
# ### 2 · From real values to codes
#
# **Why.** Signed codes of $b$ bits span $[-2^{b-1},\, 2^{b-1} - 1]$. A value beyond the range *saturates*:
# it gets the last code. A cast does not saturate, it **wraps**: 200 becomes −56, a bright pixel becomes
# dark. So clamp first and cast last.
#
# **Your turn.** Write `get_quantized_range` and `linear_quantize`: divide by the scale, round to nearest
# (`torch.round`: half to even), add the zero point, clamp, cast. `scale` and `zero_point` are numbers or
# tensors that broadcast. Leave the input as it is.


# %% nbgrader={"grade_id": "q2", "solution": true}
def get_quantized_range(bitwidth: int) -> tuple[int, int]:
    """Return the smallest and the largest signed code of ``bitwidth`` bits."""
    ### BEGIN SOLUTION
    return -(2 ** (bitwidth - 1)), 2 ** (bitwidth - 1) - 1
    ### END SOLUTION


def linear_quantize(fp_tensor, bitwidth, scale, zero_point, dtype=torch.int8) -> torch.Tensor:
    """Return the codes of a tensor, of its shape and of type ``dtype``."""
    ### BEGIN SOLUTION
    codes = torch.round(fp_tensor / scale) + zero_point
    return codes.clamp(*get_quantized_range(bitwidth)).to(dtype)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q2_check", "grade": true}
checks.check("lab02.q2")

# %% [markdown]
# **Find out.** Quantize 1,000 values in [−1, 1] to 8 bits with a scale of 1/128 and zero point 0, and
# read them back. Predict the largest error in steps of the scale: half a step, or more? Which value is it?

# %%
guess = 0.5
values = torch.linspace(-1, 1, 1000)
error = (linear_quantize(values, 8, 1 / 128, 0).double() / 128 - values).abs() * 128
reveal(guess, float(error.max()), "steps")
print(f"at {values[error.argmax()]:.3f}; without the last three values {error[:-3].max():.3f}")

# %% [markdown]
# ### 3 · Scale and zero point
#
# **Why.** The scale spreads the codes over the range of the values, and the zero point is the code of 0.0.
# Zero must have an *exact* code: padding and every output of a ReLU are zero, and an error there repeats in
# every sum. So the range is first **widened to contain 0**.
#
# **Your turn.** Write `get_quantization_scale_and_zero_point` with $s = (r_{max} - r_{min}) / (q_{max} -
# q_{min})$ and $\mathrm{zp} = \operatorname{round}(q_{min} - r_{min} / s)$, over the widened range.
# Return a float and an int. A tensor of zeros has no range: scale 1.0, zero point 0.


# %% nbgrader={"grade_id": "q3", "solution": true}
def get_quantization_scale_and_zero_point(fp_tensor: torch.Tensor, bitwidth: int) -> tuple[float, int]:
    """Return the scale and the zero point that cover a tensor's range and 0."""
    ### BEGIN SOLUTION
    q_min, q_max = get_quantized_range(bitwidth)
    low, high = min(float(fp_tensor.min()), 0.0), max(float(fp_tensor.max()), 0.0)
    if low == high:
        return 1.0, 0
    scale = (high - low) / (q_max - q_min)
    return scale, round(q_min - low / scale)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q3_check", "grade": true}
checks.check("lab02.q3")

# %% [markdown]
# **Find out.** One outlier: 10,000 normal values, the last one is then set to 50. Predict how many times
# larger the mean squared error of 8-bit codes becomes. The range is a choice: the explorer below has
# observers that cut it.

# %%
guess = 10
normal = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
outlier = normal.clone()
outlier[-1] = 50.0


def squared_error(tensor):
    scale, zero_point = get_quantization_scale_and_zero_point(tensor, 8)
    codes = linear_quantize(tensor, 8, scale, zero_point)
    return float((scale * (codes.double() - zero_point) - tensor).square().mean())


reveal(guess, squared_error(outlier) / squared_error(normal), "times")

# %% [markdown]
# ### 4 · A scale for each channel
#
# **Why.** Batch norm, folded into the weights, makes some filters many times larger than others. One scale
# for all rounds the small ones to nothing; one for each output channel costs four bytes a channel and no
# time. Weights are symmetric: zero point 0, $s_w = \max|w| / q_{max}$. The bias is added to a sum of
# products of codes, whose unit is $s_w s_x$; so that is the bias's scale.
#
# **Your turn.** Both functions return `(codes, scale, zero_point)`. Weights are (O, …), their scale
# (O, 1, …), 1.0 for a channel of zeros. Bias codes are int32 (O,), their scale is (O,); `weight_scale` may
# be a number, (O,) or (O, 1, 1, 1).


# %% nbgrader={"grade_id": "q4", "solution": true}
def linear_quantize_weight_per_channel(tensor: torch.Tensor, bitwidth: int):
    """Return codes (O, ...), scale (O, 1, ...) and zero point of a weight tensor (O, ...)."""
    ### BEGIN SOLUTION
    largest = tensor.abs().flatten(1).amax(dim=1)
    scale = largest / get_quantized_range(bitwidth)[1]
    scale = torch.where(scale > 0, scale, 1.0).view(-1, *[1] * (tensor.dim() - 1))
    return linear_quantize(tensor, bitwidth, scale, 0), scale, 0
    ### END SOLUTION


def linear_quantize_bias_per_output_channel(bias: torch.Tensor, weight_scale, input_scale: float):
    """Return codes int32 (O,), scale (O,) and zero point of a bias (O,)."""
    ### BEGIN SOLUTION
    scale = (torch.as_tensor(weight_scale).flatten() * input_scale).expand(len(bias))
    return linear_quantize(bias.double(), 32, scale, 0, torch.int32), scale, 0
    ### END SOLUTION


# %% nbgrader={"grade_id": "q4_check", "grade": true}
checks.check("lab02.q4")

# %% [markdown]
# **Find out.** `mcu.capture` folds the batch norms. Predict for the first convolution: how many times larger
# is its largest scale than its smallest? With 4 bits and one scale for all, how many codes are left for the
# smallest filter?

# %%
guess = 2
float_graph = mcu.capture(network, torch.zeros(1, 3, 32, 32))
folded = torch.from_numpy(float_graph["features.0.conv.weight"].data)  # (O, KH, KW, I)
scale = linear_quantize_weight_per_channel(folded, 4)[1].flatten()
reveal(guess, float(scale.max() / scale.min()), "times")
smallest = folded[int(scale.argmin())]
print(f"codes of the smallest filter: {torch.round(smallest / scale.max()).unique().int().tolist()}")

# %% [markdown]
# ### 5 · Multiplier and shift
#
# **Why.** A sum of products has the unit $s_x s_w$, the output wants $s_y$: multiply by $m = s_x s_w / s_y$.
# Without floats that is an int32 **multiplier** and a shift, $m \approx M \cdot 2^{e - 31}$ with $2^{30} \le
# M < 2^{31}$. The product needs 64 bits.
#
# How to round? A linear layer rounds **once**: $\lfloor a M 2^{e-31} + \tfrac12 \rfloor$. TensorFlow Lite's
# convolutions round **twice**, as their processors did: $h = \lfloor (a \cdot 2^{\max(e, 0)} M + 2^{30}) /
# 2^{31} \rfloor$, then $h / 2^{\max(-e, 0)}$ with halves away from zero. To be equal, do as they do.
#
# **Your turn.** `math.frexp` splits $m$. A fraction that rounds up to $2^{31}$ needs the next exponent. All
# tensors are int64 and broadcast; `>>` rounds down.


# %% nbgrader={"grade_id": "q5", "solution": true}
def quantize_multiplier(m: float) -> tuple[int, int]:
    """Return (multiplier, exponent) with m = multiplier * 2**(exponent - 31)."""
    ### BEGIN SOLUTION
    fraction, exponent = math.frexp(m)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, exponent = 2**30, exponent + 1
    return multiplier, exponent
    ### END SOLUTION


def quantize_multipliers(m: torch.Tensor) -> torch.Tensor:
    """Return (2, O): multipliers and exponents, int64, of the factors m (O,)."""
    return torch.tensor([quantize_multiplier(value) for value in m.tolist()]).T


def requant_single(acc: torch.Tensor, multiplier: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Return acc * multiplier * 2**(exponent - 31), rounded once, half up."""
    ### BEGIN SOLUTION
    shift = 31 - exponent
    return (acc * multiplier + 2 ** (shift - 1)) >> shift
    ### END SOLUTION


def requant_double(acc: torch.Tensor, multiplier: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Return acc * multiplier * 2**(exponent - 31), rounded twice."""
    ### BEGIN SOLUTION
    left, right = exponent.clamp(min=0), (-exponent).clamp(min=0)
    high = ((acc << left) * multiplier + 2**30) >> 31
    return high.sign() * ((high.abs() + 2**right // 2) >> right)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q5_check", "grade": true}
checks.check("lab02.q5")

# %% [markdown]
# **Find out.** Quantize the network with the library: calibration runs 64 training images through it and
# notes each activation's range. Predict for the first convolution: its $m$ is about one in how many?

# %%
guess = 100
int8 = ref.quantize(network, calibration=data.to_tensor(training.x[:64]))
graph = int8.graph
first = graph.nodes[0]
s_x, s_w, s_y = (graph[n].quant.scale for n in (first.inputs[0], first.inputs[1], first.outputs[0]))
m = effective_scales(float(s_x[0]), torch.from_numpy(s_w), float(s_y[0]), len(s_w))
reveal(guess, float(1 / m.mean()), "(one in)")
multiplier, exponent = quantize_multiplier(float(m[0]))
print(f"channel 0: {m[0]:.6f} = {multiplier:,} * 2**({exponent} - 31)")

# %% [markdown]
# ### 6 · A linear layer in integers
#
# **Why.** Weights have zero point 0, inputs have not:
#
# $$\sum (q_x - \mathrm{zp}_x)\, q_w + q_b = \sum q_x q_w + \Big(q_b - \mathrm{zp}_x \sum q_w\Big)$$
#
# The bracket knows no input, so it is computed once and stored as the bias.
#
# **Your turn.** `shift_quantized_linear_bias` returns the bracket, int32 (O,). `quantized_linear` gets it as
# `bias`, so the input's zero point is done with. Sum in int64, add the bias, requantize **once** for each
# output channel (`effective_scales`, `quantize_multipliers`), add the output's zero point, clamp to
# `feature_bitwidth`, cast to int8. No floats after the multipliers.


# %% nbgrader={"grade_id": "q6", "solution": true}
def shift_quantized_linear_bias(quantized_bias, quantized_weight, input_zero_point) -> torch.Tensor:
    """Return the bias int32 (O,) less input_zero_point times the sum of each channel's weights."""
    ### BEGIN SOLUTION
    sums = quantized_weight.long().sum(dim=1)
    return (quantized_bias - input_zero_point * sums).to(torch.int32)
    ### END SOLUTION


def quantized_linear(
    input, weight, bias, feature_bitwidth, weight_bitwidth,
    input_zero_point, output_zero_point, input_scale, weight_scale, output_scale,
):  # fmt: skip
    """Return the codes int8 (N, O) of input (N, I), weight (O, I), all int8, and bias int32 (O,)."""
    ### BEGIN SOLUTION
    acc = F.linear(input.long(), weight.long()) + bias
    m = effective_scales(input_scale, weight_scale, output_scale, len(weight))
    multiplier, exponent = quantize_multipliers(m)
    codes = requant_single(acc, multiplier, exponent) + output_zero_point
    return codes.clamp(*get_quantized_range(feature_bitwidth)).to(torch.int8)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q6_check", "grade": true}
checks.check("lab02.q6")

# %% [markdown]
# **Find out.** `ir.run` is the library's integer engine; its codes are tested against LiteRT's reference
# kernels, layer by layer. Run the network's last layer by your function on 64 images. Predict how many of
# the 640 codes differ.

# %%
guess = 10
codes = ir.run(graph, int8.input_codes(validation.x[:64]), keep=True)  # every activation, by name
last = graph.nodes[-1]
x, w, b, y = (graph[name] for name in (*last.inputs, *last.outputs))
(s_x, zp_x), (s_y, zp_y) = x.quant.item(), y.quant.item()
weight, s_w = torch.from_numpy(w.data), torch.from_numpy(w.quant.scale)
bias = shift_quantized_linear_bias(torch.from_numpy(b.data), weight, zp_x)
yours = quantized_linear(torch.from_numpy(codes[x.name]), weight, bias, 8, 8, zp_x, zp_y, s_x, s_w, s_y)
reveal(guess, int((yours != torch.from_numpy(codes[y.name])).sum()), "codes")

# %% [markdown]
# ### 7 · A convolution in integers
#
# **Why.** This is where the time goes: 12 million products an image, all int8. Two traps are new. Padding
# stands for 0.0, and the code of 0.0 is the input's zero point, not 0. And this layer rounds twice.
#
# **Your turn.** As in question 6, with `F.pad(..., value=...)`, `F.conv2d` on int64 and `requant_double`.
# `padding` is (left, right, top, bottom), as `F.pad` takes it; `stride`, `dilation` and `groups` go to
# `F.conv2d`. Channels are axis 1 of the output: multiplier, exponent and bias need the shape (O, 1, 1).


# %% nbgrader={"grade_id": "q7", "solution": true}
def shift_quantized_conv2d_bias(quantized_bias, quantized_weight, input_zero_point) -> torch.Tensor:
    """Return the bias int32 (O,) less input_zero_point times the sum of each channel's weights."""
    ### BEGIN SOLUTION
    sums = quantized_weight.long().sum(dim=(1, 2, 3))
    return (quantized_bias - input_zero_point * sums).to(torch.int32)
    ### END SOLUTION


def quantized_conv2d(
    input, weight, bias, feature_bitwidth, weight_bitwidth,
    input_zero_point, output_zero_point, input_scale, weight_scale, output_scale,
    stride, padding, dilation, groups,
):  # fmt: skip
    """Return the codes int8 (N, O, OH, OW) of input (N, I, H, W) and weight (O, I / groups, KH, KW)."""
    ### BEGIN SOLUTION
    padded = F.pad(input.long(), padding, value=input_zero_point)
    acc = F.conv2d(padded, weight.long(), None, stride, 0, dilation, groups) + bias.view(-1, 1, 1)
    m = effective_scales(input_scale, weight_scale, output_scale, len(weight))
    multiplier, exponent = (pair.view(-1, 1, 1) for pair in quantize_multipliers(m))
    codes = requant_double(acc, multiplier, exponent) + output_zero_point
    return codes.clamp(*get_quantized_range(feature_bitwidth)).to(torch.int8)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q7_check", "grade": true}
checks.check("lab02.q7")

# %% [markdown]
# **Find out.** Now all nine convolutions of the network, each fed the engine's own codes: **every** output
# must be equal. Then the control: the same with one rounding. Predict how many of its 688,128 codes differ.


# %%
def nchw(array):
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def your_codes(node, codes):
    """Return the output of one convolution of ``graph``, computed by your function."""
    x, w, b, y = (graph[name] for name in (*node.inputs, *node.outputs))
    (s_x, zp_x), (s_y, zp_y), weight = x.quant.item(), y.quant.item(), nchw(w.data)
    bias = shift_quantized_conv2d_bias(torch.from_numpy(b.data), weight, zp_x)
    scales = (s_x, torch.from_numpy(w.quant.scale), s_y)
    top, left, bottom, right = node.attrs.padding
    rest = (node.attrs.stride, (left, right, top, bottom), node.attrs.dilation, 1)
    return quantized_conv2d(nchw(codes[x.name]), weight, bias, 8, 8, zp_x, zp_y, *scales, *rest)


def differences(images=8):
    """Return how many output codes were compared, and how many differ."""
    codes = ir.run(graph, int8.input_codes(validation.x[:images]), keep=True)
    nodes = [node for node in graph.nodes if node.op == "CONV_2D"]
    differ = [your_codes(node, codes) != nchw(codes[node.outputs[0]]) for node in nodes]
    return sum(d.numel() for d in differ), sum(int(d.sum()) for d in differ)


# %%
guess = 0
compared, differ = differences()
print(f"two roundings: {compared:,} codes compared, {differ} differ")
two_roundings, requant_double = requant_double, requant_single  # for one measurement
try:
    reveal(guess, differences()[1], "codes differ with one rounding")
finally:
    requant_double = two_roundings

# %% [markdown]
# ### 8 · A gradient through rounding
#
# **Why.** Below 4 bits a network must *train* with its codes. Rounding has the slope 0 almost everywhere, so
# no gradient would come through. The **straight-through estimator** rounds on the way forward and, on the
# way back, lets the gradient pass as if nothing had happened, but only where the value was not clamped: a
# saturated weight cannot move the output (Bengio et al., 2013).
#
# **Your turn.** Write `fake_quantize`: the value is $s \cdot \operatorname{round}(\operatorname{clamp}(x /
# s,\, low,\, high))$, the gradient to `x` is 1 inside the range and 0 outside. Add what rounding changes as
# a constant: `y + (rounded - y).detach()`.


# %% nbgrader={"grade_id": "q8", "solution": true}
def fake_quantize(x: torch.Tensor, step, low: int, high: int) -> torch.Tensor:
    """Return the values of the codes of ``x``; ``low`` and ``high`` are codes less the zero point."""
    ### BEGIN SOLUTION
    clamped = (x / step).clamp(low, high)
    return (clamped + (clamped.round() - clamped).detach()) * step
    ### END SOLUTION


# %% nbgrader={"grade_id": "q8_check", "grade": true}
checks.check("lab02.q8")

# %% [markdown]
# **Find out.** `RoundedWeight` puts your function in front of a layer's weights, with one scale a channel.
# Predict the accuracy at 2 bits (codes −1, 0, 1) before any training, in percent.


# %%
class RoundedWeight(nn.Module):
    """What a layer computes with in place of its weight (O, ...): the values of its codes."""

    def __init__(self, bits):
        super().__init__()
        self.high = get_quantized_range(bits)[1]

    def forward(self, weight):
        largest = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-8)
        step = (largest / self.high).view(-1, *[1] * (weight.dim() - 1))
        return fake_quantize(weight, step, -self.high, self.high)


def with_rounded_weights(model, bits):
    """Return a copy of ``model`` that rounds its weights whenever it runs."""
    model = copy.deepcopy(model)
    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        nn.utils.parametrize.register_parametrization(layer, "weight", RoundedWeight(bits))
    return model


# %%
guess = 50
rounded = {bits: accuracy(with_rounded_weights(network, bits), 500) for bits in (2, 3, 4, 8)}
reveal(guess, 100 * rounded[2], "% accuracy with 2 bits")
print("  ".join(f"{bits} bits: {score:.3f}" for bits, score in rounded.items()))

# %% [markdown]
# ## Measure
#
# First the table that needs no training: weights and activations of the integer network, a scale for each
# tensor or channel. Bytes count packed codes, scales and biases. Predict which row is the first to lose more
# than two points: can you see the budget of the lab in it?

# %%
configurations = {
    "8-bit, one scale": ref.QuantConfig(per_channel=False),
    "8-bit, per channel": ref.QuantConfig(),
    "4-bit weights, one scale": ref.QuantConfig(weight_bits=4, per_channel=False),
    "4-bit weights, per channel": ref.QuantConfig(weight_bits=4),
    "4-bit both, per channel": ref.QuantConfig(weight_bits=4, activation_bits=4),
}
images = 100 if fast else 400
labels = validation.y[:images]
print(f"{'':<28} {'bytes':>8} {'accuracy':>9} on {images} images")
print(f"{'float32':<28} {4 * total:>8,} {accuracy(network, images):>9.3f}")
integer = {}
for name, config in configurations.items():
    integer[name] = ref.quantize(network, config, calibration=data.to_tensor(training.x[:64]))
    score = integer[name].evaluate(validation.x[:images], labels)
    print(f"{name:<28} {integer[name].packed_weight_bytes:>8,} {score:>9.3f}")

# %% [markdown]
# Then fewer bits, with one epoch of training: 3-bit weights with your gradient (question 8), and 2-bit
# codebooks whose centroids follow the weights (question 1). The controls: the float network with the same
# epoch, and that one rounded afterwards. Without them, who knows whether training *with* the codes helps?


# %%
def follow(books, bits):
    """Return a hook: centroids follow the optimizer, then weights their centroids."""

    def after_step(model):
        for name, p in model.named_parameters():
            if name in books:
                update_codebook(p.data, books[name])
                k_means_quantize(p.data, bits, books[name])

    return after_step


tuned = copy.deepcopy(network)
results = {"float32": (baseline, fine_tune(tuned))}
rounding = with_rounded_weights(network, 3)
before = accuracy(rounding)
results["3-bit, rounded after it"] = (before, accuracy(with_rounded_weights(tuned, 3)))
results["3-bit, trained rounded"] = (before, fine_tune(rounding))
sharing, books = with_codebooks(network, 2)
results["2-bit codebooks, trained"] = (accuracy(sharing), fine_tune(sharing, follow(books, 2)))

# %%
print(f"{'weights':<26} {'before':>7} {'after':>7} the epoch")
for name, (before, after) in results.items():
    print(f"{name:<26} {before:>7.3f} {after:>7.3f}")
bars = {"before": [b for b, _ in results.values()], "after": [a for _, a in results.values()]}
plots.show(plots.bars(list(results), bars, x_label="validation accuracy"))

# %% [markdown]
# **One file.** Deep Compression goes one step further: labels that occur often get short Huffman codes. The
# library writes your 2-bit network as one file, losslessly, batch norms and header included. Predict how
# many bits a weight it takes, all counted. Which part is more than you thought?

# %%
guess = 2.0
place = Path(tempfile.mkdtemp(prefix="lab02_")) / "codebooks.tedc"
report = ref.save_compressed(sharing, place)
reveal(guess, 8 * place.stat().st_size / total, "bits a weight")
print("  ".join(f"{part} {n:,}" for part, n in report.parts.items()), "bytes")
again = copy.deepcopy(network)
again.load_state_dict(ref.load_compressed(place))
print(f"{report.ratio:.1f} times smaller than float32; accuracy of what the file holds {accuracy(again):.3f}")

# %% [markdown]
# **Explorer.** Turn the bits of weights and activations, who shares a scale (a tensor, a channel, a group of
# 16 weights), and the observer that chooses an activation's range. Predict before each move. At 4-bit
# activations, which observer wins, and what does it do to the largest values? How many bits a weight does a
# group of 16 really cost?

# %%
explore.quantization_explorer()

# %% [markdown]
# ## Deploy or compare
#
# Now the board decides. The integer network goes through the compiler to an emulated Cortex-M4. Codes of the
# board, of `ir.run` and, by question 7, of your convolution are the same. Three variants: 8 bits, 4-bit
# weights, and 8 bits with one rounding everywhere (`fast`). Predict the flash of the second, in percent of
# the first. Is one rounding cheaper?

# %%
guess = 50
board, folder = mcu.get_board("stm32f412"), Path(tempfile.mkdtemp(prefix="lab02_"))
variants = {
    "int8": (integer["8-bit, per channel"], "exact"),
    "4-bit weights": (integer["4-bit weights, per channel"], "exact"),
    "int8, one rounding": (integer["8-bit, per channel"], "fast"),
}
deployed, runs = {}, {}
picture = data.normalised(validation.x[:1])
for name, (quantized, requant) in variants.items():
    place = folder / name.replace(" ", "_").replace(",", "")
    deployed[name] = mcu.deploy(quantized.graph, board.name, place, requant=requant)
    runs[name] = deployed[name].run(picture, target="emulate")
flash = {name: d.report["flash_bytes"]["total"] for name, d in deployed.items()}
reveal(guess, 100 * flash["4-bit weights"] / flash["int8"], "% of the flash")

# %%
print(f"{'network':<20} {'flash':>8} {'SRAM':>7} {'M instr.':>9} {'est. ms':>8} {'validation':>11}")
for name, (quantized, requant) in variants.items():
    score = quantized.evaluate(validation.x[:images], labels, requant=requant)
    sram = deployed[name].report["sram_bytes"]["total"]
    print(
        f"{name:<20} {flash[name]:>8,} {sram:>7,} {runs[name].instructions / 1e6:>9.2f} "
        f"{runs[name].estimated_ms:>8.0f} {score:>11.3f}"
    )
elf = folder / "int8" / "firmware.elf"
print(f"your artefact: {elf.name}, {elf.stat().st_size:,} bytes on disk with symbols")

# %% [markdown]
# The choice is made, by validation accuracy. Now, and only now, the **test** split says what to expect.

# %%
test = data.load("glyphs32", "test")
score = int8.evaluate(test.x[:images], test.y[:images])
print(f"test accuracy: float32 {train.evaluate(network, test.take(slice(images))):.3f}, int8 {score:.3f}")

# %% [markdown]
# ## Reflect
#
# ### n1 · What codebooks cost
#
# **Predict** the bytes of all weight tensors of `network` (those with two or more axes) with 4-bit codebooks:
# an eighth of float32, or more? **Then measure**: for each tensor its labels at 4 bits, rounded up to whole
# bytes, and 16 centroids in float32. Set `codebook_bytes`. The measured number is graded, not the guess.

# %% nbgrader={"grade_id": "n1", "solution": true}
### BEGIN SOLUTION
sizes = [p.numel() for p in network.parameters() if p.dim() > 1]
codebook_bytes = sum(math.ceil(n * 4 / 8) + 16 * 4 for n in sizes)
### END SOLUTION

# %% nbgrader={"grade_id": "n1_check", "grade": true}
checks.check("lab02.n1")

# %% [markdown]
# **Find out.** The first convolution has 432 weights. With 8 bits, which is larger: its labels, or the book?

# %%
print(f"float32 / codebooks: {4 * total / codebook_bytes:.2f}")
print(f"first convolution with 8 bits: {432 + 256 * 4:,} bytes; in float32 {432 * 4:,}")

# %% [markdown]
# ### n2 · The second rounding
#
# **Predict** how many of the 65,536 sums from $-2^{15}$ to $2^{15} - 1$ get another code when they are
# rounded twice and not once, at $m = 0.0123$. **Then measure** with your functions of question 5 and set
# `moved_codes`, an int.

# %% nbgrader={"grade_id": "n2", "solution": true}
### BEGIN SOLUTION
all_sums = torch.arange(-(2**15), 2**15)
multiplier_and_exponent = [torch.tensor(v) for v in quantize_multiplier(0.0123)]
rounded_once = requant_single(all_sums, *multiplier_and_exponent)
moved_codes = int((rounded_once != requant_double(all_sums, *multiplier_and_exponent)).sum())
### END SOLUTION

# %% nbgrader={"grade_id": "n2_check", "grade": true}
checks.check("lab02.n2")

# %% [markdown]
# **Find out.** The second rounding sees only $-e$ bits of the fraction. How often do those bits show a half
# where the whole sum is a little below it? Half of $2^{-6}$ is a good first guess; compare.

# %%
print(f"{moved_codes / 2**16:.4f} of the sums; 2**-7 = {2**-7:.4f}")

# %% [markdown]
# ### w1 · Which bits to ship ({{POINTS:w1}} points)
#
# A product has 64 KB of flash for weights and may lose three points of accuracy. Which network of this lab
# would you ship, why does today's firmware not make it fit, and what must change? Four to seven sentences,
# with your figures.
#
# *Rubric.* 2 points: compares at least three rows by bytes and accuracy. 1 point: quotes flash of 8 and 4
# bits on the board and says why they are equal. 1 point: says what a kernel for packed codes must do. 1
# point: names the control that shows what training with codes adds. 1 point: says what exact agreement with
# a reference is good for.

# %% [markdown] nbgrader={"grade_id": "w1", "grade": true, "solution": true}
# *A model answer.* At 8 bits the constants take 80 KB, at 4 bits per channel 41 KB for 1.2 points, so I want
# 4 bits; one scale for all saves 1.3 KB and loses six points more. On the board both take 90.5 KB of flash:
# 4-bit codes live in bytes, because the kernel reads bytes. A packed kernel must load two codes at once and
# split them with their signs, which costs instructions. At 3 bits rounding alone loses over ten points; the
# float network with the same epoch, rounded afterwards, is the control that shows what training through the
# rounding adds. Exact agreement is a test that can fail: one wrong code is a bug, not noise.
