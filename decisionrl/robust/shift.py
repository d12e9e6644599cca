"""How an inventory policy degrades when demand is not what it was trained for.

Nature may replace the distribution of demand by any within a total variation, Kullback-Leibler or chi-square ball
around it, and chooses the one that costs most. (For a tabular policy in a linear MDP the same question is answered by
:func:`~decisionrl.robust.dynamic_programming.evaluate`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from decisionrl.envs.inventory.demand import PoissonDemand
from decisionrl.envs.inventory.oracles.demand import poisson_pmf
from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Observation, Policy, Simulator, Slots, bound
from decisionrl.evaluation.inventory import evaluate_on_series, evaluate_policies
from decisionrl.robust.ambiguity import Ball, Divergence

MAX_TABLE = 5_000_000
"""The largest number of radii times states times demands for which :func:`worst_store_cost` does its sums."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DemandShift:
    """Mean cost per period and store.

    Attributes:
        radius: of the balls, [n].
        nominal: without a shift.
        worst: under the worst demand in each ball, [n].
    """

    radius: Float[Tensor, " n"]
    nominal: float
    worst: Float[Tensor, " n"]


def robustify(
    policy: Policy,
    setting: Setting,
    radius: Sequence[float],
    *,
    divergence: Divergence = "tv",
    scenarios: int = 4096,
    periods: int = 60,
    warmup: int = 30,
    seed: int = 0,
) -> DemandShift:
    """The worst cost of any policy on any network over reweightings of sampled demand paths.

    With C_i the policy's cost on path i of n, the worst cost is sup { sum_i q_i C_i : D(q || 1/n) <= rho }. The ball is
    one around the distribution of whole paths, so nature shifts demand once and for all, and it cannot show demand that
    was never sampled: a lower estimate of the true worst case. Costs of long paths vary little; where shifts that last
    are meant, ``periods`` - ``warmup`` should be the time for which they do.

    Args:
        policy: an inventory policy.
        setting: of series, their test split is used, and the arguments that follow have no meaning.
        radius: rho, in [0, 1] for total variation, else >= 0.
        scenarios, periods, warmup, seed: of the sampled paths, as in
            :func:`~decisionrl.evaluation.inventory.evaluate_policies`.

    Raises:
        RadiusError: a radius is out of its range.
    """
    levels = torch.as_tensor([0.0, *radius], dtype=torch.float64)
    ball = Ball(radius=levels[:, None, None], divergence=divergence)
    simulator, policies = make_simulator(setting), {"policy": policy}
    if setting.is_series:
        evaluation = evaluate_on_series(policies, setting, simulator)["policy"]
    else:
        evaluation = evaluate_policies(
            policies, setting, simulator, scenarios=scenarios, periods=periods, warmup=warmup, seed=seed
        )["policy"]
    cost = torch.from_numpy(evaluation.cost)
    weights = torch.full((1, len(cost)), 1 / len(cost), dtype=torch.float64)
    return _shift(levels, -ball.worst(0, -cost, weights).squeeze(-1))


def worst_store_cost(
    policy: Policy,
    setting: Setting,
    radius: Sequence[float],
    *,
    divergence: Divergence = "tv",
    periods: int = 20,
    pmf: ArrayLike | None = None,
    start: Sequence[int] | None = None,
) -> DemandShift:
    """The exact worst cost of a policy at a single store, where nature may shift demand anew in every period.

    With x the pipeline and K possible demands,

        W_t(x) = sup { sum_k q_k (cost(x, k) + W_{t+1}(next(x, k))) : D(q || p) <= rho },    W_T = 0,

    over the states that can be reached from ``start``. This is the (s, a)-rectangular worst case: nature sees the stock
    before it chooses. Total variation may move probability to any of 0, ..., K - 1.

    Args:
        policy: sees the pipeline alone; its orders are rounded to whole units.
        setting: one store, whose unmet demand may be lost or backlogged, without past demand or draws by scenario.
        radius: rho, in [0, 1] for total variation, else >= 0.
        periods: T.
        pmf: p, of the demands 0, ..., K - 1; by default that of the setting's Poisson demand.
        start: units on hand and arriving in 1, 2, ... periods; by default the mean of the setting's initial stock.

    Raises:
        RadiusError: a radius is out of its range.
        ValueError: the setting is another one, or has too many states.
    """
    levels = torch.as_tensor([0.0, *radius], dtype=torch.float64)
    ball = Ball(radius=levels[:, None, None, None], divergence=divergence)
    simulator = make_simulator(setting)
    _check_single_store(setting)
    probabilities = _demand_pmf(setting, pmf)
    first = _start(setting, simulator, start)
    cost, following, states = _reachable(
        policy, simulator, first, demands=len(probabilities), periods=periods, limit=MAX_TABLE // len(levels)
    )
    value = torch.zeros(len(levels), states, dtype=torch.float64)
    for _ in range(periods):
        outcome = cost + value[:, following]
        value[:, : len(cost)] = -ball.worst(0, -outcome, probabilities.unsqueeze(0)).squeeze(-1)
    return _shift(levels, value[:, 0] / periods)


