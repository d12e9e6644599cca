"""The recipe in every synthetic setting with every policy that fits: it trains, and a seed fixes the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from decisionrl.envs.inventory import oracles
from decisionrl.envs.inventory.demand import DemandError
from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import SettingError, load_setting
from decisionrl.evaluation.inventory import evaluate_policies
from decisionrl.names import UnknownNameError
from decisionrl.recipes.hdpo import default_periods, hdpo
from decisionrl.trainer import Trainer

RULES = {
    "one_store_lost": ["base_stock", "capped_base_stock"],
    "one_store_backlogged": ["base_stock", "capped_base_stock", "echelon_stock"],
    "serial_system": ["echelon_stock"],
    "transshipment_backlogged": ["store_base_stock", "water_filling"],
    "one_warehouse_lost_demand": ["store_base_stock"],
    "many_warehouses_lost_demand": ["store_base_stock"],
}
PAIRS = [(name, policy) for name, rules in RULES.items() for policy in ["mlp", "gnn", *rules]]
SMALL = {
    f"paper.{split}": {"scenarios": 12, "periods": 6, "ignore": 1, "batch": 5} for split in ("train", "dev", "test")
}


def trained(steps: int = 3, **options: Any) -> dict[str, torch.Tensor]:
    experiment = hdpo(**{"batch": 8, "periods": 6, "steps": steps, **options})
    Trainer(experiment).fit(steps)
    return {name: value.detach().clone() for name, value in experiment.policy.named_parameters()}


@pytest.mark.parametrize(("name", "policy"), PAIRS)
def test_three_steps_change_the_weights(name: str, policy: str) -> None:
    experiment = hdpo(setting=name, policy=policy, batch=8, steps=3)
    before = [p.detach().clone() for p in experiment.policy.parameters()]
    trainer = Trainer(experiment)
    trainer.fit(3)
    assert trainer.step == 3
    assert torch.isfinite(trainer.metrics["cost"])  # type: ignore[arg-type]
    after = list(experiment.policy.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("protocol", ["continuing", "finite"])
def test_the_same_seed_gives_the_same_weights(protocol: str) -> None:
    options = {"setting": "one_warehouse_lost_demand", "overrides": SMALL, "protocol": protocol}
    torch.manual_seed(1)
    first = trained(**options, seed=5)
    torch.manual_seed(2)  # the global generator has no say
    second, other = trained(**options, seed=5), trained(**options, seed=6)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    hdpo(setting="one_store_lost")
    assert torch.equal(torch.rand(3), expected)


def test_series_train_on_their_own_split() -> None:
    overrides = {
        "demand.generator": {"items": 10, "periods": 40, "seed": 1},
        "paper.train": {"scenarios": 10, "periods": 8, "ignore": 1, "batch": 4, "columns": [0, 24]},
        "paper.dev": {"scenarios": 10, "periods": 8, "ignore": 1, "batch": 4, "columns": [8, 32]},
        "paper.test": {"scenarios": 10, "periods": 8, "ignore": 1, "batch": 4, "columns": [16, 40]},
    }
    for policy in ("mlp", "gnn"):
        experiment = hdpo(setting="one_store_real_data_lost_demand", policy=policy, overrides=overrides, steps=3)
        assert experiment.config["protocol"] == "finite"
        assert (experiment.config["batch"], experiment.config["periods"]) == (4, 8)
        batch = experiment.source.sample()
        assert (batch.batch, batch.history, batch.periods) == (4, 16, 8)
        Trainer(experiment).fit(3)


@pytest.mark.parametrize(
    ("name", "expected"), [("one_store_lost", 16), ("serial_system", 28), ("many_warehouses_lost_demand", 20)]
)
def test_default_periods_cover_the_network_twice(name: str, expected: int) -> None:
    assert default_periods(load_setting(name)) == expected


def test_mistakes_are_named() -> None:
    with pytest.raises(SettingError, match="did you mean 'one_store_lost'"):
        hdpo(setting="one_store_lst")
    with pytest.raises(UnknownNameError, match=r"unknown policy 'mpl'; did you mean 'mlp'\?"):
        hdpo(policy="mpl")
    with pytest.raises(ValueError, match=r"protocol = 'endless'; valid: 'continuing', 'finite'"):
        hdpo(protocol="endless")  # type: ignore[arg-type]
    with pytest.raises(DemandError, match="finite table of series"):
        hdpo(setting="many_warehouses_real_data_lost_demand", protocol="continuing")
    with pytest.raises(ValueError, match="base-stock rule is for 1 node"):
        hdpo(setting="serial_system", policy="base_stock")


def test_finite_training_needs_its_split(tmp_path: Path) -> None:
    text = 'unmet_demand = "lost"\n[[nodes]]\nname = "s"\nholding_cost = 1.0\nunderage_cost = 9.0\n'
    text += '[[edges]]\nfrom = "supplier"\nto = "s"\nlead_time = 1\n[demand]\nkind = "poisson"\nmean = 3.0\n'
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SettingError, match=r"'own' has no split paper\.train; defined: none"):
        hdpo(setting=tmp_path / "own.toml", protocol="finite")
    Trainer(hdpo(setting=tmp_path / "own.toml", steps=3, batch=8)).fit(3)


@pytest.mark.slow
def test_base_stock_finds_the_optimal_level() -> None:
    """Level within 0.1 of the newsvendor's and cost within 0.2 %, as the exact policy on the same demand has it."""
    setting = load_setting("one_store_backlogged")
    experiment = hdpo(setting=setting, policy="base_stock", steps=400)
    Trainer(experiment).fit(400)
    best = oracles.newsvendor_base_stock(
        lead_time=4, holding_cost=1.0, underage_cost=9.0, demand_mean=5.0, demand_std=1.6
    )
    level = float(experiment.policy.level * experiment.policy.scale)  # type: ignore[operator,arg-type]
    assert level == pytest.approx(best.level, abs=0.1)
    results = evaluate_policies({"trained": experiment.policy}, setting, make_simulator(setting), seed=1)
    assert results["trained"].mean == pytest.approx(best.cost, rel=0.002)
