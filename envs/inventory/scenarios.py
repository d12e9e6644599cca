"""Batches of exogenous paths: fresh draws, the paper's fixed sets, and slices of real series."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from decisionrl.envs.inventory.demand import DemandError, SeriesDemand, StationaryDemand
from decisionrl.envs.inventory.setting import Setting, SettingError, scenario_values
from decisionrl.envs.inventory.simulator import Parameters, Scenario, Simulator, Slots

Split = Literal["train", "dev", "test"]


def make_simulator(
    setting: Setting, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Simulator:
    """The simulator of a setting's network, with a pipeline long enough for its initial stock."""
    return Simulator(
        setting.network,
        device=device,
        dtype=dtype,
        min_slots=setting.stocked_slots,
        lead_time_range=setting.lead_time_range,
    )


def stationary_demand(setting: Setting) -> StationaryDemand:
    """The setting's demand process; DemandError if it is a finite table of series."""
    if isinstance(setting.demand, SeriesDemand):
        raise DemandError(
            f"setting {setting.name!r} has a finite table of series; fresh paths need a normal, poisson or "
            "negative_binomial demand"
        )
    return setting.demand


def initial_slots(setting: Setting, simulator: Simulator, batch: int, generator: torch.Generator) -> Slots:
    """Stores start with uniform multiples of their mean demand in the first slots, warehouses empty."""
    network = setting.network
    shape = (setting.stocked_slots, batch, network.num_stores)
    low, high = setting.initial_stock
    draws = torch.rand(shape, generator=generator, device=simulator.device, dtype=simulator.dtype)
    mean = torch.as_tensor(setting.demand.mean, device=simulator.device, dtype=simulator.dtype)
    stock = simulator.node_demand((low + (high - low) * draws) * mean)
    return (*stock.unbind(0), *simulator.empty_slots(batch)[setting.stocked_slots :])


def fresh_scenarios(
    setting: Setting,
    simulator: Simulator,
    *,
    batch: int,
    periods: int,
    generator: torch.Generator,
    slots: Slots | None = None,
    parameters: Parameters | None = None,
) -> Scenario:
    """New demand paths from a stationary process, with the past demand the setting shows.

    They start from random initial stock unless ``slots`` is given, with the setting's costs and lead times
    unless ``parameters`` are given.
    """
    demand = stationary_demand(setting)
    if slots is None:
        slots = initial_slots(setting, simulator, batch, generator)
    return Scenario(
        slots=slots,
        demand=demand.sample(setting.history + periods, batch, generator, simulator.dtype),
        parameters=scenario_parameters(setting, simulator, batch) if parameters is None else parameters,
        history=setting.history,
    )


def scenario_parameters(setting: Setting, simulator: Simulator, batch: int) -> Parameters:
    """Costs and lead times, with a leading batch dimension where they vary by scenario.

    A value drawn for a scenario holds for all stores, or for all edges into stores; warehouses keep their own.
    """
    parameters, network = simulator.parameters, setting.network
    for name, draw in setting.per_scenario.items():
        values = scenario_values(draw, batch)
        if len(values) < batch:
            raise SettingError(f"{name}: {len(values)} values in the file; valid: at least {batch}, one a scenario")
        column = torch.as_tensor(values, device=simulator.device, dtype=simulator.dtype)[:, None]
        nodes = network.edge_destination if name == "lead_time" else range(network.num_nodes)
        varies = torch.tensor([node >= network.num_warehouses for node in nodes], device=simulator.device)
        parameters = parameters._replace(**{name: torch.where(varies, column, getattr(parameters, name))})
    return parameters


def series_scenarios(setting: Setting, simulator: Simulator, split: Split) -> Scenario:
    """All items of a setting's series over the columns of one split, starting without stock."""
    demand = setting.demand
    if not isinstance(demand, SeriesDemand):
        raise DemandError(f"setting {setting.name!r} has no series; it draws its demand")
    phase = setting.phase(split)
    first, last = phase.columns or (0, demand.table.shape[2])
    last = min(last, first + setting.history + phase.periods)
    table = demand.table[: phase.scenarios, :, first:last]
    days = demand.days_from_christmas[first + setting.history :][: phase.periods + 1]
    # The policy of period t is shown the calendar of the week it orders in.
    return Scenario(
        slots=simulator.empty_slots(table.shape[0]),
        demand=table.permute(2, 0, 1).contiguous().to(simulator.device, simulator.dtype),
        parameters=scenario_parameters(setting, simulator, table.shape[0]),
        history=setting.history,
        time=days[:, None].to(simulator.device, simulator.dtype) / DAYS_SCALE,
    )


DAYS_SCALE = 182.0
"""Days from Christmas run from -182 to 182; the time feature is shown in units of half a year."""


def paper_scenarios(
    setting: Setting,
    simulator: Simulator,
    split: Split,
    *,
    scenarios: int | None = None,
    periods: int | None = None,
) -> Scenario:
    """The fixed sample of the paper's released code, by numpy's legacy generators (specification 1.6).

    Training and development sets are one draw, of which the first scenarios are the development set. The
    streams are bit-compatible for one store; the multivariate normal goes through an SVD and may differ
    between builds of LAPACK. scenarios, periods: fewer than the paper's (the draw is then another one).
    """
    if setting.is_series:
        return series_scenarios(setting, simulator, split)
    demand = stationary_demand(setting)
    network = setting.network
    shift = 0
    if network.num_nodes == 1:
        store = network.nodes[0]
        shift = int(network.lead_times[0] + 10 * (store.underage_cost or 0.0))
    if split == "test":
        total, horizon = setting.phase("test").scenarios, setting.phase("test").periods
        seed, stock_seed = setting.seeds["test_demand_seed"], setting.seeds["test_initial_stock_seed"]
    else:
        train, dev = setting.phase("train"), setting.phase("dev")
        total, horizon = train.scenarios + dev.scenarios, max(train.periods, dev.periods)
        seed, stock_seed = setting.seeds["demand_seed"], setting.seeds["initial_stock_seed"]
    total, horizon = scenarios or total, periods or horizon
    paths = demand.sample_legacy(np.random.RandomState(seed + shift), total, setting.history + horizon)
    mean = paths.mean(axis=(0, 2))
    low, high = setting.initial_stock
    multiples = np.random.RandomState(stock_seed).uniform(low, high, (total, len(mean), setting.stocked_slots))
    stock = simulator.node_demand(_tensor(multiples * mean[None, :, None], simulator).permute(2, 0, 1))
    empty = simulator.empty_slots(total)
    everything = Scenario(
        slots=(*stock.unbind(0), *empty[setting.stocked_slots :]),
        demand=_tensor(paths, simulator).permute(2, 0, 1).contiguous(),
        parameters=scenario_parameters(setting, simulator, total),
        history=setting.history,
    )
    if split == "test" or scenarios is not None:
        return everything
    index = slice(0, dev.scenarios) if split == "dev" else slice(dev.scenarios, None)
    part = take(everything, index)
    return dataclasses.replace(part, demand=part.demand[: setting.history + setting.phase(split).periods])


def take(scenario: Scenario, index: Tensor | slice) -> Scenario:
    """Some of the scenarios."""
    parameters = Parameters(*(value[index] if value.ndim > 1 else value for value in scenario.parameters))
    return dataclasses.replace(
        scenario,
        slots=tuple(slot[index] for slot in scenario.slots),
        demand=scenario.demand[:, index],
        parameters=parameters,
    )


def _tensor(values: np.ndarray, simulator: Simulator) -> Tensor:
    return torch.as_tensor(values, dtype=simulator.dtype).to(simulator.device)
