"""Bad settings and data files: one clear message each, with the file, the field, the value and what is valid."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decisionrl.envs.inventory.demand import DemandError, NormalDemand, SeriesDemand, read_series
from decisionrl.envs.inventory.network import Edge, Network, NetworkError, Node
from decisionrl.envs.inventory.scenarios import (
    fresh_scenarios,
    make_simulator,
    paper_scenarios,
    scenario_parameters,
    series_scenarios,
)
from decisionrl.envs.inventory.setting import SettingError, load_setting

GOOD = """
unmet_demand = "lost"
[[nodes]]
name = "depot"
holding_cost = 0.5
[[nodes]]
name = "shop"
count = 2
holding_cost = [1.0, 2.0]
underage_cost = 9.0
[[edges]]
from = "supplier"
to = "depot"
lead_time = 2
[[edges]]
from = "depot"
to = "shop"
lead_time = [1, 3]
[demand]
kind = "poisson"
mean = 4.0
"""

ANNEX = '[[nodes]]\nname = "annex"\nholding_cost = 1.0\n'


def lane(source: str, destination: str) -> str:
    return f'[[edges]]\nfrom = "{source}"\nto = "{destination}"\nlead_time = 1\n'


LOOP = ANNEX + lane("depot", "annex") + lane("annex", "depot") + "[demand]"
BELOW = ANNEX + lane("shop_1", "annex") + lane("annex", "shop_0") + "[demand]"
SERIES = 'kind = "series"\ngenerator = { items = 3, periods = 30, seed = 1 }'
PAPER = "[paper]\ntrain = { scenarios = 4, periods = 10, ignore = 2, batch = 2"

# (what is replaced, by what, parts of the message besides the file's name)
BROKEN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "empty file": (GOOD, "", ("nodes is missing",)),
    "not TOML": ("holding_cost = 0.5", "holding_cost 0.5", ("not valid TOML", "line 5")),
    "no nodes section": (GOOD, 'unmet_demand = "lost"', ("nodes is missing",)),
    "nodes is a number": (GOOD, "nodes = 3", ("nodes = 3", "a list")),
    "nodes of numbers": (GOOD, "nodes = [3]", ("nodes[0] = 3", "a table")),
    "no demand section": ('[demand]\nkind = "poisson"\nmean = 4.0\n', "", ("demand is missing",)),
    "no unmet demand": ('unmet_demand = "lost"', "", ("unmet_demand is missing", "'lost', 'backlogged'")),
    "unknown kind": ('"lost"', '"list"', ("unmet_demand = 'list'", "'lost', 'backlogged'")),
    "profit of backlogs": ('"lost"', '"backlogged"\ngoal = "profit"', ("goal = 'profit'", "'lost'")),
    "cycle": ("[demand]", LOOP, ("cycle", "nodes depot, annex;")),
    "store supplies warehouse": ("[demand]", BELOW, ("shop_1->annex", "demand", "underage_cost")),
    "negative cost": ("holding_cost = 0.5", "holding_cost = -0.5", ("'depot'", "holding_cost = -0.5", ">= 0")),
    "infinite cost": ("holding_cost = 0.5", "holding_cost = inf", ("nodes[0].holding_cost = inf", "finite")),
    "cost that is no number": ("underage_cost = 9.0", "underage_cost = nan", ("underage_cost = nan", "finite")),
    "lead time 0": ("lead_time = 2", "lead_time = 0", ("edges[0].lead_time = 0", "whole number >= 1")),
    "fractional lead time": ("lead_time = 2", "lead_time = 2.5", ("edges[0].lead_time = 2.5", "whole number >= 1")),
    "lead time nan": ("lead_time = 2", "lead_time = nan", ("edges[0].lead_time = nan", "finite")),
    "lead time in a list": ("[1, 3]", "[1, 0]", ("edges[1].lead_time = 0", "whole number >= 1")),
    "draw of lead time 0": (
        "lead_time = 2",
        'lead_time = { randint = [0, 3], seed = 1, each = "scenario" }',
        ("edges[0].lead_time.randint = [0, 3]", "low >= 1"),
    ),
    "fractional draw of lead times": (
        "lead_time = 2",
        'lead_time = { uniform = [2, 4], seed = 1, each = "scenario" }',
        ("edges[0].lead_time.uniform = [2, 4]", "randint"),
    ),
    "store without supplier": (
        'to = "shop"\nlead_time = [1, 3]',
        'to = "shop_0"\nlead_time = 1',
        ("'shop_1'", "no supplier", "add an edge"),
    ),
    "warehouse without customers": ('from = "depot"', 'from = "supplier"', ("'depot'", "neither demand", "outgoing")),
    "nobody with demand": ("underage_cost = 9.0", "", ("no node has demand", "underage_cost")),
    "unknown key": (
        "holding_cost = 0.5",
        "holding_cots = 0.5\nholding_cost = 1.0",
        ("nodes[0].holding_cots", "did you mean 'holding_cost'?"),
    ),
    "misspelt key": ("mean = 4.0", "meen = 4.0", ("demand.mean is missing",)),
    "unknown top key": (
        'unmet_demand = "lost"',
        'unmet_demand = "lost"\ngaol = "cost"',
        ("gaol", "did you mean 'goal'?"),
    ),
    "unknown key of a draw": (
        "mean = 4.0",
        "mean = { uniform = [1, 2], sed = 3, seed = 3 }",
        ("demand.mean.sed", "'seed'"),
    ),
    "unknown key of a file": (
        "holding_cost = 0.5",
        'holding_cost = { file = "x.npy", sed = 3 }',
        ("x.npy", "cannot be read"),
    ),
    "text for a number": (
        "holding_cost = 0.5",
        'holding_cost = "0.5"',
        ("nodes[0].holding_cost = '0.5'", "a number or a list or a table"),
    ),
    "number for text": ('name = "depot"', "name = 5", ("nodes[0].name = 5", "text in quotes")),
    "true for a number": ("count = 2", "count = true", ("nodes[1].count = True", "a whole number")),
    "true in a list": ("[1.0, 2.0]", "[true, 2.0]", ("nodes[1].holding_cost = [True, 2.0]", "a list of 2 numbers")),
    "count 0": ("count = 2", "count = 0", ("nodes[1].count = 0", ">= 1")),
    "list of the wrong length": (
        "[1.0, 2.0]",
        "[1.0, 2.0, 3.0]",
        ("nodes[1].holding_cost = [1.0, 2.0, 3.0]", "a list of 2 numbers"),
    ),
    "lanes of the wrong count": ("[1, 3]", "[1, 3, 5]", ("edges[1].lead_time = [1, 3, 5]", "a list of 2 numbers")),
    "duplicate name": ('name = "shop"', 'name = "depot"', ("nodes[1].name = 'depot'", "unique")),
    "duplicate name by count": (
        '[[nodes]]\nname = "shop"',
        '[[nodes]]\nname = "shop_1"\nholding_cost = 1.0\n[[nodes]]\nname = "shop"',
        ("'shop_1'", "defined 2 times"),
    ),
    "reserved name": ('name = "depot"', 'name = "supplier"', ("'supplier'", "name must be")),
    "lane from nowhere": ('from = "depot"', 'from = "deopt"', ("edges[1].from = 'deopt'", "depot")),
    "lane to nowhere": ('to = "shop"', 'to = "shops"', ("edges[1].to = 'shops'", "shop")),
    "lane to a list of lists": ('to = "shop"', 'to = [["shop"]]', ("edges[1].to = ['shop'] is no node",)),
    "lane to an empty list": (
        'to = "shop"\nlead_time = [1, 3]',
        "to = []\nlead_time = 1",
        ("edges[1].to = []", "at least one"),
    ),
    "same lane twice": (
        "[demand]",
        '[[edges]]\nfrom = "depot"\nto = "shop_0"\nlead_time = 1\n[demand]',
        ("depot->shop_0", "more than once"),
    ),
    "lane to itself": (
        "[demand]",
        '[[edges]]\nfrom = "shop_0"\nto = "shop_0"\nlead_time = 1\n[demand]',
        ("cycle", "shop_0"),
    ),
    "hub with demand": (
        "underage_cost = 9.0",
        "underage_cost = 9.0\nholds_stock = false",
        ("'shop_0'", "must hold stock"),
    ),
    "mean 0": ("mean = 4.0", "mean = 0", ("demand.mean = [0.0, 0.0]", "> 0")),
    "correlation": (
        'kind = "poisson"',
        'kind = "normal"\nstd = 1.0\ncorrelation = -1.5',
        ("demand.correlation = -1.5", "-1 to 1"),
    ),
    "std and cv": ('kind = "poisson"', 'kind = "normal"\nstd = 1.0\ncv = 0.3', ("demand", "either std or cv")),
    "negative std": ('kind = "poisson"', 'kind = "normal"\nstd = -1.0', ("demand.std = [-1.0, -1.0]", "> 0")),
    "kind of demand": ('kind = "poisson"', 'kind = "gamma"', ("demand.kind = 'gamma'", "'negative_binomial'")),
    "mean by scenario": (
        "mean = 4.0",
        'mean = { uniform = [1, 2], seed = 3, each = "scenario" }',
        ("demand.mean", "each node"),
    ),
    "values by scenario of a warehouse": (
        "holding_cost = 0.5",
        'holding_cost = { uniform = [1, 2], seed = 3, each = "scenario" }',
        ("nodes[0].holding_cost", "each scenario", "nodes with demand"),
    ),
    "values by scenario of a lane's cost": (
        "lead_time = [1, 3]",
        'lead_time = 1\ncost = { uniform = [1, 2], seed = 3, each = "scenario" }',
        ("edges[1].cost", "each scenario", "lead_time of edges"),
    ),
    "negative history": ('kind = "poisson"', 'kind = "poisson"\nhistory = -8', ("demand.history = -8", ">= 0")),
    "a draw of two kinds": (
        "mean = 4.0",
        "mean = { uniform = [1, 2], randint = [1, 2], seed = 3 }",
        ("demand.mean", "uniform = [low, high]"),
    ),
    "a draw of no kind": ("mean = 4.0", "mean = {}", ("demand.mean = {}", "uniform = [low, high]")),
    "a draw without a seed": ("mean = 4.0", "mean = { uniform = [1, 2] }", ("demand.mean.seed is missing",)),
    "a negative seed": ("mean = 4.0", "mean = { uniform = [1, 2], seed = -3 }", ("demand.mean.seed = -3", ">= 0")),
    "a draw downwards": (
        "mean = 4.0",
        "mean = { uniform = [2, 1], seed = 3 }",
        ("demand.mean.uniform = [2, 1]", "low <= high"),
    ),
    "an unbounded draw": (
        "mean = 4.0",
        "mean = { uniform = [2, inf], seed = 3 }",
        ("demand.mean.uniform = [2, inf]", "[low, high]"),
    ),
    "a fractional randint": (
        "mean = 4.0",
        "mean = { randint = [2, 4.5], seed = 3 }",
        ("demand.mean.randint = [2, 4.5]", "whole numbers"),
    ),
    "an empty randint": (
        "mean = 4.0",
        "mean = { randint = [2, 2], seed = 3 }",
        ("demand.mean.randint = [2, 2]", "excluded"),
    ),
    "initial stock": ("[demand]", "[initial_stock]\nperiods = 0\n[demand]", ("initial_stock.periods = 0", ">= 1")),
    "initial multiple": (
        "[demand]",
        "[initial_stock]\nmultiple_of_mean = [1]\n[demand]",
        ("initial_stock.multiple_of_mean = [1]", "[low, high]"),
    ),
    "missing phase size": (
        "[demand]",
        "[paper]\ntrain = { scenarios = 4 }\n[demand]",
        ("paper.train.periods is missing",),
    ),
    "unknown phase": (
        "[demand]",
        PAPER.replace("train", "trian") + " }\n[demand]",
        ("paper.trian", "did you mean 'train'?"),
    ),
    "ignore everything": (
        "[demand]",
        PAPER.replace("ignore = 2", "ignore = 10") + " }\n[demand]",
        ("paper.train.ignore = 10", "<= 9"),
    ),
    "batch 0": (
        "[demand]",
        PAPER.replace("batch = 2", "batch = 0") + " }\n[demand]",
        ("paper.train.batch = 0", ">= 1"),
    ),
    "no series": ('kind = "poisson"\nmean = 4.0', 'kind = "series"', ("demand.generator is missing", "items", "data")),
    "series of no items": (
        'kind = "poisson"\nmean = 4.0',
        SERIES.replace("items = 3", "items = 0"),
        ("demand.generator.items = 0", ">= 1"),
    ),
    "series without spread": (
        'kind = "poisson"\nmean = 4.0',
        SERIES.replace("seed", "dispersion = 0, seed"),
        ("demand.generator.dispersion = 0", "> 0"),
    ),
    "series key": (
        'kind = "poisson"\nmean = 4.0',
        SERIES.replace("seed", "levle = 3, seed"),
        ("demand.generator.levle", "did you mean 'level'?"),
    ),
    "start with a time": (
        'kind = "poisson"\nmean = 4.0',
        SERIES + "\nstart = 2013-01-01T00:00:00",
        ("demand.start", "a date such as 2013-01-01"),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_setting(tmp_path: Path, case: str) -> None:
    old, new, parts = BROKEN[case]
    assert old in GOOD
    path = tmp_path / "broken.toml"
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises((SettingError, DemandError)) as caught:
        load_setting(path)
    message = str(caught.value)
    assert "broken.toml" in message
    assert all(part in message for part in parts), message
    assert "\n" not in message.replace(str(path), "")
    assert caught.value.__cause__ is None  # the message says it all


def test_the_good_setting_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    assert load_setting(path).network.num_nodes == 3


def test_setting_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml: no such setting file"):
        load_setting(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes('title = "Lager für Öl"'.encode("latin-1"))
    with pytest.raises(SettingError, match=r"latin\.toml: cannot be read as text in UTF-8"):
        load_setting(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("one_store_lots", "did you mean 'one_store_lost'?"),
        ("serial", "did you mean 'serial_system'?"),
        ("qqq", "; Known:"),
    ],
)
def test_unknown_setting(name: str, near: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_setting(name)
    message = str(caught.value)
    assert f"unknown setting {name!r}" in message
    assert near in message
    assert "transshipment_backlogged" in message
    assert ".toml" in message


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("shop.lead_time", ("override 'shop.lead_time' names no field", "store.<field>", "demand.<field>", "goal")),
        ("lead_time", ("override 'lead_time' names no field",)),
        ("demand.", ("override 'demand.' names no field",)),
        ("store.holdingcost", ("nodes[0].holdingcost", "did you mean 'holding_cost'?")),
        ("demand.means", ("demand.means", "did you mean 'mean'?")),
        ("paper.train.batch", ("override 'paper.train.batch' names no field",)),
    ],
)
def test_overrides_that_name_nothing(key: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(SettingError) as caught:
        load_setting("one_store_lost", {key: 2})
    assert all(part in str(caught.value) for part in ("one_store_lost.toml", *parts)), str(caught.value)


def test_override_of_lanes_that_are_listed_store_by_store() -> None:
    with pytest.raises(SettingError, match=r"'store\.lead_time': no edge has to = 'store'"):
        load_setting("many_warehouses_lost_demand", {"store.lead_time": 2})


def test_overrides_with_bad_values() -> None:
    with pytest.raises(SettingError, match=r"one_store_lost\.toml: edges\[0\]\.lead_time = 0"):
        load_setting("one_store_lost", {"store.lead_time": 0})
    with pytest.raises(DemandError, match=r"one_store_lost\.toml: demand\.mean = \[-1\.0\]"):
        load_setting("one_store_lost", {"demand.mean": -1.0})


# --- files of values by scenario -----------------------------------------------------------------------------


class Payload:
    """What a malicious file would do when unpickled."""

    def __reduce__(self) -> Any:
        return print, ("code from a file was run",)


def write(path: Path, content: Any) -> Path:
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    elif isinstance(content, Payload):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("costs.npy", None, ("no such file", "costs.npy")),
        ("costs.txt", "1\n2\n", ("unknown file type '.txt'", ".npy, .pt, .csv")),
        ("costs.npy", "1 2 3", ("cannot be read as numbers",)),
        ("costs.pt", "1 2 3", ("not a tensor saved by torch.save",)),
        ("costs.pt", Payload(), ("not a tensor saved by torch.save",)),
        ("costs.pt", {"h": 1.0}, ("holds a dict", "one tensor")),
        ("costs.csv", "cost\ncheap\n", ("cannot be read as numbers", "cheap")),
        ("costs.npy", np.array([1.0, -1.0]), ("negative, NaN or infinite", ">= 0")),
        ("costs.npy", np.array([1.0, np.nan]), ("negative, NaN or infinite", ">= 0")),
        ("costs.npy", np.array([]), ("holds no values",)),
    ],
)
def test_files_of_costs(
    tmp_path: Path, file: str, content: Any, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        write(tmp_path / file, content)
    path = tmp_path / "broken.toml"
    path.write_text(GOOD.replace("holding_cost = 0.5", f'holding_cost = {{ file = "{file}" }}'))
    with pytest.raises(SettingError) as caught:
        load_setting(path)
    message = str(caught.value)
    assert all(part.lower() in message.lower() for part in ("broken.toml", file, *parts)), message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("values", "shown"), [([2.0, 2.5], "2.5"), ([3, 0], "0")])
def test_files_of_lead_times(tmp_path: Path, values: list[float], shown: str) -> None:
    """A lead time of 2.5 or 0 would match no period: the order would vanish."""
    np.save(tmp_path / "leads.npy", np.array(values))
    path = tmp_path / "broken.toml"
    path.write_text(GOOD.replace("lead_time = 2", 'lead_time = { file = "leads.npy" }'))
    with pytest.raises(SettingError, match=rf"edges\[0\]\.lead_time = {shown}; valid is a whole number >= 1"):
        load_setting(path)


def test_too_few_values_for_the_scenarios(tmp_path: Path) -> None:
    np.save(tmp_path / "costs.npy", np.ones(3))
    path = tmp_path / "few.toml"
    path.write_text(GOOD.replace("holding_cost = [1.0, 2.0]", 'holding_cost = { file = "costs.npy" }'))
    setting = load_setting(path)
    with pytest.raises(SettingError, match=r"holding_cost: 3 values in the file; valid: at least 4"):
        scenario_parameters(setting, make_simulator(setting), 4)


# --- series of demand ----------------------------------------------------------------------------------------

MANY = "many_warehouses_real_data_lost_demand"
ROWS = "item,store,period,demand\n" + "".join(f"{i},{s},{t},{t}\n" for i in "ab" for s in "xy" for t in range(3))


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("sales.pt", None, ("no such data file",)),
        ("sales.xlsx", "a", ("unknown file type '.xlsx'", ".pt, .npy, .csv, .parquet")),
        ("sales.pt", "item,store,period,demand", ("not a tensor saved by torch.save",)),
        ("sales.pt", Payload(), ("not a tensor saved by torch.save",)),
        ("sales.pt", {"demand": torch.ones(2, 3, 4)}, ("holds a dict", "one tensor")),
        ("sales.pt", torch.ones(3, 4), ("shape [3, 4]", "[items, stores, periods]")),
        ("sales.npy", np.ones((2, 0, 4)), ("shape [2, 0, 4]", "at least one")),
        ("sales.npy", "text", ("cannot be read as a .npy file",)),
        ("sales.npy", np.array(["a", "b"]), ("cannot be read as a .npy file",)),
        ("sales.pt", torch.tensor([[[1.0, 2.0, float("nan")]]]), ("1 missing, NaN", "item 0, store 0, period 2")),
        ("sales.pt", torch.tensor([[[1.0, 2.0], [1.0, float("inf")]]]), ("infinite", "item 0, store 1, period 1")),
        ("sales.csv", "", ("cannot be read",)),
        ("sales.csv", "item,shop,period,demand\n1,2,3,4\n", ("no column store", "found item, shop, period, demand")),
        ("sales.csv", ROWS + "a,x,0,9\n", ("item a, store x, period 0 occurs more than once",)),
        ("sales.csv", ROWS + "c,x,0,9\n", ("3 items x 2 stores", "only 5 pairs")),
        ("sales.csv", ROWS.replace("b,y,1,1\n", ""), ("1 missing, NaN", "item 1, store 1, period 1")),
        ("sales.csv", ROWS.replace("b,y,1,1\n", "b,y,1,many\n"), ("cannot be read", "many")),
        ("sales.parquet", "text", ("cannot be read as a .parquet file",)),
    ],
)
def test_files_of_series(
    tmp_path: Path, file: str, content: Any, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        write(tmp_path / file, content)
    with pytest.raises(DemandError) as caught:
        read_series(tmp_path / file)
    message = str(caught.value)
    assert all(part in message for part in (file, *parts)), message
    assert message.count(f"{file}: ") == 1
    assert "\n" not in message
    assert capsys.readouterr().out == ""


def test_series_that_do_not_fit_the_setting(tmp_path: Path) -> None:
    stores = write(tmp_path / "stores.npy", np.ones((4, 20, 171)))
    with pytest.raises(DemandError, match=r"stores\.npy: has the shape \[4, 20, 171\]; valid: \[items, 21 stores"):
        load_setting(MANY, data=stores)
    short = write(tmp_path / "short.npy", np.ones((4, 21, 150)))
    with pytest.raises(DemandError, match=r"short\.npy: the series have 150 periods; valid: at least 171"):
        load_setting(MANY, data=short)
    with pytest.raises(SettingError, match=r"one_store_lost\.toml: demand\.kind = 'poisson' takes no data file"):
        load_setting("one_store_lost", data=short)


def test_columns_that_do_not_hold_the_periods() -> None:
    split = {"scenarios": 4, "periods": 10, "ignore": 2, "batch": 2}
    with pytest.raises(SettingError, match=r"paper\.dev\.columns = \[0, 20\]; valid: at least .* = 26 columns"):
        load_setting(MANY, {"paper.dev": split | {"columns": [0, 20]}})
    for columns in ([-5, 60], [0.5, 60], [60, 5]):
        with pytest.raises(SettingError, match=r"paper\.dev\.columns = "):
            load_setting(MANY, {"paper.dev": split | {"columns": columns}})
    with pytest.raises(DemandError, match=r"171 periods; valid: at least history \+ paper\.dev\.periods = 216"):
        load_setting(MANY, {"paper.dev": split | {"periods": 200}})


def test_fresh_paths_of_series_and_series_of_a_process() -> None:
    series, process = load_setting(MANY), load_setting("one_store_lost")
    with pytest.raises(DemandError, match=r"finite table of series; fresh paths need a normal"):
        fresh_scenarios(series, make_simulator(series), batch=2, periods=2, generator=torch.Generator())
    with pytest.raises(DemandError, match="'one_store_lost' has no series"):
        series_scenarios(process, make_simulator(process), "train")


def test_splits_that_are_not_defined(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(GOOD + PAPER + " }\n")
    setting = load_setting(path)
    with pytest.raises(SettingError, match=r"'own' has no split paper\.dev; defined: train"):
        paper_scenarios(setting, make_simulator(setting), "train")


# --- networks and demands made in Python ---------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0, -1, 1.5, 2.0, True, "2", float("nan"), None])
def test_lead_times_in_python(lead: Any) -> None:
    with pytest.raises(NetworkError, match=r"edge 'supplier->s': lead_time = .*; valid is a whole number >= 1"):
        Edge(source="supplier", destination="s", lead_time=lead)


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf"), True, "1", None])
def test_costs_in_python(cost: Any) -> None:
    with pytest.raises(NetworkError, match=r"node 's': holding_cost = .*; valid is a finite number >= 0"):
        Node(name="s", holding_cost=cost)
    with pytest.raises(NetworkError, match=r"edge 'supplier->s': cost = "):
        Edge(source="supplier", destination="s", lead_time=1, cost=cost)


def test_networks_in_python() -> None:
    node = Node(name="s", holding_cost=1.0, underage_cost=2.0)
    lane = Edge(source="supplier", destination="s", lead_time=np.int64(1))  # type: ignore[arg-type]
    network = Network.create(nodes=[node], edges=[lane], unmet_demand="lost")
    assert network.lead_times == (1,)
    with pytest.raises(NetworkError, match="lead_time = 0"):
        Edge(source="supplier", destination="s", lead_time=0)
    with pytest.raises(NetworkError, match=r"unmet_demand = 'gone'; valid: 'lost', 'backlogged'"):
        Network.create(nodes=[node], edges=[lane], unmet_demand="gone")  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match=r"goal = 'fun'; valid: 'cost', 'profit'"):
        Network.create(nodes=[node], edges=[lane], unmet_demand="lost", goal="fun")  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match=r"edge 'x->s': from = 'x' is no node; valid: supplier, s"):
        Network.create(nodes=[node], edges=[Edge(source="x", destination="s", lead_time=1)], unmet_demand="lost")


def test_demands_in_python() -> None:
    with pytest.raises(DemandError, match=r"demand\.std = \[0\.0\]"):
        NormalDemand(mean=np.array([1.0]), std=np.array([0.0]))
    with pytest.raises(DemandError, match=r"demand\.correlation = -0\.6; valid: -0\.5 to 1 for 3 stores"):
        NormalDemand(mean=np.ones(3), std=np.ones(3), correlation=-0.6)
    with pytest.raises(DemandError, match=r"shape \[2, 3\]"):
        SeriesDemand(table=torch.ones(2, 3))
