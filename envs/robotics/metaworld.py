"""Meta-World v3 with a random goal that is seen, and a hand that starts anywhere."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

HAND_RANGE = np.array([0.25, 0.15, 0.2])
"""How far from its usual place the hand may start, in meters."""

_SETTLING = 50
"""Control steps in which the hand goes to where it starts."""

_PREVIOUS_HAND = slice(18, 22)
"""Where the 39 numbers of Meta-World repeat the hand and the gripper of the step before."""

Expert = Callable[[NDArray[Any]], NDArray[np.float32]]
"""``expert(observation [35]) -> action [4]`` in the box [-1, 1]."""


class MetaWorldEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A Meta-World v3 task [arXiv 2310.13639, appendix D.1].

    Observation [35]: hand (3), gripper (1), objects with quaternions (14), the same objects one step earlier (14),
    goal (3); these are Meta-World's 39 numbers without the hand and the gripper of the step before. Action [4] in
    [-1, 1]: the move of the hand, and the effort of the gripper. The reward is Meta-World's divided by 10, at most 1.

    An episode is determined by ``reset(seed=...)`` and its actions, whatever was played before.

    Args:
        task: a name such as ``"plate-slide"``; any of Meta-World v3. The paper's six have Gymnasium ids as well:
            ``decisionrl/PlateSlide-v0``.
        max_steps: episodes are truncated after as many steps.
        success_reward: the reward is 1 at the first step of success, which ends the episode, and else 0; the mean
            return then is the success rate.
        randomize_hand: the hand starts at its usual place plus U(-0.25, 0.25) x U(-0.15, 0.15) x U(-0.2, 0.2), clipped
            to where the hand can go.
        render_mode: ``"rgb_array"`` for films.

    Raises:
        ValueError: the task is unknown, or max_steps < 1.
        ImportError: Meta-World, of the extra ``decisionrl[robotics]``, is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        task: str = "plate-slide",
        *,
        max_steps: int = 250,
        success_reward: bool = False,
        randomize_hand: bool = True,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1")
        self.task, self.max_steps, self.render_mode = task, max_steps, render_mode
        self.success_reward, self.randomize_hand = success_reward, randomize_hand
        self._physics = made_physics(task, max_steps, render_mode)
        self._hand = SettledHand(self._physics)
        self._steps = 0
        self._observation = np.zeros(35, np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (35,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    @property
    def observation(self) -> NDArray[np.float32]:
        """What was seen last, [35]."""
        return self._observation

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        physics = self._physics
        physics.np_random = self.np_random
        physics.curr_path_length = self._steps = 0
        self._hand.restore_model()
        physics.reset_model()
        if self.randomize_hand:
            place = physics.hand_init_pos + self.np_random.uniform(-HAND_RANGE, HAND_RANGE)
            self._hand.move(np.clip(place, physics.mocap_low, physics.mocap_high))
        self._hand.update()
        physics._get_obs()  # the step before the first one saw what the first one sees
        self._see(physics._get_obs())
        return self._observation, {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        full, reward, _, _, info = self._physics.step(action)
        self._see(full)
        self._steps += 1
        success, truncated = bool(info["success"]), self._steps >= self.max_steps
        if self.success_reward:
            return self._observation, float(success), success, truncated and not success, {"success": success}
        return self._observation, float(reward) / 10, False, truncated, {"success": success}

    def render(self) -> Any:
        frame = self._physics.render()
        return None if frame is None else np.rot90(frame, 2).copy()  # Meta-World's cameras hang upside down

    def close(self) -> None:
        self._physics.close()

    def _see(self, full: NDArray[np.float64]) -> None:
        self._observation = np.delete(full, _PREVIOUS_HAND).astype(np.float32)


def scripted_expert(task: str) -> Expert:
    """Meta-World's scripted policy of a task, a function of what is seen: it can judge recorded observations as well.

    Raises:
        ValueError: the task is unknown.
        ImportError: Meta-World, of the extra ``decisionrl[robotics]``, is not installed.
    """
    policy = _named(task, _metaworld("policies").ENV_POLICY_MAP)()

    def expert(observation: NDArray[Any]) -> NDArray[np.float32]:
        full = np.empty(39)  # a new one every time: some of the policies write into it
        full[:18], full[22:] = observation[:18], observation[18:]
        full[_PREVIOUS_HAND] = observation[:4]  # none of the policies reads these
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about actions outside the box, at most steps
            action: NDArray[Any] = policy.get_action(full)
        return action.clip(-1, 1).astype(np.float32)

    return expert


def expert_action(env: MetaWorldEnv) -> NDArray[np.float32]:
    """What the scripted policy does in the present state of an environment, [4]."""
    return scripted_expert(env.task)(env.observation)


class SettledHand:
    """The state in which every reset begins, reached once: the hand has come to rest at its usual place.

    Meta-World simulates the way there twice in every reset, among the objects of earlier episodes; so the state would
    depend on them.
    """

    def __init__(self, physics: Any) -> None:
        import mujoco

        # Not a cycle: a copy takes tens of megabytes, which are to be free as soon as nobody holds it.
        self._mujoco = mujoco
        self._physics: Any = weakref.proxy(physics)
        self._body_pos, self._site_pos = physics.model.body_pos.copy(), physics.model.site_pos.copy()
        mujoco.mj_resetData(physics.model, physics.data)
        physics._reset_hand()
        self._everything = mujoco.mjtState.mjSTATE_INTEGRATION
        self._settled = np.empty(mujoco.mj_stateSize(physics.model, self._everything))
        mujoco.mj_getState(physics.model, physics.data, self._settled, self._everything)
        physics._reset_hand = self.restore

    def restore_model(self) -> None:
        """Put the objects back to where they are before a task places them."""
        self._physics.model.body_pos[:] = self._body_pos
        self._physics.model.site_pos[:] = self._site_pos

    def move(self, place: NDArray[np.float64]) -> None:
        """Simulate the way of the hand to ``place`` [3], the gripper opening."""
        physics = self._physics
        physics.data.mocap_pos[:] = place
        physics.data.ctrl[:] = (-1, 1)
        self._mujoco.mj_step(physics.model, physics.data, nstep=_SETTLING * physics.frame_skip)

    def update(self) -> None:
        """Work out positions from the state."""
        self._mujoco.mj_forward(self._physics.model, self._physics.data)

    def restore(self) -> None:
        """What stands in for ``_reset_hand``, with which ``reset_model`` of every task begins."""
        physics = self._physics
        self._mujoco.mj_setState(physics.model, physics.data, self._settled, self._everything)
        self.update()
        physics.init_tcp = physics.tcp_center


def made_physics(task: str, max_steps: int, render_mode: str | None) -> Any:
    physics = _named(task, _metaworld("env_dict").ALL_V3_ENVIRONMENTS)(render_mode=render_mode, camera_name="corner2")
    physics.max_path_length = max_steps
    physics._freeze_rand_vec = False  # goals and objects are drawn at every reset,
    physics.seeded_rand_vec = True  # from np_random,
    physics._set_task_called = True  # so no task need be set
    physics._partially_observable = False
    del physics.sawyer_observation_space  # cached while the goal was hidden: steps would clip the goal to zero
    return physics


def _named(task: str, known: Any) -> Any:
    name = f"{task.removesuffix('-v3')}-v3"
    if name not in known:
        raise ValueError(f"task = {task!r}; valid: {', '.join(each.removesuffix('-v3') for each in sorted(known))}")
    return known[name]


def _metaworld(module: str) -> Any:
    try:
        import metaworld.env_dict
        import metaworld.policies
    except ImportError as error:
        raise ImportError(f"Meta-World: {error}; pip install 'decisionrl[robotics]'") from error
    return getattr(metaworld, module)
