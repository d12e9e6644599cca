"""The figures of a report: learning curves, sample paths and networks, as PNG files and as inline SVG.

Colors are those of the report's light scheme; `to_svg` turns them into the page's CSS variables, so that
inline figures follow the color scheme of the reader.
"""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from decisionrl.evaluation.results import write_atomically
from decisionrl.evaluation.series import Curve, Edge, Network, SamplePath
from decisionrl.evaluation.statistics import Estimate

INK, MUTED, GRID, PAPER = "#1c2126", "#68707a", "#e1e4e8", "#fefefe"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8568f", "#c78500", "#3d9fd6", "#7159b3", "#5d6570")
"""Okabe and Ito's colors, darkened where a thin line would be too pale; told apart in all forms of color
blindness."""

_STYLE: Any = {  # keys are plain strings or literals, by the version of matplotlib
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "decisionrl",
}
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)))  # of the first, second and third round of colors
_LONGEST_PATH = 150  # periods of a sample path that are still legible
_SMALL_LEGEND = 8  # methods whose names fit below a small figure
_LABEL_WIDTH = 26  # letters of an axis label in one line
_FEW_POINTS = 12  # points of a curve that are each marked
_NAMED_LINES = 6  # lines of one panel that get a color and a name
_DODGE = 0.06  # doublings between methods whose intervals would lie on each other
_LABELED_EDGES = 24  # edges of a network that still have room for a label


@contextmanager
def report_style() -> Iterator[None]:
    """The style in which the figures of this module are made and saved."""
    with matplotlib.rc_context(_STYLE):
        yield


def method_color(index: int) -> str:
    """The color of the index-th method of a report."""
    return PALETTE[index % len(PALETTE)]


