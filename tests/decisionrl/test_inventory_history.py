"""Policies that look at past demand are shown it when they are evaluated on drawn demand."""

import dataclasses

import torch

from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.evaluation.inventory import evaluate_policies


def test_past_demand_is_shown():
    setting = dataclasses.replace(load_setting("one_store_lost"), history=3)
    periods = []

    def last_demand(observation):
        assert observation.past_demand.shape == (4, 1, 3)
        periods.append(observation.period)
        return observation.past_demand[..., -1]

    result = evaluate_policies(
        {"last demand": last_demand}, setting, make_simulator(setting), scenarios=4, periods=40, warmup=10
    )
    assert len(periods) == 40
    assert torch.isfinite(torch.tensor(result["last demand"].mean))
