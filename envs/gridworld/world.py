"""A family of tasks as a batched world: each copy has a task of its own, which it cannot see.

from decisionrl.envs.make import make_world

world = make_world("decisionrl/Darkroom-v0", num_envs=1000, options={"among": "train"})
world = make_world("decisionrl/DarkKeyToDoor-v0", num_envs=3, options={"task": [17, 17, 4000]})
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Int
from torch import Tensor

from decisionrl.envs.gridworld.bandit_family import bandit
from decisionrl.envs.gridworld.darkroom import dark_key_to_door, darkroom, darkroom_large, darkroom_permuted
from decisionrl.envs.gridworld.family import TaskFamily, check_whole
from decisionrl.envs.gridworld.reach import hidden_reach
from decisionrl.envs.seeded import uniform
from decisionrl.envs.world import Step

FAMILIES: dict[str, Callable[..., TaskFamily]] = {
    "darkroom": darkroom,
    "darkroom_permuted": darkroom_permuted,
    "darkroom_large": darkroom_large,
    "dark_key_to_door": dark_key_to_door,
    "hidden_reach": hidden_reach,
    "bandit": bandit,
}

Part = Literal["all", "train", "test"]
"""Of the tasks of a family, by its published split."""


class TaskWorld:
    """``num_envs`` copies of the tasks of a family; episodes are truncated at its horizon.

    What happens in a copy depends on its task, its seed and its actions alone, on no other copy.

    Args:
        family: a family, or the name of one in ``FAMILIES``, with its options.
        task: the id of every copy's task, or one id for each copy; by default the seed of each episode draws it.
        among: the tasks that are drawn from.
        max_steps: truncate episodes earlier than at the horizon.

    Raises:
        ValueError: an option is not valid.
    """

    seedable = True

    def __init__(
        self,
        family: str | TaskFamily,
        *,
        num_envs: int = 1,
        task: int | Sequence[int] | Tensor | None = None,
        among: Part = "all",
        max_steps: int | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        check_whole("num_envs", num_envs, 1)
        self.family = made_family(family, options).to(device)
        self.name, self.num_envs, self.device = self.family.name, num_envs, torch.device(device)
        self.max_steps = self.family.horizon if max_steps is None else max_steps
        if not 1 <= self.max_steps <= self.family.horizon:
            raise ValueError(f"max_steps = {max_steps}; valid: from 1 to horizon = {self.family.horizon}")
        self.observation_space: gymnasium.Space[Any] = self.family.observation_space
        self.action_space: gymnasium.Space[Any] = self.family.action_space
        self._fixed = None if task is None else self._given(task)
        self._drawn_from = self._ids(among)
        if task is not None and among != "all":
            raise ValueError(f"task = {task}, among = {among!r}; valid: at most one of them")
        # Episodes are of equal length, so counting their steps here tells which are over without reading the device.
        self._steps = np.zeros(num_envs, np.int64)
        self._task, self._state = self._started(range(num_envs), [0] * num_envs)

    @property
    def task(self) -> Int[Tensor, " copies"]:
        """The id of each copy's task."""
        return self._task

    @property
    def success(self) -> Bool[Tensor, " copies"]:
        """Whether each copy's state is one in which its task is done."""
        return self.family.success(self._state, self._task)

    @property
    def state(self) -> Tensor:
        """The states, with what is hidden."""
        return self._state

    @property
    def observation(self) -> Tensor:
        return self.family.observation(self._state)

    def reset(self, seeds: Sequence[int]) -> Tensor:
        return self.restart(range(self.num_envs), seeds)

    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Tensor:
        if len(copies) != len(seeds):
            raise ValueError(f"{self.name}: {len(seeds)} seeds; valid: {len(copies)}, one for each copy")
        task, state = self._started(copies, seeds)
        row = torch.as_tensor(copies, dtype=torch.int64, device=self.device)
        self._steps[list(copies)] = 0
        self._task = self._task.index_copy(0, row, task)
        self._state = self._state.index_copy(0, row, state)
        return self.observation

    def step(self, action: Tensor, *, idle: Collection[int] = ()) -> Step:
        shape = (self.num_envs, *(self.action_space.shape or ()))
        if action.shape != shape:
            raise ValueError(f"{self.name}: action has shape {list(action.shape)}; valid: {list(shape)}")
        kind = torch.int64 if isinstance(self.action_space, spaces.Discrete) else torch.float32
        if action.is_floating_point() != kind.is_floating_point:
            raise ValueError(f"{self.name}: action has dtype {action.dtype}; valid: {kind}")
        self._state, reward = self.family.step(self._state, action.to(self.device, kind), self._task)
        self._steps += 1
        ended = self._steps >= self.max_steps
        truncated = torch.from_numpy(ended).to(self.device)
        over = [i for i in np.flatnonzero(ended).tolist() if i not in idle]
        return Step(self.observation, reward, torch.zeros_like(truncated), truncated, over)

    def state_dict(self) -> dict[str, Any]:
        return {"task": self._task, "state": self._state, "steps": torch.from_numpy(self._steps.copy())}

    def load_state_dict(self, state: Mapping[str, Any], /) -> Tensor:
        if len(state["task"]) != self.num_envs:
            raise ValueError(f"{self.name}: num_envs = {self.num_envs}; the saved world has {len(state['task'])}")
        self._task, self._state = state["task"].to(self.device), state["state"].to(self.device)
        self._steps = state["steps"].cpu().numpy().copy()
        return self.observation

    def close(self) -> None:
        """Nothing to close."""

    def _started(self, copies: Sequence[int], seeds: Sequence[int]) -> tuple[Int[Tensor, " copies"], Tensor]:
        seed = torch.tensor([int(each) % 2**63 for each in seeds], dtype=torch.int64, device=self.device)
        number = uniform(seed, torch.zeros_like(seed), 1 + self.family.start_draws)
        state = self.family.start(number[:, 1:])
        if self._fixed is not None:
            return self._fixed[list(copies)], state
        count = len(self._drawn_from)
        return self._drawn_from[(number[:, 0] * count).long().clamp(max=count - 1)], state

    def _given(self, task: int | Sequence[int] | Tensor) -> Int[Tensor, " copies"]:
        ids, count = torch.as_tensor(task, device=self.device), self.family.num_tasks
        if ids.dtype == torch.bool or ids.is_floating_point():
            raise ValueError(f"{self.name}: task = {task}; valid: whole numbers")
        if ids.shape not in ((), (self.num_envs,)):
            raise ValueError(f"{self.name}: task has shape {list(ids.shape)}; valid: one id, or {[self.num_envs]}")
        if ((ids < 0) | (ids >= count)).any():
            raise ValueError(f"{self.name}: task = {task}; valid: from 0 to {count - 1}")
        return ids.long().expand(self.num_envs)

    def _ids(self, among: Part) -> Int[Tensor, " ids"]:
        if among not in get_args(Part):
            raise ValueError(f"among = {among!r}; valid: {', '.join(get_args(Part))}")
        if among == "all":
            return torch.arange(self.family.num_tasks, device=self.device)
        train, test = self.family.split()
        return train if among == "train" else test


def made_family(family: str | TaskFamily, options: Mapping[str, Any]) -> TaskFamily:
    """The family of that name with these options; a family as it is.

    Raises:
        ValueError: there is none, an option is not valid, or a family that is made already gets options.
    """
    if not isinstance(family, str):
        if options:
            raise ValueError(f"options = {dict(options)}; valid with a family that is made already: none")
        return family
    if family not in FAMILIES:
        raise ValueError(f"family = {family!r}; valid: {', '.join(FAMILIES)}")
    return FAMILIES[family](**options)
