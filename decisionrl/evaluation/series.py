"""What figures are drawn from and rows cannot hold: learning curves, one sample path, the network.

One small file per case and method, `DIR/series/<case>--<method>.json`; every part of it is optional.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from decisionrl.evaluation.results import ResultsError, read_json, write_json
from decisionrl.evaluation.statistics import Estimate, interquartile_mean

NodeKind = Literal["supplier", "warehouse", "store"]
Scale = Literal["linear", "log"]

MERGED_POINTS = 100
"""Points of the curve of several seeds that were not measured at the same places."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A learning curve: `y` over `x`, with an optional band.

    `reference` is a value on the scale of `y` that gaps are taken to; `target` only one to reach, and to pass.
    `x_scale` is that of the axis.
    """

    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    reference: float | None = None
    target: float | None = None
    x_scale: Scale = "linear"


@dataclass(frozen=True, kw_only=True)
class SamplePath:
    """Stock and demand by node and orders by edge (`"a → b"`), one number per period."""

    periods: Sequence[float]
    stock: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    orders: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    demand: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """A place that holds stock; `stock` is the mean on hand."""

    name: str
    kind: NodeKind
    stock: float = 0.0


@dataclass(frozen=True)
class Edge:
    """A way goods take; `flow` is the mean number of units per period, `lead_time` in periods."""

    source: str
    target: str
    lead_time: float = 0.0
    flow: float = 0.0


@dataclass(frozen=True)
class Network:
    """Nodes and the directed edges between them."""

    nodes: Sequence[Node]
    edges: Sequence[Edge]


@dataclass(frozen=True, kw_only=True)
class Series:
    """All curves of one case and method: the main learning curve, and further ones by name ("wall_time")."""

    curve: Curve | None = None
    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    path: SamplePath | None = None
    network: Network | None = None


def series_file(directory: Path, case: str, method: str) -> Path:
    """Where the series of a case and method are kept."""
    return directory / "series" / f"{case}--{method}.json"


def write_series(directory: Path, case: str, method: str, series: Series) -> None:
    """Write the series of one case and method in one atomic step; numbers that are not finite become null."""
    content = {"case": case, "method": method, **series_to_json(series)}
    write_json(series_file(directory, case, method), content)


def read_series(directory: Path) -> dict[tuple[str, str], Series]:
    """All series under `directory`, by (case, method).

    Raises:
        ResultsError: a file that does not hold a series; names the file and the field.
    """
    found = {}
    for path in sorted((directory / "series").glob("*.json")):
        content = read_json(path)
        if not isinstance(content, Mapping):
            raise ResultsError(f"{path}: expected an object, got {type(content).__name__}")
        for name in ("case", "method"):
            if not isinstance(content.get(name), str):
                raise ResultsError(f"{path}: field {name!r}: expected a string, got {content.get(name)!r}")
        found[content["case"], content["method"]] = series_from_json(content, where=str(path))
    return found


def series_to_json(series: Series) -> dict[str, Any]:
    """The parts that are there, as JSON content."""
    content: dict[str, Any] = {}
    if series.curve is not None:
        content["curve"] = _finite(dataclasses.asdict(series.curve))
    if series.curves:
        content["curves"] = {name: _finite(dataclasses.asdict(curve)) for name, curve in series.curves.items()}
    if series.path is not None:
        content["path"] = _finite(dataclasses.asdict(series.path))
    if series.network is not None:
        edges = [
            {"from": edge.source, "to": edge.target, "lead_time": edge.lead_time, "flow": edge.flow}
            for edge in series.network.edges
        ]
        nodes = [dataclasses.asdict(node) for node in series.network.nodes]
        content["network"] = _finite({"nodes": nodes, "edges": edges})
    return content


def series_from_json(content: Mapping[str, Any], *, where: str) -> Series:
    """Series from JSON content; null in a list of numbers becomes NaN, which leaves a hole in a line."""
    curve, path, network = (content.get(name) for name in ("curve", "path", "network"))
    return Series(
        curve=None if curve is None else _curve(curve, f"{where}: curve"),
        curves=_curves(content.get("curves"), f"{where}: curves"),
        path=None if path is None else _path(path, f"{where}: path"),
        network=None if network is None else _network(network, f"{where}: network"),
    )


def merge_seeds(runs: Sequence[Series]) -> Series:
    """One series for several seeds: at each point of a curve their interquartile mean, with its 95 % interval as the
    band (a bootstrap over seeds).

    Seeds that were not measured at the same points are interpolated over the stretch that all of them cover. Sample
    path and network are those of the first seed that has them.
    """
    names = dict.fromkeys(name for run in runs for name in run.curves)
    return Series(
        curve=_merged([run.curve for run in runs if run.curve is not None]),
        curves={
            name: curve for name in names if (curve := _merged([r.curves[name] for r in runs if name in r.curves]))
        },
        path=next((run.path for run in runs if run.path is not None), None),
        network=next((run.network for run in runs if run.network is not None), None),
    )


def _merged(curves: Sequence[Curve]) -> Curve | None:
    if not curves:
        return None
    first = curves[0]
    if len(curves) == 1:
        return first
    x = list(first.x)
    if any(list(curve.x) != x for curve in curves):
        start, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
        if start >= end:
            return first
        x = np.linspace(start, end, min(MERGED_POINTS, *(len(curve.x) for curve in curves))).tolist()
    y = np.array([np.interp(x, curve.x, curve.y) for curve in curves])  # [seed, point]
    points = [_over_seeds(column) for column in y.T]
    return dataclasses.replace(
        first,
        x=x,
        y=[point.value for point in points],
        low=[math.nan if point.low is None else point.low for point in points],
        high=[math.nan if point.high is None else point.high for point in points],
    )


def _over_seeds(values: NDArray[np.float64]) -> Estimate:
    """NaN unless every seed has a value: a mean over those that worked would flatter."""
    if not np.isfinite(values).all():
        return Estimate(math.nan, None, None, len(values))
    return interquartile_mean(values[:, None], rng=np.random.default_rng(0))


def _finite(value: Any) -> Any:
    """JSON content in which NaN and infinity are null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curves(content: Any, where: str) -> dict[str, Curve]:
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ResultsError(f"{where}: expected an object, got {type(content).__name__}")
    return {name: _curve(curve, f"{where}[{name!r}]") for name, curve in content.items()}


