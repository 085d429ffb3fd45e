"""Lab 1's explorer: sparsity and granularity against weights, encoded bytes and accuracy.

Only core widgets of ipywidgets 7.7 and 8.1 are used.  `pruning_view` does the work and needs no widget.
Accuracy is that of the first 200 validation images before any fine-tuning; each setting is measured once.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plots

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import nn

NETWORK = "vgg_lite.glyphs32"
IMAGES = 200
SHOWN_LAYER = "features.7.conv"
UNITS = {
    "element": "single weights",
    "2:4": "n of 4 input channels",
    "pattern": "8 patterns of kernels",
    "vector": "rows of kernels",
    "kernel": "kernels",
    "channel": "filters",
}
"""Granularities of the explorer, by the names of `tinyml_edu.pruning.granularity`."""
_UNIT_AXES = {"element": 0, "vector": 1, "kernel": 2, "channel": 3}
_PATTERN_BITS = 3


def weight_histograms(model: nn.Module, paths: Sequence[str]) -> Figure:
    """Plot the weights of some layers; the marks hold the half that is nearest to zero.

    Parameters
    ----------
    model : nn.Module
    paths : sequence of str
        Paths of modules with a ``weight``, one panel each.
    """
    weights = [model.get_submodule(path).weight.detach().numpy().ravel() for path in paths]  # type: ignore[operator]
    with plots.style():
        figure, panels = plots.new_figure(
            len(paths), width=9.0, height=2.8, alt=f"Histograms of the weights of {', '.join(paths)}."
        )
        for axes, path, values in zip(panels, paths, weights):
            edge = np.median(np.abs(values))
            axes.hist(values, bins=60, color=plots.BLUE)
            for side in (-edge, edge):
                axes.axvline(side, color=plots.VERMILION, linewidth=1.2)
            axes.set_title(f"{path}: {values.size:,} weights")
            axes.set_xlabel(f"half lie within ±{edge:.3f}")
    return figure


def sensitivity_curves(
    sparsities: Sequence[float], curves: Mapping[str, Sequence[float]], baseline: float
) -> Figure:
    """Plot accuracy against sparsity, one line for each layer that was pruned alone.

    Parameters
    ----------
    sparsities : sequence of float
    curves : mapping of str to sequence of float
        Accuracies in the order of ``sparsities``.
    baseline : float
        Accuracy of the whole network, the dashed line.
    """
    with plots.style():
        figure, (axes,) = plots.new_figure(
            width=8.0, alt=f"Accuracy against sparsity of {len(curves)} layers, each pruned alone."
        )
        for i, (name, values) in enumerate(curves.items()):
            color, dashed = plots.PALETTE[i % len(plots.PALETTE)], i >= len(plots.PALETTE)
            axes.plot(
                sparsities,
                values,
                plots.MARKERS[i % len(plots.MARKERS)],
                color=color,
                linestyle=":" if dashed else "-",
                label=f"{i} · {name.removesuffix('.weight')}",
            )
        axes.axhline(baseline, color=plots.INK, linestyle="--", linewidth=1.2, label="nothing pruned")
        axes.set_xlabel("sparsity of the one layer that is pruned")
        axes.set_ylabel("validation accuracy")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@functools.cache
def _network() -> nn.Module:
    from .. import zoo

    return zoo.load(NETWORK)[0]


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of the convolutions, by the path of the parameter."""
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() == 4}


def masks(sparsity: float, granularity: str) -> dict[str, torch.Tensor]:
    """Return the masks of all convolutions of the trained network: the units of lowest L1 norm go.

    Parameters
    ----------
    sparsity : float
        Share of each layer's units to remove.
    granularity : str
        One of `UNITS`.
    """
    from ..pruning.granularity import GRANULARITIES

    return {name: GRANULARITIES[granularity](w.abs(), sparsity) for name, w in _weights(_network()).items()}


def encoded_bytes(mask: torch.Tensor, granularity: str) -> int:
    """Return the bytes of a layer (O, I, KH, KW): a byte for each kept weight, and what says where it lies.

    That is 2 bits a kept weight for n of 4, the 3-bit number of its pattern for each kernel (the 8 patterns
    themselves, 9 bytes for 3×3, stand once for the network and are left out), and else a bit for each unit.
    """
    kept = int(mask.sum())
    if granularity == "2:4":
        bits = 2 * kept
    elif granularity == "pattern":
        bits = _PATTERN_BITS * mask.shape[0] * mask.shape[1]
    else:
        bits = int(np.prod(mask.shape[: 4 - _UNIT_AXES[granularity]]))
    return (bits + 7) // 8 + kept


