"""Reaching a point in the plane, with the optimal values known in closed form."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[Any]
Info = dict[str, Any]

STEP = 0.1
"""How far a step goes along each axis, at most."""

REACHED = 0.15
"""The success of an episode: how near the goal its last position is, along each axis."""


def moved(position: Float[Array, "... 2"], action: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
    """p' = p + STEP clip(a, -1, 1)."""
    return position + STEP * np.clip(action, -1, 1)


def optimal_action(observation: Float[Array, "... 4"]) -> Float[Array, "... 2"]:
    """Straight to the goal along each axis: clip((g - p) / STEP, -1, 1). Observations are (p, g)."""
    return np.clip((observation[..., 2:] - observation[..., :2]) / STEP, -1, 1)


def optimal_value(observation: Float[Array, "... 4"]) -> Float[Array, ...]:
    """V*(p, g) of an endless episode without discount: along an axis at distance d it costs the distances d - STEP,
    d - 2 STEP, ... that remain after each step,

        V* = -sum_axes (n d - STEP n (n + 1) / 2),   n = floor(d / STEP).
    """
    distance = np.abs(observation[..., 2:] - observation[..., :2])
    steps = np.floor(distance / STEP)
    return np.asarray(-(steps * distance - STEP * steps * (steps + 1) / 2).sum(-1))


class PointReachEnv(gymnasium.Env[Array, Array]):
    """A point goes to a goal: observation (p, g) in [-1, 1]^4 and beyond, action in [-1, 1]^2, :func:`moved`, reward
    -|p' - g|_1.

    Both begin uniformly in [-1, 1]^2. The episode is truncated after ``max_steps``; ``info["success"]`` says whether
    the goal is reached.

    Raises:
        ValueError: max_steps is less than 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(self, *, max_steps: int = 40) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1")
        self.max_steps = max_steps
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self._observation = np.zeros(4)
        self._steps = max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._observation, self._steps = self.np_random.uniform(-1, 1, 4), 0
        return self._observation.astype(np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Info]:
        """Raises gymnasium.error.ResetNeeded when the episode is over or has not begun."""
        if self._steps >= self.max_steps:
            raise gymnasium.error.ResetNeeded("PointReachEnv: no episode is running; call reset()")
        position, goal = moved(self._observation[:2], action), self._observation[2:]
        self._observation, self._steps = np.concatenate([position, goal]), self._steps + 1
        distance = np.abs(position - goal)
        info = {"success": bool((distance <= REACHED).all())}
        return self._observation.astype(np.float32), -float(distance.sum()), False, self._steps == self.max_steps, info
