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
# # Lab 0 · Efficiency metrics
#
# {{COLAB_BADGE}}
#
# **Time** {{MINUTES}} minutes, of which the machine needs one · **Points** {{POINTS}}, of which a person
# gives {{MANUAL_POINTS}} · **Before you start** Python, and enough PyTorch to read `nn.Conv2d` and
# `model(x)` · **You leave with** functions that measure any network, and two networks compiled for a
# microcontroller and compared by bytes and instructions.

# %% [markdown]
# ## Question and budget
#
# Three small networks classify the same 32 × 32 images. We want to run one of them on a microcontroller with
# a few hundred kilobytes of memory, and we want to know *before* we train or buy anything: does it fit, how
# long does it take, and how much energy does it use?
#
# Papers answer with one number, usually parameters or MACs. This lab builds six numbers, shows what each one
# predicts and what it does not, and ends with the answer of the (emulated) board itself. The end of the
# set-up prints the budget.

# %% [markdown]
# ## Setup
#
# On Colab the first cell installs the course's package; anywhere else it does nothing. The second cell
# imports all that the lab needs. PyTorch is told to use one thread: a microcontroller has one core, and a
# single thread gives latencies that repeat.

# %%
# {{COLAB_INSTALL}}

# %% tags=["setup"]
import math
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tinyml_edu import checks, explore, mcu, models, plots, quantization
from tinyml_edu import profile as ref  # the library's profiler: compare with it, do not call it

torch.set_num_threads(1)
torch.manual_seed(0)
PICOJOULES = dict(ref.ENERGY_45NM_PJ)  # the energy table of question 8


def reveal(guess: float, measured: float, unit: str) -> None:
    """Print a prediction beside the measurement; being wrong costs nothing, not guessing does."""
    low, high = sorted([guess, measured])
    factor = high / low if low > 0 else math.inf
    shown = f"{measured:,.0f}" if measured >= 100 else f"{measured:.3g}"
    print(f"you predicted {guess:,} {unit}; measured {shown} {unit}: off by a factor of {factor:.1f}")


# %%
board = mcu.get_board("stm32f412")
names = ["vgg_lite", "resnet8", "mobilenet_v2_tiny"]
networks = {name: models.build(name, classes=10).eval() for name in names}
image = torch.zeros(1, 3, 32, 32)  # (N, C, H, W)
print(
    f"{board.title}: {board.sram_bytes // 1024} KiB SRAM, {board.flash_bytes // 1024} KiB flash, "
    f"{board.clock_hz / 1e6:.0f} MHz, one {board.core} core"
)

# %% [markdown]
# ## Idea
#
# A network costs three different things. **Weights** must be *stored*: they fill flash. **MACs**
# (multiply-accumulates, $a \leftarrow a + w \cdot x$) must be *computed*: they take time and energy.
# **Activations** must be *kept* while later layers need them: they fill SRAM, and what counts is the moment
# when most of them are alive.
#
# The figure shows all three for each layer of VGG-lite. Look at where each panel is longest: the layer that
# fills flash is not the layer that fills SRAM. That is why no single number can describe a network.

# %%
plots.show(plots.layer_costs(ref.profile(networks["vgg_lite"], image)))

# %% [markdown]
# ## Build
#
# ### 1 · Parameters
#
# **Why.** Every parameter takes room in flash. A batch norm has two parameters a channel (scale and shift)
# and also *buffers*, its running mean and variance: they are state, not parameters, and vanish when the
# batch norm is folded into the convolution before it. A frozen parameter still has to be stored; a layer
# that stands in the model twice is stored once.
#
# **Your turn.** Write `count_parameters`. PyTorch's `model.parameters()` is a good start; look up what it
# does with a layer that appears twice.


