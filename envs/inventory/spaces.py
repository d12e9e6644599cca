"""The Gymnasium spaces of one inventory network, and the way from its actions to units."""

from __future__ import annotations

from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.inventory.env import ActionError, InventoryEnv, order_limits

Array = NDArray[Any]
Action = TypeVar("Action", Array, Tensor)


class OrderSpace:
    """A Box with one entry for each edge: [-1, 1], where a orders (a + 1) / 2 * high units, or units in [0, high].

    Attributes:
        high: units [num_edges] at the upper end: ``max_order``, one number or one for each edge, by default
            :func:`order_limits`.
        space: the Box.
    """

    def __init__(self, world: InventoryEnv, max_order: float | Array | None, *, normalize: bool) -> None:
        high = order_limits(world.setting) if max_order is None else np.asarray(max_order, dtype=np.float64)
        if high.shape not in ((), (world.num_edges,)) or not (np.isfinite(high).all() and (high > 0).all()):
            raise ValueError(
                f"{world.name}: max_order = {high.tolist()}; valid is a positive finite number, "
                f"or one for each of {world.num_edges} edges"
            )
        self.high = np.broadcast_to(high, (world.num_edges,)).astype(np.float32)
        self._world, self._normalize = world, normalize
        low = np.full_like(self.high, -1.0 if normalize else 0.0)
        self.space = Box(low, np.ones_like(self.high) if normalize else self.high, dtype=np.float32)

    def read(self, action: Array, space: gymnasium.Space[Any]) -> Array:
        """Units to order. Raises ActionError for a wrong shape."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != space.shape:
            raise ActionError(f"{self._world.where}: action has shape {action.shape}; valid: {space.shape}")
        return units(action, self.high) if self._normalize else action


def observation_space(world: InventoryEnv) -> Box:
    """Raw units, without bounds."""
    return Box(-np.inf, np.inf, (len(world.observation_names),), np.float32)


def units(action: Action, high: Action) -> Action:
    """What actions in [-1, 1] order."""
    return (action + 1) / 2 * high
