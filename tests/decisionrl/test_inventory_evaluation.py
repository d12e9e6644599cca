"""Simulated costs against exact optima, feasibility of every policy in every setting, and rounding to whole units."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from decisionrl.envs.inventory import oracles
from decisionrl.envs.inventory.scenarios import fresh_scenarios, make_simulator
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import InfeasibleOrderError, Observation
from decisionrl.evaluation.inventory import Evaluation, evaluate_on_series, evaluate_policies
from decisionrl.names import UnknownNameError, pick
from decisionrl.policies.inventory_rules import BaseStock, CappedBaseStock, EchelonStock, inventory_position
from decisionrl.policies.topology import echelon_share, order_up_to_levels
from decisionrl.recipes.inventory_policies import BUILDERS, Build, build_policy


def evaluate(setting: Setting, policy: Any, **options: Any) -> Evaluation:
    simulator = make_simulator(setting)
    sizes = {"scenarios": 1024, "periods": 600, "warmup": 200, "seed": 3} | options
    return evaluate_policies({"policy": policy}, setting, simulator, **sizes)["policy"]  # type: ignore[arg-type]


def assert_costs(result: Evaluation, exact: float, *, slack: float = 0.0) -> None:
    """Within four standard errors of the exact value, and precise enough to mean something."""
    error = result.cost.std(ddof=1) / len(result.cost) ** 0.5
    assert error < 0.005 * exact
    assert abs(result.mean - exact) < 4 * error + slack * exact, f"{result.mean} vs {exact} +- {error}"


@pytest.mark.parametrize(("lead", "underage"), [(1, 4.0), (4, 9.0)])
def test_base_stock_at_the_optimal_level(lead: int, underage: float) -> None:
    setting = load_setting("one_store_backlogged", {"store.lead_time": lead, "store.underage_cost": underage})
    best = oracles.newsvendor_base_stock(
        lead_time=lead, holding_cost=1.0, underage_cost=underage, demand_mean=5.0, demand_std=1.6
    )
    assert_costs(evaluate(setting, BaseStock(level=best.level)), best.cost)


def test_base_stock_in_whole_units_with_backlog() -> None:
    """E[h (S - D)^+ + p (D - S)^+], D Poisson of L + 1 periods: only if stock is counted in whole units."""
    setting = load_setting("one_store_lost", {"unmet_demand": "backlogged", "store.lead_time": 1})
    demand = np.arange(200)
    weights = stats.poisson.pmf(demand, 10.0)
    exact = float(weights @ (np.maximum(14 - demand, 0) + 9 * np.maximum(demand - 14, 0)))
    assert_costs(evaluate(setting, BaseStock(level=14.0)), exact)


def test_the_optimal_table_of_lost_sales() -> None:
    setting = load_setting("one_store_lost", {"store.lead_time": 2})
    solved = oracles.solve_lost_sales(lead_time=2, holding_cost=1.0, underage_cost=9.0)
    assert solved.cost == pytest.approx(6.09364, abs=1e-4)

    def table(observation: Observation) -> Tensor:
        stock = torch.cat(observation.slots[:2], -1).numpy()
        return torch.as_tensor(solved.order(stock)[:, None], dtype=torch.float32)

    assert_costs(evaluate(setting, table), solved.cost)


@pytest.mark.parametrize(
    ("lead", "level", "cap", "exact"), [(4, 29.0, 5.0, 6.91228), (2, 19.0, 6.0, 6.11909), (4, 28.0, 1e6, 7.27093)]
)
def test_capped_base_stock_of_lost_sales(lead: int, level: float, cap: float, exact: float) -> None:
    setting = load_setting("one_store_lost", {"store.lead_time": lead})
    assert_costs(evaluate(setting, CappedBaseStock(level=level, cap=cap)), exact)


def test_echelon_stock_at_the_optimal_levels() -> None:
    setting = load_setting("serial_system", {"store.lead_time": 2})
    policy = EchelonStock(setting.network, levels=[72.64, 62.16, 38.06, 20.70])
    assert_costs(evaluate(setting, policy), 9.2610)


@pytest.mark.parametrize("stores", [3, 5])
def test_water_filling_attains_the_bound(stores: int) -> None:
    setting = load_setting("transshipment_backlogged", {"store.count": stores})
    policy = BUILDERS["water_filling"](Build(setting, make_simulator(setting)))
    assert_costs(evaluate(setting, policy), {3: 5.7537, 5: 5.2964}[stores], slack=0.001)


GENERATOR = {"items": 20, "periods": 171, "seed": 3}


# --- every policy in every setting -----------------------------------------------------------------------------

FITTING = {
    "one_store_lost": {"base_stock", "capped_base_stock", "echelon_stock"},
    "one_store_backlogged": {"base_stock", "capped_base_stock", "echelon_stock"},
    "serial_system": {"echelon_stock"},
    "transshipment_backlogged": {"store_base_stock", "water_filling"},
    "one_warehouse_lost_demand": {"store_base_stock", "water_filling"},
    "many_warehouses_lost_demand": {"store_base_stock"},
}
PAIRS = [(name, policy) for name, rules in FITTING.items() for policy in sorted(rules | {"mlp", "gnn"})]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mlp": [{}, {"allocation": "softmax", "supplier_head": "sigmoid"}, {"scaled": False, "skip": False}],
    "gnn": [{}, {"rounds": 2, "skip": False}],
}


@pytest.mark.parametrize(("name", "policy"), PAIRS)
def test_every_fitting_policy_is_feasible(name: str, policy: str) -> None:
    setting = load_setting(name)
    simulator = make_simulator(setting)
    rng = torch.Generator().manual_seed(1)
    scenario = fresh_scenarios(setting, simulator, batch=16, periods=12, generator=rng)
    for seed, options in enumerate(OPTIONS.get(policy, [{}])):
        torch.manual_seed(seed)
        actor = BUILDERS[policy](Build(setting, simulator), **options)
        with torch.no_grad():
            for parameter in actor.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=rng)
            cost = simulator.rollout(actor, scenario, check=True).cost
        assert bool(torch.isfinite(cost).all())


@pytest.mark.parametrize("options", [{}, {"scaled": False}], ids=["scaled", "raw units"])
@pytest.mark.parametrize("policy", ["mlp", "gnn"])
@pytest.mark.parametrize("name", FITTING)
def test_an_untrained_network_keeps_stock_bounded(name: str, policy: str, options: dict[str, Any]) -> None:
    """It starts as echelon order-up-to rules: echelon positions end near their levels, and stay there."""
    setting = load_setting(name)
    simulator = make_simulator(setting)
    flow = setting.network.flow_scale(setting.demand.mean)[0].tolist()
    levels, share = order_up_to_levels(setting.network, flow), echelon_share(setting.network)
    for seed in range(2):
        actor = build_policy(policy, setting, simulator, options=options, seed=seed)
        rng = torch.Generator().manual_seed(seed)
        slots = None
        for _ in range(2):
            scenario = fresh_scenarios(setting, simulator, batch=16, periods=300, generator=rng, slots=slots)
            with torch.no_grad():
                slots = simulator.rollout(actor, scenario, check=True).slots
            relative = inventory_position(slots) @ share.T / levels
            assert float(relative.min()) > -0.5
            assert float(relative.max()) < 2.0


VALID = {
    "base_stock": "a network of one store",
    "capped_base_stock": "a network of one store",
    "echelon_stock": "a serial network",
    "store_base_stock": "warehouses supplied from outside, then stores",
    "water_filling": "one warehouse that supplies every store",
    "just_in_time": "stores supplied from outside or by warehouses that are",
} | dict.fromkeys(
    ("data_driven_net", "fixed_quantile", "transformed_nv", "quantile_nv", "returns_nv"), "a setting of series"
)
REFUSED = [
    (name, policy)
    for name, rules in FITTING.items()
    for policy in VALID
    if policy not in rules and (policy != "just_in_time" or name == "serial_system")
]


@pytest.mark.parametrize(("name", "policy"), REFUSED)
def test_a_rule_that_does_not_fit_says_so(name: str, policy: str) -> None:
    setting = load_setting(name)
    message = f"policy '{policy}' does not fit setting '{name}'; valid: {VALID[policy]}"
    with pytest.raises(ValueError, match=re.escape(message)):
        BUILDERS[policy](Build(setting, make_simulator(setting)))


def test_a_forecast_rule_refuses_three_stages_before_it_trains_a_forecaster() -> None:
    series = load_setting("one_store_real_data_lost_demand", {"demand.generator": GENERATOR})
    setting = replace(series, network=load_setting("serial_system").network)
    with pytest.raises(ValueError, match=r"'quantile_nv' does not fit .* valid: stores supplied from outside"):
        BUILDERS["quantile_nv"](Build(setting, make_simulator(setting)))


@pytest.mark.parametrize("name", [name for name in FITTING if name != "serial_system"])
def test_just_in_time_fits_any_demand_that_it_is_shown(name: str) -> None:
    """Once the pipeline is filled nothing is lost or held: what is left is the backlog of the start, or the lanes."""
    setting = load_setting(name)
    simulator = make_simulator(setting, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    scenario = fresh_scenarios(setting, simulator, batch=16, periods=40, generator=rng)
    demand = scenario.demand.clamp(min=0)
    policy = build_policy("just_in_time", setting, simulator)
    with pytest.raises(ValueError, match="roll it out with oracle=True"):
        simulator.rollout(policy, scenario)
    start = replace(scenario, slots=simulator.empty_slots(16), demand=demand)
    cost = simulator.rollout(policy, start, oracle=True).cost[20:30]
    if setting.network.unmet_demand == "backlogged":
        torch.testing.assert_close(cost, cost[:1].expand_as(cost))
    else:
        dearest = max(edge.cost for edge in setting.network.edges)
        assert bool((cost <= 1e-9 + dearest * demand[20:40].amax(0).sum(-1)).all())


def test_an_unknown_option_of_a_policy_is_named() -> None:
    setting = load_setting("one_store_lost")
    with pytest.raises(ValueError, match=r"policy 'mlp': .*unexpected keyword argument 'hiden'"):
        build_policy("mlp", setting, make_simulator(setting), options={"hiden": (8,)})


def test_unknown_policy() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown policy 'basestock'; did you mean 'base_stock'\?.*Known: .*gnn"
    ):
        pick("policy", "basestock", BUILDERS)


# --- the evaluation itself ---------------------------------------------------------------------------------------


def test_policies_meet_the_same_demand_and_seeds_differ() -> None:
    setting = load_setting("one_store_lost")
    simulator = make_simulator(setting)
    sizes = {"scenarios": 32, "periods": 40, "warmup": 10}
    pair = {"a": BaseStock(level=28.0), "b": BaseStock(level=28.0)}
    both = evaluate_policies(pair, setting, simulator, seed=1, **sizes)  # type: ignore[arg-type]
    np.testing.assert_array_equal(both["a"].cost, both["b"].cost)
    alone = evaluate_policies({"b": pair["b"]}, setting, simulator, seed=1, **sizes)  # type: ignore[arg-type]
    np.testing.assert_array_equal(alone["b"].cost, both["b"].cost)
    other = evaluate_policies({"b": pair["b"]}, setting, simulator, seed=2, **sizes)  # type: ignore[arg-type]
    assert (alone["b"].cost != other["b"].cost).any()


def test_a_store_that_never_orders_pays_for_every_unit_of_demand() -> None:
    """Once the initial stock is gone every unit of demand costs p = 9: 45 a period on average."""
    setting = load_setting("one_store_lost")
    result = evaluate(setting, lambda o: torch.zeros_like(o.slots[0]), scenarios=16, periods=90, warmup=60)
    assert result.mean == pytest.approx(45.0, rel=0.1)


def test_unchecked_policies_may_do_what_cannot_be_done() -> None:
    """Order up to less than the initial stock, where the excess may be sent back: a relaxed system, as bounds use."""
    setting = load_setting("one_store_backlogged")
    simulator = make_simulator(setting)
    rules = {
        "relaxed": lambda o: 10.0 - inventory_position(o.slots),
        "plain": BaseStock(level=10.0),
    }
    sizes = {"scenarios": 64, "periods": 60, "warmup": 30}
    with pytest.raises(InfeasibleOrderError, match="valid is >= 0"):
        evaluate_policies(rules, setting, simulator, **sizes)  # type: ignore[arg-type]
    results = evaluate_policies(rules, setting, simulator, unchecked=frozenset({"relaxed"}), **sizes)  # type: ignore[arg-type]
    np.testing.assert_allclose(results["relaxed"].cost, results["plain"].cost, rtol=1e-4)  # the excess is long gone


def test_cost_is_counted_after_the_warm_up_only() -> None:
    setting = load_setting("one_store_lost")
    simulator = make_simulator(setting)
    rng_sizes = {"scenarios": 8, "seed": 0}
    policy = {"p": BaseStock(level=28.0)}
    late = evaluate_policies(policy, setting, simulator, periods=50, warmup=20, **rng_sizes)["p"].cost  # type: ignore[arg-type]
    seen: list[float] = []
    costs: list[Tensor] = []
    plain_rollout = simulator.rollout

    def spy(*args: Any, **kwargs: Any) -> Any:
        rollout = plain_rollout(*args, **kwargs)
        costs.append(rollout.cost)
        return rollout

    simulator.rollout = spy  # type: ignore[method-assign]
    again = evaluate_policies(
        policy,
        setting,
        simulator,
        periods=50,
        warmup=20,
        progress=seen.append,
        **rng_sizes,  # type: ignore[arg-type]
    )
    everything = torch.cat(costs).double()
    assert everything.shape == (50, 8)
    np.testing.assert_allclose(again["p"].cost, late)
    np.testing.assert_allclose(late, everything[20:].mean(0))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("warmup", [-1, 40, 50])
def test_warm_up_must_leave_periods(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"warmup = {warmup}; valid: 0 to periods - 1 = 39"):
        evaluate(load_setting("one_store_lost"), BaseStock(level=28.0), periods=40, warmup=warmup)


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (lambda o: torch.full_like(o.slots[0][:, :6], float("nan")), "NaN"),
        (lambda o: -torch.ones_like(o.slots[0][:, :6]), "is -1"),
        (lambda o: 1000 * torch.ones_like(o.slots[0][:, :6]), "more than it has on hand"),
        (lambda o: torch.ones_like(o.slots[0][:, :5]), r"\[16, 5\]; valid: \[\.\.\., 16, 6\]"),
    ],
)
def test_a_policy_that_cheats_is_caught(policy: Any, match: str) -> None:
    with pytest.raises(InfeasibleOrderError, match=match):
        evaluate(load_setting("one_warehouse_lost_demand"), policy, scenarios=16, periods=20, warmup=5)


HUB = """
unmet_demand = "backlogged"
[[nodes]]
name = "hub"
holding_cost = 0.5
holds_stock = {holds}
[[nodes]]
name = "store"
count = 3
holding_cost = 1.0
underage_cost = 4.0
[[edges]]
from = "supplier"
to = "hub"
lead_time = 2
[[edges]]
from = "hub"
to = "store"
lead_time = 1
[demand]
kind = "poisson"
mean = [2.0, 3.0, 4.0]
"""


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("policy", ["store_base_stock", "water_filling", "mlp", "gnn"])
def test_whole_units_stay_whole_and_feasible(tmp_path: Path, policy: str, holds: bool) -> None:
    """Rounded shipments: a hub that may not hold stock still ships all, a warehouse never more than it has."""
    (tmp_path / "hub.toml").write_text(HUB.format(holds=str(holds).lower()))
    setting = load_setting(tmp_path / "hub.toml")
    simulator = make_simulator(setting)
    torch.manual_seed(0)
    actor = BUILDERS[policy](Build(setting, simulator))
    kept: list[Tensor] = []

    def watch(observation: Observation) -> Tensor:
        assert all(torch.equal(slot, slot.round()) for slot in observation.slots)
        orders = actor(observation)
        kept.append(observation.slots[0][:, 0].clone())
        return orders

    # warmup=0 and 16 periods: every period is checked for feasibility.
    result = evaluate(setting, watch, scenarios=64, periods=16, warmup=0)
    assert np.isfinite(result.cost).all()
    assert float(torch.stack(kept).max()) > 0


def test_series_are_evaluated_on_their_split() -> None:
    setting = load_setting("many_warehouses_real_data_lost_demand", {"demand.generator": GENERATOR})
    simulator = make_simulator(setting)
    idle = lambda o: torch.zeros(o.slots[0].shape[0], simulator.network.num_edges)  # noqa: E731
    assert evaluate_on_series({"idle": idle}, setting, simulator)["idle"].cost.tolist() == [0.0] * 20
    source = {j: e for e, j in enumerate(simulator.network.edge_destination)}  # one lane for each node

    def clairvoyant(observation: Observation) -> Tensor:
        assert observation.future is not None
        orders = idle(observation)
        for node in range(3):
            orders[:, source[node]] = 5000.0
        for store in range(21):
            orders[:, source[3 + store]] = observation.slots[0][:, 0] * 0
        return orders

    costs = evaluate_on_series({"c": clairvoyant}, setting, simulator, oracles=frozenset({"c"}))["c"].cost
    fees = 5000.0 * (0.5 + 1.5 + 0.7) / 21
    assert (costs > fees).all()  # ordering without selling pays the fees and the holding
    with pytest.raises(AssertionError):
        evaluate_on_series({"c": clairvoyant}, setting, simulator)
