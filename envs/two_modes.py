"""A random walk that no action changes, with a right and a wrong action in every state: for methods that must tell two
modes of behavior apart."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[Any]
Info = dict[str, Any]

MIXING = np.array([[1.0, 0.5, -0.5], [-0.5, 1.0, 0.5]])
OFFSET = np.array([0.5, -0.5])
KEPT, NOISE = 0.9, 0.4
"""The walk: s' = KEPT s + NOISE w, w standard normal in three dimensions."""


def good_action(state: Float[Array, "... 3"]) -> Float[Array, "... 2"]:
    """g(s) = tanh(M s + b)."""
    return np.asarray(np.tanh(state @ MIXING.T + OFFSET))


def bad_action(state: Float[Array, "... 3"]) -> Float[Array, "... 2"]:
    """-g(s)."""
    return -good_action(state)


def reward_of(state: Float[Array, "... 3"], action: Float[Array, "... 2"]) -> Float[Array, ...]:
    """1 - mean_j (a_j - g_j(s))^2: 1 for the good action."""
    return np.asarray(1 - ((np.clip(action, -1, 1) - good_action(state)) ** 2).mean(-1))


def walked(state: Float[Array, "... 3"], noise: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """KEPT s + NOISE w."""
    return KEPT * state + NOISE * noise


class TwoModesEnv(gymnasium.Env[Array, Array]):
    """The observation is s, which begins standard normal and goes on by :func:`walked` whatever is done; the reward is
    :func:`reward_of`. The episode is truncated after ``max_steps``.

    Raises:
        ValueError: max_steps is less than 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(self, *, max_steps: int = 30) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1")
        self.max_steps = max_steps
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self._state = np.zeros(3)
        self._steps = max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._state, self._steps = self.np_random.normal(size=3), 0
        return self._state.astype(np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Info]:
        """Raises gymnasium.error.ResetNeeded when the episode is over or has not begun."""
        if self._steps >= self.max_steps:
            raise gymnasium.error.ResetNeeded("TwoModesEnv: no episode is running; call reset()")
        reward = float(reward_of(self._state, action))
        self._state, self._steps = walked(self._state, self.np_random.normal(size=3)), self._steps + 1
        return self._state.astype(np.float32), reward, False, self._steps == self.max_steps, {}
