"""Settings: a network, its demand and its sampling protocol, read from a small TOML file a planner can write.

    title = "One store, lost sales"
    unmet_demand = "lost"                 # or "backlogged"
    goal = "cost"                         # or "profit"

    [[nodes]]
    name = "store"                        # with count = 5: store_0 ... store_4
    holding_cost = 1.0
    underage_cost = 9.0                   # a node with an underage cost has demand

    [[edges]]
    from = "supplier"                     # unlimited
    to = "store"                          # a node, a group of nodes, or a list of nodes
    lead_time = 4                         # or a list, one for each destination
    cost = 0.0

    [demand]
    kind = "poisson"                      # normal, poisson, negative_binomial, series
    mean = 5.0                            # a number, a list, or a draw

A draw stands for a number: ``{ uniform = [0.7, 1.3], seed = 73 }`` (upper end included) or
``{ randint = [2, 4], seed = 41 }`` (upper end excluded), one value for each node of the group or, with
``each = "scenario"``, one for each scenario. ``{ file = "costs.npy" }`` reads one value for each scenario.
"""

from __future__ import annotations

import copy
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decisionrl.envs.inventory.demand import (
    Demand,
    DemandError,
    NegativeBinomialDemand,
    NormalDemand,
    PoissonDemand,
    SeriesDemand,
    load_tensor,
    read_series,
    seasonal_series,
)
from decisionrl.envs.inventory.network import SUPPLIER, Edge, Network, NetworkError, Node

Array = NDArray[np.float64]


class SettingError(ValueError):
    """A setting that cannot be used; names the file, the field, the value and what would be valid."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A number drawn for each node of a group, or for each scenario, by numpy's legacy generator."""

    low: float
    high: float
    integer: bool
    seed: int
    decimals: int | None = None

    def values(self, count: int, seed: int | None = None) -> Array:
        rng = np.random.RandomState(self.seed if seed is None else seed)
        if self.integer:
            return rng.randint(int(self.low), int(self.high), count).astype(np.float64)
        drawn = rng.uniform(self.low, self.high, count)
        return drawn if self.decimals is None else drawn.round(self.decimals)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Sizes of one data split of the paper's protocol: scenarios, periods, periods not reported, batch size,
    and for series the columns [first, last) used, history included."""

    scenarios: int
    periods: int
    ignore: int
    batch: int
    columns: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that defines a benchmark instance except the policy.

    history: how many past demands a policy sees. per_scenario: draws (or values read from files) of
    holding_cost, underage_cost (all stores) and lead_time (all edges into stores), one value a scenario; the
    network then holds a typical value. initial_stock: the first slots of the
    stores are uniform in this range times the mean demand, over ``stocked_slots`` slots.
    phases: "train", "dev", "test" of the paper. seeds: of the paper's recipe (demand_seed,
    test_demand_seed, initial_stock_seed, test_initial_stock_seed).
    """

    name: str
    title: str
    network: Network
    demand: Demand
    history: int = 0
    per_scenario: Mapping[str, Draw | Array] = field(default_factory=dict)
    initial_stock: tuple[float, float] = (0.0, 1.0)
    initial_periods: int = 1
    phases: Mapping[str, Phase] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_series(self) -> bool:
        return isinstance(self.demand, SeriesDemand)

    @property
    def lead_time_range(self) -> tuple[int, int] | None:
        """First and last of the lead times that vary by scenario, or None where none does."""
        draw = self.per_scenario.get("lead_time")
        if draw is None:
            return None
        if isinstance(draw, Draw):
            return int(draw.low), int(draw.high) - 1
        return int(draw.min()), int(draw.max())

    @property
    def stocked_slots(self) -> int:
        """Slots with initial stock: ``initial_periods``, or up to the longest lead time into a store (the paper)."""
        network = self.network
        into_stores = [
            lead
            for j, lead in zip(network.edge_destination, network.lead_times, strict=True)
            if j >= network.num_warehouses
        ]
        return max(self.initial_periods, *into_stores, *(self.lead_time_range or ()))

    def phase(self, split: str) -> Phase:
        """The sizes of one split; SettingError if the setting does not define it."""
        if split not in self.phases:
            defined = ", ".join(self.phases) or "none"
            raise SettingError(f"setting {self.name!r} has no split paper.{split}; defined: {defined}")
        return self.phases[split]


