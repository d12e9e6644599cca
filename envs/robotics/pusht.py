"""Push-T: a block in the shape of a T is to be pushed onto its outline [arXiv 2303.04137, simulation environments]."""

from __future__ import annotations

from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from decisionrl.envs.robotics.pusht_expert import PushTExpert

Observed = Literal["state", "environment_state_agent_pos", "pixels_agent_pos", "pixels"]


class PushTEnv(gymnasium.Env[Any, NDArray[np.float32]]):
    """gym-pusht's Push-T, with rewards that sum up to the score of an episode.

    The arena is 512 x 512 pixels. Action [2] in [0, 512]: where the agent, a disc, is to go, for a tenth of a second.
    The score of a state is min(c / 0.95, 1) where the block covers the share c of the outline; that of an episode is
    the best of its steps. The reward is by how much a step raises that best score, which begins at 0. An episode ends
    when c > 0.95.

    ``reset(options={"reset_to_state": [x, y, block_x, block_y, angle]})`` begins there, up to a quirk of gym-pusht: the
    block is put in place first and then turned around its center of mass.

    Args:
        obs_type: ``"state"`` is the agent (2), the block (2; the middle of the top of its bar) and its angle in
            [0, 2 pi); ``"environment_state_agent_pos"`` a dict of that name with 8 points of the block [16] and the
            agent [2]; ``"pixels_agent_pos"`` a dict with an image [96, 96, 3] and the agent; ``"pixels"`` the image.
        max_steps: episodes are truncated after as many steps.
        render_mode: ``"rgb_array"`` for films.

    Raises:
        ValueError: obs_type is none of these, or max_steps < 1.
        ImportError: gym-pusht, of the extra ``decisionrl[pusht]``, is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        *,
        obs_type: Observed = "state",
        max_steps: int = 300,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        if obs_type not in get_args(Observed):
            raise ValueError(f"obs_type = {obs_type!r}; valid: {', '.join(get_args(Observed))}")
        if max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1")
        self.max_steps, self.render_mode = max_steps, render_mode
        self._physics = _gym_pusht().PushTEnv(obs_type=obs_type)
        self._steps, self._best = 0, 0.0
        self.observation_space, self.action_space = self._physics.observation_space, self._physics.action_space

    @property
    def state(self) -> NDArray[np.float64]:
        """The agent, the block and its angle [5], whatever is observed; the angle is not wrapped."""
        agent, block = self._physics.agent, self._physics.block
        return np.array([*agent.position, *block.position, block.angle])

    def expert(self, generator: torch.Generator) -> Pusher:
        """The scripted pusher for one episode; it decides by :attr:`state` and draws nothing."""
        return Pusher(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._physics.np_random = self.np_random
        self._steps, self._best = 0, 0.0
        observation, _ = self._physics.reset(options=options)
        return observation, {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, score, covered, _, info = self._physics.step(action)
        self._steps += 1
        best, success = max(self._best, float(score)), bool(covered)
        reward, self._best = best - self._best, best
        truncated = self._steps >= self.max_steps and not success
        return observation, reward, success, truncated, {"success": success, "coverage": float(info["coverage"])}

    def render(self) -> Any:
        return None if self.render_mode is None else self._physics.render()

    def close(self) -> None:
        self._physics.close()


class Pusher:
    """:class:`~decisionrl.envs.robotics.pusht_expert.PushTExpert` in one environment, whatever is observed of it."""

    def __init__(self, env: PushTEnv) -> None:
        self._env, self._expert = env, PushTExpert()

    def act(self, observation: Any) -> NDArray[np.float32]:
        """What to do now, [2]."""
        return self._expert.act(self._env.state)


def _gym_pusht() -> Any:
    try:
        import gym_pusht.envs
    except ImportError as error:
        raise ImportError(f"Push-T: {error}; pip install 'decisionrl[pusht]'") from error
    return gym_pusht.envs
