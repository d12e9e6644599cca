"""The report of a results directory: `results.md`, a self-contained `report.html`, and `figures/*.png`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from decisionrl.evaluation.figures import (
    PALETTE,
    curve_figure,
    network_figure,
    path_figure,
    report_style,
    save_png,
    to_svg,
)
from decisionrl.evaluation.formatting import (
    column_decimals,
    format_gap,
    format_seconds,
    format_value,
    gap_decimals,
)
from decisionrl.evaluation.results import Row, read_json, read_results, write_atomically
from decisionrl.evaluation.series import Curve, Series, read_series
from decisionrl.evaluation.summaries import CaseSummary, Entry, summarize

KIND_NOTES = {
    "exact": "the proven optimum",
    "bound": "a proven bound: the true gap is smaller",
    "oracle": "a policy that knows the future, which none can reach",
    "peer": "the result of another library or method",
    "paper": "a published number",
}
_TICKS = (-10.0, -1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0, 100.0)
_LINEAR_GAP = 0.01  # the gap scale is linear around zero and logarithmic beyond one percent


@dataclass(frozen=True)
class GapScale:
    """Where a gap stands on the scale all strips of a report share, in percent of its width.

    Linear around zero and logarithmic beyond one percent, so that 0.3 % and 300 % both can be read.
    """

    lowest: float
    highest: float

    @classmethod
    def over(cls, cases: Sequence[CaseSummary]) -> GapScale:
        """The scale that holds zero and every gap of the cases with its interval."""
        gaps = [
            gap
            for case in cases
            for entry in case.entries
            for gap in (entry.gap, entry.gap_low, entry.gap_high)
            if gap is not None
        ]
        low, high = min([0.0, *gaps]), max([0.0, *gaps])
        return cls(min(low, -0.002), max(high, 0.02))

    def place(self, gap: float) -> float:
        """Percent from the left edge, where 4 % of the width stay free on each side."""
        low, high = _warp(self.lowest), _warp(self.highest)
        return round(4 + 92 * (_warp(gap) - low) / (high - low), 2)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Label and place of the ticks in range that leave each other room."""
        ticks: list[tuple[str, float]] = []
        for gap in _TICKS:
            if self.lowest <= gap <= self.highest:
                place = self.place(gap)
                label = f"{100 * gap:+g}".replace("-", "\N{MINUS SIGN}") if gap else "0"
                if gap == 0 and ticks and place - ticks[-1][1] < 10:
                    ticks.pop()
                if not ticks or place - ticks[-1][1] >= 10:
                    ticks.append((label, place))
        return ticks


@dataclass(frozen=True)
class ReportFigure:
    """A figure: where its PNG is, its inline SVG, and the text that stands for it.

    `group` is the name of a further learning curve, which the page shows under a heading of its own.
    """

    kind: str
    case: str
    title: str
    caption: str
    png: Path
    svg: Markup
    methods: Sequence[str] = ()
    group: str = ""


def write_report(directory: Path) -> list[Path]:
    """Write the report of `directory` from its `results.json`, and from `series/` and `run.json` where there.

    Returns:
        the files written: `results.md`, `report.html` and the figures.

    Raises:
        ResultsError: results or series cannot be read.
    """
    rows = read_results(directory)
    cases = summarize(rows)
    methods = {method: index for index, method in enumerate(dict.fromkeys(row.method for row in rows))}
    figures = _draw(directory / "figures", cases, read_series(directory), methods)
    run = read_json(directory / "run.json") if (directory / "run.json").exists() else {}
    about = _about(rows, cases, run)
    markdown, html = directory / "results.md", directory / "report.html"
    write_atomically(markdown, _markdown(about, cases, figures, directory).encode())
    write_atomically(html, _html(about, cases, figures, methods, run).encode())
    return [markdown, html, *(figure.png for figure in figures)]


def _warp(gap: float) -> float:
    return math.asinh(gap / _LINEAR_GAP)


