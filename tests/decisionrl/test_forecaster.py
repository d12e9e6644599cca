"""Pinball loss, forecast cases, and the training of forecasters."""

import dataclasses

import numpy as np
import pytest
import torch

from decisionrl.envs.inventory.demand import DemandError, SeriesDemand
from decisionrl.envs.inventory.scenarios import make_simulator, series_scenarios
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.experience.forecasts import ForecastData, ForecastSource
from decisionrl.objectives.pinball import Pinball, pinball_loss
from decisionrl.policies.quantile import QuantileForecaster
from decisionrl.recipes.forecaster import data_digest, forecast_horizons, train_forecaster
from decisionrl.seeding import generator


def one_store(items: int = 40) -> Setting:
    overrides = {"demand.generator": {"items": items, "periods": 171, "seed": 5}}
    return load_setting("one_store_real_data_lost_demand", overrides)


def with_table(setting: Setting, table: torch.Tensor) -> Setting:
    return dataclasses.replace(setting, demand=SeriesDemand(table=table))


def test_pinball_loss_is_least_at_the_empirical_quantile() -> None:
    sample = torch.from_numpy(np.random.default_rng(0).lognormal(size=999))
    candidates = sample.sort().values
    for u in (0.05, 0.3, 0.5, 0.95):
        loss = pinball_loss(candidates[:, None, None], sample, torch.tensor([u], dtype=torch.float64)).mean((1, 2))
        best = float(candidates[loss.argmin()])
        assert best == pytest.approx(np.quantile(sample.numpy(), u, method="inverted_cdf"))


def test_cases_hold_history_and_cumulative_demand_of_their_split_only() -> None:
    table = torch.arange(171.0).repeat(2, 1, 1) + torch.tensor([0.0, 1000.0])[:, None, None]
    setting = with_table(one_store(2), table)
    data = ForecastData(setting, "dev", horizons=(1, 3), skip=16)
    # dev is columns 88 to 140: 16 of history, 16 skipped, 21 to look ahead from.
    assert len(data) == 2 * 21
    case = data.take(torch.arange(len(data)))
    assert case.past_demand[0].tolist() == list(range(104, 120))
    assert case.target[0].tolist() == [120, 120 + 121 + 122]
    assert case.target[21].tolist() == [1120, 1120 + 1121 + 1122]
    assert case.target[20, 0] == 140
    assert torch.isnan(case.target[19:21, 1]).all()
    assert torch.isfinite(case.target[:19]).all()


def test_a_case_shows_the_calendar_that_the_policy_will_see() -> None:
    setting = one_store(3)
    data = ForecastData(setting, "train", horizons=(1,))
    scenario = series_scenarios(setting, make_simulator(setting), "train")
    case = data.take(torch.arange(data.columns))
    assert scenario.time is not None
    assert torch.equal(case.time, scenario.time[: data.columns])
    assert torch.equal(case.past_demand[5], scenario.demand[5 : 5 + 16, 0, 0])
    assert torch.equal(case.target[:, 0], scenario.demand[16:, 0, 0])


def test_targets_beyond_the_data_count_nothing() -> None:
    data = ForecastData(one_store(3), "train", horizons=(2, 7))
    network = QuantileForecaster(history=16, horizons=(2, 7))
    last = data.take(torch.tensor([data.columns - 1, data.columns - 2]))
    loss = Pinball()(network, last)
    assert bool(torch.isfinite(loss.value))
    loss.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def test_horizons_cover_what_the_rules_look_up() -> None:
    assert forecast_horizons(one_store()) == [5, 6, 7]
    network = load_setting(
        "many_warehouses_real_data_lost_demand", {"demand.generator": {"items": 2, "periods": 171, "seed": 5}}
    )
    # Lanes take 1, 2, 4, 5 or 6 periods; three more through the warehouse.
    assert forecast_horizons(network) == [2, 3, 5, 6, 7, 8, 9, 10]


def test_quantiles_of_stationary_demand_are_covered() -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(20, 200, (200, 1, 1))
    demand = torch.from_numpy(rng.gamma(4.0, level / 4.0, (200, 1, 171)).astype(np.float32))
    setting = with_table(one_store(200), demand)
    network = train_forecaster(setting, steps=500)
    test = ForecastData(setting, "test", horizons=network.horizons, skip=16)
    cases = test.take(torch.arange(len(test)))
    predicted = network(cases.past_demand, cases.time)
    known = torch.isfinite(cases.target)
    for u in (2, 9, 17):  # quantiles 0.15, 0.5, 0.9
        below = (cases.target <= predicted[..., u])[known].float().mean()
        assert float(below) == pytest.approx(float(network.grid[u]), abs=0.03)


def test_training_is_reproducible_by_seed_and_cached() -> None:
    setting = one_store(20)
    first = train_forecaster(setting, steps=20)
    assert train_forecaster(one_store(20), steps=20) is first  # the same data loaded again
    other = train_forecaster(setting, steps=20, seed=1)
    assert not torch.equal(first.net[0].weight, other.net[0].weight)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert data_digest(setting) != data_digest(one_store(21))


def test_source_resumes_bit_identically() -> None:
    data = ForecastData(one_store(3), "train", horizons=(1,))
    source = ForecastSource(data, batch=8, generator=generator(0, "windows"))
    source.sample()
    state = source.state_dict()
    expected = source.sample()
    other = ForecastSource(data, batch=8, generator=generator(5, "windows"))
    other.load_state_dict(state)
    assert torch.equal(other.sample().past_demand, expected.past_demand)


def test_settings_without_series_are_refused() -> None:
    setting = load_setting("one_store_lost")
    with pytest.raises(DemandError, match="no series"):
        train_forecaster(setting)
    with pytest.raises(DemandError, match="no series"):
        ForecastData(setting, "train", horizons=(1,))
