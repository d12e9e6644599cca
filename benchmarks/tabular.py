"""Environments whose transition probabilities are written down (Gymnasium's toy text): exact optima and returns."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TabularModel:
    """A finite decision process that ends after ``horizon`` steps at the latest.

    Attributes:
        transition: [states, actions, states] probability to go on in a state; rows sum to less than 1 where an
            episode may end.
        reward: [states, actions] expected reward.
        start: [states] probability to begin in a state.
        horizon: the environment's limit of steps.
    """

    transition: Array
    reward: Array
    start: Array
    horizon: int

    @classmethod
    def of(cls, env_id: str) -> TabularModel:
        """The model of a registered environment with a table ``P`` and a limit of steps."""
        env = gymnasium.make(env_id)
        table = env.unwrapped.P  # type: ignore[attr-defined]
        horizon = None if env.spec is None else env.spec.max_episode_steps
        if horizon is None:
            raise ValueError(f"{env_id} has no limit of steps; valid: an environment with max_episode_steps")
        states, actions = len(table), len(table[0])
        transition, reward = np.zeros((states, actions, states)), np.zeros((states, actions))
        for state, choices in table.items():
            for action, outcomes in choices.items():
                for probability, following, gain, terminated in outcomes:
                    reward[state, action] += probability * gain
                    if not terminated:
                        transition[state, action, following] += probability
        return cls(transition, reward, env.unwrapped.initial_state_distrib, horizon)  # type: ignore[attr-defined]

    def optimal_return(self) -> float:
        """The largest expected return of all policies, those that count the steps among them."""
        value = np.zeros(len(self.start))
        for _ in range(self.horizon):
            value = (self.reward + self.transition @ value).max(1)
        return float(self.start @ value)

    def expected_return(self, policy: Array) -> float:
        """Of a policy given by its probabilities [states, actions]."""
        value = np.zeros(len(self.start))
        for _ in range(self.horizon):
            value = (policy * (self.reward + self.transition @ value)).sum(1)
        return float(self.start @ value)
