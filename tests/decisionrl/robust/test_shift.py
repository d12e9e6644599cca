"""Inventory policies under the worst demand near the one they were made for."""

import math

import numpy as np
import pytest
import torch

from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.evaluation.inventory import evaluate_policies
from decisionrl.policies.inventory_rules import BaseStock
from decisionrl.robust import shift
from decisionrl.robust.ambiguity import RadiusError
from decisionrl.robust.shift import robustify, worst_store_cost

PMF = [0.1, 0.3, 0.4, 0.2]


def store(unmet="lost", *, lead_time=1):
    """h = 1, p = 9."""
    name = "one_store_lost" if unmet == "lost" else "one_store_backlogged"
    return load_setting(name, {"store.lead_time": lead_time, "initial_stock.periods": lead_time})


def recursion(level, *, start, periods, rho, unmet):
    """The worst cost of a base-stock policy with lead time 1 in total variation: mass to the dearest demand."""
    value = {}

    def worst(x, t):
        if t == periods:
            return 0.0
        if (x, t) not in value:
            order = max(0, level - x)
            outcomes = []
            for demand in range(len(PMF)):
                left = x - demand
                cost = max(left, 0) + 9 * max(-left, 0)
                carried = max(left, 0) if unmet == "lost" else left
                outcomes.append(cost + worst(carried + order, t + 1))
            mass, budget = list(PMF), rho
            for k in sorted(range(len(PMF)), key=lambda k: outcomes[k]):
                moved = min(mass[k], budget)
                mass[k], budget = mass[k] - moved, budget - moved
            mass[int(np.argmax(outcomes))] += rho - budget
            value[x, t] = float(np.dot(mass, outcomes))
        return value[x, t]

    return worst(start, 0) / periods


@pytest.mark.parametrize("unmet", ["lost", "backlogged"])
def test_total_variation_is_the_recursion_by_hand(unmet):
    found = worst_store_cost(BaseStock(level=4.0), store(unmet), [0.05, 0.3, 1.0], periods=5, pmf=PMF, start=[2])
    options = {"start": 2, "periods": 5, "unmet": unmet}
    assert found.nominal == pytest.approx(recursion(4, rho=0.0, **options), abs=1e-12)
    expected = [recursion(4, rho=rho, **options) for rho in (0.05, 0.3, 1.0)]
    np.testing.assert_allclose(found.worst.numpy(), expected, atol=1e-12)


def test_one_period_of_kl_is_the_entropic_newsvendor():
    x, cost = 2, torch.tensor([2.0, 1.0, 0.0, 9.0], dtype=torch.float64)
    found = worst_store_cost(BaseStock(level=0.0), store(), [0.1], divergence="kl", periods=1, pmf=PMF, start=[x])
    b = torch.logspace(-1, 3, 100_001, dtype=torch.float64)
    p = torch.tensor(PMF, dtype=torch.float64)
    dual = b * (p.log() + cost / b[:, None]).logsumexp(-1) + b * 0.1
    assert float(found.worst[0]) == pytest.approx(float(dual.min()), abs=1e-7)
    assert found.nominal == pytest.approx(float(p @ cost), abs=1e-14)


@pytest.mark.parametrize("divergence", ["tv", "kl", "chi2"])
def test_costs_rise_with_the_radius_and_the_exact_nominal_cost_is_that_of_simulation(divergence):
    setting, policy = store(lead_time=2), BaseStock(level=18.0)
    found = worst_store_cost(policy, setting, [0.0, 0.02, 0.1, 0.4], divergence=divergence, periods=8)
    assert float(found.worst[0]) == pytest.approx(found.nominal, abs=1e-12)
    assert (found.worst.diff() > 0).all()
    if divergence == "tv":
        simulator = make_simulator(setting)
        cost = evaluate_policies({"p": policy}, setting, simulator, scenarios=20_000, periods=60, warmup=20)["p"].cost
        whole, early = (worst_store_cost(policy, setting, [], periods=n).nominal for n in (60, 20))
        assert 1.5 * whole - 0.5 * early == pytest.approx(cost.mean(), rel=0.01)  # periods 20 to 60


def test_reweighted_scenarios():
    setting, policy = store(lead_time=2), BaseStock(level=18.0)
    options = {"scenarios": 500, "periods": 30, "warmup": 10, "seed": 3}
    cost = np.sort(evaluate_policies({"p": policy}, setting, make_simulator(setting), **options)["p"].cost)[::-1]
    found = robustify(policy, setting, [0.0, 0.1, 1.0], **options)
    assert found.radius.tolist() == [0.0, 0.1, 1.0]
    assert found.nominal == pytest.approx(cost.mean(), abs=1e-12)
    # total variation: the cheapest tenth of the paths becomes the dearest one
    expected = [cost.mean(), (cost[:450].sum() + 50 * cost[0]) / 500, cost[0]]
    np.testing.assert_allclose(found.worst.numpy(), expected, atol=1e-10)
    for divergence in ("kl", "chi2"):
        worst = robustify(policy, setting, [0.01, 0.5, math.log(500), 1e4], divergence=divergence, **options).worst
        assert (worst.diff() >= -1e-12).all()
        assert float(worst[-1]) == pytest.approx(cost[0], abs=1e-9)


def test_a_policy_with_more_stock_degrades_less_when_demand_may_rise():
    setting = store(lead_time=1)
    lean, ample = (worst_store_cost(BaseStock(level=s), setting, [0.3], periods=10) for s in (12.0, 18.0))
    assert float(lean.worst[0]) - lean.nominal > float(ample.worst[0]) - ample.nominal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pmf": [0.5, 0.6]}, r"pmf = \[0.5, 0.6\]; valid: probabilities of 0"),
        ({"start": [1, 2, 3]}, r"start = \[1, 2, 3\]; valid: at most 1 numbers"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        worst_store_cost(BaseStock(level=4.0), store(), [0.1], **change)


def test_settings_that_do_not_fit(monkeypatch):
    policy = BaseStock(level=4.0)
    with pytest.raises(ValueError, match=r"one_warehouse_lost_demand: nodes = 6; valid: 1, a single store"):
        worst_store_cost(policy, load_setting("one_warehouse_lost_demand"), [0.1])
    monkeypatch.setattr(shift, "MAX_TABLE", 800)
    with pytest.raises(ValueError, match=r"more than 100 states can be reached; valid: shorter lead times"):
        worst_store_cost(BaseStock(level=20.0), store(lead_time=4), [0.1], pmf=PMF)
    with pytest.raises(RadiusError, match=r"radius\[1, 0, 0\] = 1.5"):
        robustify(policy, store(), [1.5])
