"""Figures of the course: one palette, readable by colour-blind readers and on a dark page.

Every function returns a matplotlib ``Figure`` with an opaque background and a text alternative in its
label; `show` displays it in a notebook together with that text.  Nothing here uses pyplot, so no figure
stays open and no backend is chosen.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe and Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/; its yellow is left out, which
# is too pale for lines and text on a light ground.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, MUTED, GRID, GROUND = "#1A1A1A", "#5F6368", "#DADCE0", "#FFFFFF"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE: Any = {
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "font.size": 9.5,
    "legend.frameon": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the course's style to figures made inside the ``with`` block."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def _styled(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a function that makes a figure under `style`: titles and legends read it when they are set."""

    @functools.wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return make(*args, **kwargs)

    return styled


def new_figure(
    columns: int = 1, *, width: float = 7.0, height: float = 3.6, alt: str = ""
) -> tuple[Figure, list[Axes]]:
    """Return a figure in the course's style and its axes, left to right; ``alt`` is its text alternative."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    figure.set_label(alt)
    return figure, axes


def to_png(figure: Figure, *, dpi: int = 100) -> bytes:
    """Return the figure as an opaque PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=GROUND)
    return buffer.getvalue()


def show(figure: Figure) -> None:
    """Display a figure in a notebook with its text alternative for screen readers."""
    from IPython.display import Image, display

    display(Image(to_png(figure), alt=str(figure.get_label())))


@_styled
def roofline(machine: Any, kernels: Mapping[str, tuple[float, float | None]] | None = None) -> Figure:
    """Plot the two ceilings of a machine and where kernels stand under them.

    Parameters
    ----------
    machine : tinyml_edu.profile.Roofline
        Its ``peak_gflops``, ``bandwidth_gbs`` and ``ridge`` are used.
    kernels : mapping of str to (intensity, gflops), optional
        FLOP per byte and measured 10^9 FLOP a second.  With ``None`` for the second, the ceiling is drawn
        and called attainable.
    """
    kernels = kernels or {}
    intensities = [machine.ridge, *(x for x, _ in kernels.values() if x > 0)]
    low, high = min(intensities) / 8, max(intensities) * 8
    figure, (axes,) = new_figure(
        alt=f"Roofline: a slope of {machine.bandwidth_gbs:.1f} GB/s meets a ceiling of "
        f"{machine.peak_gflops:.1f} GFLOP/s at {machine.ridge:.1f} FLOP per byte; "
        f"{len(kernels)} kernels are marked."
    )
    x = np.geomspace(low, high, 200)
    axes.loglog(x, np.minimum(machine.peak_gflops, x * machine.bandwidth_gbs), color=INK, linewidth=2)
    axes.axvline(machine.ridge, color=MUTED, linewidth=1, linestyle=":")
    axes.annotate(
        f"ridge {machine.ridge:.1f} FLOP/byte", (machine.ridge, 0.02), xycoords=("data", "axes fraction"),
        xytext=(-4, 0), textcoords="offset points", color=MUTED, ha="right",
    )  # fmt: skip
    for i, (name, (intensity, gflops)) in enumerate(kernels.items()):
        y = machine.attainable_gflops(intensity) if gflops is None else gflops
        label = f"{name} (attainable)" if gflops is None else name
        axes.plot(
            intensity,
            y,
            MARKERS[i % len(MARKERS)],
            color=PALETTE[i % len(PALETTE)],
            markersize=8,
            label=label,
        )
    axes.set(
        xlabel="arithmetic intensity (FLOP per byte)",
        ylabel="GFLOP/s",
        title=f"{machine.bandwidth_gbs:.1f} GB/s and {machine.peak_gflops:.1f} GFLOP/s, "
        f"{machine.threads} thread{'s' if machine.threads > 1 else ''}",
    )
    if kernels:
        axes.legend(loc="lower right")
    return figure