def _about(rows: Sequence[Row], cases: Sequence[CaseSummary], run: Mapping[str, Any]) -> dict[str, str]:
    """The headline facts that are known, by label."""
    suites = ", ".join(dict.fromkeys(row.suite for row in rows)) or run.get("suite", "no results")
    methods, seeds = {row.method for row in rows}, {row.seed for row in rows}
    spent = {(row.case, row.method, row.seed): row.seconds or 0.0 for row in rows}
    count = [_count(len(cases), "case"), _count(len(methods), "method"), _count(len(seeds), "seed")]
    facts = {
        "Suite": suites,
        "Profile": run.get("profile"),
        "Size": ", ".join(count),
        "Compute": format_seconds(sum(spent.values())),
        "Device": ", ".join(dict.fromkeys(row.device for row in rows if row.device)) or run.get("device"),
        "Machine": run.get("machine"),
        "Version": ", ".join(dict.fromkeys(row.version for row in rows if row.version)),
        "Software": ", ".join(f"{name} {run[name]}" for name in ("python", "torch") if run.get(name)),
        "Run": (run.get("finished") or run.get("started") or "").replace("T", " ").replace("+00:00", " UTC"),
    }
    return {label: str(fact) for label, fact in facts.items() if fact}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _draw(
    directory: Path,
    cases: Sequence[CaseSummary],
    series: Mapping[tuple[str, str], Series],
    methods: Mapping[str, int],
) -> list[ReportFigure]:
    """All figures: curves for every case; path and network of its best method that has them."""
    figures: list[ReportFigure] = []
    with report_style():
        for summary in cases:
            ranked = [entry.method for entry in summary.entries]
            for group, curves in _curves(summary.case, sorted(ranked, key=methods.__getitem__), series).items():
                last = {method: format_value(curve.y[-1]) for method, curve in curves.items()}
                ends = ", ".join(f"{method} ends at {value}" for method, value in last.items())
                inline, file = (
                    curve_figure(summary.case, curves, methods, better=summary.better, legend=legend)
                    for legend in (False, True)
                )
                name = f"curve--{summary.case}" + (f"--{group}" if group else "")
                png = save_png(file, directory / f"{name}.png")
                svg = Markup(to_svg(inline, prefix=f"c{len(figures)}"))
                figures.append(ReportFigure("curve", summary.case, summary.case, ends, png, svg, list(curves), group))
            for method in ranked:
                path = series.get((summary.case, method), Series()).path
                if path is not None and len(path.periods):
                    title = f"{summary.case}: {method}"
                    note = _path_note(path.periods, path.stock, path.orders)
                    figure = path_figure(title, path)
                    png = save_png(figure, directory / f"path--{summary.case}--{method}.png")
                    svg = Markup(to_svg(figure, prefix=f"p{len(figures)}"))
                    figures.append(ReportFigure("path", summary.case, title, note, png, svg))
                    break
            for method in ranked:
                network = series.get((summary.case, method), Series()).network
                if network is not None and network.nodes:
                    title = f"{summary.case}: {method}"
                    size = f"{_count(len(network.nodes), 'node')} and {_count(len(network.edges), 'edge')}"
                    leads = [edge.lead_time for edge in network.edges] or [0.0]
                    note = f"{size}; lead times from {min(leads):g} to {max(leads):g} periods"
                    figure = network_figure(title, network)
                    png = save_png(figure, directory / f"network--{summary.case}--{method}.png")
                    svg = Markup(to_svg(figure, prefix=f"n{len(figures)}"))
                    figures.append(ReportFigure("network", summary.case, title, note, png, svg))
                    break
    return figures


def _curves(case: str, methods: Sequence[str], series: Mapping[tuple[str, str], Series]) -> dict[str, dict[str, Curve]]:
    """The learning curves of a case by name ("" is the main one) and method."""
    named: dict[str, dict[str, Curve]] = {}
    for method in methods:
        found = series.get((case, method), Series())
        for name, curve in {"": found.curve, **found.curves}.items():
            if curve is not None and len(curve.x):
                named.setdefault(name, {})[method] = curve
    return named


