"""Reaching a point in space that is not seen: continuous tasks for in-context learning without a simulator."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.envs.gridworld.family import check_split, check_whole, split_ids

STEP = 0.05
"""How far a step goes along each axis, at most."""

REACHED = 0.05
"""Success: the distance to the goal is less."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReachFamily:
    """A point moves by an action [..., 3] that is clipped to [-0.05, 0.05]; a
    :class:`~decisionrl.envs.gridworld.family.TaskFamily`.

    A state [..., 3] is its position, which begins at the origin. At distance d from the goal after the step the reward
    is 10 (1 - tanh(10 d)). This stands in for the reach task of Meta-World, whose goal in-context learners do not
    see either (arXiv 2505.15143, appendix).

    Raises:
        ValueError: an option is not valid.
    """

    goals: Float[Tensor, "tasks 3"] = field(repr=False)
    horizon: int
    train_share: float
    name: str = "hidden_reach"

    start_draws = 0

    def __post_init__(self) -> None:
        check_whole("horizon", self.horizon, 1)
        check_split(self.train_share, "python")

    @property
    def num_tasks(self) -> int:
        return len(self.goals)

    @property
    def device(self) -> torch.device:
        return self.goals.device

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (3,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-STEP, STEP, (3,), np.float32)

    @cached_property
    def max_return(self) -> Float[Tensor, " tasks"]:
        """The return of the straight way along each axis, on which no distance could be less at any step."""
        travelled = STEP * torch.arange(1, self.horizon + 1, device=self.device)
        left = (self.goals.abs()[:, None] - travelled[:, None]).clamp(min=0)
        return _reward(left).sum(1)

    def to(self, device: torch.device | str) -> ReachFamily:
        return replace(self, goals=self.goals.to(device))

    def split(self, seed: int | None = None) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
        """See :func:`~decisionrl.envs.gridworld.family.split_ids`; without a seed it is 0."""
        share, seed = self.train_share, 0 if seed is None else seed
        return split_ids(self.name, self.num_tasks, train_share=share, seed=seed, shuffle="python", device=self.device)

    def start(self, uniform: Float[Tensor, "... 0"]) -> Float[Tensor, "... 3"]:
        return self.goals.new_zeros(*uniform.shape[:-1], 3)

    def step(
        self, state: Float[Tensor, "... 3"], action: Float[Tensor, "... 3"], task: Int[Tensor, ...]
    ) -> tuple[Float[Tensor, "... 3"], Float[Tensor, ...]]:
        state = state + action.clamp(-STEP, STEP)
        return state, _reward(self.goals[task] - state)

    def observation(self, state: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
        return state

    def state_of(self, observation: Float[Tensor, "... 3"], collected: Float[Tensor, ...]) -> Float[Tensor, "... 3"]:
        return observation

    def success(self, state: Float[Tensor, "... 3"], task: Int[Tensor, ...]) -> Bool[Tensor, ...]:
        distance: Tensor = torch.linalg.vector_norm(self.goals[task] - state, dim=-1)
        return distance < REACHED

    def optimal_action(self, state: Float[Tensor, "... 3"], task: Int[Tensor, ...]) -> Float[Tensor, "... 3"]:
        return (self.goals[task] - state).clamp(-STEP, STEP)


def hidden_reach(
    *, tasks: int = 100, goal_range: float = 0.5, horizon: int = 50, train_share: float = 0.5, task_seed: int = 0
) -> ReachFamily:
    """Goals that are uniform in [-goal_range, goal_range]^3 and determined by ``task_seed``, half of them for tests."""
    check_whole("tasks", tasks, 2)
    if not 0 < goal_range < float("inf"):
        raise ValueError(f"goal_range = {goal_range}; valid: a number > 0")
    generator = torch.Generator().manual_seed(task_seed)
    goals = goal_range * (2 * torch.rand(tasks, 3, generator=generator) - 1)
    return ReachFamily(goals=goals, horizon=horizon, train_share=train_share)


def _reward(left: Float[Tensor, "... 3"]) -> Float[Tensor, ...]:
    distance: Tensor = torch.linalg.vector_norm(left, dim=-1)
    return 10 * (1 - (10 * distance).tanh())
