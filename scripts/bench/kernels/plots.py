"""Plots of `saccade bench kernels`: time over length and over density, with the roofline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .rows import OURS, OURS_PLAN_KEPT, SDPA_MASKED, SDPA_TWO_CALLS, SDPA_UNMASKED, VARLEN, KernelRow

STYLES = {
    OURS: ("#0072b2", "o", "-"),
    OURS_PLAN_KEPT: ("#56b4e9", "s", "-"),
    SDPA_UNMASKED: ("#d55e00", "^", "--"),
    SDPA_MASKED: ("#e69f00", "v", "--"),
    SDPA_TWO_CALLS: ("#cc79a7", "D", "--"),
    VARLEN: ("#009e73", "P", "--"),
}
"""Colour (the colour-blind safe palette of Okabe and Ito), marker and line style of each contestant."""

MORE_STYLES = (("#000000", "x", ":"), ("#7f7f7f", "+", ":"), ("#9c755f", "*", ":"))


def plot_sweep(path: Path, rows: list[KernelRow], sweep: str, device: str) -> bool:
    """Plot the times of a sweep: forward, and forward with backward.

    Args:
        path: The PNG file to write.
        rows: All rows; those of other sweeps are ignored.
        sweep: "length" or "density".
        device: Description of the device for the title.

    Returns:
        Whether the plot was written; False if fewer than two cases of the sweep were timed.
    """
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.shape.sweep == sweep and row.seconds]
    if len({row.shape for row in shown}) < 2:
        return False
    x_value = _length if sweep == "length" else _density
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, kind, title in zip(panels, ("forward", "both"), ("forward", "forward and backward"), strict=True):
        _draw(axes, shown, kind, x_value)
        axes.set_title(title, fontsize=11)
    label = "tokens" if sweep == "length" else "fraction of pairs in visited tiles"
    figure.supxlabel(label, fontsize=10)
    panels[0].set_ylabel("time (ms)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=9)
    shape = shown[0].shape
    size = "" if sweep == "length" else f"{shape.lengths[0]} tokens, "
    figure.suptitle(
        f"{shape.family}: {size}{shape.heads}/{shape.key_heads} heads of {shape.width}. {device}", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


def _draw(axes: Any, rows: list[KernelRow], kind: str, x_value: Callable[[KernelRow], float]) -> None:
    from matplotlib.ticker import LogLocator

    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    roofline = {}
    for row in rows:
        if kind in row.seconds:
            lines[row.contestant].append((x_value(row), 1e3 * row.seconds[kind]))
            roofline[x_value(row)] = 1e3 * (row.floor[0] if kind == "forward" else sum(row.floor))
    extra_styles = iter(MORE_STYLES)
    for name, points in lines.items():
        colour, marker, style = STYLES[name] if name in STYLES else next(extra_styles, MORE_STYLES[-1])
        axes.plot(
            *zip(*sorted(points), strict=True), label=name, color=colour, marker=marker, linestyle=style, markersize=5
        )
    if roofline:
        axes.plot(*zip(*sorted(roofline.items()), strict=True), label="roofline", color="black", linewidth=1)
        axes.fill_between(*zip(*sorted(roofline.items()), strict=True), color="black", alpha=0.06, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x_value(row) for row in rows})
    axes.set_xticks(ticks, [f"{tick:.3g}" if tick <= 1 else f"{tick:.0f}" for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _length(row: KernelRow) -> float:
    return float(row.shape.lengths[0])


def _density(row: KernelRow) -> float:
    return row.tile_density