def available_settings() -> list[str]:
    """Names of the settings that ship with the library."""
    folder = resources.files("decisionrl.envs.inventory") / "settings"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def setting_title(name: str) -> str:
    """The title of a shipped setting."""
    entry = resources.files("decisionrl.envs.inventory") / "settings" / f"{name}.toml"
    return str(tomllib.loads(entry.read_text(encoding="utf-8")).get("title", name))


def load_setting(
    name: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: str | Path | None = None,
) -> Setting:
    """A shipped setting by name, or one read from a TOML file.

    overrides: dotted fields to values, for example ``{"store.lead_time": 2, "store.underage_cost": 19,
    "store.count": 10, "demand.correlation": 0.0}``; ``NODE.lead_time`` sets it on all edges into the node or
    group. data: series for a setting with ``demand.kind = "series"``; without it the setting's generator is
    used. Raises SettingError (or DemandError for the data file).
    """
    path = Path(name)
    if path.suffix.lower() == ".toml":
        if not path.is_file():
            raise SettingError(f"{path}: no such setting file")
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark in front
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{path}: cannot be read as text in UTF-8: {error}") from None
        source, folder, stem = str(path), path.parent, path.stem
    else:
        known = available_settings()
        if str(name) not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise SettingError(f"unknown setting {str(name)!r}{hint} Known: {', '.join(known)}, or a .toml file")
        entry = resources.files("decisionrl.envs.inventory") / "settings" / f"{name}.toml"
        source, text, folder, stem = f"{name}.toml", entry.read_text(encoding="utf-8"), Path(), str(name)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{source}: not valid TOML: {error}") from None
    try:
        raw = _override(raw, overrides or {})
        return _parse(raw, name=stem, folder=folder, data=data)
    except (NetworkError, SettingError) as error:
        raise SettingError(f"{source}: {error}") from None
    except DemandError as error:
        raise DemandError(f"{source}: {error}" if data is None else str(error)) from None


def scenario_values(draw: Draw | Array, count: int, seed: int | None = None) -> Array:
    """[count] values of a parameter that differs by scenario; fewer if a file holds no more."""
    return draw.values(count, seed) if isinstance(draw, Draw) else draw[:count]


# ------------------------------------------------------------------------------------------------- parsing


_KINDS = {
    str: "text in quotes",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list",
    dict: "table",
    date: "date such as 2013-01-01",
}


