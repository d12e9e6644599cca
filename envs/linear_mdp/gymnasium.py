"""Linear MDPs as Gymnasium environments: a single ``gymnasium.Env`` and a native ``VectorEnv``.

    env = gymnasium.make("decisionrl/FiveState-v0", xi_norm=0.3)
    envs = gymnasium.make_vec("decisionrl/FiveState-v0", num_envs=1024, xi_norm=0.3)

The observation is (h, s), stage and state, two whole numbers, because the optimal policy of a finite horizon depends on
the stage. An episode has H steps and then terminates, in an observation with h = H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from decisionrl.envs.linear_mdp import instances
from decisionrl.envs.linear_mdp.model import LinearMDP
from decisionrl.envs.linear_mdp.sampling import first_states, next_states, rewards_of

Array = NDArray[Any]
Info = dict[str, Any]

INSTANCES: dict[str, Callable[..., LinearMDP]] = {
    "five_state": instances.five_state,
    "american_put": instances.american_put,
    "frozen_lake": instances.frozen_lake,
    "random_tabular": lambda **options: instances.random_tabular(**options)[0],
    "random_linear": lambda **options: instances.random_linear(**options)[0],
}
"""What can be named instead of passed, as in ``envs/registration.py``."""


class ActionError(ValueError):
    """An action outside the space."""


class LinearMDPEnv(gymnasium.Env[Array, np.int64]):
    """One copy of a linear MDP; ``info`` is empty.

    Args:
        mdp: without batch dimensions, or the name of an instance.
        options: arguments of the named instance.

    Raises:
        ValueError: there is no such instance, or it has batch dimensions.
        ActionError: from ``step``, an action outside the space.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(self, mdp: LinearMDP | str, **options: Any) -> None:
        self.mdp = _built(mdp, options)
        if self.mdp.batch_shape:
            raise ValueError(f"{self.mdp.name}: its batch is {tuple(self.mdp.batch_shape)}; valid: one instance, ()")
        self.observation_space, self.action_space = _spaces(self.mdp)
        self._initial = np.cumsum(self.mdp.initial.numpy())
        self._kernel = np.cumsum(self.mdp.kernel.numpy(), axis=-1)
        self._rewards = self.mdp.rewards.numpy()
        self._stage, self._state = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._stage, self._state = 0, self._drawn(self._initial)
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Array, float, bool, bool, Info]:
        if not self.action_space.contains(action):
            raise ActionError(f"{self.mdp.name}: action = {action!r}; valid: a whole number in {self.action_space}")
        if self._stage == self.mdp.horizon:
            raise gymnasium.error.ResetNeeded(f"{self.mdp.name}: the episode is over; call reset()")
        reward = float(self._rewards[self._stage, self._state, action])
        self._state = self._drawn(self._kernel[self._stage, self._state, action])
        self._stage += 1
        return self._observation(), reward, self._stage == self.mdp.horizon, False, {}

    def _drawn(self, cumulative: Array) -> int:
        return int(np.searchsorted(cumulative, self.np_random.random() * cumulative[-1], side="right"))

    def _observation(self) -> Array:
        return np.array([self._stage, self._state])


class LinearMDPVectorEnv(VectorEnv[Array, Array, Array]):
    """``num_envs`` copies stepped as one: next states are drawn in one tensor operation.

    All copies begin and end their episodes together and draw from one random stream, which ``reset(seed=s)`` starts
    again. The mdp may have a batch [num_envs]: then every copy is an instance of its own. autoreset_mode: NEXT_STEP,
    the default (the step after the end of an episode ignores its action, resets and rewards 0), or SAME_STEP (the last
    observation is in ``info["final_obs"]``).

    Raises:
        ValueError: there is no such instance, its batch does not fit, or the mode is DISABLED.
        ActionError: from ``step``, an action outside the space.
    """

    def __init__(
        self,
        mdp: LinearMDP | str,
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        self._mode = AutoresetMode(autoreset_mode)
        if self._mode == AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode = DISABLED; valid: NEXT_STEP, SAME_STEP")
        self.metadata = {"render_modes": [], "autoreset_mode": self._mode}
        self.mdp, self.num_envs = _built(mdp, options), num_envs
        if self.mdp.batch_shape not in ((), (num_envs,)):
            raise ValueError(
                f"{self.mdp.name}: its batch is {tuple(self.mdp.batch_shape)}; valid: () or (num_envs,) = ({num_envs},)"
            )
        self.single_observation_space, self.single_action_space = _spaces(self.mdp)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._stage, self._states = 0, torch.zeros(num_envs, dtype=torch.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        if seed is not None:
            self._generator.manual_seed(seed)
        self._stage, self._states = 0, first_states(self.mdp, self._uniforms())
        return self._observation(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Info]:
        given = np.asarray(actions)
        if given.shape != (self.num_envs,) or not ((given >= 0) & (given < self.mdp.num_actions)).all():
            raise ActionError(
                f"{self.mdp.name}: actions = {given.tolist()}; valid: {self.num_envs} whole numbers in "
                f"0, ..., {self.mdp.num_actions - 1}"
            )
        nothing = np.zeros(self.num_envs, dtype=np.bool_)
        if self._stage == self.mdp.horizon:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs), nothing, nothing.copy(), info
        action = torch.from_numpy(given.astype(np.int64))
        reward = rewards_of(self.mdp, self._stage, self._states, action).numpy()
        self._states = next_states(self.mdp, self._stage, self._states, action, self._uniforms())
        self._stage += 1
        over = self._stage == self.mdp.horizon
        observation, info = self._observation(), {}
        if over and self._mode == AutoresetMode.SAME_STEP:
            final = np.empty(self.num_envs, dtype=object)
            final[:] = list(observation)
            info = {"final_obs": final, "_final_obs": np.ones(self.num_envs, dtype=np.bool_)}
            observation, _ = self.reset()
        return observation, reward, nothing | over, nothing, info

    def _uniforms(self) -> torch.Tensor:
        return torch.rand(self.num_envs, dtype=torch.float64, generator=self._generator)

    def _observation(self) -> Array:
        return np.stack([np.full(self.num_envs, self._stage), self._states.numpy()], axis=1)


def _built(mdp: LinearMDP | str, options: dict[str, Any]) -> LinearMDP:
    if isinstance(mdp, str):
        if mdp not in INSTANCES:
            raise ValueError(f"mdp = {mdp!r}; valid: a LinearMDP, or one of {', '.join(INSTANCES)}")
        return INSTANCES[mdp](**options)
    if options:
        raise ValueError(f"options = {sorted(options)}; valid: none beside a LinearMDP, only beside a name")
    return mdp


def _spaces(mdp: LinearMDP) -> tuple[MultiDiscrete, Discrete]:
    return MultiDiscrete([mdp.horizon + 1, mdp.num_states]), Discrete(mdp.num_actions)