@_styled
def pareto(
    points: Sequence[tuple[str, float, float]],
    *,
    x_label: str,
    y_label: str,
    minimize_x: bool = True,
    minimize_y: bool = False,
    log_x: bool = False,
) -> Figure:
    """Plot points ``(name, x, y)`` and join those that no other point beats on both axes."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    front = pareto_front(points, minimize_x=minimize_x, minimize_y=minimize_y)
    figure, (axes,) = new_figure(
        alt=f"{y_label} against {x_label} for {len(points)} points; not beaten: "
        f"{', '.join(name for name, _, _ in front)}."
    )
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.plot([x for _, x, _ in front], [y for _, _, y in front], color=BLUE, linewidth=1.5, zorder=1)
    for point in points:
        name, x, y = point
        best = point in front
        axes.scatter(
            x, y, s=46, color=BLUE if best else GROUND, edgecolors=BLUE if best else MUTED,
            marker="o" if best else "s", zorder=2,
        )  # fmt: skip
        axes.annotate(
            name,
            (x, y),
            xytext=(7, -13),
            textcoords="offset points",
            color=INK if best else MUTED,
            fontsize=9,
        )
    axes.margins(x=0.16, y=0.16)
    axes.set(xlabel=x_label, ylabel=y_label, title="Filled: no other point is better on both axes")
    return figure


def pareto_front(
    points: Sequence[tuple[str, float, float]], *, minimize_x: bool = True, minimize_y: bool = False
) -> list[tuple[str, float, float]]:
    """Return the points that no other point dominates, by x.

    Examples
    --------
    >>> pareto_front([("a", 1, 5), ("b", 2, 4), ("c", 3, 9)])
    [('a', 1, 5), ('c', 3, 9)]
    """
    sx, sy = (1 if minimize_x else -1), (1 if minimize_y else -1)
    costs = [(sx * x, sy * y) for _, x, y in points]

    def beaten(mine: tuple[float, float]) -> bool:
        return any(c != mine and c[0] <= mine[0] and c[1] <= mine[1] for c in costs)

    return sorted((p for p, cost in zip(points, costs) if not beaten(cost)), key=lambda p: p[1:])


@_styled
def layer_costs(profile: Any) -> Figure:
    """Plot weights, MACs and live activations of each layer side by side, one row a layer, first on top.

    Parameters
    ----------
    profile : tinyml_edu.profile.ModelProfile
        Its ``rows`` are used; layers without parameters and MACs are left out.
    """
    rows = [row for row in profile.rows if row.macs]
    panels = (
        ("parameters", "parameters", BLUE),
        ("macs", "MACs", ORANGE),
        ("live_elements", "live activations (elements)", GREEN),
    )
    figure, axes = new_figure(
        3,
        width=8.4,
        height=1.2 + 0.27 * len(rows),
        alt="Costs of each layer of "
        + f"{profile.name}; "
        + "; ".join(
            f"most {title} in {max(rows, key=lambda r: getattr(r, field)).name}" for field, title, _ in panels
        )
        + ".",
    )
    from matplotlib.ticker import EngFormatter

    for ax, (field, title, color) in zip(axes, panels):
        ax.barh(range(len(rows)), [getattr(row, field) for row in rows], color=color)
        ax.set_yticks(range(len(rows)), [row.name for row in rows] if ax is axes[0] else [""] * len(rows))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_title(title)
    return figure


@_styled
def bars(
    names: Sequence[str], series: Mapping[str, Sequence[float]], *, x_label: str, log: bool = False
) -> Figure:
    """Plot horizontal bars, one group for each name, one bar in a group for each series."""
    figure, (axes,) = new_figure(
        height=1.1 + 0.3 * len(names) * max(1, len(series)) ** 0.7,
        alt=f"{x_label}: {', '.join(series)} for {', '.join(names)}.",
    )
    tall = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        places = np.arange(len(names)) + (i - (len(series) - 1) / 2) * tall
        axes.barh(places, values, height=tall * 0.92, color=PALETTE[i % len(PALETTE)], label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(x_label)
    if len(series) > 1:
        figure.legend(loc="outside upper right", ncols=len(series))
    return figure


@_styled
def live_memory(
    steps: Sequence[str], live_bytes: Sequence[float], *, budget_bytes: float | None = None
) -> Figure:
    """Plot the bytes of live activations at each step; the peak is the bar in another colour."""
    peak = int(np.argmax(live_bytes))
    figure, (axes,) = new_figure(
        alt=f"Live activations over {len(steps)} steps; "
        f"the peak is {live_bytes[peak]:,.0f} bytes at {steps[peak]}."
    )
    kib = np.asarray(live_bytes) / 1024
    axes.bar(range(len(steps)), kib, color=[VERMILION if i == peak else SKY for i in range(len(steps))])
    if budget_bytes is not None:
        axes.axhline(
            budget_bytes / 1024, color=INK, linestyle="--", linewidth=1.2,
            label=f"budget {budget_bytes / 1024:,.0f} KiB",
        )  # fmt: skip
        figure.legend(loc="outside upper right")
    axes.set_xticks(range(len(steps)), steps, rotation=90 if len(steps) > 8 else 0, fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="live activations (KiB)", title=f"Peak {kib[peak]:,.1f} KiB at {steps[peak]}")
    return figure


@_styled
def memory_map(plan: Any, *, steps: Sequence[str] | None = None) -> Figure:
    """Plot a memory plan: each buffer is a box, as wide as its life and as tall as its bytes.

    Parameters
    ----------
    plan : tinyml_edu.mcu.Plan
        ``buffers`` (with ``name, size_bytes, first, last, kind``), ``offsets``, ``arena_bytes`` and
        ``lower_bound_bytes`` are used.
    steps : sequence of str, optional
        Names of the steps for the horizontal axis.
    """
    from matplotlib.patches import Rectangle

    # Light enough for dark figures inside the boxes.
    shades = (SKY, ORANGE, GREEN, PURPLE)
    kinds = list(dict.fromkeys(str(getattr(b.kind, "value", b.kind)) for b in plan.buffers))
    colors = {kind: shades[i % len(shades)] for i, kind in enumerate(kinds)}
    figure, (axes,) = new_figure(
        height=4.0,
        alt=f"Memory map of {len(plan.buffers)} buffers over time in an arena of {plan.arena_bytes:,} bytes; "
        f"the lower bound is {plan.lower_bound_bytes:,} bytes.",
    )
    last = max(b.last for b in plan.buffers)
    live = [sum(b.size_bytes for b in plan.buffers if b.first <= t <= b.last) for t in range(last + 1)]
    peak = int(np.argmax(live))
    axes.axvspan(peak - 0.5, peak + 0.5, color=VERMILION, alpha=0.15, linewidth=0, label=f"peak, step {peak}")
    for b in plan.buffers:
        kind = str(getattr(b.kind, "value", b.kind))
        left, bottom, wide, tall = b.first - 0.5, plan.offsets[b.name], b.last - b.first + 1, b.size_bytes
        axes.add_patch(
            Rectangle((left, bottom), wide, tall, facecolor=colors[kind], edgecolor=GROUND, linewidth=1.2)
        )
        if tall > plan.arena_bytes / 18:
            axes.text(
                left + wide / 2, bottom + tall / 2, f"{tall / 1024:.1f}", ha="center", va="center",
                color=INK, fontsize=8, rotation=90 if wide * 18 < last + 1 else 0,
            )  # fmt: skip
    for kind, color in colors.items():
        axes.add_patch(Rectangle((0, 0), 0, 0, facecolor=color, label=kind))
    axes.axhline(plan.arena_bytes, color=INK, linewidth=1.4, label=f"arena {plan.arena_bytes:,} B")
    axes.axhline(
        plan.lower_bound_bytes, color=VERMILION, linestyle="--", linewidth=1.4,
        label=f"lower bound {plan.lower_bound_bytes:,} B",
    )  # fmt: skip
    axes.set(
        xlim=(-0.5, last + 0.5), ylim=(0, plan.arena_bytes * 1.04), xlabel="step", ylabel="offset (bytes)"
    )
    axes.set_title("Numbers in the boxes are KiB")
    if steps is not None:
        axes.set_xticks(range(len(steps)), steps, rotation=90, fontsize=8)
    figure.legend(loc="outside right upper")
    return figure


@_styled
def mnemonics(layers: Mapping[str, Mapping[str, int]], *, most: int = 5) -> Figure:
    """Plot which instructions a network executes: in total on the left, layer by layer on the right.

    Parameters
    ----------
    layers : mapping of str to mapping of str to int
        Counts of each mnemonic by layer: ``RunResult.mnemonics``.
    most : int, default=5
        Mnemonics with a colour of their own, at most six; the others are grey.
    """
    from matplotlib.ticker import EngFormatter

    from .mcu.instruments import histogram_rows, total_mnemonics

    total = total_mnemonics(layers)
    columns, rows = histogram_rows(layers, most=min(most, len(PALETTE)))
    colors = [*PALETTE[: len(columns) - 1], GRID]
    figure, (left, right) = new_figure(
        2,
        width=9.0,
        height=1.6 + 0.22 * max(len(rows), 12),
        alt=f"{sum(total.values()):,} instructions in {len(layers)} layers; most frequent: "
        + ", ".join(f"{name} {count:,}" for name, count in list(total.items())[:3])
        + ".",
    )
    shown = list(total.items())[:16]
    left.barh(
        range(len(shown)),
        [count for _, count in shown],
        color=[colors[i] if i < len(columns) - 1 else GRID for i in range(len(shown))],
    )
    left.set_yticks(range(len(shown)), [name for name, _ in shown])
    left.set_title(f"{len(shown)} most frequent of {len(total)}")
    names, counts = [name for name, _ in rows[:-1]], np.array([row for _, row in rows[:-1]])
    begin = np.zeros(len(names))
    for column, color, label in zip(counts.T, colors, columns):
        right.barh(range(len(names)), column, left=begin, color=color, label=label)
        begin += column
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set_title("by layer")
    for axes in (left, right):
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("instructions")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=len(columns))
    return figure


@_styled
def arena_heat_map(trace: Any) -> Figure:
    """Plot reads and writes of the arena: time runs to the right, layer by layer, addresses run upwards.

    Parameters
    ----------
    trace : tinyml_edu.mcu.instruments.ArenaTrace
        ``RunResult.trace``; cells that a layer leaves alone are white.
    """
    from matplotlib.colors import LogNorm

    counted = np.concatenate([trace.layer_reads.ravel(), trace.layer_writes.ravel()])
    counted = counted[counted > 0]
    least, busiest = (int(counted.min()), int(counted.max())) if counted.size else (1, 1)
    figure, panels = new_figure(
        2,
        width=9.0,
        height=4.4,
        alt=f"Accesses of {trace.arena_bytes:,} bytes of arena by {len(trace.layers)} layers: "
        f"{int(trace.layer_reads.sum()):,} bytes read, {int(trace.layer_writes.sum()):,} written.",
    )
    image: Any = None
    for axes, title, counts in zip(panels, ("read", "written"), (trace.layer_reads, trace.layer_writes)):
        image = axes.imshow(
            np.ma.masked_equal(counts.T, 0),
            norm=LogNorm(least, max(busiest, 2 * least)),
            cmap="viridis_r",
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            extent=(-0.5, len(trace.layers) - 0.5, 0, trace.arena_bytes / 1024),
        )
        axes.set_title(f"bytes {title}: {int(counts.sum()):,}")
        axes.set_xticks(range(len(trace.layers)), trace.layers, rotation=90, fontsize=7)
        axes.grid(visible=False)
    panels[0].set_ylabel("offset in the arena (KiB)")
    figure.colorbar(image, ax=panels, label=f"bytes accessed in a cell of {trace.cell_bytes}")
    return figure
