"""Costs and lead times that vary by scenario: at the stores, and nowhere else."""

import pytest
import torch

from decisionrl.envs.inventory.env import InventoryEnv
from decisionrl.envs.inventory.scenarios import make_simulator, scenario_parameters
from decisionrl.envs.inventory.setting import SettingError, load_setting

COST = '{ uniform = [1.0, 2.0], seed = 1, each = "scenario" }'
OTHER = '{ uniform = [1.0, 2.0], seed = 2, each = "scenario" }'
LEAD = '{ randint = [2, 4], seed = 2, each = "scenario" }'


def setting(tmp_path, *, warehouse="0.5", store=COST, other=COST, into_warehouse="7", lead=LEAD, edge_cost="0.0"):
    path = tmp_path / "setting.toml"
    path.write_text(
        f"""
        unmet_demand = "lost"
        [[nodes]]
        name = "warehouse"
        holding_cost = {warehouse}
        [[nodes]]
        name = "store"
        count = 2
        holding_cost = {store}
        underage_cost = 9.0
        [[nodes]]
        name = "shop"
        holding_cost = {other}
        underage_cost = 9.0
        [[edges]]
        from = "supplier"
        to = "warehouse"
        lead_time = {into_warehouse}
        [[edges]]
        from = "warehouse"
        to = ["store", "shop"]
        lead_time = {lead}
        cost = {edge_cost}
        [demand]
        kind = "poisson"
        mean = 5.0
        """
    )
    return load_setting(path)


def test_they_hold_at_the_stores_and_warehouses_keep_their_own(tmp_path):
    loaded = setting(tmp_path)
    parameters = scenario_parameters(loaded, make_simulator(loaded), 5)
    costs, leads = (torch.tensor(loaded.per_scenario[key].values(5)).float() for key in ("holding_cost", "lead_time"))
    assert parameters.holding_cost.shape == parameters.lead_time.shape == (5, 4)
    assert torch.equal(parameters.holding_cost[:, 0], torch.full((5,), 0.5))
    assert torch.equal(parameters.lead_time[:, 0], torch.full((5,), 7.0))
    for column in (1, 2, 3):
        assert torch.equal(parameters.holding_cost[:, column], costs)
        assert torch.equal(parameters.lead_time[:, column], leads)


def test_a_fixed_lead_time_beyond_their_range_still_delivers(tmp_path):
    env = InventoryEnv(setting(tmp_path), num_envs=4, periods=12, feasibility="assert", seed=0)
    env.reset()
    order = torch.tensor([[10.0, 0.0, 0.0, 0.0]]).expand(4, -1)
    on_hand = []
    for _ in range(9):
        env.step(order)
        on_hand.append(float(env.observation().slots[0][0, 0]))
    assert on_hand == [0.0] * 6 + [10.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warehouse": COST}, r"nodes\[0\]\.holding_cost = .* valid are holding_cost and underage_cost of nodes with"),
        ({"into_warehouse": LEAD}, r"edges\[0\]\.lead_time = .* and lead_time of edges to them"),
        ({"edge_cost": COST}, r"edges\[1\]\.cost = "),
        ({"other": "1.0"}, r"nodes\[2\]\.holding_cost: a value for each scenario is the same at all nodes with"),
        ({"other": OTHER}, r"nodes: holding_cost: a value for each scenario is the same at all nodes with demand"),
    ],
)
def test_they_are_refused_where_they_would_not_hold(tmp_path, options, message):
    with pytest.raises(SettingError, match=message):
        setting(tmp_path, **options)
