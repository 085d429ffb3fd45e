"""Lab 2's explorer: bits, who shares a scale, and the observer, against error, bytes and accuracy.

Only core widgets of ipywidgets 7.7 and 8.1 are used.  `quantization_view` does the work and needs no widget.
Accuracy is that of the first 200 validation images: the float graph computes on the values that the codes
stand for, so that scales of groups, which the integer engine has not, can be tried too.  Every setting is
measured once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plots
from ..quantization.affine import affine_params
from .quantized_values import (
    IMAGES,
    SCHEMES,
    SHOWN_LAYER,
    activation,
    activation_error,
    graph,
    quantized_weight,
    quants_of,
    simulated_accuracy,
    stored_bytes,
    weight_names,
)

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..ir.graph import Quant

OBSERVERS = {
    "minmax": "min and max",
    "ema": "moving average",
    "percentile": "99.99 % of the values",
    "kl": "least KL divergence",
    "mse": "least squared error",
}
"""Names of `tinyml_edu.quantization.OBSERVERS`, in words."""


def value_grids(weight: torch.Tensor, bits: int) -> Figure:
    """Plot a layer's weights with the values of ``2**bits`` linear codes and of a k-means codebook.

    Parameters
    ----------
    weight : torch.Tensor
        Real weights of any shape; they are not changed.
    bits : int
        2 to 4 are readable.
    """
    from ..quantization.kmeans import k_means_quantize

    values = weight.detach().double().numpy().ravel()
    scale, zero_point = affine_params(float(values.min()), float(values.max()), bits=bits)
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    centroids = k_means_quantize(weight.detach().clone(), bits).centroids.numpy()
    grids = {"linear codes": scale * (codes - zero_point), "k-means codebook": centroids}
    with plots.style():
        figure, panels = plots.new_figure(
            2,
            width=9.0,
            height=3.0,
            alt=f"Weights of a layer and the {2**bits} values of two kinds of codes.",
        )
        for axes, (name, grid) in zip(panels, grids.items()):
            error = np.abs(values[:, None] - grid).min(axis=1)
            axes.hist(values, bins=80, color=plots.BLUE)
            for value in grid:
                axes.axvline(value, color=plots.VERMILION, linewidth=1.2)
            axes.set_title(f"{name}: mean squared error {np.mean(error**2):.2e}")
    return figure


def quantization_view(
    weight_bits: int = 4, scheme: str = "channel", activation_bits: int = 8, observer: str = "minmax"
) -> tuple[Figure, str]:
    """Return the figure and the HTML table of one setting.

    Parameters
    ----------
    weight_bits, activation_bits : int
        2 to 8.  The network's output keeps 8, its input is not rounded.
    scheme : str
        One of `quantized_values.SCHEMES`.
    observer : str
        One of `OBSERVERS`.

    Returns
    -------
    Figure
        Left: weights of one layer before and after.  Middle: where the error is.  Right: what the layer
        gives, and the range that the observer chose.
    str
        Bytes, errors and accuracy as an HTML table.
    """
    weight = graph()[f"{SHOWN_LAYER}.weight"].data
    assert weight is not None
    values = quantized_weight(f"{SHOWN_LAYER}.weight", weight_bits, scheme)[0]
    with plots.style():
        figure, (left, middle, right) = plots.new_figure(
            3,
            width=11.0,
            height=3.3,
            alt=f"{SHOWN_LAYER} with {weight_bits}-bit weights, a scale for {SCHEMES[scheme]}: weights, "
            f"errors, and its {activation_bits}-bit output's range by {OBSERVERS[observer]}.",
        )
        _draw_weights(left, weight, values)
        _draw_errors(middle, weight - values)
        _draw_activation(right, quants_of(observer, activation_bits)[SHOWN_LAYER])
    return figure, _table(weight - values, weight_bits, scheme, activation_bits, observer)


def _draw_weights(axes: Axes, weight: np.ndarray, values: np.ndarray) -> None:
    bins = np.linspace(weight.min(), weight.max(), 101).tolist()
    axes.hist(weight.ravel(), bins=bins, color=plots.SKY, histtype="stepfilled", label="float32")
    axes.hist(values.ravel(), bins=bins, color=plots.VERMILION, histtype="step", label="after")
    _logarithmic(axes)
    axes.set_title(f"weights of {SHOWN_LAYER}")
    axes.legend()


def _draw_errors(axes: Axes, error: np.ndarray) -> None:
    rows = np.abs(error.reshape(len(error), -1))
    axes.imshow(rows, cmap="Blues", aspect="auto", interpolation="nearest")
    axes.set_title(f"|error| (dark: {rows.max():.1e})")
    axes.set_xlabel("weight of the filter")
    axes.set_ylabel("filter")
    axes.grid(visible=False)


def _draw_activation(axes: Axes, quant: Quant) -> None:
    scale, zero_point = quant.item()
    low, high = (scale * (q - zero_point) for q in quant.limits)
    seen = activation()
    axes.hist(seen[seen != 0], bins=100, color=plots.SKY, histtype="stepfilled")
    for end in (low, high):
        axes.axvline(end, color=plots.VERMILION, linewidth=1.4)
    _logarithmic(axes)
    axes.set_title(f"its output, up to {high:.2f} in steps of {scale:.3f}")


def _logarithmic(axes: Axes) -> None:
    """Count on a logarithmic axis without minor ticks, which take longer to draw than the rest."""
    from matplotlib.ticker import NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())


def _table(error: np.ndarray, weight_bits: int, scheme: str, activation_bits: int, observer: str) -> str:
    stored = stored_bytes(weight_bits, scheme)
    count = sum(quantized_weight(name, weight_bits, scheme)[0].size for name in weight_names())
    squared, saturated = activation_error(observer, activation_bits)
    rows = {
        "bytes of all weights": f"{stored:,}",
        "bits a weight, scales included": f"{8 * stored / count:.2f}",
        "squared error of the shown weights": f"{float(np.mean(error**2)):.2e}",
        "squared error of the shown output": f"{squared:.2e}",
        "of it saturated": f"{saturated:.3%}",
        f"accuracy on {IMAGES} images": (
            f"{simulated_accuracy(weight_bits, scheme, activation_bits, observer):.3f}"
        ),
    }
    head = f"{weight_bits}-bit weights, a scale for {SCHEMES[scheme]}; {activation_bits}-bit activations"
    lines = [f'<table cellpadding="6"><tr><th>{head}</th><th>value</th></tr>']
    lines += [f"<tr><td>{name}</td><td align='right'>{value}</td></tr>" for name, value in rows.items()]
    return "".join(lines) + "</table>"


def quantization_explorer() -> Any:
    """Return a widget: two sliders, two menus, the figure and the table of `quantization_view`."""
    import ipywidgets as widgets

    style = {"description_width": "110px"}

    def slider(value: int, words: str) -> Any:
        return widgets.IntSlider(value, min=2, max=8, description=words, continuous_update=False, style=style)

    def menu(words: dict[str, str], description: str) -> Any:
        options = [(text, name) for name, text in words.items()]
        return widgets.Dropdown(options=options, description=description, style=style)

    controls = [
        slider(4, "weight bits"),
        menu(SCHEMES, "a scale for"),
        slider(8, "activation bits"),
        menu(OBSERVERS, "range by"),
    ]
    controls[1].value = "channel"
    image, table = widgets.Image(format="png"), widgets.HTML()

    def refresh(_change: Any = None) -> None:
        figure, rows = quantization_view(*(control.value for control in controls))
        image.value, table.value = plots.to_png(figure), rows

    for control in controls:
        control.observe(refresh, names="value")
    refresh()
    return widgets.VBox([*controls, image, table])