def curve_figure(
    title: str, curves: Mapping[str, Curve], methods: Mapping[str, int], *, better: str | None, legend: bool
) -> Figure:
    """Learning curves of one case, the methods overlaid; ``methods`` are their places in the report.

    Where every curve has a reference, the relative gap to it on a logarithmic axis; the plain values else.
    `better` ("lower" or "higher") says which way the gap counts.
    """
    crowded = legend and len(curves) > _SMALL_LEGEND
    figure = Figure(
        figsize=(6.6, 3.0 + 0.17 * math.ceil(len(curves) / 6)) if crowded else (3.3, 2.5), layout="constrained"
    )
    axes = figure.subplots()
    sign = -1.0 if better == "higher" else 1.0
    gaps = {method: _percent_gap(curve.y, curve=curve, sign=sign) for method, curve in curves.items()}
    as_gap = all(np.isfinite(gap).any() for gap in gaps.values())
    for method, curve in curves.items():
        scale = partial(_percent_gap, curve=curve, sign=sign) if as_gap else _plain
        color, dashes = method_color(methods[method]), _DASHES[min(methods[method] // len(PALETTE), 2)]
        marker = "o" if len(curve.x) <= _FEW_POINTS else ""
        axes.plot(curve.x, scale(curve.y), color=color, linestyle=dashes, marker=marker, markersize=3.5, label=method)
        if curve.low is not None and curve.high is not None and len(curves) <= len(PALETTE):
            floor = 1e-9 if as_gap else math.nan  # a bound beyond the reference is below the axis
            low, high = (np.nan_to_num(scale(bound), nan=floor) for bound in (curve.low, curve.high))
            axes.fill_between(curve.x, low, high, color=color, alpha=0.15, linewidth=0)
    first = next(iter(curves.values()))
    axes.set_title(title, fontweight="bold", fontsize=10 if len(title) < 28 else 7.5)
    axes.set_xlabel(first.x_label)
    if first.x_scale == "log":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    if as_gap:
        axes.set_yscale("log")
        every = np.concatenate(list(gaps.values()))
        axes.set_ylim(np.nanmin(every) / 1.4, np.nanmax(every) * 1.4)
        axes.set_ylabel(f"gap of {first.y_label}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,)))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        few_decades = math.log10(max(axes.get_ylim()) / min(axes.get_ylim())) < 1.6
        axes.yaxis.set_minor_formatter(FuncFormatter(_percent) if few_decades else NullFormatter())
    else:
        axes.set_ylabel(textwrap.fill(first.y_label, _LABEL_WIDTH))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for level in (first.reference, first.target):
            if level is not None:
                axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    if legend:
        figure.legend(loc="outside lower center", ncols=6 if crowded else min(4, len(curves)))
    return figure


def learning_curve(run: Path) -> Path | None:
    """Draw ``learning_curve.png`` from a run's ``metrics.jsonl``: what it measured against its steps.

    Returns None where neither returns nor costs were reported more than once.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = {"return": ("episode_return", "eval/mean_return"), "cost": ("cost", "eval/mean_cost")}
    points = {
        unit: [[(line["step"], line[key]) for line in lines if line.get(key) is not None] for key in pair]
        for unit, pair in keys.items()
    }
    drawn = [unit for unit, pair in points.items() if max(map(len, pair)) > 1]
    if not drawn:
        return None
    unit = drawn[0]
    with report_style():
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for index, (name, marker) in enumerate((("training", ""), ("evaluation", "o"))):
            if points[unit][index]:
                x, y = zip(*points[unit][index], strict=True)
                axes.plot(x, y, color=method_color(index), label=name, marker=marker, markersize=3.5)
        axes.set_xlabel("steps")
        axes.set_ylabel(f"{unit} of an episode" if unit == "return" else unit)
        axes.set_title(run.name, fontweight="bold")
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.legend(loc="best")
        return save_png(figure, run / "learning_curve.png")


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """One panel of :func:`ladder_figure`: shares at a few rungs, by method, and what they cannot exceed.

    `bound` is a line by its points, `name` what stands above the panel.
    """

    name: str
    curves: Mapping[str, Curve]
    bound: Sequence[tuple[float, float]] = ()


def ladder_figure(panels: Sequence[Ladder], *, bound_label: str) -> Figure:
    """Shares over rungs that double, one panel for each ladder, with the same methods in the same colors.

    Intervals are drawn as far as shares go, from 0 to 1; a bound as dashes from its first rung to its last.
    """
    figure = Figure(figsize=(3.5 * len(panels) + 0.4, 3.3), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    methods = list(dict.fromkeys(method for panel in panels for method in panel.curves))
    drawn: dict[str, Any] = {}
    for axes, panel in zip(row, panels, strict=True):
        if panel.bound:
            at, limit = zip(*panel.bound, strict=True)
            (dashes,) = axes.step(at, limit, where="mid", color=INK, linewidth=1.2, linestyle=(0, (4, 2.5)))
            drawn[bound_label] = dashes
        for method, curve in panel.curves.items():
            place = methods.index(method)
            apart = 2 ** (_DODGE * (place - (len(methods) - 1) / 2))
            x, y = np.asarray(curve.x, dtype=float) * apart, np.asarray(curve.y, dtype=float)
            low, high = (y if end is None else np.clip(end, 0.0, 1.0) for end in (curve.low, curve.high))
            axes.vlines(x, low, high, color=method_color(place), linewidth=1.3, alpha=0.55)
            (drawn[method],) = axes.plot(x, y, color=method_color(place), marker="o", markersize=4.5, linewidth=1.9)
        rungs = sorted({each for curve in panel.curves.values() for each in curve.x})
        axes.set_title(panel.name, fontweight="bold", fontsize=11)
        axes.set_xlabel(next(iter(panel.curves.values())).x_label, fontsize=11)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(rungs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.tick_params(labelsize=11)
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.yaxis.set_major_formatter(FuncFormatter(_short_number))
    row[0].set_ylabel(next(iter(panels[0].curves.values())).y_label, fontsize=11)
    names = [name for name in (*methods, bound_label) if name in drawn]
    figure.legend([drawn[name] for name in names], names, loc="outside lower center", ncols=len(names), fontsize=11)
    return figure


def band_figure(panels: Mapping[str, Mapping[str, Curve]], *, reference_label: str) -> Figure:
    """Curves with their bands on plain axes, one panel for each name, with the same methods in the same colors.

    The mean of the references of a panel's curves is a dashed line.
    """
    figure = Figure(figsize=(max(4.8, 3.0 * len(panels) + 0.4), 3.1), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    methods = list(dict.fromkeys(method for curves in panels.values() for method in curves))
    drawn: dict[str, Any] = {}
    for axes, (name, curves) in zip(row, panels.items(), strict=True):
        for method, curve in curves.items():
            color = method_color(methods.index(method))
            (drawn[method],) = axes.plot(curve.x, _plain(curve.y), color=color, linewidth=1.9)
            if curve.low is not None and curve.high is not None:
                axes.fill_between(curve.x, _plain(curve.low), _plain(curve.high), color=color, alpha=0.18, linewidth=0)
        references = [curve.reference for curve in curves.values() if curve.reference is not None]
        if references:
            level = float(np.mean(references))
            drawn[reference_label] = axes.axhline(level, color=INK, linewidth=1.0, linestyle=(0, (4, 2.5)))
        axes.set_title(name, fontweight="bold", fontsize=11)
        axes.set_xlabel(next(iter(curves.values())).x_label, fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.tick_params(labelsize=11)
    row[0].set_ylabel(next(iter(next(iter(panels.values())).values())).y_label, fontsize=11)
    row[0].set_ylim(bottom=min(0.0, row[0].get_ylim()[0]))
    names = [name for name in (*methods, reference_label) if name in drawn]
    figure.legend([drawn[name] for name in names], names, loc="outside lower center", ncols=len(names), fontsize=11)
    return figure


def interval_figure(
    panels: Mapping[str, Mapping[str, Estimate]], *, base: str, x_label: str, limits: tuple[float, float] | None = None
) -> Figure:
    """Methods under each other with their intervals, one panel for each name; the best of the first panel on top.

    The value of ``base`` is a dashed line. Intervals are drawn as far as ``limits`` go. A panel without a method
    leaves its place empty.
    """
    first, *others = panels.values()
    methods = sorted(first, key=lambda method: -first[method].value)
    methods += [method for method in dict.fromkeys(each for panel in others for each in panel) if method not in first]
    height = 0.22 * len(methods) + 1.0
    figure = Figure(figsize=(2.1 * len(panels) + 1.4, height), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(row, panels.items(), strict=True):
        if base in found:
            axes.axvline(found[base].value, color=INK, linewidth=1.0, linestyle=(0, (4, 2.5)))
        for place, method in enumerate(methods):
            if method not in found:
                continue
            estimate, color = found[method], method_color(int(method == base))
            if estimate.low is not None and estimate.high is not None:
                ends = (
                    (estimate.low, estimate.high) if limits is None else np.clip((estimate.low, estimate.high), *limits)
                )
                axes.hlines(place, *ends, color=color, linewidth=1.6, alpha=0.55)
            axes.plot([estimate.value], [place], color=color, marker="o", markersize=4.5)
        axes.set_title(name, fontweight="bold", fontsize=11)
        axes.set_xlabel(x_label, fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
        axes.tick_params(labelsize=11)
    row[0].yaxis.set_major_locator(FixedLocator(range(len(methods))))
    row[0].set_yticklabels(methods)
    row[0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


def path_figure(title: str, path: SamplePath) -> Figure:
    """One sample path: stock on hand above, orders and total demand below, as step lines."""
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    shown = slice(max(0, len(path.periods) - _LONGEST_PATH), None)
    periods = np.asarray(path.periods, dtype=float)[shown]
    periods = np.append(periods, periods[-1] + (periods[-1] - periods[-2] if len(periods) > 1 else 1.0))
    upper.set_title(title, fontweight="bold")
    _steps(upper, periods, path.stock, shown, "stock on hand")
    if path.demand:
        total = np.sum([np.asarray(line, dtype=float)[shown] for line in path.demand.values()], axis=0)
        lower.fill_between(
            periods, _held(total), step="post", color=MUTED, alpha=0.18, linewidth=0, label="demand, all"
        )
    _steps(lower, periods, path.orders, shown, "ordered")
    lower.set_xlabel("period")
    lower.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    lower.set_xlim(periods[0], periods[-1])
    return figure


def network_figure(title: str, network: Network) -> Figure:
    """A network from left to right: wide edges carry much, large nodes hold much, labels are lead times."""
    places = place_nodes(network)
    columns = 1 + max(round(x) for x, _ in places.values())
    tallest = max(sum(round(x) == column for x, _ in places.values()) for column in range(columns))
    figure = Figure(figsize=(7.4, min(9.0, max(2.0, 0.9 + 0.42 * tallest))), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title, fontweight="bold")
    widest = max((edge.flow for edge in network.edges), default=0.0) or 1.0
    for edge in network.edges:
        _draw_edge(axes, places, edge, 0.6 + 6.0 * max(0.0, edge.flow) / widest)
    if len(network.edges) <= _LABELED_EDGES:
        _label_edges(axes, places, network.edges, spread=tallest / (1.6 * columns))
    colors = {"supplier": PALETTE[7], "warehouse": PALETTE[0], "store": PALETTE[1]}
    most = max((node.stock for node in network.nodes), default=0.0) or 1.0
    for node in network.nodes:
        x, y = places[node.name]
        area = 60 if node.kind == "supplier" else 40 + 420 * max(0.0, node.stock) / most
        axes.scatter([x], [y], s=area, color=colors[node.kind], edgecolors=PAPER, linewidths=1.5, zorder=3)
        last = round(x) == columns - 1
        offset = math.sqrt(area) / 2 + 4
        label = node.name if node.kind == "supplier" else f"{node.name}  {_short_number(node.stock)}"
        if last or round(x) == 0:
            axes.annotate(
                label,
                (x, y),
                xytext=(offset if last else -offset, 0),
                textcoords="offset points",
                ha="left" if last else "right",
                va="center",
            )
        else:
            axes.annotate(label, (x, y), xytext=(0, offset), textcoords="offset points", ha="center", va="bottom")
    axes.set_xlim(-0.45, columns - 1 + 0.45)
    ys = [y for _, y in places.values()]
    axes.set_ylim(min(ys) - 0.75, max(ys) + 0.75)
    return figure


def place_nodes(network: Network) -> dict[str, tuple[float, float]]:
    """Column and height of every node: columns by the longest way to it, heights for few crossings."""
    depth = {node.name: 0 for node in network.nodes}
    for _ in network.nodes:  # as many rounds as the longest way can have edges; a cycle cannot go on forever
        for edge in network.edges:
            depth[edge.target] = min(len(depth) - 1, max(depth[edge.target], depth[edge.source] + 1))
    used = sorted(set(depth.values()))
    columns = [[name for name in depth if depth[name] == level] for level in used]
    neighbors: dict[str, list[str]] = {name: [] for name in depth}
    for edge in network.edges:
        neighbors[edge.target].append(edge.source)
        neighbors[edge.source].append(edge.target)
    places: dict[str, tuple[float, float]] = {}
    for x, column in enumerate(columns):
        known = {name: [places[other][1] for other in neighbors[name] if other in places] for name in column}
        column.sort(key=lambda name: -float(np.mean(known[name])) if known[name] else 0.0)
        height = max(len(other) for other in columns) / len(column)
        for index, name in enumerate(column):
            places[name] = float(x), ((len(column) - 1) / 2 - index) * min(height, 3.0)
    return places


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG in one atomic step."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=160, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path


def to_svg(figure: Figure, *, prefix: str) -> str:
    """A figure as an SVG element for a page; `prefix` keeps the ids of several figures apart."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_figure(
        buffer,
        format="svg",
        facecolor="none",
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{prefix}-', text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', text)
    variables = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}
    variables |= {color: f"--series-{index}" for index, color in enumerate(PALETTE)}
    for color, variable in variables.items():
        text = text.replace(color, f"var({variable})")
    return text


def _plain(y: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(y, dtype=float)


def _percent_gap(y: Sequence[float], *, curve: Curve, sign: float) -> NDArray[np.float64]:
    """100 (y - reference) / |reference|, positive is worse; NaN where it is not positive."""
    reference = curve.reference or math.nan
    gap = 100 * sign * (np.asarray(y, dtype=float) - reference) / abs(reference)
    return np.where(gap > 0, gap, math.nan)


def _steps(
    axes: Axes,
    periods: NDArray[np.float64],
    lines: Mapping[str, Sequence[float]],
    shown: slice,
    label: str,
) -> None:
    """Step lines; the largest few in color, the rest in gray."""
    cut = {name: _held(np.asarray(line, dtype=float)[shown]) for name, line in lines.items()}
    largest = sorted(cut, key=lambda name: -float(np.nansum(np.abs(cut[name]))))[:_NAMED_LINES]
    rest = [name for name in cut if name not in largest]
    for index, name in enumerate(rest):
        note = f"{len(rest)} others" if index == 0 else None
        axes.step(periods, cut[name], where="post", color=MUTED, linewidth=0.7, alpha=0.5, label=note)
    for index, name in enumerate(name for name in cut if name in largest):
        axes.step(periods, cut[name], where="post", color=PALETTE[index], linewidth=1.2, label=name)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.04), handlelength=1.2)


