"""Finite-horizon linear MDPs as data, with the instances of the literature and a batched sampler."""

from decisionrl.envs.linear_mdp.instances import (
    american_put,
    five_state,
    five_state_radius,
    frozen_lake,
    put_features,
    put_prices,
    random_linear,
    random_tabular,
    tabular,
)
from decisionrl.envs.linear_mdp.model import FactorError, FeatureError, LinearMDP, RewardError, linear_rewards
from decisionrl.envs.linear_mdp.sampling import Episodes, draw_noise, inverse_cdf, rollout

__all__ = [
    "Episodes",
    "FactorError",
    "FeatureError",
    "LinearMDP",
    "RewardError",
    "american_put",
    "draw_noise",
    "five_state",
    "five_state_radius",
    "frozen_lake",
    "inverse_cdf",
    "linear_rewards",
    "put_features",
    "put_prices",
    "random_linear",
    "random_tabular",
    "rollout",
    "tabular",
]
