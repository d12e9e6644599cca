"""The recipe in every synthetic setting with every policy that fits: it trains, and a seed fixes the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from decisionrl.callbacks import Callback
from decisionrl.envs.inventory import oracles
from decisionrl.envs.inventory.demand import DemandError
from decisionrl.envs.inventory.scenarios import make_simulator, paper_scenarios
from decisionrl.envs.inventory.setting import Setting, SettingError, load_setting
from decisionrl.evaluation.inventory import evaluate_policies
from decisionrl.learner import GradientLearner
from decisionrl.names import UnknownNameError
from decisionrl.policies.mlp import InventoryMLP
from decisionrl.recipes.hdpo import default_periods, hdpo, longest_way
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


SERIES = {
    "demand.generator": {"items": 10, "periods": 60, "seed": 1},
    "paper.train": {"scenarios": 10, "periods": 24, "ignore": 1, "batch": 4, "columns": [0, 40]},
    "paper.dev": {"scenarios": 10, "periods": 8, "ignore": 1, "batch": 4, "columns": [8, 32]},
    "paper.test": {"scenarios": 10, "periods": 8, "ignore": 1, "batch": 4, "columns": [16, 40]},
}


@pytest.mark.parametrize("policy", ["mlp", "gnn"])
@pytest.mark.parametrize("protocol", [None, "windows", "finite"])
def test_series_train_on_their_own_split(policy: str, protocol: Any) -> None:
    """Windows as long as two ways to the customer (lead time 6 at most) by default, the whole split if finite."""
    setting = "one_store_real_data_lost_demand"
    experiment = hdpo(setting=setting, policy=policy, protocol=protocol, overrides=SERIES, steps=3)
    assert experiment.config["protocol"] == (protocol or "windows")
    batch, periods = (4, 24) if protocol == "finite" else (256, 16)
    assert (experiment.config["batch"], experiment.config["periods"]) == (batch, periods)
    sample = experiment.source.sample()
    assert (sample.batch, sample.history, sample.periods) == (batch, 16, periods)
    Trainer(experiment).fit(3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one_store_lost", 32),  # a lead time of 4
        ("serial_system", 104),  # 2 + 4 + 3 + 4 periods
        ("many_warehouses_lost_demand", 72),  # 3 + 6 periods
    ],
)
def test_default_periods_are_eight_times_the_longest_way(name: str, expected: int) -> None:
    setting = load_setting(name)
    assert default_periods(setting) == 8 * longest_way(setting) == expected
    config = hdpo(setting=setting).config
    assert (config["periods"], config["batch"]) == (expected, 8192 // expected)


def test_default_periods_stay_between_32_and_128() -> None:
    assert default_periods(load_setting("one_store_lost", {"store.lead_time": 1})) == 32
    assert default_periods(load_setting("serial_system", {"store.lead_time": 12})) == 128


def small_paper_setting(name: str) -> Setting:
    """The released protocol on a few scenarios; its own draw of 12 + 8 paths of 10 periods."""
    setting = load_setting(name)
    sizes = {"train": 12, "dev": 8, "test": 8}
    phases = {k: replace(v, scenarios=sizes[k], periods=10, ignore=2, batch=5) for k, v in setting.phases.items()}
    return replace(setting, phases=phases)


@pytest.mark.parametrize(
    ("name", "policy", "rate", "hidden", "head"),
    [
        ("one_store_lost", "mlp", 0.003, [32, 32, 32], "softplus"),
        ("serial_system", "mlp", 0.01, [32, 32], "sigmoid"),
    ],
)
def test_the_paper_protocol_is_the_released_set_up(
    name: str, policy: str, rate: float, hidden: list[int], head: str
) -> None:
    """Constant learning rate, raw units, no skip, no clipping, shuffled batches of one fixed set."""
    setting = small_paper_setting(name)
    experiment = hdpo(setting=setting, policy=policy, protocol="paper", steps=2)
    network, learner = experiment.policy, experiment.learner
    assert isinstance(network, InventoryMLP)
    assert isinstance(learner, GradientLearner)
    linear = [layer for layer in network.net if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear[:-1]] == hidden
    assert (network.scaled, network.skip, network.supplier_head) == (False, None, head)
    # Raw units: orders of one store are softplus(z) themselves, those of a network 4 flows at the most.
    assert network.edge_scale.tolist() == ([1.0] if name == "one_store_lost" else [5.0] * 4)
    assert experiment.callbacks == ()
    assert (experiment.config["batch"], experiment.config["periods"]) == (5, 10)

    fixed = paper_scenarios(setting, make_simulator(setting), "train")
    known = {tuple(path.tolist()) for path in fixed.demand[:, :, 0].T}
    assert len(known) == 12
    sampled = hdpo(setting=setting, policy=policy, protocol="paper", steps=2).source.sample()
    assert {tuple(path.tolist()) for path in sampled.demand[:, :, 0].T} <= known

    rates: list[float] = []

    class Watch(Callback):
        def on_step(self, trainer: Trainer) -> None:
            rates.extend(group["lr"] for group in learner.optimizer.param_groups)

    before = [p.detach().clone() for p in network.parameters()]
    Trainer(experiment, callbacks=[Watch()]).fit(2)
    assert rates == [rate, rate]
    assert experiment.config["clip_norm"] is None
    # Adam's first steps move every weight by about the learning rate, whatever the size of the gradient.
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(network.parameters(), before, strict=True))
    assert 0.5 * rate < moved < 2.1 * rate


def test_the_paper_protocol_knows_its_policies_only() -> None:
    with pytest.raises(ValueError, match="no released set-up for policy 'store_base_stock'; valid: mlp, gnn, base"):
        hdpo(setting="one_warehouse_lost_demand", policy="store_base_stock", protocol="paper")


def test_mistakes_are_named() -> None:
    with pytest.raises(SettingError, match="did you mean 'one_store_lost'"):
        hdpo(setting="one_store_lst")
    with pytest.raises(UnknownNameError, match=r"unknown policy 'mpl'; did you mean 'mlp'\?"):
        hdpo(policy="mpl")
    with pytest.raises(ValueError, match=r"protocol = 'endless'; valid: continuing, windows, finite, paper"):
        hdpo(protocol="endless")  # type: ignore[arg-type]
    with pytest.raises(DemandError, match="finite table of series"):
        hdpo(setting="many_warehouses_real_data_lost_demand", protocol="continuing")
    with pytest.raises(
        ValueError, match="'base_stock' does not fit setting 'serial_system'; valid: a network of one store"
    ):
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
