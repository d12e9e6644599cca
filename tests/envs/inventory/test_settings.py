"""The shipped settings against the published configuration, written down here by hand, and the scenarios they draw."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decisionrl.envs.inventory.demand import NormalDemand, PoissonDemand, SeriesDemand
from decisionrl.envs.inventory.scenarios import (
    DAYS_SCALE,
    fresh_scenarios,
    initial_slots,
    make_simulator,
    paper_scenarios,
    scenario_parameters,
    series_scenarios,
    take,
)
from decisionrl.envs.inventory.setting import Phase, Setting, available_settings, load_setting

# Draws of the paper's seeds (mean 33, coefficient of variation 92, underage 28, holding 73, lead time 41).
MEANS = [3.743, 4.75, 4.555, 3.801, 6.852]
STDS = [1.765, 2.124, 1.622, 1.405, 1.714]
UNDERAGE = [10.2367, 9.3307, 6.9748, 8.447, 10.5191]
HOLDING = [1.0856, 1.0232, 1.0071, 1.0662, 0.9958]
LEAD_TIMES = [2, 3, 2, 2, 2, 3, 3, 3, 3, 3]

# Lead times [warehouse 0, warehouse 1] of stores 0 to 9; 0: no lane.
TWO_WAREHOUSES = [[0, 2], [0, 1], [6, 2], [6, 2], [6, 1], [0, 2], [6, 0], [5, 2], [6, 2], [0, 2]]

# Lead times [warehouse 0, 1, 2] of stores 0 to 20, and the lanes that do not exist.
THREE_WAREHOUSES = (
    [[6, 1, 5]] * 4 + [[6, 1, 4]] + [[5, 2, 6]] + [[5, 2, 5]] * 2 + [[5, 1, 5]] + [[5, 2, 5]] * 2 + [[5, 2, 6]]
    + [[5, 2, 5]] + [[5, 2, 6]] + [[6, 1, 5]] * 5 + [[5, 1, 4]] + [[5, 2, 5]]
)  # fmt: skip
NO_LANE = {0: (3, 14), 1: (5, 10, 11, 12, 13), 2: (11,)}


def lanes(setting: Setting) -> dict[tuple[str, str], tuple[int, float]]:
    return {(e.source, e.destination): (e.lead_time, e.cost) for e in setting.network.edges}


def costs(setting: Setting) -> dict[str, tuple[float, float | None]]:
    return {n.name: (n.holding_cost, n.underage_cost) for n in setting.network.nodes}


def phases(scenarios: int, batches: tuple[int, int, int]) -> dict[str, Phase]:
    sizes = {"train": (50, 30), "dev": (100, 60), "test": (5000, 3000)}
    return {
        key: Phase(scenarios=scenarios, periods=periods, ignore=ignore, batch=batch)
        for (key, (periods, ignore)), batch in zip(sizes.items(), batches, strict=True)
    }


def seeds(last: int = 4839) -> dict[str, int]:
    return {
        "demand_seed": 57,
        "test_demand_seed": 65,
        "initial_stock_seed": 4839,
        "test_initial_stock_seed": last,
    }


def test_the_nine_settings_ship() -> None:
    assert available_settings() == [
        "many_warehouses_lost_demand",
        "many_warehouses_real_data_lost_demand",
        "one_store_backlogged",
        "one_store_lost",
        "one_store_real_data_lost_demand",
        "one_store_real_data_read_file_example",
        "one_warehouse_lost_demand",
        "serial_system",
        "transshipment_backlogged",
    ]


def test_one_store_settings() -> None:
    for name, unmet in (("one_store_backlogged", "backlogged"), ("one_store_lost", "lost")):
        setting = load_setting(name)
        assert (setting.network.unmet_demand, setting.network.goal) == (unmet, "cost")
        assert costs(setting) == {"store": (1.0, 9.0)}
        assert lanes(setting) == {("supplier", "store"): (4, 0.0)}
        assert (setting.initial_stock, setting.initial_periods, setting.history) == ((0.0, 1.0), 4, 0)
        assert setting.phases == phases(32768, (8192, 32768, 32768))
        assert setting.seeds == seeds(4847 if unmet == "lost" else 4839)
    backlogged = load_setting("one_store_backlogged").demand
    assert isinstance(backlogged, NormalDemand)
    assert (backlogged.mean, backlogged.std, backlogged.clip) == ([5.0], [1.6], True)
    lost = load_setting("one_store_lost").demand
    assert isinstance(lost, PoissonDemand)
    assert lost.mean == [5.0]


def test_serial_system() -> None:
    setting = load_setting("serial_system")
    assert setting.network.unmet_demand == "backlogged"
    assert costs(setting) == {
        "echelon_0": (0.1, None),
        "echelon_1": (0.2, None),
        "warehouse": (0.5, None),
        "store": (1.0, 9.0),
    }
    assert lanes(setting) == {
        ("supplier", "echelon_0"): (2, 0.0),
        ("echelon_0", "echelon_1"): (4, 0.0),
        ("echelon_1", "warehouse"): (3, 0.0),
        ("warehouse", "store"): (4, 0.0),
    }
    assert isinstance(setting.demand, NormalDemand)
    assert (setting.demand.mean, setting.demand.std, setting.demand.clip) == ([5.0], [2.0], True)
    assert (setting.initial_stock, setting.initial_periods) == ((0.0, 1.0), 4)
    assert setting.phases == phases(32768, (8192, 32768, 32768))
    assert setting.seeds == seeds()


def assert_sampled_demand(setting: Setting, *, clip: bool) -> None:
    demand = setting.demand
    assert isinstance(demand, NormalDemand)
    np.testing.assert_allclose(demand.mean[:5], MEANS, atol=1e-9)
    np.testing.assert_allclose(demand.std[:5], STDS, atol=1e-9)
    assert (demand.correlation, demand.clip) == (0.5, clip)


def assert_sampled_costs(setting: Setting) -> None:
    stores = [v for n, v in costs(setting).items() if n.startswith("store")]
    np.testing.assert_allclose([h for h, _ in stores[:5]], HOLDING, atol=6e-5)
    np.testing.assert_allclose([p for _, p in stores[:5]], UNDERAGE, atol=6e-5)  # type: ignore[misc]


def test_transshipment() -> None:
    setting = load_setting("transshipment_backlogged")
    assert setting.network.unmet_demand == "backlogged"
    assert costs(setting) == {"hub": (0.5, None)} | {f"store_{i}": (1.0, 4.0) for i in range(5)}
    assert setting.network.must_ship_all == (True, False, False, False, False, False)
    assert lanes(setting) == {("supplier", "hub"): (3, 0.0)} | {("hub", f"store_{i}"): (2, 0.0) for i in range(5)}
    assert_sampled_demand(setting, clip=False)
    assert (setting.initial_stock, setting.initial_periods) == ((0.0, 1.0), 2)
    assert setting.phases == phases(32768, (1024, 32768, 32768))
    assert setting.seeds == seeds()


@pytest.mark.parametrize("stores", [3, 5, 10])
def test_one_warehouse(stores: int) -> None:
    setting = load_setting("one_warehouse_lost_demand", {"store.count": stores})
    assert setting.network.unmet_demand == "lost"
    assert costs(setting)["warehouse"] == (0.3, None)
    assert not any(setting.network.must_ship_all)
    expected = {("warehouse", f"store_{i}"): (LEAD_TIMES[i], 0.0) for i in range(stores)}
    assert lanes(setting) == {("supplier", "warehouse"): (3, 0.0)} | expected
    assert (setting.initial_stock, setting.initial_periods) == ((0.0, 1.0), 3)
    assert setting.phases == phases(8192, (1024, 8192, 8192))
    assert setting.seeds == seeds()
    if stores >= 5:
        assert_sampled_costs(setting)
        assert_sampled_demand(setting, clip=True)


def test_two_warehouses() -> None:
    setting = load_setting("many_warehouses_lost_demand")
    assert setting.network.unmet_demand == "lost"
    assert costs(setting)["warehouse_0"] == (0.3, None)
    assert costs(setting)["warehouse_1"] == (0.4, None)
    expected = {("supplier", "warehouse_0"): (3, 0.5), ("supplier", "warehouse_1"): (3, 1.5)}
    for store, row in enumerate(TWO_WAREHOUSES):
        for warehouse, lead in enumerate(row):
            if lead:
                expected[f"warehouse_{warehouse}", f"store_{store}"] = (lead, 0.0)
    assert lanes(setting) == expected
    assert {s for w, s in expected if w == "warehouse_0"} == {f"store_{i}" for i in (2, 3, 4, 6, 7, 8)}
    assert_sampled_demand(setting, clip=True)
    assert_sampled_costs(setting)
    assert (setting.initial_stock, setting.initial_periods, setting.stocked_slots) == ((0.0, 1.0), 3, 6)
    assert setting.phases == phases(8192, (1024, 8192, 8192))
    assert setting.seeds == seeds()


def series_phases(
    scenarios: int, batch: int, periods: tuple[int, ...], columns: tuple[tuple[int, int], ...]
) -> dict[str, Phase]:
    rows = zip(("train", "dev", "test"), (batch, scenarios, scenarios), periods, columns, strict=True)
    return {
        key: Phase(scenarios=scenarios, periods=length, ignore=16, batch=size, columns=window)
        for key, size, length, window in rows
    }


WINDOWS = ((0, 111), (88, 141), (118, 171))


def test_three_warehouses_on_series() -> None:
    setting = load_setting("many_warehouses_real_data_lost_demand")
    assert (setting.network.unmet_demand, setting.network.goal, setting.history) == ("lost", "profit", 16)
    expected = {("supplier", f"warehouse_{i}"): (3, cost) for i, cost in enumerate((0.5, 1.5, 0.7))}
    for (store, row), warehouse in itertools.product(enumerate(THREE_WAREHOUSES), range(3)):
        if store not in NO_LANE[warehouse]:
            expected[f"warehouse_{warehouse}", f"store_{store}"] = (row[warehouse], 0.0)
    assert len(THREE_WAREHOUSES) == setting.network.num_stores == 21
    assert lanes(setting) == expected
    assert [costs(setting)[f"warehouse_{i}"] for i in range(3)] == [(0.3, None), (0.4, None), (0.2, None)]
    assert_sampled_costs(setting)
    assert isinstance(setting.demand, SeriesDemand)
    assert setting.demand.table.shape == (288, 21, 171)
    assert setting.initial_stock == (0.0, 0.0)
    assert setting.initial_periods == 6
    assert setting.phases == series_phases(288, 72, (95, 37, 37), WINDOWS)


def test_one_store_on_series() -> None:
    setting = load_setting("one_store_real_data_lost_demand")
    assert (setting.network.unmet_demand, setting.network.goal, setting.history) == ("lost", "profit", 16)
    assert setting.lead_time_range == (4, 6)
    assert setting.phases == series_phases(32768, 8192, (95, 37, 37), WINDOWS)
    simulator = make_simulator(setting)
    parameters = scenario_parameters(setting, simulator, 10_000)
    leads = parameters.lead_time[:, 0]
    assert sorted(leads.unique().tolist()) == [4, 5, 6]
    assert float(leads.mean()) == pytest.approx(5.0, abs=4 * 0.82 / 100)
    expected = np.random.RandomState(28).uniform(6.3, 11.7, 10_000)
    np.testing.assert_allclose(parameters.underage_cost[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(leads, np.random.RandomState(41).randint(4, 7, 10_000))
    assert parameters.holding_cost.tolist() == [1.0]


def test_read_file_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cost files lie where the command is run; the 5000th lead time is as good as the first."""
    monkeypatch.chdir(tmp_path)
    leads = torch.full((5000, 1), 4)
    leads[1], leads[4999] = 5, 9
    torch.save(torch.ones(5000, 1, dtype=torch.float64), "random_holding_costs.pt")
    torch.save(torch.linspace(6.3, 11.7, 5000, dtype=torch.float64)[:, None], "random_underage_costs.pt")
    torch.save(leads, "random_lead_times.pt")
    setting = load_setting("one_store_real_data_read_file_example")
    windows = ((0, 120), (104, 170), (154, 200))
    assert setting.phases == series_phases(32768, 8192, (104, 50, 30), windows)
    assert setting.lead_time_range == (4, 9)
    assert setting.seeds == seeds(4847)
    simulator = make_simulator(setting)
    assert simulator.num_slots == 9
    parameters = scenario_parameters(setting, simulator, 3)
    assert parameters.lead_time.tolist() == [[4], [5], [4]]
    np.testing.assert_allclose(parameters.underage_cost[:, 0], 6.3 + 5.4 / 4999 * np.arange(3), rtol=1e-6)


