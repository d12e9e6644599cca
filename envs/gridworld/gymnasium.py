"""Families of tasks as Gymnasium environments.

env = gymnasium.make("decisionrl.envs:decisionrl/Darkroom-v0", task=38)
envs = gymnasium.make_vec("decisionrl.envs:decisionrl/DarkroomPermuted-v0", num_envs=8)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium.vector import AutoresetMode

from decisionrl.envs.gridworld.family import TaskFamily
from decisionrl.envs.gridworld.world import TaskWorld
from decisionrl.envs.world_gymnasium import Array, WorldEnv, WorldVectorEnv, as_array


class TaskEnv(WorldEnv):
    """One copy of :class:`TaskWorld`, with its arguments. ``info`` has the id of the ``task`` and ``success``, whether
    it is done in the state that the step led to."""

    world: TaskWorld

    def __init__(self, family: str | TaskFamily, **options: Any) -> None:
        super().__init__(TaskWorld(family, num_envs=1, **options))

    def told(self, reward: Array) -> Mapping[str, Array]:
        return _task_and_success(self.world)


class TaskVectorEnv(WorldVectorEnv):
    """``num_envs`` copies of :class:`TaskWorld` with its arguments, which begin and end their episodes together.

    Raises:
        ValueError: as TaskWorld, or the mode is DISABLED.
    """

    world: TaskWorld

    def __init__(
        self,
        family: str | TaskFamily,
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        super().__init__(TaskWorld(family, num_envs=num_envs, **options), autoreset_mode=autoreset_mode)

    def told(self, reward: Array) -> Mapping[str, Array]:
        return _task_and_success(self.world)


def _task_and_success(world: TaskWorld) -> Mapping[str, Array]:
    return {"task": as_array(world.task), "success": as_array(world.success)}