@functools.cache
def pruned_accuracy(sparsity: float, granularity: str) -> float:
    """Return the share of the first 200 validation images that the pruned network reads correctly."""
    from .. import data, train

    model = copy.deepcopy(_network())
    state = dict(model.named_parameters())
    for name, mask in masks(sparsity, granularity).items():
        state[name].data *= mask
    return train.evaluate(model, data.load("glyphs32", "validation").take(slice(IMAGES)))


def pruning_view(sparsity: float = 0.5, granularity: str = "element") -> tuple[Figure, str]:
    """Return the figure and the HTML table of one setting.

    Parameters
    ----------
    sparsity : float
        Share of each convolution's units to remove.
    granularity : str
        One of `UNITS`.

    Returns
    -------
    Figure
        Left: weights of one layer that stay and go.  Right: a part of its mask.
    str
        Bytes and accuracy as an HTML table.
    """
    sparsity = round(sparsity, 4)  # a slider's 0.15000000000000002 is the same setting
    found = masks(sparsity, granularity)
    name = f"{SHOWN_LAYER}.weight"
    figure = _figure(_weights(_network())[name].numpy(), found[name].numpy(), sparsity, granularity)
    return figure, _table(found, sparsity, granularity)


def _figure(weight: np.ndarray, mask: np.ndarray, sparsity: float, granularity: str) -> Figure:
    with plots.style():
        figure, (left, right) = plots.new_figure(
            2,
            width=9.0,
            height=3.4,
            alt=f"{SHOWN_LAYER} at a sparsity of {sparsity:.0%} by {UNITS[granularity]}: weights that stay "
            "and go, and a part of the mask.",
        )
        bins = np.linspace(weight.min(), weight.max(), 81).tolist()
        parts, colors = [weight[mask], weight[~mask]], [plots.BLUE, plots.ORANGE]
        left.hist(parts, bins=bins, stacked=True, color=colors, label=["stays", "goes"])
        left.set_title(f"weights of {SHOWN_LAYER}")
        left.legend()
        # 16 filters of 8 kernels each, every kernel a block of its rows and columns
        part = mask[:16, :8].transpose(0, 2, 1, 3).reshape(16 * mask.shape[2], 8 * mask.shape[3])
        right.imshow(part, cmap="Blues", vmin=0, vmax=1.3, aspect="auto", interpolation="nearest")
        right.set_xticks(np.arange(0, part.shape[1], mask.shape[3]) - 0.5, list(map(str, range(8))))
        right.set_yticks(
            np.arange(0, part.shape[0], 4 * mask.shape[2]) - 0.5, list(map(str, range(0, 16, 4)))
        )
        right.set_xlabel("input channel")
        right.set_ylabel("filter")
        right.set_title("mask of 16 filters × 8 kernels (dark: stays)")
    return figure


def _table(found: Mapping[str, torch.Tensor], sparsity: float, granularity: str) -> str:
    total = sum(mask.numel() for mask in found.values())
    kept = sum(int(mask.sum()) for mask in found.values())
    stored = sum(encoded_bytes(mask, granularity) for mask in found.values())
    rows = {
        "weights that stay": (f"{kept:,}", f"{kept / total:.1%}"),
        "bytes of the positions": (f"{stored - kept:,}", f"{(stored - kept) / total:.1%}"),
        "bytes in all, int8": (f"{stored:,}", f"{stored / total:.1%}"),
        f"accuracy on {IMAGES} images": (f"{pruned_accuracy(sparsity, granularity):.3f}", ""),
    }
    head = f'<table cellpadding="6"><tr><th>{UNITS[granularity]}, sparsity {sparsity:.0%}</th>'
    lines = [f"{head}<th>value</th><th>of dense int8</th></tr>"]
    lines += [
        f"<tr><td>{name}</td><td align='right'>{value}</td><td align='right'>{share}</td></tr>"
        for name, (value, share) in rows.items()
    ]
    return "".join(lines) + "</table>"


def pruning_explorer() -> Any:
    """Return a widget: a slider, a menu, the figure and the table of `pruning_view`."""
    import ipywidgets as widgets

    style = {"description_width": "90px"}
    slider = widgets.FloatSlider(
        0.5, min=0.0, max=0.95, step=0.05, description="sparsity", continuous_update=False, style=style
    )
    menu = widgets.Dropdown(
        options=[(words, name) for name, words in UNITS.items()], description="granularity", style=style
    )
    image, table = widgets.Image(format="png"), widgets.HTML()

    def refresh(_change: Any = None) -> None:
        figure, rows = pruning_view(slider.value, menu.value)
        image.value, table.value = plots.to_png(figure), rows

    for control in (slider, menu):
        control.observe(refresh, names="value")
    refresh()
    return widgets.VBox([slider, menu, image, table])