# --- the paper's samples -------------------------------------------------------------------------------------


def small(name: str, **overrides: Any) -> Setting:
    sizes = {"train": (7, 5), "dev": (4, 9), "test": (6, 8)}
    tables = {f"paper.{key}": {"scenarios": n, "periods": t, "ignore": 1, "batch": 2} for key, (n, t) in sizes.items()}
    return load_setting(name, tables | overrides)


@pytest.mark.parametrize(("lead", "underage", "shift"), [(4, 9.0, 94), (2, 39.0, 392), (1, 4.0, 41)])
def test_the_recipe_for_one_store(lead: int, underage: float, shift: int) -> None:
    """Demand seed + int(L + 10 p); the dev set comes first; initial stock is a multiple of the sampled mean."""
    setting = small("one_store_lost", **{"store.lead_time": lead, "store.underage_cost": underage})
    simulator = make_simulator(setting, dtype=torch.float64)
    paths = np.random.RandomState(57 + shift).poisson(5.0, (11, 1, 9)).astype(float)
    multiples = np.random.RandomState(4839).uniform(0, 1, (11, 1, 4))
    stock = multiples * paths.mean()
    dev, train = (paper_scenarios(setting, simulator, split) for split in ("dev", "train"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(dev.demand[:, :, 0].T, paths[:4, 0, :])
    np.testing.assert_array_equal(train.demand[:, :, 0].T, paths[4:, 0, :5])
    for part, index in ((dev, slice(0, 4)), (train, slice(4, None))):
        np.testing.assert_allclose(torch.stack(part.slots, -1)[:, 0, :4], stock[index, 0])
    test = paper_scenarios(setting, simulator, "test")
    paths = np.random.RandomState(65 + shift).poisson(5.0, (6, 1, 8)).astype(float)
    stock = np.random.RandomState(4847).uniform(0, 1, (6, 1, 4)) * paths.mean()
    np.testing.assert_array_equal(test.demand[:, :, 0].T, paths[:, 0, :])
    np.testing.assert_allclose(torch.stack(test.slots, -1)[:, 0, :4], stock[:, 0])


def test_the_recipe_for_normal_demand_clips() -> None:
    setting = small("one_store_backlogged", **{"demand.std": 6.0})
    paths = np.maximum(np.random.RandomState(57 + 94).normal(5.0, 6.0, (11, 1, 9)), 0)
    dev = paper_scenarios(setting, make_simulator(setting, dtype=torch.float64), "dev")
    np.testing.assert_allclose(dev.demand[:, :, 0].T, paths[:4, 0, :])
    assert float(dev.demand.min()) == 0


def test_initial_stock_fills_the_pipeline_where_lead_times_are_long() -> None:
    """K = max(inventory periods, longest lead time into a store) slots are drawn, not only the first few."""
    setting = small("one_store_backlogged", **{"store.lead_time": 10})
    simulator = make_simulator(setting, dtype=torch.float64)
    dev = paper_scenarios(setting, simulator, "dev")
    paths = np.maximum(np.random.RandomState(57 + 100).normal(5.0, 1.6, (11, 1, 9)), 0)
    stock = np.random.RandomState(4839).uniform(0, 1, (11, 1, 10)) * paths.mean()
    np.testing.assert_allclose(torch.stack(dev.slots, -1)[:, 0], stock[:4, 0])
    assert load_setting("one_store_backlogged").stocked_slots == 4
    assert load_setting("serial_system").stocked_slots == 4


@pytest.mark.parametrize(
    "name", ["one_warehouse_lost_demand", "many_warehouses_lost_demand", "transshipment_backlogged"]
)
def test_the_recipe_for_several_stores(name: str) -> None:
    """No seed shift; warehouses start empty. (Compared on this build of numpy: other builds may turn the stream.)"""
    setting = small(name)
    demand = setting.demand
    assert isinstance(demand, NormalDemand)
    simulator = make_simulator(setting, dtype=torch.float64)
    test = paper_scenarios(setting, simulator, "test", scenarios=4000, periods=20)
    again = np.random.RandomState(65).multivariate_normal(demand.mean, demand.covariance, (4000, 20))
    again = np.maximum(again, 0) if demand.clip else again
    np.testing.assert_allclose(test.demand, np.transpose(again, (1, 0, 2)), atol=1e-9)
    warehouses = setting.network.num_warehouses
    slots = torch.stack(test.slots)
    assert float(slots[:, :, :warehouses].abs().sum()) == 0
    stores = slots[: setting.stocked_slots, :, warehouses:]
    multiples = stores / test.demand.mean(dim=(0, 1))
    expected = np.random.RandomState(4839).uniform(0, 1, (4000, setting.network.num_stores, setting.stocked_slots))
    np.testing.assert_allclose(multiples, np.transpose(expected, (2, 0, 1)), atol=1e-9)
    assert float(slots[setting.stocked_slots :].abs().sum()) == 0


def test_series_splits_show_their_weeks() -> None:
    setting = load_setting("many_warehouses_real_data_lost_demand")
    assert isinstance(setting.demand, SeriesDemand)
    simulator = make_simulator(setting)
    for split, first, periods in (("train", 0, 95), ("dev", 88, 37), ("test", 118, 37)):
        scenario = series_scenarios(setting, simulator, split)  # type: ignore[arg-type]
        assert (scenario.periods, scenario.batch, scenario.history) == (periods, 288, 16)
        table = setting.demand.table[:, :, first : first + 16 + periods]
        torch.testing.assert_close(scenario.demand, table.permute(2, 0, 1))
        assert float(torch.stack(scenario.slots).abs().sum()) == 0
        assert scenario.time is not None
        days = setting.demand.days_from_christmas[first + 16 :][:periods]
        torch.testing.assert_close(scenario.time[:periods, 0] * DAYS_SCALE, days)
        seen = simulator.observe(scenario, scenario.slots, 2)
        assert seen.past_demand is not None
        torch.testing.assert_close(seen.past_demand, table[:, :, 2:18])


def test_take_keeps_everything_of_a_scenario_together() -> None:
    setting = load_setting("one_store_real_data_lost_demand")
    simulator = make_simulator(setting)
    everything = series_scenarios(setting, simulator, "test")
    index = torch.tensor([5, 0, 77])
    part = take(everything, index)
    assert part.batch == 3
    torch.testing.assert_close(part.demand[:, 1], everything.demand[:, 0])
    torch.testing.assert_close(part.parameters.lead_time, everything.parameters.lead_time[index])
    torch.testing.assert_close(part.parameters.underage_cost, everything.parameters.underage_cost[index])
    assert part.parameters.holding_cost is everything.parameters.holding_cost
    policy = lambda o: 2 * o.slots[0] + 1  # noqa: E731
    cost = simulator.rollout(policy, part).cost
    torch.testing.assert_close(cost, simulator.rollout(policy, everything).cost[:, index])


# --- files of one's own --------------------------------------------------------------------------------------

OWN = """
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


def own(tmp_path: Path, *replacements: tuple[str, str], text: str = OWN) -> Setting:
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return load_setting(path)


def test_a_setting_of_ones_own(tmp_path: Path) -> None:
    setting = own(tmp_path)
    assert (setting.name, setting.title) == ("own", "own")
    assert setting.network.node_names == ("depot", "shop_0", "shop_1")
    expected = {("supplier", "depot"): 2, ("depot", "shop_0"): 1, ("depot", "shop_1"): 3}
    assert lanes(setting) == {lane: (lead, 0.0) for lane, lead in expected.items()}
    assert costs(setting) == {"depot": (0.5, None), "shop_0": (1.0, 9.0), "shop_1": (2.0, 9.0)}
    np.testing.assert_array_equal(setting.demand.mean, [4.0, 4.0])


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_bytes(b"\xef\xbb\xbf" + OWN.encode())
    assert load_setting(tmp_path / "own.toml").network.num_nodes == 3


def test_a_lane_may_name_single_nodes_of_a_group(tmp_path: Path) -> None:
    setting = own(tmp_path, ('to = "shop"\nlead_time = [1, 3]', 'to = ["shop_1", "shop_0"]\nlead_time = [5, 4]'))
    assert lanes(setting)["depot", "shop_1"] == (5, 0.0)
    assert lanes(setting)["depot", "shop_0"] == (4, 0.0)


def test_every_warehouse_of_a_group_supplies_every_store(tmp_path: Path) -> None:
    setting = own(tmp_path, ('name = "depot"', 'name = "depot"\ncount = 2'))
    leads = {(s, d): lead for (s, d), (lead, _) in lanes(setting).items() if s != "supplier"}
    assert leads == {(f"depot_{w}", f"shop_{s}"): lead for w in range(2) for s, lead in enumerate((1, 3))}


def test_values_by_scenario_are_those_of_the_stores(tmp_path: Path) -> None:
    """The warehouse and the lane into it keep their own, also a lead time outside the drawn range."""
    setting = own(
        tmp_path,
        ("holding_cost = [1.0, 2.0]", 'holding_cost = { uniform = [1.0, 2.0], seed = 2, each = "scenario" }'),
        ("lead_time = [1, 3]", 'lead_time = { randint = [4, 8], seed = 3, each = "scenario" }'),
    )
    simulator = make_simulator(setting, dtype=torch.float64)
    parameters = scenario_parameters(setting, simulator, 500)
    assert parameters.holding_cost[:, 0].unique().tolist() == [0.5]
    expected = np.random.RandomState(2).uniform(1.0, 2.0, 500)
    np.testing.assert_allclose(parameters.holding_cost[:, 1:], expected[:, None].repeat(2, 1))
    assert parameters.underage_cost.tolist() == [0.0, 9.0, 9.0]
    assert [edge.name for edge in setting.network.edges] == ["supplier->depot", "depot->shop_0", "depot->shop_1"]
    expected = np.random.RandomState(3).randint(4, 8, 500).astype(float)
    np.testing.assert_array_equal(parameters.lead_time[:, 1:], expected[:, None].repeat(2, 1))
    assert parameters.lead_time[:, 0].unique().tolist() == [2.0]
    batch = fresh_scenarios(setting, simulator, batch=3, periods=12, generator=torch.Generator().manual_seed(0))
    result = simulator.rollout(lambda o: torch.tensor([[6.0, 0, 0]] * 3, dtype=torch.float64), batch, check=True)
    on_hand = torch.stack(result.slots).sum(0)[:, 0]
    torch.testing.assert_close(on_hand, torch.full((3,), 72.0, dtype=torch.float64))


def test_values_from_files_beside_the_setting(tmp_path: Path) -> None:
    np.save(tmp_path / "costs.npy", np.array([0.25, 0.5, 0.4]))
    (tmp_path / "leads.csv").write_text("lead\n2\n7\n2\n")
    setting = own(
        tmp_path,
        ("holding_cost = [1.0, 2.0]", 'holding_cost = { file = "costs.npy" }'),
        ("lead_time = [1, 3]", 'lead_time = { file = "leads.csv" }'),
    )
    assert setting.lead_time_range == (2, 7)
    assert setting.network.nodes[1].holding_cost == pytest.approx(1.15 / 3)  # the typical value
    assert setting.network.edges[1].lead_time == 2
    parameters = scenario_parameters(setting, make_simulator(setting), 3)
    assert parameters.lead_time[:, 1].tolist() == [2, 7, 2]
    np.testing.assert_allclose(parameters.holding_cost[:, 2], [0.25, 0.5, 0.4], rtol=1e-6)


def test_overrides(tmp_path: Path) -> None:
    own(tmp_path)
    path = tmp_path / "own.toml"
    changed = load_setting(
        path,
        {
            "shop.lead_time": 6,
            "shop.underage_cost": [4, 5],
            "depot.holds_stock": False,
            "demand.mean": 2.5,
            "goal": "profit",
            "title": "Two shops",
            "initial_stock.periods": 2,
            "paper.demand_seed": 7,
        },
    )
    assert [e.lead_time for e in changed.network.edges] == [2, 6, 6]
    assert [n.underage_cost for n in changed.network.nodes] == [None, 4.0, 5.0]
    assert changed.network.must_ship_all == (True, False, False)
    assert changed.network.goal == "profit"
    assert (changed.title, changed.initial_periods, changed.seeds["demand_seed"]) == ("Two shops", 2, 7)
    assert changed.demand.mean.tolist() == [2.5, 2.5]
    assert load_setting(path).network.goal == "cost"


def test_past_demand_of_fresh_and_of_the_papers_paths() -> None:
    setting = small("one_store_lost", **{"demand.history": 3})
    simulator = make_simulator(setting, dtype=torch.float64)
    fresh = fresh_scenarios(setting, simulator, batch=2, periods=6, generator=torch.Generator().manual_seed(0))
    assert (fresh.periods, fresh.history, fresh.demand.shape[0]) == (6, 3, 9)
    dev, train = (paper_scenarios(setting, simulator, split) for split in ("dev", "train"))  # type: ignore[arg-type]
    assert (dev.periods, train.periods, dev.history) == (9, 5, 3)
    seen = simulator.observe(dev, dev.slots, 2).past_demand
    assert seen is not None
    torch.testing.assert_close(seen[:, 0], dev.demand[2:5, :, 0].T)


def test_initial_stock_is_uniform_in_its_range(tmp_path: Path) -> None:
    setting = own(tmp_path, ("[demand]", "[initial_stock]\nmultiple_of_mean = [0.5, 2.0]\nperiods = 2\n[demand]"))
    simulator = make_simulator(setting, dtype=torch.float64)
    slots = torch.stack(initial_slots(setting, simulator, 4000, torch.Generator().manual_seed(0)))
    assert slots.shape == (3, 4000, 3)
    assert float(slots[:, :, 0].abs().sum()) == 0
    stores = slots[:, :, 1:] / 4.0
    assert 0.5 <= float(stores.min()) < 0.51
    assert 1.99 < float(stores.max()) <= 2.0
    assert float(stores.mean()) == pytest.approx(1.25, abs=4 * 1.5 / 12**0.5 / (3 * 4000 * 2) ** 0.5)