def _is_number(value: Any, kind: type[int] | tuple[type[int], type[float]] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


class _Table:
    """A TOML table that knows where it stands and complains about keys nobody read."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise SettingError(f"{where} = {_shown(values)}; valid is a table")
        self._values, self._where, self._read = values, where, set[str]()

    @property
    def where(self) -> str:
        return self._where

    def path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ..., valid: Sequence[Any] = ()) -> Any:
        self._read.add(key)
        if key not in self._values:
            if default is ...:
                near = difflib.get_close_matches(key, [k for k in self._values if k not in self._read], n=1, cutoff=0.8)
                hint = f"; {near[0]!r} is no key, did you mean {key!r}?" if near else ""
                raise SettingError(
                    f"{self.path(key)} is missing{hint}" + (f"; valid: {', '.join(map(repr, valid))}" if valid else "")
                )
            return default
        value = self._values[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        wrong_date = isinstance(value, datetime)  # a date with a time of day
        if wrong_bool or wrong_date or not isinstance(value, (*kinds, int) if float in kinds else kinds):
            names = " or ".join("a " + _KINDS[k] if k not in (str, bool) else _KINDS[k] for k in kinds)
            raise SettingError(f"{self.path(key)} = {_shown(value)}; valid is {names}")
        if valid and value not in valid:
            raise SettingError(f"{self.path(key)} = {value!r}; valid: {', '.join(map(repr, valid))}")
        return value

    def whole(self, key: str, default: Any = ..., *, lowest: int, highest: int | None = None) -> int:
        """A whole number in [lowest, highest]."""
        value = self.get(key, int, default)
        if value < lowest or (highest is not None and value > highest):
            upper = "" if highest is None else f" and <= {highest}"
            raise SettingError(f"{self.path(key)} = {value}; valid is a whole number >= {lowest}{upper}")
        return int(value)

    def range(self, key: str, default: Any = ..., *, whole: bool = False) -> tuple[float, float]:
        value = self.get(key, list, default)
        kind = int if whole else (int, float)
        if len(value) != 2 or not all(_is_number(v, kind) for v in value) or value[0] > value[1]:
            numbers = "whole numbers" if whole else "numbers"
            raise SettingError(f"{self.path(key)} = {_shown(value)}; valid is [low, high], two {numbers}, low <= high")
        return value[0], value[1]

    def table(self, key: str, default: Any = ...) -> _Table:
        return _Table(self.get(key, dict, default), self.path(key))

    def finish(self) -> None:
        unknown = [key for key in self._values if key not in self._read]
        if unknown:
            near = difflib.get_close_matches(unknown[0], sorted(self._read), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingError(
                f"{self.path(unknown[0])} is an unknown key; {hint}valid: {', '.join(sorted(self._read))}"
            )


def _parse(raw: dict[str, Any], *, name: str, folder: Path, data: str | Path | None) -> Setting:
    top = _Table(raw, "")
    title = top.get("title", str, name)
    per_scenario: dict[str, Draw | Array] = {}
    groups: dict[str, list[str]] = {}
    nodes: list[Node] = []
    for i, entry in enumerate(top.get("nodes", list)):
        nodes += _parse_nodes(_Table(entry, f"nodes[{i}]"), groups, per_scenario, folder)
    edges: list[Edge] = []
    for i, entry in enumerate(top.get("edges", list)):
        edges += _parse_edges(_Table(entry, f"edges[{i}]"), groups, per_scenario, folder)
    network = Network.create(
        nodes=nodes,
        edges=edges,
        unmet_demand=top.get("unmet_demand", str, valid=("lost", "backlogged")),
        goal=top.get("goal", str, "cost", valid=("cost", "profit")),
    )
    demand, history = _parse_demand(top.table("demand"), network.num_stores, folder, data)
    stock = top.table("initial_stock", {})
    initial_stock = stock.range("multiple_of_mean", [0.0, 1.0])
    initial_periods = stock.whole("periods", 1, lowest=1)
    stock.finish()
    paper = top.table("paper", {})
    seeds = {key: _seed(paper, key, 0) for key in ("demand_seed", "test_demand_seed", "initial_stock_seed")}
    seeds["test_initial_stock_seed"] = _seed(paper, "test_initial_stock_seed", seeds["initial_stock_seed"])
    given = raw.get("paper", {})
    phases = {key: _parse_phase(paper.table(key)) for key in ("train", "dev", "test") if key in given}
    for key in ("train", "dev", "test"):
        paper.get(key, dict, {})  # name the optional keys for the message about unknown ones
    paper.finish()
    top.finish()
    _check_per_scenario(raw, groups, network)
    if isinstance(demand, SeriesDemand):
        _check_columns(demand, phases, history, data)
    return Setting(
        name=name,
        title=title,
        network=network,
        demand=demand,
        history=history,
        per_scenario=per_scenario,
        initial_stock=initial_stock,
        initial_periods=initial_periods,
        phases=phases,
        seeds=seeds,
        config=raw,
    )


def _parse_nodes(
    table: _Table, groups: dict[str, list[str]], per_scenario: dict[str, Draw | Array], folder: Path
) -> list[Node]:
    name = table.get("name", str)
    single = "count" not in table._values
    count = table.whole("count", 1, lowest=1)
    names = [name] if single else [f"{name}_{i}" for i in range(count)]
    if name in groups:
        raise SettingError(f"{table.path('name')} = {name!r} is used twice; names must be unique")
    groups[name] = names
    groups.update({each: [each] for each in names})
    holding = _numbers(table, "holding_cost", count, folder)
    underage = _numbers(table, "underage_cost", count, folder, default=None)
    penalties: Sequence[float | None] = underage.typical or [None] * count
    holds = table.get("holds_stock", bool, True)
    table.finish()
    for parameter, numbers in (("holding_cost", holding), ("underage_cost", underage)):
        if numbers.source is not None:
            per_scenario[parameter] = numbers.source
    return [
        Node(name=n, holding_cost=h, underage_cost=p, holds_stock=holds)
        for n, h, p in zip(names, holding.typical, penalties, strict=True)
    ]


def _parse_edges(
    table: _Table, groups: dict[str, list[str]], per_scenario: dict[str, Draw | Array], folder: Path
) -> list[Edge]:
    source, target = table.get("from", str), table.get("to", (str, list))
    if source != SUPPLIER and source not in groups:
        raise SettingError(f"{table.path('from')} = {source!r} is no node; valid: {', '.join([SUPPLIER, *groups])}")
    destinations: list[str] = []
    for single in [target] if isinstance(target, str) else target:
        if not isinstance(single, str) or single not in groups:
            raise SettingError(f"{table.path('to')} = {single!r} is no node; valid: {', '.join(groups)}")
        destinations += groups[single]
    if not destinations:
        raise SettingError(f"{table.path('to')} = []; valid: at least one of {', '.join(groups)}")
    lead_time = _numbers(table, "lead_time", len(destinations), folder)
    cost = _numbers(table, "cost", len(destinations), folder, default=0.0)
    table.finish()
    _check_lead_times(table, lead_time)
    if lead_time.source is not None:
        per_scenario["lead_time"] = lead_time.source
    return [
        Edge(source=s, destination=d, lead_time=int(lead), cost=c)
        for s in (groups[source] if source != SUPPLIER else [SUPPLIER])
        for d, lead, c in zip(destinations, lead_time.typical, cost.typical, strict=True)
    ]


@dataclass(frozen=True)
class _Numbers:
    """typical: one number for each node or edge. source: where the values of each scenario come from, if they vary."""

    typical: list[float]
    source: Draw | Array | None = None


def _numbers(table: _Table, key: str, count: int, folder: Path, default: Any = ...) -> _Numbers:
    """One number for each node of a group from a number, a list, a draw or a file."""
    value = table.get(key, (float, list, dict), default)
    if value is None:
        return _Numbers([])
    if isinstance(value, list):
        if len(value) != count or not all(_is_number(v) for v in value):
            raise SettingError(f"{table.path(key)} = {_shown(value)}; valid is a number or a list of {count} numbers")
        return _Numbers([float(v) for v in value])
    if not isinstance(value, dict):
        if not _is_number(value):
            raise SettingError(f"{table.path(key)} = {value}; valid is a finite number")
        return _Numbers([float(value)] * count)
    inner = _Table(value, table.path(key))
    if "file" in value:
        values = _read_values(folder / inner.get("file", str))
        inner.finish()
        # The typical lead time must be one that occurs.
        typical = float(np.sort(values)[len(values) // 2]) if key == "lead_time" else float(values.mean())
        return _Numbers([typical] * count, values)
    draw, each = _parse_draw(inner)
    if each == "scenario":
        middle = (draw.low + draw.high - draw.integer) / 2
        return _Numbers([float(int(middle)) if draw.integer else middle] * count, draw)
    return _Numbers([float(v) for v in draw.values(count)])


def _check_lead_times(table: _Table, numbers: _Numbers) -> None:
    where, source = table.path("lead_time"), numbers.source
    if isinstance(source, Draw) and not (source.integer and source.low >= 1):
        kind = "randint" if source.integer else "uniform"
        raise SettingError(
            f"{where}.{kind} = {[source.low, source.high]}; valid: randint = [low, high] with low >= 1 (whole periods)"
        )
    values = source if isinstance(source, np.ndarray) else np.array(numbers.typical)
    bad = values[(values != np.floor(values)) | (values < 1)]
    if len(bad):
        raise SettingError(
            f"{where} = {bad[0]:g}; valid is a whole number >= 1 "
            "(a lane that does not exist is left out, it has no lead time 0)"
        )


def _check_per_scenario(raw: dict[str, Any], groups: dict[str, list[str]], network: Network) -> None:
    """A value for each scenario holds for all stores (or edges into stores) alike: refuse what would not be so."""
    stores = set(network.node_names[network.num_warehouses :])
    kinds = [("nodes", "name", ("holding_cost", "underage_cost")), ("edges", "to", ("lead_time", "cost"))]
    for section, place, keys in kinds:
        for key in keys:
            drawn, fixed = [], []
            for i, entry in enumerate(raw[section]):
                names = [entry[place]] if isinstance(entry[place], str) else entry[place]
                at_stores = {node for name in names for node in groups[name]} & stores
                value, path = entry.get(key), f"{section}[{i}].{key}"
                if isinstance(value, dict) and ("file" in value or value.get("each") == "scenario"):
                    drawn.append(value)
                    if key == "cost" or len(at_stores) < sum(len(groups[name]) for name in names):
                        raise SettingError(
                            f"{path} = {value!r} gives a value for each scenario; valid are holding_cost and "
                            "underage_cost of nodes with demand, and lead_time of edges to them"
                        )
                elif at_stores:
                    fixed.append(path)
            if drawn and (fixed or any(value != drawn[0] for value in drawn)):
                where = fixed[0] if fixed else f"{section}: {key}"
                raise SettingError(
                    f"{where}: a value for each scenario is the same at all nodes with demand: {drawn[0]!r}"
                )


def _parse_draw(table: _Table) -> tuple[Draw, str]:
    kinds = [kind for kind in ("uniform", "randint") if kind in table._values]
    if len(kinds) != 1:
        raise SettingError(
            f"{table.where} = {_shown(table._values)}; valid: {{ uniform = [low, high], seed = 1 }}, "
            '{ randint = [low, high], seed = 1 } or { file = "values.csv" }'
        )
    integer = kinds[0] == "randint"
    low, high = table.range(kinds[0], whole=integer)
    if integer and low >= high:
        raise SettingError(
            f"{table.path('randint')} = {[low, high]}; the upper end is excluded and must exceed the lower"
        )
    draw = Draw(
        low=low,
        high=high,
        integer=integer,
        seed=_seed(table, "seed"),
        decimals=table.get("decimals", int, None),
    )
    each = table.get("each", str, "node", valid=("node", "scenario"))
    table.finish()
    return draw, each


def _seed(table: _Table, key: str, default: Any = ...) -> int:
    return table.whole(key, default, lowest=0, highest=2**32 - 1)


def _shown(value: Any) -> str:
    """A TOML value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parse_demand(table: _Table, stores: int, folder: Path, data: str | Path | None) -> tuple[Demand, int]:
    kind = table.get("kind", str, valid=("normal", "poisson", "negative_binomial", "series"))
    if data is not None and kind != "series":
        raise SettingError(f"demand.kind = {kind!r} takes no data file; valid: a setting with demand.kind = 'series'")
    history = table.whole("history", 0, lowest=0)
    if kind == "series":
        return _parse_series(table, stores, data), history

    def numbers(key: str) -> Array:
        found = _numbers(table, key, stores, folder)
        if found.source is not None:
            raise SettingError(
                f'{table.path(key)}: each = "scenario" and files are for costs and lead times; '
                "a demand has one value for each node"
            )
        return np.array(found.typical)

    mean = numbers("mean")
    demand: Demand
    if kind == "normal":
        if ("std" in table._values) == ("cv" in table._values):
            raise SettingError("demand: a normal demand takes either std or cv (std / mean)")
        std = numbers("std") if "std" in table._values else (mean * numbers("cv")).round(3)
        demand = NormalDemand(
            mean=mean,
            std=std,
            correlation=float(table.get("correlation", float, 0.0)),
            clip=table.get("clip", bool, True),
        )
    elif kind == "poisson":
        demand = PoissonDemand(mean=mean)
    else:
        demand = NegativeBinomialDemand(mean=mean, dispersion=numbers("dispersion"))
    table.finish()
    return demand, history


def _parse_series(table: _Table, stores: int, data: str | Path | None) -> SeriesDemand:
    start = table.get("start", date, date(2013, 1, 1))
    generator = table.table("generator", {})
    table.finish()
    if data is None and not generator._values:
        raise SettingError(
            "demand.generator is missing; valid: generator = { items = 100, periods = 171, seed = 1 }, "
            "or a file of series given as data"
        )
    if data is None or generator._values:
        items, periods = generator.whole("items", lowest=1), generator.whole("periods", lowest=1)
        seed = _seed(generator, "seed")
        shape = {key: _shape(generator, key) for key in _GENERATOR if key in generator._values}
        for key in _GENERATOR:
            generator.get(key, float, 0.0)  # name the optional keys for the message about unknown ones
        generator.finish()
    if data is None:
        return seasonal_series(items=items, stores=stores, periods=periods, seed=seed, start=start, **shape)
    series = read_series(data, start=start)
    if stores == 1 and series.table.shape[1] > 1:
        # One-store settings take every store-item pair as a product of its own.
        series = SeriesDemand(table=series.table.flatten(0, 1).unsqueeze(1), start=series.start)
    if series.table.shape[1] != stores:
        raise DemandError(f"{data}: has the shape {list(series.table.shape)}; valid: [items, {stores} stores, periods]")
    return series


_GENERATOR = {
    "level": "> 0",
    "level_spread": ">= 0",
    "christmas_bump": ">= 0",
    "intermittence": "0 to 1",
    "dispersion": "> 0",
}
"""Optional keys of a series generator and the range of each."""


def _shape(generator: _Table, key: str) -> float:
    value, valid = float(generator.get(key, float)), _GENERATOR[key]
    inside = value >= 0 and (value > 0 or valid != "> 0") and (value <= 1 or valid != "0 to 1")
    if not (math.isfinite(value) and inside):
        raise SettingError(f"{generator.path(key)} = {value}; valid is a number {valid}")
    return value


def _parse_phase(table: _Table) -> Phase:
    columns = table.range("columns", [0, 0], whole=True)
    if columns[0] < 0:
        raise SettingError(f"{table.path('columns')} = {list(columns)}; valid is [first, last) with first >= 0")
    periods = table.whole("periods", lowest=1)
    phase = Phase(
        scenarios=table.whole("scenarios", lowest=1),
        periods=periods,
        ignore=table.whole("ignore", lowest=0, highest=periods - 1),
        batch=table.whole("batch", lowest=1),
        columns=(int(columns[0]), int(columns[1])) if columns[1] else None,
    )
    table.finish()
    return phase


def _check_columns(demand: SeriesDemand, phases: Mapping[str, Phase], history: int, data: str | Path | None) -> None:
    where = "demand.generator" if data is None else str(data)
    need = max((phase.columns[1] for phase in phases.values() if phase.columns), default=0)
    have = demand.table.shape[2]
    if have < need:
        raise DemandError(f"{where}: the series have {have} periods; valid: at least {need}, the columns of the splits")
    for key, phase in phases.items():
        if not phase.columns and have < history + phase.periods:
            raise DemandError(
                f"{where}: the series have {have} periods; valid: at least history + paper.{key}.periods = "
                f"{history + phase.periods}"
            )
        if phase.columns and phase.columns[1] - phase.columns[0] < history + phase.periods:
            raise SettingError(
                f"paper.{key}.columns = {list(phase.columns)}; valid: at least history + periods = "
                f"{history + phase.periods} columns"
            )


def _read_values(path: Path) -> Array:
    if path.suffix not in (".npy", ".pt", ".csv"):
        raise SettingError(f"{path}: unknown file type {path.suffix!r}; valid: .npy, .pt, .csv")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".pt":
            values = load_tensor(path).numpy()
        else:
            values = np.loadtxt(path, delimiter=",", skiprows=1)
        flat: Array = np.asarray(values, dtype=np.float64).reshape(-1)
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror or error}") from None
    except DemandError as error:
        raise SettingError(str(error)) from None
    except Exception as error:
        raise SettingError(f"{path}: cannot be read as numbers ({str(error).splitlines()[0]})") from None
    if not len(flat):
        raise SettingError(f"{path}: holds no values; valid: one number for each scenario")
    if not np.isfinite(flat).all() or (flat < 0).any():
        raise SettingError(f"{path}: holds negative, NaN or infinite values; valid are numbers >= 0")
    return flat


