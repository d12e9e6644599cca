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
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
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

    history: how many past demands a policy sees (0 for stationary settings). per_scenario: draws of
    holding_cost, underage_cost (all stores) and lead_time (all edges into stores), one value a scenario.
    initial_stock: initial slots are uniform in this range times the mean demand, over initial_periods slots.
    phases: "train", "dev", "test" of the paper. seeds: of the paper's recipe (demand_seed,
    test_demand_seed, initial_stock_seed, test_initial_stock_seed).
    """

    name: str
    title: str
    network: Network
    demand: Demand
    history: int = 0
    per_scenario: Mapping[str, Draw | Path] = field(default_factory=dict)
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
        draw = self.per_scenario.get("lead_time")
        if draw is None:
            return None
        values = scenario_values(draw, 4096) if isinstance(draw, Path) else None
        if isinstance(draw, Draw):
            return int(draw.low), int(draw.high) - 1
        assert values is not None
        return int(values.min()), int(values.max())

    @property
    def min_slots(self) -> int:
        return self.initial_periods


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
    if path.suffix == ".toml":
        if not path.is_file():
            raise SettingError(f"{path}: no such setting file")
        source, text, folder, stem = str(path), path.read_text(encoding="utf-8"), path.parent, path.stem
    else:
        known = available_settings()
        if str(name) not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
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


def scenario_values(draw: Draw | Path, count: int, seed: int | None = None) -> Array:
    """[count] values of a per-scenario parameter; a file must hold at least that many."""
    if isinstance(draw, Draw):
        return draw.values(count, seed)
    return _read_values(draw)[:count]


# ------------------------------------------------------------------------------------------------- parsing


class _Table:
    """A TOML table that knows where it stands and complains about keys nobody read."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise SettingError(f"{where} = {values!r}; valid is a table")
        self._values, self._where, self._read = values, where, set[str]()

    def path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ..., valid: Sequence[Any] = ()) -> Any:
        self._read.add(key)
        if key not in self._values:
            if default is ...:
                raise SettingError(
                    f"{self.path(key)} is missing" + (f"; valid: {', '.join(map(repr, valid))}" if valid else "")
                )
            return default
        value = self._values[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if wrong_bool or not isinstance(value, (*kinds, int) if float in kinds else kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise SettingError(f"{self.path(key)} = {value!r}; valid is a {names}")
        if valid and value not in valid:
            raise SettingError(f"{self.path(key)} = {value!r}; valid: {', '.join(map(repr, valid))}")
        return value

    def range(self, key: str, default: Any = ...) -> tuple[float, float]:
        value = self.get(key, list, default)
        if len(value) != 2 or not all(isinstance(v, (int, float)) for v in value) or value[0] > value[1]:
            raise SettingError(f"{self.path(key)} = {value!r}; valid is [low, high] with low <= high")
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
    per_scenario: dict[str, Draw | Path] = {}
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
    demand, history = _parse_demand(top.table("demand"), network.num_stores, data)
    stock = top.table("initial_stock", {})
    initial_stock = stock.range("multiple_of_mean", [0.0, 1.0])
    initial_periods = stock.get("periods", int, 1)
    if initial_periods < 1:
        raise SettingError(f"{stock.path('periods')} = {initial_periods}; valid is a whole number >= 1")
    stock.finish()
    paper = top.table("paper", {})
    seeds = {key: paper.get(key, int, 0) for key in ("demand_seed", "test_demand_seed", "initial_stock_seed")}
    seeds["test_initial_stock_seed"] = paper.get("test_initial_stock_seed", int, seeds["initial_stock_seed"])
    _check_per_scenario(raw, groups, network)
    phases = {key: _parse_phase(paper.table(key)) for key in ("train", "dev", "test") if key in raw.get("paper", {})}
    paper.finish()
    top.finish()
    if isinstance(demand, SeriesDemand):
        _check_columns(demand, phases, history, network.num_stores)
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
    table: _Table, groups: dict[str, list[str]], per_scenario: dict[str, Draw | Path], folder: Path
) -> list[Node]:
    name = table.get("name", str)
    count = table.get("count", int, None)
    if count is not None and count < 1:
        raise SettingError(f"{table.path('count')} = {count}; valid is a whole number >= 1")
    names = [name] if count is None else [f"{name}_{i}" for i in range(count)]
    if name in groups:
        raise SettingError(f"{table.path('name')} = {name!r} is used twice; names must be unique")
    groups[name] = names
    groups.update({single: [single] for single in names})
    holding = _numbers(table, "holding_cost", len(names), per_scenario, folder)
    underage: Sequence[float | None] = [None] * len(names)
    if "underage_cost" in table._values:
        underage = _numbers(table, "underage_cost", len(names), per_scenario, folder)
    holds = table.get("holds_stock", bool, True)
    table.finish()
    return [
        Node(name=n, holding_cost=h, underage_cost=p, holds_stock=holds)
        for n, h, p in zip(names, holding, underage, strict=True)
    ]


def _parse_edges(
    table: _Table, groups: dict[str, list[str]], per_scenario: dict[str, Draw | Path], folder: Path
) -> list[Edge]:
    source, target = table.get("from", str), table.get("to", (str, list))
    known = [SUPPLIER, *groups]
    if source != SUPPLIER and source not in groups:
        raise SettingError(f"{table.path('from')} = {source!r} is no node; valid: {', '.join(known)}")
    destinations: list[str] = []
    for single in [target] if isinstance(target, str) else target:
        if single not in groups:
            raise SettingError(f"{table.path('to')} = {single!r} is no node; valid: {', '.join(known[1:])}")
        destinations += groups[single]
    leads = _numbers(table, "lead_time", len(destinations), per_scenario, folder)
    costs = _numbers(table, "cost", len(destinations), per_scenario, folder, default=0.0)
    table.finish()
    for lead in leads:
        if lead != int(lead):
            raise SettingError(f"{table.path('lead_time')} = {lead}; valid is a whole number >= 1")
    return [
        Edge(source=s, destination=d, lead_time=int(lead), cost=cost)
        for s in (groups[source] if source != SUPPLIER else [SUPPLIER])
        for d, lead, cost in zip(destinations, leads, costs, strict=True)
    ]


def _numbers(
    table: _Table,
    key: str,
    count: int,
    per_scenario: dict[str, Draw | Path],
    folder: Path,
    default: Any = ...,
) -> list[float]:
    """One number for each node of a group from a number, a list, a draw or a file."""
    value = table.get(key, (float, list, dict), default)
    if isinstance(value, list):
        if len(value) != count or not all(isinstance(v, (int, float)) for v in value):
            raise SettingError(f"{table.path(key)} = {value!r}; valid is a number or a list of {count} numbers")
        return [float(v) for v in value]
    if not isinstance(value, dict):
        return [float(value)] * count
    if "file" in value:
        per_scenario[key] = folder / value["file"]
        return [float(_read_values(folder / value["file"]).mean().round())] * count
    draw, each = _parse_draw(_Table(value, table.path(key)))
    if each == "scenario":
        per_scenario[key] = draw
        middle = (draw.low + draw.high - draw.integer) / 2
        return [float(int(middle)) if draw.integer else middle] * count
    return [float(v) for v in draw.values(count)]


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
        raise SettingError(f"{table.path('')[:-1]}: a draw has either uniform = [low, high] or randint = [low, high]")
    low, high = table.range(kinds[0])
    if kinds[0] == "randint" and low >= high:
        raise SettingError(
            f"{table.path('randint')} = {[low, high]}; the upper end is excluded and must exceed the lower"
        )
    draw = Draw(
        low=low,
        high=high,
        integer=kinds[0] == "randint",
        seed=table.get("seed", int),
        decimals=table.get("decimals", int, None),
    )
    each = table.get("each", str, "node", valid=("node", "scenario"))
    table.finish()
    return draw, each


def _parse_demand(table: _Table, stores: int, data: str | Path | None) -> tuple[Demand, int]:
    kind = table.get("kind", str, valid=("normal", "poisson", "negative_binomial", "series"))
    history = table.get("history", int, 0)
    if history < 0:
        raise SettingError(f"{table.path('history')} = {history}; valid is a whole number >= 0")
    if data is not None and kind != "series":
        raise SettingError(f"demand.kind = {kind!r} takes no data file; valid: a setting with demand.kind = 'series'")
    if kind == "series":
        return _parse_series(table, stores, data), history
    ignored: dict[str, Draw | Path] = {}
    mean = np.array(_numbers(table, "mean", stores, ignored, Path()))
    demand: Demand
    if kind == "normal":
        if ("std" in table._values) == ("cv" in table._values):
            raise SettingError("demand: a normal demand takes either std or cv (std / mean)")
        if "std" in table._values:
            std = np.array(_numbers(table, "std", stores, ignored, Path()))
        else:
            std = (mean * np.array(_numbers(table, "cv", stores, ignored, Path()))).round(3)
        demand = NormalDemand(
            mean=mean,
            std=std,
            correlation=float(table.get("correlation", float, 0.0)),
            clip=table.get("clip", bool, True),
        )
    elif kind == "poisson":
        demand = PoissonDemand(mean=mean)
    else:
        dispersion = np.array(_numbers(table, "dispersion", stores, ignored, Path()))
        demand = NegativeBinomialDemand(mean=mean, dispersion=dispersion)
    table.finish()
    if ignored:
        raise SettingError('demand: each = "scenario" is for costs and lead times; a demand draws one value a node')
    return demand, history


def _parse_series(table: _Table, stores: int, data: str | Path | None) -> SeriesDemand:
    start = table.get("start", date, date(2013, 1, 1))
    generator = table.table("generator")
    items, periods = generator.get("items", int), generator.get("periods", int)
    seed = generator.get("seed", int)
    shape = {
        key: float(generator.get(key, float))
        for key in ("level", "level_spread", "christmas_bump", "intermittence", "dispersion")
        if key in generator._values
    }
    generator.get("level", float, 0.0)  # name the optional keys for the message about unknown ones
    for key in ("level_spread", "christmas_bump", "intermittence", "dispersion"):
        generator.get(key, float, 0.0)
    generator.finish()
    table.finish()
    if data is None:
        return seasonal_series(items=items, stores=stores, periods=periods, seed=seed, start=start, **shape)
    series = read_series(data, start=start)
    if stores == 1 and series.table.shape[1] > 1:
        # One-store settings take every store-item pair as a product of its own.
        series = SeriesDemand(table=series.table.flatten(0, 1).unsqueeze(1), start=series.start)
    if series.table.shape[1] != stores:
        raise DemandError(f"{data}: shape {tuple(series.table.shape)}; valid: [items, {stores} stores, periods]")
    return series


def _parse_phase(table: _Table) -> Phase:
    columns = table.range("columns", [0, 0])
    phase = Phase(
        scenarios=table.get("scenarios", int),
        periods=table.get("periods", int),
        ignore=table.get("ignore", int),
        batch=table.get("batch", int),
        columns=(int(columns[0]), int(columns[1])) if columns[1] else None,
    )
    table.finish()
    return phase


def _check_columns(demand: SeriesDemand, phases: Mapping[str, Phase], history: int, stores: int) -> None:
    need = max((phase.columns[1] for phase in phases.values() if phase.columns), default=0)
    have = demand.table.shape[2]
    if have < need:
        raise DemandError(f"the series have {have} periods; valid: at least {need}, the last column of the test split")
    for key, phase in phases.items():
        if phase.columns and phase.columns[1] - phase.columns[0] < history + phase.periods:
            raise SettingError(
                f"paper.{key}.columns = {list(phase.columns)}; valid: at least history + periods = "
                f"{history + phase.periods} columns"
            )


def _read_values(path: Path) -> Array:
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".pt":
            import torch

            values = torch.load(path, weights_only=True, map_location="cpu").numpy()
        elif path.suffix == ".csv":
            values = np.loadtxt(path, delimiter=",", skiprows=1)
        else:
            raise SettingError(f"{path}: unknown file type {path.suffix!r}; valid: .npy, .pt, .csv")
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror or error}") from None
    flat: Array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(flat).all() or (flat < 0).any():
        raise SettingError(f"{path}: holds negative, NaN or infinite values; valid are numbers >= 0")
    return flat


def _override(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted fields: NODE.field, NODE.lead_time (on its incoming edges), demand.field, or a top-level one."""
    raw = copy.deepcopy(raw)
    nodes = {entry.get("name"): entry for entry in raw.get("nodes", []) if isinstance(entry, dict)}
    for key, value in overrides.items():
        head, _, leaf = key.rpartition(".")
        if head in nodes and leaf == "lead_time":
            into = [e for e in raw.get("edges", []) if e.get("to") == head]
            if not into:
                raise SettingError(f"{key}: no edge leads to {head!r} by that name")
            for edge in into:
                edge["lead_time"] = value
        elif head in nodes and leaf:
            nodes[head][leaf] = value
        elif head in raw and isinstance(raw[head], dict):
            raw[head][leaf] = value
        elif not head and key in raw:
            raw[key] = value
        else:
            fields = [f"{n}.<field>" for n in nodes] + [f"{k}.<field>" for k, v in raw.items() if isinstance(v, dict)]
            raise SettingError(f"override {key!r} names no field; valid: {', '.join(fields)}, unmet_demand, goal")
    return raw