def _curve(content: Any, where: str) -> Curve:
    x = _numbers(content, "x", where)
    lines = {name: _numbers(content, name, where) for name in ("y", "low", "high") if content.get(name) is not None}
    if "y" not in lines:
        raise ResultsError(f"{where}: field 'y': expected a list of numbers, got None")
    for name, line in lines.items():
        _same_length(line, x, name, "x", where)
    levels = {name: None if (level := content.get(name)) is None else float(level) for name in ("reference", "target")}
    scale = content.get("x_scale", "linear")
    if scale not in get_args(Scale) or (scale == "log" and x and min(x) <= 0):
        raise ResultsError(f"{where}: field 'x_scale': expected 'linear', or 'log' over positive 'x', got {scale!r}")
    return Curve(
        x_label=str(content.get("x_label", "step")),
        y_label=str(content.get("y_label", "value")),
        x=x,
        x_scale=scale,
        **cast(dict[str, Any], {**lines, **levels}),
    )


def _path(content: Any, where: str) -> SamplePath:
    periods = _numbers(content, "periods", where)
    parts: dict[str, Mapping[str, Sequence[float]]] = {}
    for part in ("stock", "orders", "demand"):
        lines = content.get(part) or {}
        parts[part] = {name: _numbers(lines, name, f"{where}: {part}") for name in lines}
        for name, line in parts[part].items():
            _same_length(line, periods, f"{part}[{name!r}]", "periods", where)
    return SamplePath(periods=periods, **parts)


def _network(content: Any, where: str) -> Network:
    try:
        nodes = [Node(item["name"], item["kind"], float(item.get("stock") or 0.0)) for item in content["nodes"]]
        edges = [
            Edge(item["from"], item["to"], float(item.get("lead_time") or 0.0), float(item.get("flow") or 0.0))
            for item in content["edges"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{where}: expected nodes with name and kind, edges with from and to ({error!r})") from error
    kinds, names = get_args(NodeKind), {node.name for node in nodes}
    for node in nodes:
        if node.kind not in kinds:
            raise ResultsError(
                f"{where}: kind of node {node.name!r}: expected one of {', '.join(kinds)}, got {node.kind!r}"
            )
    for edge in edges:
        if unknown := {edge.source, edge.target} - names:
            raise ResultsError(f"{where}: edge {edge.source!r} → {edge.target!r}: no node is named {unknown.pop()!r}")
    return Network(nodes, edges)


def _numbers(content: Any, name: str, where: str) -> list[float]:
    values = content.get(name) if isinstance(content, Mapping) else None
    try:
        return [math.nan if value is None else float(value) for value in values]  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{where}: field {name!r}: expected a list of numbers, got {values!r}") from error


def _same_length(line: Sequence[float], other: Sequence[float], name: str, other_name: str, where: str) -> None:
    if len(line) != len(other):
        raise ResultsError(f"{where}: field {name!r} has {len(line)} numbers, {other_name!r} has {len(other)}")