def _override(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted fields: NODE.field, NODE.lead_time (on its incoming edges), demand.field, or a top-level one."""
    raw = copy.deepcopy(raw)
    entries, edges = (
        [e for e in raw[key] if isinstance(e, dict)] if isinstance(raw.get(key), list) else []
        for key in ("nodes", "edges")
    )
    nodes = {entry["name"]: entry for entry in entries if isinstance(entry.get("name"), str)}
    for table in ("demand", "initial_stock", "paper"):
        raw.setdefault(table, {})
    for key, value in overrides.items():
        head, _, leaf = key.rpartition(".")
        if head in nodes and leaf == "lead_time":
            into = [e for e in edges if e.get("to") == head]
            if not into:
                raise SettingError(f"override {key!r}: no edge has to = {head!r}; change the edges in the file instead")
            for edge in into:
                edge["lead_time"] = value
        elif head in nodes and leaf:
            nodes[head][leaf] = value
        elif leaf and isinstance(raw.get(head), dict):
            raw[head][leaf] = value
        elif not head and key in ("unmet_demand", "goal", "title"):
            raw[key] = value
        else:
            fields = [f"{n}.<field>" for n in nodes] + [f"{k}.<field>" for k, v in raw.items() if isinstance(v, dict)]
            raise SettingError(f"override {key!r} names no field; valid: {', '.join(fields)}, unmet_demand, goal")
    for table in ("demand", "initial_stock", "paper"):
        if raw[table] == {}:
            del raw[table]
    return raw
