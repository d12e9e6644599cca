"""Every policy on settings of series: built by name, feasible, trainable; and the real data where they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from decisionrl.checkpoint import load_weights
from decisionrl.envs.inventory.scenarios import make_simulator, series_scenarios
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import Scenario
from decisionrl.evaluation.inventory import evaluate_on_series
from decisionrl.experience.scenarios import FiniteScenarios, WindowedScenarios
from decisionrl.policies.quantile import QuantileForecaster
from decisionrl.recipes.forecaster import forecast_horizons
from decisionrl.recipes.hdpo import dev_evaluation, hdpo
from decisionrl.recipes.inventory_policies import ORACLES, UNTRAINED, build_policy
from decisionrl.trainer import Trainer

STORES_21 = "many_warehouses_real_data_lost_demand"
ONE_STORE = "one_store_real_data_lost_demand"
RULES = ["fixed_quantile", "transformed_nv", "quantile_nv", "returns_nv"]
TRAINED = ["data_driven_net", "gnn", "fixed_quantile", "transformed_nv"]
DATA = Path(os.environ.get("DECISIONRL_DATA", ".")) / "favorita_21_stores" / "weekly_sales.pt"


def small(name: str, items: int = 12) -> Setting:
    return load_setting(name, {"demand.generator": {"items": items, "periods": 171, "seed": 5}})


def quick(policy: str, setting: Setting) -> dict[str, object]:
    """An untrained forecaster for the rules that need one."""
    if policy not in RULES:
        return {}
    torch.manual_seed(0)
    return {"forecaster": QuantileForecaster(history=16, horizons=forecast_horizons(setting))}


@pytest.mark.parametrize("name", [STORES_21, ONE_STORE])
@pytest.mark.parametrize("policy", ["data_driven_net", "gnn", "fixed_quantile", "transformed_nv", "quantile_nv"])
def test_orders_are_feasible(policy: str, name: str) -> None:
    setting = small(name)
    simulator = make_simulator(setting)
    actor = build_policy(policy, setting, simulator, options=quick(policy, setting))
    scenario = series_scenarios(setting, simulator, "test")
    with torch.no_grad():
        cost = simulator.rollout(actor, scenario, check=True).cost
    assert bool(torch.isfinite(cost).all())


@pytest.mark.parametrize("policy", TRAINED)
def test_training_lowers_the_cost(policy: str) -> None:
    setting = small(ONE_STORE, items=40)
    experiment = hdpo(setting=setting, policy=policy, steps=40, batch=32, policy_options=quick(policy, setting))
    simulator = make_simulator(setting)

    def cost() -> float:
        return evaluate_on_series({policy: experiment.policy}, setting, simulator, split="dev")[policy].mean

    before = cost()
    Trainer(experiment).fit(40)
    assert cost() < before


@pytest.mark.parametrize("policy", sorted(UNTRAINED))
def test_policies_without_parameters_are_built_but_not_trained(policy: str) -> None:
    setting = small(STORES_21, items=3)
    options = quick(policy, setting)
    simulator = make_simulator(setting)
    actor = build_policy(policy, setting, simulator, options=options)
    result = evaluate_on_series({policy: actor}, setting, simulator, oracles=ORACLES)
    assert np.isfinite(result[policy].cost).all()
    with pytest.raises(ValueError, match="nothing to train"):
        hdpo(setting=setting, policy=policy, policy_options=options)


def test_a_given_forecaster_leaves_nothing_to_train_it_by() -> None:
    setting = small(ONE_STORE, items=3)
    simulator = make_simulator(setting)
    with pytest.raises(ValueError, match="steps"):
        build_policy("quantile_nv", setting, simulator, options={**quick("quantile_nv", setting), "steps": 3})


def test_series_are_trained_on_windows_unless_told_otherwise() -> None:
    setting = small(ONE_STORE, items=3)
    windows = hdpo(setting=setting, policy="data_driven_net")
    assert isinstance(windows.source, WindowedScenarios)
    assert (windows.config["batch"], windows.config["periods"]) == (256, 16)
    network = hdpo(setting=small(STORES_21, items=3), policy="gnn")
    assert (network.config["batch"], network.config["periods"]) == (16, 20)
    finite = hdpo(setting=setting, policy="data_driven_net", protocol="finite")
    assert isinstance(finite.source, FiniteScenarios)
    assert finite.config["protocol"] == "finite"


def test_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    setting = small(ONE_STORE, items=5)

    def trainer() -> Trainer:
        return Trainer(hdpo(setting=setting, policy="data_driven_net", steps=6, batch=4))

    whole = trainer()
    whole.fit(6)
    first, second = trainer(), trainer()
    first.fit(3)
    second.load_state_dict(first.state_dict())
    second.fit(6)
    for a, b in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_best_weights_on_dev_are_kept_and_a_forecaster_is_recorded_by_its_weights(tmp_path: Path) -> None:
    setting = small(ONE_STORE, items=5)
    simulator = make_simulator(setting)
    options = quick("fixed_quantile", setting)
    experiment = hdpo(setting=setting, policy="fixed_quantile", steps=6, batch=4, policy_options=options)
    evaluate = dev_evaluation(setting, simulator, every=2)
    Trainer(experiment, callbacks=[evaluate], out=tmp_path / "run").fit(6)
    load_weights(experiment.policy, tmp_path / "run" / "best.safetensors")
    result = evaluate_on_series({"best": experiment.policy}, setting, simulator, split="dev")
    assert result["best"].mean == evaluate.best
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["policy_options"]["forecaster"]
    again = hdpo(setting=setting, policy="fixed_quantile", policy_options=quick("fixed_quantile", setting))
    assert recorded == again.config["policy_options"]["forecaster"]


def test_time_may_differ_by_scenario() -> None:
    setting = small(STORES_21, items=3)
    simulator = make_simulator(setting)
    scenario = series_scenarios(setting, simulator, "dev")
    assert scenario.time is not None
    repeated = Scenario(
        slots=scenario.slots,
        demand=scenario.demand,
        parameters=scenario.parameters,
        history=scenario.history,
        time=scenario.time[:, None].expand(-1, 3, -1),
    )
    for policy in ("gnn", "data_driven_net", "transformed_nv"):
        actor = build_policy(policy, setting, simulator, options=quick(policy, setting))
        with torch.no_grad():
            same, each = (simulator.rollout(actor, s).cost for s in (scenario, repeated))
        assert torch.allclose(same, each, rtol=1e-5)


needs_data = pytest.mark.skipif(
    not DATA.is_file(), reason="set DECISIONRL_DATA to the folder that holds favorita_21_stores"
)


@needs_data
@pytest.mark.parametrize(("split", "expected"), [("train", -689.01), ("dev", -653.37), ("test", -618.41)])
def test_just_in_time_on_the_real_series_equals_the_reference(split: str, expected: float) -> None:
    setting = load_setting(STORES_21, data=DATA)
    simulator = make_simulator(setting)
    oracle = build_policy("just_in_time", setting, simulator)
    result = evaluate_on_series({"just_in_time": oracle}, setting, simulator, split=split, oracles=ORACLES)
    assert round(result["just_in_time"].mean, 2) == expected


@pytest.mark.slow
@needs_data
def test_networks_beat_every_newsvendor_rule_on_the_real_series() -> None:
    setting = load_setting(STORES_21, data=DATA)
    simulator = make_simulator(setting)
    policies = {"quantile_nv": build_policy("quantile_nv", setting, simulator)}
    for name, steps in (("fixed_quantile", 60), ("transformed_nv", 60), ("gnn", 100), ("data_driven_net", 400)):
        experiment = hdpo(setting=setting, policy=name, steps=steps)
        Trainer(experiment).fit(steps)
        policies[name] = experiment.policy
    result = evaluate_on_series(policies, setting, simulator)
    rules = [result[name].mean for name in ("quantile_nv", "fixed_quantile", "transformed_nv")]
    for name in ("gnn", "data_driven_net"):
        assert result[name].mean < min(rules)
