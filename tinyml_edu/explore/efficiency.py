"""Lab 0's explorer: width, resolution and depth of a small network against all of its costs.

Only core widgets of ipywidgets 7.7 and 8.1 are used.  `efficiency_view` does the work and needs no widget,
so the same picture can be had in a script or where widgets are switched off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plots
from ..ir.attrs import Conv2D, FullyConnected, Pool2D
from ..ir.graph import Graph, Kind, Node, Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..mcu.boards import Board

BASELINE = {"width": 16, "resolution": 32, "depth": 1}


def plain_network(width: int, resolution: int, depth: int, classes: int = 10) -> Graph:
    """Return three stages of ``depth`` 3×3 convolutions with ``width``, 2 and 4 ``width`` channels.

    A 2×2 maximum ends each stage, a mean over the image and a linear layer end the network.  The weights
    are zeros that take no memory: only shapes matter here.

    Parameters
    ----------
    width, resolution, depth : int
        Channels of the first stage; height and width of the RGB input, at least 8; convolutions a stage.
    """
    graph = Graph(f"plain {width}w {resolution}px {depth}d")
    shape: tuple[int, ...] = (1, resolution, resolution, 3)
    x = graph.add(Tensor("image", shape, "float32", Kind.INPUT))
    graph.inputs = (x,)

    def append(name: str, op: str, attrs: Any, out: tuple[int, ...], weights: tuple[int, ...] = ()) -> None:
        nonlocal x, shape
        sizes = {"weight": weights, "bias": (out[-1],)} if weights else {}
        constants = [
            graph.add(
                Tensor(f"{name}.{part}", s, "float32", Kind.CONSTANT, np.broadcast_to(np.float32(0), s))
            )
            for part, s in sizes.items()
        ]
        y = graph.add(Tensor(f"{name}.out", out, "float32", Kind.ACTIVATION))
        graph.nodes.append(Node(name, op, (x, *constants), (y,), attrs))
        x, shape = y, out

    for stage in range(3):
        channels = width << stage
        for layer in range(depth):
            out, kernel = (*shape[:3], channels), (channels, 3, 3, shape[3])
            attrs = Conv2D(padding=(1, 1, 1, 1), activation="relu")
            append(f"conv{stage + 1}.{layer + 1}", "CONV_2D", attrs, out, kernel)
        half = (1, shape[1] // 2, shape[2] // 2, channels)
        append(f"pool{stage + 1}", "MAX_POOL_2D", Pool2D((2, 2), (2, 2)), half)
    append("mean", "AVERAGE_POOL_2D", Pool2D((shape[1], shape[2]), (1, 1)), (1, 1, 1, shape[3]))
    append("linear", "FULLY_CONNECTED", FullyConnected(), (1, classes), (classes, shape[3]))
    graph.outputs = (x,)
    return graph


def costs(width: int, resolution: int, depth: int) -> dict[str, float]:
    """Return every metric of one network in int8, by the name that the table shows.

    Energy by the 45 nm table: weights come from DRAM once an image, activations from SRAM.
    """
    from ..profile import inference_energy_uj, profile

    p = profile(plain_network(width, resolution, depth))
    moved = p.weight_bytes("int8") + p.activation_bytes("int8")
    energy = inference_energy_uj(
        p.macs, dram_bytes=p.weight_bytes("int8"), sram_bytes=p.activation_bytes("int8"), dtype="int8"
    )
    return {
        "parameters": p.parameters,
        "weight bytes, int8": p.weight_bytes("int8"),
        "peak activation bytes, int8": p.peak_bytes("int8"),
        "MACs": p.macs,
        "FLOP per byte, int8": 2 * p.macs / moved,
        "energy, microjoules": energy,
    }


def efficiency_view(
    width: int = 16, resolution: int = 32, depth: int = 1, *, board: str = "stm32f412"
) -> tuple[Figure, str]:
    """Return the figure and the HTML table of one network beside the baseline.

    Parameters
    ----------
    width, resolution, depth : int
        See `plain_network`.
    board : str
        The budget: activations against its SRAM, weights against its flash.

    Returns
    -------
    Figure
        Left: each metric as a multiple of the baseline.  Right: live memory at each step.
    str
        The same numbers as an HTML table.
    """
    from ..mcu.boards import get_board

    now, base = costs(width, resolution, depth), costs(**BASELINE)
    ratios = {name: now[name] / base[name] for name in now}
    chosen = get_board(board)
    return _figure(plain_network(width, resolution, depth), ratios, chosen), _table(now, ratios, chosen)


def _figure(graph: Graph, ratios: dict[str, float], board: Board) -> Figure:
    from ..profile import profile

    rows = profile(graph).rows
    kib = [row.live_elements / 1024 for row in rows]
    peak = int(np.argmax(kib))
    with plots.style():
        figure, (left, right) = plots.new_figure(
            2,
            width=9.0,
            height=3.4,
            alt=f"{graph.name}: multiples of the baseline, and live activations with a peak of "
            f"{kib[peak]:.1f} KiB at {rows[peak].name}.",
        )
        left.barh(range(len(ratios)), [r - 1 for r in ratios.values()], left=1, color=plots.BLUE)
        left.axvline(1, color=plots.INK, linewidth=1)
        left.set_yticks(range(len(ratios)), list(ratios))
        left.set_xscale("log", base=2)
        left.set_xlim(min(0.25, *ratios.values()) / 1.3, max(4, *ratios.values()) * 1.3)
        left.xaxis.set_major_formatter("{x:g}×")
        left.invert_yaxis()
        left.grid(visible=False, axis="y")
        left.set_title("multiples of the baseline")
        right.bar(
            range(len(rows)),
            kib,
            color=[plots.VERMILION if i == peak else plots.SKY for i in range(len(rows))],
        )
        right.axhline(board.sram_bytes / 1024, color=plots.INK, linestyle="--", linewidth=1.2)
        right.set_xticks(range(len(rows)), [row.name for row in rows], rotation=90, fontsize=8)
        right.grid(visible=False, axis="x")
        right.set_title(f"live KiB (dashed: SRAM of {board.name})")
    return figure


def _table(now: dict[str, float], ratios: dict[str, float], board: Board) -> str:
    limits = {
        "weight bytes, int8": ("flash", board.flash_bytes),
        "peak activation bytes, int8": ("SRAM", board.sram_bytes),
    }
    lines = ['<table cellpadding="6"><tr><th>metric</th><th>value</th><th>baseline ×</th><th>board</th></tr>']
    for name, value in now.items():
        verdict = ""
        if name in limits:
            memory, limit = limits[name]
            verdict = f"{value / limit:.0%} of {memory}" + ("" if value <= limit else ", does not fit")
        shown = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
        lines.append(
            f"<tr><td>{name}</td><td align='right'>{shown}</td>"
            f"<td align='right'>{ratios[name]:.2f}</td><td>{verdict}</td></tr>"
        )
    return "".join(lines) + "</table>"


def efficiency_explorer(*, board: str = "stm32f412") -> Any:
    """Return a widget: three sliders, the figure and the table of `efficiency_view`."""
    import ipywidgets as widgets

    style = {"description_width": "90px"}

    def slider(name: str, low: int, high: int, step: int) -> Any:
        return widgets.IntSlider(
            BASELINE[name], low, high, step, description=name, continuous_update=False, style=style
        )

    sliders = [slider("width", 4, 64, 4), slider("resolution", 16, 128, 16), slider("depth", 1, 4, 1)]
    image, table = widgets.Image(format="png"), widgets.HTML()

    def refresh(_change: Any = None) -> None:
        figure, rows = efficiency_view(*(s.value for s in sliders), board=board)
        image.value, table.value = plots.to_png(figure), rows

    for s in sliders:
        s.observe(refresh, names="value")
    refresh()
    return widgets.VBox([*sliders, image, table])