# %% nbgrader={"grade_id": "q1", "solution": true}
def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of ``model``: frozen ones too, shared ones once, buffers not."""
    ### BEGIN SOLUTION
    return sum(p.numel() for p in model.parameters())
    ### END SOLUTION


# %% nbgrader={"grade_id": "q1_check", "grade": true}
checks.check("lab00.q1")

# %% [markdown]
# **Find out.** VGG-lite stacks seven 3 × 3 convolutions of 32, 32, 64, 64, 128, 128 and 128 channels, each
# with a batch norm, and a linear layer for 10 classes. Estimate its parameters: which two layers will hold
# most of them? Put your number into `guess`, then run the cell.

# %%
guess = 100_000
reveal(guess, count_parameters(networks["vgg_lite"]), "parameters")
for name, network in networks.items():
    buffers = sum(b.numel() for b in network.buffers())
    print(f"{name:<18} {count_parameters(network):>8,} parameters, {buffers:>6,} numbers in buffers")

# %% [markdown]
# ### 2 · MACs of one convolution
#
# **Why.** A convolution with $C$ input channels, $O$ output channels, $g$ groups and a $K_h \times K_w$
# kernel makes $O \cdot H_{out} \cdot W_{out}$ outputs, and each is a sum of $C/g \cdot K_h \cdot K_w$
# products. The size of the output follows from padding $p$, dilation $d$ and stride $s$:
#
# $$H_{out} = \left\lfloor \frac{H + 2p - d\,(K_h - 1) - 1}{s} \right\rfloor + 1$$
#
# Adding a bias is one addition for each output and no MAC; we do not count it.
#
# **Your turn.** Write `conv2d_macs` for one image. `layer.kernel_size`, `stride`, `padding` and `dilation`
# are pairs (height, width).


# %% nbgrader={"grade_id": "q2", "solution": true}
def conv2d_macs(layer: nn.Conv2d, height: int, width: int) -> int:
    """Return the MACs of ``layer`` for one image of ``height`` by ``width`` pixels."""
    ### BEGIN SOLUTION
    outputs = layer.out_channels
    settings = zip((height, width), layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    for n, k, s, p, d in settings:
        outputs *= (n + 2 * p - d * (k - 1) - 1) // s + 1
    return outputs * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q2_check", "grade": true}
checks.check("lab00.q2")

# %% [markdown]
# **Find out.** MobileNet replaces a dense 3 × 3 convolution by a *depthwise* one (`groups` = channels) and a
# *pointwise* one (1 × 1). For 64 channels on a 32 × 32 image: by which factor do the MACs fall? Change
# `guess`, then run the cell.

# %%
guess = 2
dense = conv2d_macs(nn.Conv2d(64, 64, 3, padding=1), 32, 32)
depthwise = conv2d_macs(nn.Conv2d(64, 64, 3, padding=1, groups=64), 32, 32)
pointwise = conv2d_macs(nn.Conv2d(64, 64, 1), 32, 32)
print(f"dense {dense:,} MACs; depthwise {depthwise:,} and pointwise {pointwise:,} MACs")
reveal(guess, dense / (depthwise + pointwise), "times fewer MACs")

# %% [markdown]
# ### 3 · MACs of a whole model
#
# **Why.** A model's code says which layers exist, not how often they run nor on which shapes. A *forward
# hook* does: PyTorch calls `hook(layer, inputs, output)` each time the layer has run.
#
# **Your turn.** Complete `model_macs`. Convolutions cost what question 2 says. In a linear layer each number
# of the output is a sum of `layer.in_features` products, whatever the shape of the output. Everything else
# counts as 0. Count **one** image, even if `example` holds a batch. Leave the model as you found it: in its
# mode, without hooks, its batch norms untouched (that is what `eval()` is for).


# %% nbgrader={"grade_id": "q3", "solution": true}
def model_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Return the MACs of convolutions and linear layers when ``model`` sees one image of ``example``."""
    was_training = model.training
    total = 0

    ### BEGIN SOLUTION
    def count(layer, inputs, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += conv2d_macs(layer, *inputs[0].shape[-2:])
        else:
            total += output.numel() * layer.in_features

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(example[:1])
    for handle in handles:
        handle.remove()
    ### END SOLUTION
    model.train(was_training)
    return total


# %% nbgrader={"grade_id": "q3_check", "grade": true}
checks.check("lab00.q3")

# %% [markdown]
# **Find out.** VGG-lite has more than five times the parameters of ResNet-8, and about five times those of
# MobileNetV2-tiny. Does it also need five times as many MACs as each of them? Predict the ratio of MACs
# between VGG-lite and MobileNetV2-tiny.

# %%
guess = 5
macs = {name: model_macs(network, image) for name, network in networks.items()}
reveal(guess, macs["vgg_lite"] / macs["mobilenet_v2_tiny"], "times more MACs")
for name, network in networks.items():
    reuse = macs[name] / count_parameters(network)
    print(f"{name:<18} {macs[name]:>11,} MACs; a parameter is used {reuse:5.0f} times an image")

# %% [markdown]
# ### 4 · Bytes of the weights
#
# **Why.** Flash is sold in bytes. A float32 weight takes 4 of them, an int8 weight one. Codes of 4 or 3 bits
# are *packed* without gaps, but a tensor starts at a byte, so its last byte may be partly empty: three 3-bit
# codes are 9 bits and take 2 bytes.
#
# **Your turn.** Write `weight_bytes` for a list of tensors with `counts[i]` numbers of `bits[i]` bits each.


# %% nbgrader={"grade_id": "q4", "solution": true}
def weight_bytes(counts: list[int], bits: list[int]) -> int:
    """Return the bytes that tensors of ``counts[i]`` numbers at ``bits[i]`` bits take, packed."""
    ### BEGIN SOLUTION
    return sum((count * width + 7) // 8 for count, width in zip(counts, bits))
    ### END SOLUTION


# %% nbgrader={"grade_id": "q4_check", "grade": true}
checks.check("lab00.q4")

# %% [markdown]
# **Find out.** Quantized kernels keep their biases in 32 bits whatever the weights have. Predict: how many
# bytes does VGG-lite take with 4-bit weights? Exactly half of what it takes with 8 bits?

# %%
folded = ref.profile(networks["vgg_lite"], image)  # batch norms folded: what a board stores
counts = [row.weights for row in folded.rows] + [row.biases for row in folded.rows]
layers = len(folded.rows)
guess = 200_000
sizes = {bits: weight_bytes(counts, [bits] * layers + [32] * layers) for bits in (32, 8, 4, 2)}
reveal(guess, sizes[4], "bytes at 4 bits")
for bits, size in sizes.items():
    print(f"{bits:>2} bits: {size:>9,} bytes, {size / board.flash_bytes:6.1%} of the board's flash")

# %% [markdown]
# ### 5 · Peak activation memory
#
# **Why.** A board cannot keep all activations, and need not: a tensor may be overwritten after its last use.
# It lives from the step that writes it to the last step that reads it, both included, because a step reads
# while it writes. The network's input lives from step 0, its outputs live to the end. A residual connection
# is a *late reader*: it keeps a tensor alive over several steps.
#
# **Your turn.** A schedule is a list of steps `(written, [read, ...])`. Write `peak_activation_bytes`: the
# largest sum of `sizes` that is alive in one step. First find each tensor's first and last step, then sum.


# %% nbgrader={"grade_id": "q5", "solution": true}
def peak_activation_bytes(
    schedule: list[tuple[str, list[str]]], sizes: dict[str, int], outputs: list[str]
) -> int:
    """Return the largest number of bytes that must exist in one step of ``schedule``.

    A name that is read but never written is an input of the network; ``outputs`` live to the end.
    """
    ### BEGIN SOLUTION
    first, last = {}, {}
    for step, (written, read) in enumerate(schedule):
        first[written] = last[written] = step
        for name in read:
            first.setdefault(name, 0)
            last[name] = step
    for name in outputs:
        last[name] = len(schedule) - 1
    steps = range(len(schedule))
    return max(sum(sizes[n] for n in first if first[n] <= step <= last[n]) for step in steps)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q5_check", "grade": true}
checks.check("lab00.q5")

# %% [markdown]
# **Find out.** The cell captures ResNet-8 as a graph and takes its schedule. Predict the peak for one int8
# byte an activation: the image itself has 3072 of them, and the first stage works on 32 × 32 × 16. Then
# compare with the figure: which step is the peak, and which tensor waits there although nobody touches it?

# %%
guess = 20_000
graph = mcu.capture(networks["resnet8"], image)
schedule, elements, outputs = ref.schedule_of(graph)
reveal(guess, peak_activation_bytes(schedule, elements, outputs), "bytes")
steps = [node.name.removeprefix("features.").removesuffix(".conv") for node in graph.nodes]
plots.show(plots.live_memory(steps, ref.live_elements(graph)))

# %% [markdown]
# ### 6 · An honest stopwatch
#
# **Why.** The first runs pay for page faults, cold caches and lazy initialisation. Later runs are sometimes
# interrupted by the operating system, which makes them longer, never shorter. So: throw the first runs away,
# repeat, and report the *median* with the quartiles. A mean of everything measures the interruptions.
#
# **Your turn.** Write `measure_latency`. Run `call()` `warmup` times without timing it, then `repeats` times,
# each between two readings of `clock()` (seconds). Return `(median, first quartile, third quartile)` in
# milliseconds, as `np.quantile` computes them. Use the `clock` that you are given: the check brings its own.


# %% nbgrader={"grade_id": "q6", "solution": true}
def measure_latency(call, warmup: int, repeats: int, clock=time.perf_counter) -> tuple[float, float, float]:
    """Return median, first and third quartile of the duration of ``call()`` in milliseconds."""
    ### BEGIN SOLUTION
    for _ in range(warmup):
        call()
    samples = []
    for _ in range(repeats):
        start = clock()
        call()
        samples.append(1e3 * (clock() - start))
    return tuple(np.quantile(samples, [0.5, 0.25, 0.75]))
    ### END SOLUTION


# %% nbgrader={"grade_id": "q6_check", "grade": true}
checks.check("lab00.q6")

# %% [markdown]
# **Find out.** MobileNetV2-tiny needs far fewer MACs than VGG-lite (you measured the factor). How many times
# faster will it be on this machine, one image at a time? Predict first. This is the most important guess of
# the lab.

# %%
guess = 6
latency = {}
with torch.inference_mode():
    for name, network in networks.items():
        latency[name] = measure_latency(partial(network, image), warmup=5, repeats=30)
print(
    f"MobileNetV2-tiny: {macs['vgg_lite'] / macs['mobilenet_v2_tiny']:.1f} times fewer MACs than VGG-lite, "
    f"{latency['vgg_lite'][0] / latency['mobilenet_v2_tiny'][0]:.1f} times faster; you predicted {guess}"
)
for name, (median, q1, q3) in latency.items():
    print(f"{name:<18} {median:6.2f} ms ({q1:.2f} to {q3:.2f}), {2e-6 * macs[name] / median:6.1f} GFLOP/s")

# %% [markdown]
# ### 7 · Arithmetic intensity and the roofline
#
# **Why.** A processor has two limits: how fast it computes (`peak_gflops`) and how fast it fetches
# (`bandwidth_gbs`). A kernel's *arithmetic intensity* is $I = \text{FLOP} / \text{bytes moved}$, where a MAC
# is two FLOP. It can reach at most
#
# $$\min(\text{peak},\; I \cdot \text{bandwidth})$$
#
# (Williams, Waterman and Patterson, 2009). Low intensity: it waits for memory, and fewer MACs do not help.
#
# **Your turn.** Write both functions. Units: FLOP per byte, and GFLOP/s.


# %% nbgrader={"grade_id": "q7", "solution": true}
def arithmetic_intensity(macs: float, bytes_moved: float) -> float:
    """Return the FLOP for each byte that is moved."""
    ### BEGIN SOLUTION
    return 2 * macs / bytes_moved
    ### END SOLUTION


def attainable_gflops(intensity: float, peak_gflops: float, bandwidth_gbs: float) -> float:
    """Return the roofline at ``intensity`` FLOP per byte, in GFLOP/s."""
    ### BEGIN SOLUTION
    return min(peak_gflops, intensity * bandwidth_gbs)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q7_check", "grade": true}
checks.check("lab00.q7")

# %% [markdown]
# **Find out.** The next cell measures this machine: a large matrix product for the peak, a long sum and copy
# for the bandwidth. Predict: must a kernel do 1, 10 or 100 FLOP for each byte before computing, and not
# fetching, limits it?

# %%
guess = 1
machine = ref.measure_roofline(threads=1)
print(f"{machine.peak_gflops:.0f} GFLOP/s and {machine.bandwidth_gbs:.1f} GB/s with one thread")
reveal(guess, machine.ridge, "FLOP per byte at the ridge")

# %% [markdown]
# ### 8 · Energy
#
# **Why.** Arithmetic is cheap, distance is not. The table holds energies of a 45 nm process in picojoules
# (Horowitz, ISSCC 2014; DRAM from Han et al., EIE, 2016). It prices one addition, one multiplication, and one
# memory access of **32 bits**, that is 4 bytes. The figures are old; their ratios are the lesson.
#
# **Your turn.** Write `inference_energy_uj` in *microjoules*. A MAC is one multiplication and one addition in
# `dtype`, with one exception: an int8 product is added to a 32-bit accumulator (`int32_add`). Read the prices
# from `PICOJOULES`.

# %%
for name, picojoules in PICOJOULES.items():
    print(
        f"{name:<12} {picojoules:>7.2f} pJ, {picojoules / PICOJOULES['int8_mul']:>7.1f} int8 multiplications"
    )


# %% nbgrader={"grade_id": "q8", "solution": true}
def inference_energy_uj(macs: int, dram_bytes: int, sram_bytes: int, dtype: str) -> float:
    """Return the energy in microjoules of MACs in ``dtype`` and of the bytes moved to or from each memory."""
    ### BEGIN SOLUTION
    add = "int32_add" if dtype == "int8" else f"{dtype}_add"
    compute = macs * (PICOJOULES[f"{dtype}_mul"] + PICOJOULES[add])
    memory = dram_bytes / 4 * PICOJOULES["dram_32bit"] + sram_bytes / 4 * PICOJOULES["sram_32bit"]
    return 1e-6 * (compute + memory)
    ### END SOLUTION


# %% nbgrader={"grade_id": "q8_check", "grade": true}
checks.check("lab00.q8")

# %% [markdown]
# **Find out.** VGG-lite in int8, weights fetched from DRAM once an image, activations in SRAM. Which share of
# the energy goes into arithmetic? Predict it, and think about what changes if the weights come from SRAM too:
# the last line of the output tells.

# %%
guess = 50
moved = folded.activation_bytes("int8")
stored = folded.weight_bytes("int8")
arithmetic = inference_energy_uj(folded.macs, 0, 0, "int8")
total = inference_energy_uj(folded.macs, stored, moved, "int8")
reveal(guess, 100 * arithmetic / total, "% for arithmetic")
on_chip = inference_energy_uj(folded.macs, 0, stored + moved, "int8")
print(f"weights from DRAM {total:.0f} uJ, from SRAM {on_chip:.0f} uJ, arithmetic alone {arithmetic:.0f} uJ")

# %% [markdown]
# ## Measure
#
# Now all metrics side by side, every one by *your* functions. Read each column as a ranking: flash, SRAM and
# MACs put the three networks into three different orders.

# %%
table = {}
for name, network in networks.items():
    costs = ref.profile(network, image)
    peak = peak_activation_bytes(*ref.schedule_of(mcu.capture(network, image)))
    weights = [row.weights for row in costs.rows] + [row.biases for row in costs.rows]
    flash = weight_bytes(weights, [8] * len(costs.rows) + [32] * len(costs.rows))
    energy = inference_energy_uj(macs[name], flash, costs.activation_bytes("int8"), "int8")
    table[name] = (count_parameters(network), flash, peak, macs[name] / 1e6, energy, latency[name][0])
print(
    f"{'network':<18} {'parameters':>10} {'flash int8':>10} {'SRAM int8':>10} "
    f"{'M MACs':>8} {'uJ':>7} {'ms':>7}"
)
for name, row in table.items():
    print("{:<18} {:>10,} {:>10,} {:>10,} {:>8.2f} {:>7.1f} {:>7.2f}".format(name, *row))

# %% [markdown]
# **MACs are not latency.** Relative to VGG-lite, the bars would have one length per network if MACs decided.
# They do not. The depthwise layers of MobileNetV2 do little arithmetic for each byte, and every layer has a
# fixed cost for being called, which weighs most when the layers are small and many.

# %%
relative = {
    "MACs": [macs[name] / macs["vgg_lite"] for name in names],
    "latency": [latency[name][0] / latency["vgg_lite"][0] for name in names],
}
plots.show(plots.bars(names, relative, x_label="relative to VGG-lite"))
for name, cost, duration in zip(names, relative["MACs"], relative["latency"]):
    print(f"{name:<18} {cost:6.2f} of the MACs, {duration:6.2f} of the latency")

# %% [markdown]
# Single layers show why. The next cell times four of them on 64 channels (the linear layer on 2048 numbers)
# and puts them under this machine's roofline. A point far below the roof spends its time on something that
# the model leaves out, such as the call itself. A point *above* the slope has its data in a cache: the slope
# was measured on memory.

# %%
layers = {
    "dense 3x3": (nn.Conv2d(64, 64, 3, padding=1), torch.zeros(1, 64, 32, 32)),
    "pointwise 1x1": (nn.Conv2d(64, 64, 1), torch.zeros(1, 64, 32, 32)),
    "depthwise 3x3": (nn.Conv2d(64, 64, 3, padding=1, groups=64), torch.zeros(1, 64, 32, 32)),
    "linear": (nn.Linear(2048, 2048), torch.zeros(1, 2048)),
}
points = {}
with torch.inference_mode():
    for name, (layer, x) in layers.items():
        moved = 4 * (count_parameters(layer) + x.numel() + layer(x).numel())
        work = model_macs(layer, x)
        median = measure_latency(partial(layer, x), warmup=5, repeats=30)[0]
        points[name] = (arithmetic_intensity(work, moved), 2e-6 * work / median)

# %%
plots.show(plots.roofline(machine, points))
for name, (intensity, gflops) in points.items():
    roof = attainable_gflops(intensity, machine.peak_gflops, machine.bandwidth_gbs)
    print(f"{name:<14} {intensity:7.1f} FLOP/byte, {gflops:7.1f} of at most {roof:7.1f} GFLOP/s")

# %% [markdown]
# **Explorer.** Turn the knobs of a plain network. Before each move, say which bar will grow most. Which knob
# changes MACs but not one parameter? Which one fills flash and leaves SRAM almost alone? Find a network
# that does not fit the board's SRAM although its weights take less than a tenth of the flash.

# %%
explore.efficiency_explorer(board=board.name)

# %% [markdown]
# ## Deploy or compare
#
# Enough of models of cost: ask the board. The next cell quantizes two networks to int8, plans their memory,
# generates C, compiles it for the microcontroller and runs one image on an emulated core that counts
# every instruction. Costs depend on shapes and not on values, so random weights do here; the labs that
# follow train them. Predict first: MobileNetV2-tiny has about half the MACs of ResNet-8. Half the
# instructions?

# %%
guess = 50
folder = Path(tempfile.mkdtemp(prefix="lab00_"))
pictures = np.random.default_rng(0).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)  # (N, H, W, C)
reports, runs = {}, {}
for name in ("resnet8", "mobilenet_v2_tiny"):
    quantized = quantization.quantize(mcu.capture(networks[name], image), calibration=pictures)
    deployment = mcu.deploy(quantized.graph, board.name, folder / name)
    runs[name] = deployment.run(pictures[:1], target="emulate")
    reports[name] = deployment.report
share = runs["mobilenet_v2_tiny"].instructions / runs["resnet8"].instructions
reveal(guess, 100 * share, "% of the instructions")

# %%
print(
    f"{'network':<18} {'flash':>8} {'SRAM':>8} {'M MACs':>7} {'M instr.':>9} "
    f"{'instr./MAC':>11} {'est. ms':>8}"
)
for name, run in runs.items():
    report = reports[name]
    flash, sram = report["flash_bytes"]["total"], report["sram_bytes"]["total"]
    print(
        f"{name:<18} {flash:>8,} {sram:>8,} {report['macs'] / 1e6:>7.2f} {run.instructions / 1e6:>9.2f} "
        f"{run.instructions / report['macs']:>11.2f} {run.estimated_ms:>8.0f}"
    )
elf = folder / "resnet8" / "firmware.elf"
print(f"your artefact: {elf.name}, {elf.stat().st_size:,} bytes on disk with symbols")

# %% [markdown]
# Compare the flash column with what you predicted from weights alone (the table under Measure): the rest is
# code, multipliers and tables. Compare SRAM with your peak: the rest is alignment, scratch and stack. And
# compare *instructions for each MAC*, first of the networks and then of their layers: a depthwise layer
# reads, checks and stores as much as a dense one, but has only nine products to show for an output; a
# pointwise layer on few channels has sums nearly as short.

# %%
for name, run in runs.items():
    for op in sorted({layer["op"] for layer in run.layers if layer["macs"]}):
        chosen = [layer for layer in run.layers if layer["op"] == op]
        work, spent = (sum(layer[key] for layer in chosen) for key in ("macs", "instructions"))
        print(f"{name:<18} {op:<18} {work / 1e6:>6.2f} M MACs, {spent / work:>6.2f} instructions each")

# %% [markdown]
# ## Reflect
#
# ### n1 · Half the width, twice the resolution
#
# **Predict** what happens to VGG-lite's MACs when every layer has half its channels and the image has 64 × 64
# pixels: more, fewer, or the same? **Then measure** with your own function and set
# `macs_half_width_double_resolution`. `models.build` takes a `width`. The measured number is graded, not the
# guess, and it is an exact one.

# %% nbgrader={"grade_id": "n1", "solution": true}
### BEGIN SOLUTION
macs_half_width_double_resolution = model_macs(
    models.build("vgg_lite", classes=10, width=0.5), torch.zeros(1, 3, 64, 64)
)
### END SOLUTION

# %% nbgrader={"grade_id": "n1_check", "grade": true}
checks.check("lab00.n1")

# %% [markdown]
# **Find out.** Divide by the MACs of the original. Four times the pixels multiply every convolution by four.
# Halving the width divides most of them by four, because inputs and outputs both halve; one convolution is
# divided by two only. Which one, and how does it show in the ratio?

# %%
print(f"{macs_half_width_double_resolution / macs['vgg_lite']:.4f} of the original MACs")

# %% [markdown]
# ### n2 · Peak memory of ResNet-8
#
# **Predict** whether ResNet-8's int8 activations fit into the SRAM of a small microcontroller, `stm32f103`.
# **Then measure** the peak in bytes: capture ResNet-8 for a 32 × 32 image as in question 5 and set
# `resnet8_peak_int8_bytes`.

# %% nbgrader={"grade_id": "n2", "solution": true}
### BEGIN SOLUTION
resnet8_graph = mcu.capture(models.build("resnet8", classes=10), torch.zeros(1, 3, 32, 32))
resnet8_peak_int8_bytes = peak_activation_bytes(*ref.schedule_of(resnet8_graph))
### END SOLUTION

# %% nbgrader={"grade_id": "n2_check", "grade": true}
checks.check("lab00.n2")

# %% [markdown]
# **Find out.** Is the peak larger than the small board's SRAM? If so: which of width, resolution and depth
# would you reduce, and by how much? Try it in the explorer.

# %%
for small in (mcu.get_board("stm32f103"), mcu.get_board("stm32f401")):
    print(
        f"{small.name}: {small.sram_bytes // 1024} KiB SRAM, {small.flash_bytes // 1024} KiB flash, "
        f"{small.clock_hz / 1e6:.0f} MHz; the peak is {resnet8_peak_int8_bytes / small.sram_bytes:.1f} × SRAM"
    )

# %% [markdown]
# ### w1 · Why fewer MACs can be slower ({{POINTS:w1}} points)
#
# MobileNetV2-tiny needs several times fewer MACs than VGG-lite and is hardly faster on your machine. Explain
# why in four to six sentences. Use the figures that *you* measured.
#
# *Rubric.* 1 point: quotes the ratio of MACs and the ratio of latencies. 2 points: explains by arithmetic
# intensity why a depthwise layer cannot use the peak, with a number from the roofline cell. 1 point: names a
# second cause, such as the fixed cost of a call or the number of layers. 1 point: says what changes, and
# what does not, on the emulated board.

# %% [markdown] nbgrader={"grade_id": "w1", "grade": true, "solution": true}
# *A model answer.* VGG-lite has about six times the MACs, yet the latencies differ by far less. A depthwise
# 3 × 3 layer reads and writes every activation for 9 MACs, about 2 FLOP per byte, well left of the ridge
# that the roofline cell printed, so memory and not arithmetic limits it; a dense 3 × 3 layer on 64 channels
# reaches over 100 FLOP per byte. MobileNetV2-tiny also has more than twice as many layers, and each call
# costs time whatever its size. On the board a call costs almost nothing and there is little vector arithmetic
# to starve, so MACs predict instructions better; depthwise layers still need more instructions for each MAC.

# %% [markdown]
# ### w2 · Choose a network for a board ({{POINTS:w2}} points)
#
# A product has the board that the last cell of n2 calls `stm32f401` and must classify one image a second.
# Which of the three networks do you take, and which number decides? Two to five sentences.
#
# *Rubric.* 2 points: checks SRAM and flash of all three against the budget, with numbers from the lab. 1
# point: notes what the numbers leave out (code, scratch, stack). 1 point: checks time with an estimate of
# instructions or milliseconds and not with MACs alone. 1 point: names the accuracy that is still unknown, and
# how to find it without touching the test set.

# %% [markdown] nbgrader={"grade_id": "w2", "grade": true, "solution": true}
# *A model answer.* VGG-lite is out: in int8 its weights alone are larger than the flash, and its activations
# fill the whole SRAM. MobileNetV2-tiny fits the flash, but its activations are larger than the SRAM. ResNet-8
# fits both, with room for code, scratch and stack, which the two numbers leave out. The estimate in
# milliseconds, scaled from the clock of the emulated board to that of this one, stays below a second.
# Accuracy decides next: train it and compare on the validation split.