def _edge_points(places: Mapping[str, tuple[float, float]], edge: Edge) -> NDArray[np.float64]:
    """The four control points of the Bézier curve from source to target."""
    (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
    bend = 0.45 * (x1 - x0)
    return np.array([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)])


def _draw_edge(axes: Axes, places: Mapping[str, tuple[float, float]], edge: Edge, width: float) -> None:
    codes = [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4]
    outline = Outline(_edge_points(places, edge), codes)
    axes.add_patch(PathPatch(outline, facecolor="none", edgecolor=MUTED, linewidth=width, alpha=0.35, capstyle="butt"))


def _label_edges(
    axes: Axes, places: Mapping[str, tuple[float, float]], edges: Sequence[Edge], *, spread: float
) -> None:
    """Every lead time on its curve, where it is farthest from the labels before it.

    `spread` is the height of the picture over its width, in data units: what makes distances comparable.
    """
    taken: list[NDArray[np.float64]] = []
    at = np.linspace(0.25, 0.8, 23)
    weights = np.stack([(1 - at) ** 3, 3 * (1 - at) ** 2 * at, 3 * (1 - at) * at**2, at**3], axis=1)
    for edge in edges:
        spots = weights @ _edge_points(places, edge)  # [candidate, 2]
        distances = [np.hypot(spots[:, 0] - x, (spots[:, 1] - y) / spread) for x, y in taken]
        room = np.minimum(0.2, np.min(distances, axis=0)) if taken else np.full(len(spots), 0.2)
        best = spots[np.argmax(room - 0.02 * np.abs(at - 0.5))]
        taken.append(best)
        axes.text(
            best[0],
            best[1],
            _short_number(edge.lead_time),
            fontsize=8,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.18", "facecolor": PAPER, "edgecolor": GRID, "linewidth": 0.6},
        )


def _held(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """The line with its last value once more, so that the last step has its full width."""
    return np.append(line, line[-1])


def _short_number(value: float, _position: int | None = None) -> str:
    """At most three digits and a unit: 12.5, 300, 20k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float, _position: int | None = None) -> str:
    return f"{value:g} %"