def _path_note(periods: Sequence[float], stock: Mapping[str, Any], orders: Mapping[str, Any]) -> str:
    span = f"periods {periods[0]:g} to {periods[-1]:g}"
    return f"Stock of {_count(len(stock), 'node')} and orders on {_count(len(orders), 'edge')}, {span}"


def _html(
    about: Mapping[str, str],
    cases: Sequence[CaseSummary],
    figures: Sequence[ReportFigure],
    methods: Mapping[str, int],
    run: Mapping[str, Any],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("decisionrl.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"value": format_value, "gap": format_gap, "seconds": format_seconds}
    kinds = [kind for kind in KIND_NOTES if any(e.reference_kind == kind for c in cases for e in c.entries)]
    return environment.get_template("report.html.j2").render(
        about=about,
        cases=[_case_view(case) for case in cases],
        figures={kind: [f for f in figures if f.kind == kind] for kind in ("curve", "path", "network")},
        curve_groups=list(dict.fromkeys(figure.group for figure in figures if figure.kind == "curve")),
        methods=methods,
        curve_methods=[method for method in methods if any(method in figure.methods for figure in figures)],
        palette_size=len(PALETTE),
        scale=GapScale.over(cases),
        kinds={kind: KIND_NOTES[kind] for kind in kinds},
        command=run.get("command"),
        failed=run.get("failed", []),
    )


def _case_view(summary: CaseSummary) -> dict[str, Any]:
    """A case with the decimals that align its columns, and its other metrics as a table method × metric."""
    metrics = dict.fromkeys(entry.metric for entry in summary.others)
    by_place = {(entry.method, entry.metric): entry for entry in summary.others}
    return {
        "summary": summary,
        "decimals": _decimals(summary.entries),
        "gap_decimals": gap_decimals(entry.gap for entry in summary.entries),
        "metrics": {
            metric: _decimals([entry for entry in summary.others if entry.metric == metric]) for metric in metrics
        },
        "others": {
            entry.method: [by_place.get((entry.method, metric)) for metric in metrics] for entry in summary.entries
        },
    }


def _decimals(entries: Sequence[Entry]) -> int | None:
    return column_decimals([number for entry in entries for number in (entry.value, entry.reference)])


def _markdown(
    about: Mapping[str, str],
    cases: Sequence[CaseSummary],
    figures: Sequence[ReportFigure],
    directory: Path,
) -> str:
    """The report as GitHub-flavored Markdown."""
    lines = [f"# {about['Suite']}", ""]
    lines += [f"- {label}: {fact}" for label, fact in about.items() if label != "Suite"]
    for summary in cases:
        better = f", {summary.better} is better" if summary.better else ""
        lines += ["", f"## {summary.case}", "", f"{summary.metric}{better}", ""]
        lines += ["| method | value | interval | reference | gap | gap interval | seeds | time |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
        lines += [_markdown_row(entry, _decimals(summary.entries), entry.method) for entry in summary.entries]
        if summary.others:
            lines += [
                "",
                "| method | metric | value | interval | reference | gap | gap interval | seeds | time |",
            ]
            lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|"]
            lines += [_markdown_row(entry, None, f"{entry.method} | {entry.metric}") for entry in summary.others]
        for figure in figures:
            if figure.case == summary.case:
                lines += ["", f"![{figure.title}: {figure.caption}]({figure.png.relative_to(directory)})"]
    return "\n".join(lines) + "\n"


def _markdown_row(entry: Entry, decimals: int | None, head: str) -> str:
    def between(low: float | None, high: float | None, text: Any) -> str:
        return "" if low is None or high is None else f"{text(low)} … {text(high)}"

    reference = "" if entry.reference is None else f"{format_value(entry.reference, decimals)} ({entry.reference_kind})"
    cells = [
        head,
        format_value(entry.value, decimals),
        between(entry.low, entry.high, lambda number: format_value(number, decimals)),
        reference,
        format_gap(entry.gap),
        between(entry.gap_low, entry.gap_high, format_gap),
        str(entry.seeds),
        format_seconds(entry.seconds),
    ]
    return "| " + " | ".join(cells) + " |"