def _shift(levels: Tensor, costs: Tensor) -> DemandShift:
    return DemandShift(radius=levels[1:], nominal=float(costs[0]), worst=costs[1:])


def _check_single_store(setting: Setting) -> None:
    network = setting.network
    found = {
        "nodes": (network.num_nodes, 1),
        "edges": (network.num_edges, 1),
        "history": (setting.history, 0),
        "per_scenario": (len(setting.per_scenario), 0),
    }
    for field, (value, valid) in found.items():
        if value != valid:
            raise ValueError(
                f"{setting.name}: {field} = {value}; valid: {valid}, a single store that sees its pipeline"
            )


def _demand_pmf(setting: Setting, pmf: ArrayLike | None) -> Float[Tensor, " K"]:
    if pmf is None:
        if not isinstance(setting.demand, PoissonDemand):
            raise ValueError(f"{setting.name}: pmf = None; valid with other than Poisson demand: its probabilities")
        pmf = poisson_pmf(mean=float(setting.demand.mean[0]))
    p = torch.as_tensor(pmf, dtype=torch.float64)
    if p.dim() != 1 or not (p >= 0).all() or abs(float(p.sum()) - 1) > 1e-9:
        raise ValueError(f"pmf = {p.tolist()}; valid: probabilities of 0, ..., K - 1 that sum to 1")
    return p


def _start(setting: Setting, simulator: Simulator, start: Sequence[int] | None) -> Int[Tensor, "1 slots"]:
    if start is None:
        stock = round(sum(setting.initial_stock) / 2 * float(setting.demand.mean[0]))
        start = [stock] * setting.stocked_slots
    if len(start) > simulator.num_slots:
        raise ValueError(f"start = {list(start)}; valid: at most {simulator.num_slots} numbers")
    return torch.tensor([[*start, *[0] * (simulator.num_slots - len(start))]])


def _reachable(
    policy: Policy, simulator: Simulator, first: Int[Tensor, "1 slots"], *, demands: int, periods: int, limit: int
) -> tuple[Float[Tensor, "before K"], Int[Tensor, "before K"], int]:
    """Cost and next state for each state that can be met before the last period and each demand; how many states.

    State 0 is ``first``; those met only after the last period stand last, and have no rows.
    """
    states, fresh = first, first
    costs: list[Tensor] = []
    nexts: list[Tensor] = []
    for _ in range(periods):
        if len(states) * demands > limit:
            raise ValueError(
                f"more than {limit // demands} states can be reached; valid: shorter lead times, fewer periods or "
                "radii, or a pmf with fewer demands"
            )
        cost, rows = _outcomes(policy, simulator, fresh, demands)
        costs.append(cost)
        nexts.append(rows)
        fresh = _new_rows(states, rows.flatten(0, 1))
        if not len(fresh):
            break
        states = torch.cat([states, fresh])
    following = torch.cat(nexts)
    _, number = _distinct(torch.cat([states, following.flatten(0, 1)]))
    place = torch.empty_like(number)
    place[number[: len(states)]] = torch.arange(len(states))
    return torch.cat(costs), place[number[len(states) :]].reshape(following.shape[:2]), len(states)


def _new_rows(known: Int[Tensor, "m slots"], rows: Int[Tensor, "n slots"]) -> Int[Tensor, "new slots"]:
    """The distinct rows that are not known."""
    distinct, number = _distinct(torch.cat([known, rows]))
    new = torch.ones(len(distinct), dtype=torch.bool)
    new[number[: len(known)]] = False
    return distinct[new]


def _distinct(rows: Int[Tensor, "n slots"]) -> tuple[Int[Tensor, "m slots"], Int[Tensor, " n"]]:
    """The distinct rows in order, and which of them each row is."""
    distinct, number = torch.unique(rows, dim=0, return_inverse=True)
    return distinct, number


def _outcomes(
    policy: Policy, simulator: Simulator, states: Int[Tensor, "n slots"], demands: int
) -> tuple[Float[Tensor, "n K"], Int[Tensor, "n K slots"]]:
    """Cost and next pipeline of every state under every demand 0, ..., K - 1."""
    parameters = simulator.parameters
    slots: Slots = tuple(slot.unsqueeze(-1) for slot in states.to(simulator.dtype).unbind(1))
    with torch.no_grad():
        seen = Observation(slots=slots, past_demand=None, time=None, parameters=parameters, period=0)
        orders = bound(policy, parameters)(seen).round().clamp(min=0)
    demand = torch.arange(demands, dtype=simulator.dtype).repeat(len(states)).unsqueeze(-1)
    repeated: Slots = tuple(slot.repeat_interleave(demands, 0) for slot in slots)
    following, cost = simulator.step(repeated, orders.repeat_interleave(demands, 0), demand)
    rows = torch.cat(following, -1).round().long()
    return cost.double().reshape(len(states), demands), rows.reshape(len(states), demands, -1)
