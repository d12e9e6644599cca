"""Meta-World ML1: one task of Meta-World v3, 50 + 50 instances of it, and a goal that is not seen.

env = gymnasium.make("decisionrl.envs:decisionrl/ML1-v0", task="reach", index=7, split="test")
"""

from __future__ import annotations

import difflib
import functools
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from decisionrl.envs.robotics.metaworld import SettledHand

Split = Literal["train", "test"]

TWO_OBJECTS = ("hammer", "stick-push", "stick-pull")
"""Tasks of which the second object is seen, too."""


class ML1Env(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One instance of a task of Meta-World ML1 (arXiv 1910.10897, section 4.2), as learned in context by
    arXiv 2502.19009 and 2505.15143 (appendix): the goal has to be found out from rewards.

    An instance is where the goal and the objects are; it stays the same in every episode. Observation [11]: hand (3),
    gripper (1), position and quaternion of the first object (7); [18] for hammer, stick-push and stick-pull, with those
    of the second. Action [4] in [-1, 1]: the move of the hand, and the effort of the gripper. The reward is
    Meta-World's own, from 0 to 10. Success is in ``info`` and does not end the episode.

    Nothing is random: an episode is a function of the instance and the actions, whatever was played before, and
    ``reset`` takes a seed only because Gymnasium's do. Episodes are Meta-World's, except that the hand does not push
    the objects on its way to the start: where it would, they are some millimeters off, and the reward is up to 0.01.

    Args:
        task: a name such as ``"reach"``, with or without Meta-World's ending ``-v3``.
        index: of the instance, from 0 to 49.
        split: of the 50 instances to train on, or of the 50 others to test on.
        seed: of the benchmark's draw of its instances, the ``seed`` of ``metaworld.ML1``.
        max_steps: episodes are truncated after as many steps.
        render_mode: ``"rgb_array"`` for films.

    Raises:
        ValueError: there is no such task, split or instance, or another argument is out of its range.
        ImportError: Meta-World, of the extra ``decisionrl[robotics]``, is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        task: str = "reach",
        *,
        index: int = 0,
        split: Split = "train",
        seed: int = 0,
        max_steps: int = 100,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split = {split!r}; valid: {', '.join(get_args(Split))}")
        if seed not in range(2**32 - 1):
            raise ValueError(f"seed = {seed}; valid: from 0 to {2**32 - 2}")
        if max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1")
        self.task, self.index, self.split, self.render_mode = task.removesuffix("-v3"), index, split, render_mode
        benchmark = _benchmark(self.task, seed)
        instances = benchmark.train_tasks if split == "train" else benchmark.test_tasks
        if index not in range(len(instances)):
            raise ValueError(f"index = {index}; valid: from 0 to {len(instances) - 1}")
        (make,) = benchmark.train_classes.values()
        self._physics = make(render_mode=render_mode, camera_name="corner2")
        self._physics.max_path_length = max_steps
        self._physics.set_task(instances[index])
        self._hand = SettledHand(self._physics)
        self._size = 18 if self.task in TWO_OBJECTS else 11
        self.observation_space = spaces.Box(-np.inf, np.inf, (self._size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._hand.restore_model()
        full, _ = self._physics.reset()
        return self._seen(full), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        full, reward, _, truncated, info = self._physics.step(action)
        return self._seen(full), float(reward), False, truncated, {"success": bool(info["success"])}

    def render(self) -> Any:
        frame = self._physics.render()
        return None if frame is None else np.rot90(frame, 2).copy()  # Meta-World's cameras hang upside down

    def close(self) -> None:
        self._physics.close()

    def _seen(self, full: NDArray[np.float64]) -> NDArray[np.float32]:
        return full[: self._size].astype(np.float32)


@functools.cache
def _benchmark(task: str, seed: int) -> Any:
    """The instances of a task. Drawing them takes a second, as Meta-World simulates a hundred resets for it."""
    try:
        import metaworld
    except ImportError as error:
        raise ImportError(f"Meta-World: {error}; pip install 'decisionrl[robotics]'") from error
    make: Any = metaworld.ML1
    known = sorted(name.removesuffix("-v3") for name in make.ENV_NAMES)
    if task not in known:
        near = difflib.get_close_matches(task, known, n=1, cutoff=0)
        raise ValueError(f"task = {task!r}; did you mean {near[0]!r}? valid: {', '.join(known)}")
    return make(f"{task}-v3", seed=seed)
