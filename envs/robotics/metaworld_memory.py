"""Tasks that need memory in the physics of Meta-World v3, and experts who remember.

env = gymnasium.make("decisionrl.envs:decisionrl/MWCueReach-v0")
observation, _ = env.reset(seed=0)
expert = env.unwrapped.expert(torch.Generator().manual_seed(0))
action = expert.act(observation)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from decisionrl.envs.robotics.metaworld import SettledHand, made_physics

Array = NDArray[np.float32]
Info = dict[str, Any]

_GAIN = 10.0
"""An action of 1 moves the hand by about 0.009 m, so the hand slows down within 0.1 m of where it goes."""

_PRECISE = 30.0
"""Where a centimeter matters: who imitates actions to within 0.1 stays within 3 mm of the place, not within 1 cm."""


class Expert(Protocol):
    """Somebody who solves a task, for one episode."""

    def act(self, observation: NDArray[Any]) -> Array:
        """What to do after having seen this, in the box [-1, 1]; to be asked in every step."""
        ...


class CueReachEnv(gymnasium.Env[Array, Array]):
    """Remember which of two places was shown, and go there from a place between them.

    Observation [7]: hand (3); the place to go to while t < 5, then zeros (3); whether it is shown (1). Action [3] in
    [-1, 1]: the move of the hand, at most about 0.009 m along each axis. Lengths are in meters.

    The place is (-0.2, 0.65, 0.2) or (0.2, 0.65, 0.2), with equal probabilities; the hand starts at (0, 0.6, 0.2)
    + U(-0.05, 0.05)^3. Success is to come within 0.03 of the place after having been within 0.03 of (0, 0.8, 0.2), the
    neutral place, at a time t >= 30; coming within 0.1 of the other place is failure. The reward is 1 at success, which
    ends the episode as failure does, and else 0; so the mean return is the success rate.

    The expert does the same for both places until it leaves the neutral one at a time t >= 40. What it sees from t = 5
    on until then, 36 to 46 steps later, says nothing about the place, so who imitates it from windows that do not reach
    back to t < 5 succeeds in half of the episodes at the most. A policy that does not imitate can use the world as its
    notebook and wait a little to the left or to the right of the neutral place; the bound is not about those.

    An episode is determined by ``reset(seed=...)`` and its actions, whatever was played before.

    Args:
        max_steps: episodes are truncated after as many steps.
        noise: of every move m, which becomes clip(m + noise w, -1, 1) with w standard normal. Demonstrations with noise
            show what to do when the hand is not quite where it should be.
        oracle: the place is shown all the time, and the time in units of max_steps is appended to the observation, now
            [8]. Who fails even then needs more training, not more memory.
        render_mode: ``"rgb_array"`` for films; the place is marked in them.

    Raises:
        ValueError: max_steps < 1 or noise < 0.
        ImportError: Meta-World, of the extra ``decisionrl[robotics]``, is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - as Gymnasium has it

    PLACES = np.array([[-0.2, 0.65, 0.2], [0.2, 0.65, 0.2]])
    NEUTRAL = np.array([0.0, 0.8, 0.2])
    START_RANGE = 0.05
    SHOWN = 5
    """Observations in which the place is shown."""

    LEAVING = 30
    """When the hand must be at the neutral place, or later."""

    REACHED = 0.03
    WRONG = 0.1

    def __init__(
        self,
        *,
        max_steps: int = 150,
        noise: float = 0.0,
        oracle: bool = False,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        _check_noise(noise)
        self._arm = _Arm("reach", max_steps, render_mode)
        self.max_steps, self.noise, self.oracle, self.render_mode = max_steps, noise, oracle, render_mode
        self._right, self._wrong = self.PLACES
        self._steps, self._ready = 0, False
        self.observation_space = spaces.Box(-np.inf, np.inf, (8 if oracle else 7,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        right = int(self.np_random.integers(2))
        self._right, self._wrong = self.PLACES[right], self.PLACES[1 - right]
        self._steps, self._ready = 0, False
        self._arm.reset()
        self._arm.mark(self._right)
        self._arm.place_hand(self.np_random.uniform(-self.START_RANGE, self.START_RANGE, 3))
        return self._observation(), {"success": False}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Info]:
        self._arm.step(action + self.noise * self.np_random.standard_normal(3), effort=0.0)
        self._steps += 1
        hand = self._arm.hand
        success = self._ready and _distance(hand, self._right) < self.REACHED
        failure = _distance(hand, self._wrong) < self.WRONG
        self._ready |= self._steps >= self.LEAVING and _distance(hand, self.NEUTRAL) < self.REACHED
        over = success or failure
        truncated = self._steps >= self.max_steps and not over
        return self._observation(), float(success), over, truncated, {"success": success}

    def expert(self, generator: torch.Generator) -> CueReachExpert:
        """Somebody who solves the task, for one episode."""
        return CueReachExpert(generator)

    def render(self) -> Any:
        return self._arm.render()

    def close(self) -> None:
        self._arm.close()

    def _observation(self) -> Array:
        shown = self.oracle or self._steps < self.SHOWN
        cue = self._right if shown else np.zeros(3)
        time = [self._steps / self.max_steps] if self.oracle else []
        return np.array([*self._arm.hand, *cue, shown, *time], np.float32)


class CueReachExpert:
    """Watches, goes to the neutral place, waits there until a random time from 40 to 50, and goes where it was shown.

    It lives for one episode, and sees what policies see.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._leaves = int(torch.randint(40, 51, (), generator=generator))
        self._steps = 0
        self._place = np.zeros(3)

    def act(self, observation: NDArray[Any]) -> Array:
        """Zeros while the place is shown first; then clip(10 (w - hand), -1, 1) for the place w to go to, [3]."""
        time, self._steps = self._steps, self._steps + 1
        if time < CueReachEnv.SHOWN:
            self._place = observation[3:6].copy()
            return np.zeros(3, np.float32)
        return _move(observation[:3], CueReachEnv.NEUTRAL if time < self._leaves else self._place)


class PickAndReturnEnv(gymnasium.Env[Array, Array]):
    """Lift an object to the hub and put it back where it was.

    Observation [8]: hand (3), opening of the gripper from 0 to 1 (1), object (3), whether it may be put back (1).
    Action [4] in [-1, 1]: the move of the hand, at most about 0.009 m along each axis, and the effort that closes the
    gripper. Lengths are in meters. The move m becomes clip(m + noise w, -1, 1) with w standard normal.

    The object starts on the table at (-0.1, 0.65) or (0.1, 0.65), with equal probabilities, + U(-0.02, 0.02)^2. It may
    be put back from a random time on, 40 to 50 steps after it came within 0.07 of the hub (0, 0.75, 0.2). It is put
    down when it is within 0.01 of the table's height and more than 0.08 away from the hand. Success is to have put it
    down within 0.05 of its start, along the table, when it may be; putting it down elsewhere, or earlier, after it has
    been at the hub is failure. The reward is 1 at success, which ends the episode as failure does, and else 0; so the
    mean return is the success rate.

    The expert waits at the hub, until hardly anything but the noise says where the object came from: who imitates it
    from windows that do not reach back any further succeeds in about half of the episodes at the most. Without noise a
    tenth of a millimeter would still tell the side. As in :class:`CueReachEnv`, a policy that does not imitate can use
    the world as its notebook.

    An episode is determined by ``reset(seed=...)`` and its actions, whatever was played before.

    Args:
        max_steps: episodes are truncated after as many steps.
        noise: standard deviation of the noise of every move.
        oracle: the start of the object along the table (2) is appended to the observation, now [10].
        render_mode: ``"rgb_array"`` for films; the hub is marked in them.

    Raises:
        ValueError: max_steps < 1 or noise < 0.
        ImportError: Meta-World, of the extra ``decisionrl[robotics]``, is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 - as Gymnasium has it

    PATCHES = np.array([[-0.1, 0.65, 0.02], [0.1, 0.65, 0.02]])
    PATCH_RANGE = 0.02
    HUB = np.array([0.0, 0.75, 0.2])
    AT_HUB = 0.07
    WAIT = 40, 50
    """Steps at the hub, the fewest and the most."""

    RETURNED = 0.05
    ON_TABLE = 0.01
    LET_GO = 0.08

    def __init__(
        self,
        *,
        max_steps: int = 350,
        noise: float = 0.3,
        oracle: bool = False,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        _check_noise(noise)
        self._arm = _Arm("pick-place", max_steps, render_mode)
        self.max_steps, self.noise, self.oracle, self.render_mode = max_steps, noise, oracle, render_mode
        self._start = self.PATCHES[0]
        self._steps, self._left = 0, 0
        self._lifted = False
        self.observation_space = spaces.Box(-np.inf, np.inf, (10 if oracle else 8,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._start = self.PATCHES[self.np_random.integers(2)].copy()
        self._start[:2] += self.np_random.uniform(-self.PATCH_RANGE, self.PATCH_RANGE, 2)
        fewest, most = self.WAIT
        self._steps, self._left = 0, int(self.np_random.integers(fewest, most + 1))
        self._lifted = False
        self._arm.reset()
        self._arm.mark(self.HUB)
        self._arm.place_object(self._start)
        return self._observation(), {"success": False}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Info]:
        move = action[:3] + self.noise * self.np_random.standard_normal(3)
        self._arm.step(move, effort=float(action[3]))
        self._steps += 1
        thing = self._arm.object
        self._left -= self._lifted
        self._lifted |= _distance(thing, self.HUB) < self.AT_HUB
        on_table = thing[2] < self._start[2] + self.ON_TABLE
        over = bool(self._lifted and on_table and _distance(thing, self._arm.hand) > self.LET_GO)
        success = over and self._left <= 0 and _distance(thing[:2], self._start[:2]) < self.RETURNED
        truncated = self._steps >= self.max_steps and not over
        return self._observation(), float(success), over, truncated, {"success": success}

    def expert(self, generator: torch.Generator) -> PickAndReturnExpert:
        """Somebody who solves the task, for one episode; nothing that it does is random."""
        return PickAndReturnExpert()

    def render(self) -> Any:
        return self._arm.render()

    def close(self) -> None:
        self._arm.close()

    def _observation(self) -> Array:
        start = self._start[:2] if self.oracle else []
        return np.array([*self._arm.hand, self._arm.opening, *self._arm.object, self._left <= 0, *start], np.float32)


class PickAndReturnExpert:
    """Takes the object to the hub, waits there until it may be put back, puts it where it was, and lets go.

    It lives for one episode, and sees what policies see. Meta-World's scripted policy for pick-place-v3 would not do:
    it grasps a little to the side from which it comes, and as long as it holds the object, its place in the hand tells
    which side that was. This expert is right above the object before it grasps. It goes down the lower the less it is
    to one side, and not in phases: who imitates it and goes astray is shown the way back.
    """

    ABOVE = np.array([0.0, 0.0, 0.1])
    GRIP = np.array([0.0, 0.0, 0.04])
    """Where the hand is in relation to the object that it holds."""

    CLOSING = 15
    """Steps in which the gripper closes or opens."""

    def __init__(self) -> None:
        self._seen = np.zeros(8)
        self._plan = self._actions()

    def act(self, observation: NDArray[Any]) -> Array:
        """The next action of the plan, [4]."""
        self._seen = observation
        return next(self._plan)

    @property
    def _hand(self) -> NDArray[Any]:
        return self._seen[:3]

    @property
    def _object(self) -> NDArray[Any]:
        return self._seen[4:7]

    def _actions(self) -> Iterator[Array]:
        start = self._object.astype(np.float64)
        grip = start + self.GRIP
        while _distance(self._hand, grip) > 0.007:
            yield self._going(self._above(self._hand, grip), effort=-1)
        for _ in range(self.CLOSING):
            yield self._going(grip, effort=1)
        while not self._seen[7]:
            yield self._carrying(PickAndReturnEnv.HUB)
        while _distance(self._object, start) > 0.01:
            yield self._carrying(self._above(self._object, start))
        for _ in range(self.CLOSING):
            yield np.array([0, 0, 0, -1], np.float32)
        while True:
            yield self._going(grip + self.ABOVE, effort=-1)

    def _above(self, thing: NDArray[Any], place: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where something goes on its way down to a place."""
        aside = _distance(thing[:2], place[:2])
        above: NDArray[np.float64] = place + self.ABOVE * np.clip((aside - 0.005) / 0.02, 0, 1)
        return above

    def _going(self, place: NDArray[np.float64], *, effort: float) -> Array:
        return np.append(_move(self._hand, place, _PRECISE), np.float32(effort))

    def _carrying(self, place: NDArray[np.float64]) -> Array:
        return np.append(_move(self._object, place, _PRECISE), np.float32(1))


class _Arm:
    """The robot of a Meta-World task with its object, but without the task's goal, reward and random numbers."""

    def __init__(self, task: str, max_steps: int, render_mode: str | None) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1")
        self._physics = made_physics(task, max_steps, render_mode)
        self._settled = SettledHand(self._physics)

    @property
    def hand(self) -> NDArray[np.float64]:
        """Where the hand is, [3]."""
        place: NDArray[np.float64] = self._physics.get_endeff_pos()
        return place

    @property
    def opening(self) -> float:
        """Of the gripper, from 0 to 1: how far the fingers are apart in relation to 0.1 m."""
        right, left = (self._physics.data.body(name).xpos for name in ("rightclaw", "leftclaw"))
        return min(_distance(right, left) / 0.1, 1.0)

    @property
    def object(self) -> NDArray[np.float64]:
        """Where the object is, [3]."""
        place: NDArray[np.float64] = self._physics.get_body_com("obj")
        return place

    def reset(self) -> None:
        """The hand is at rest at its usual place, the gripper open."""
        self._settled.restore()

    def place_hand(self, offset: NDArray[np.float64]) -> None:
        """Move the hand away from its usual place by ``offset`` [3]."""
        self._settled.move(self._physics.hand_init_pos + offset)
        self._settled.update()

    def place_object(self, place: NDArray[np.float64]) -> None:
        """Put the object to ``place`` [3], at rest."""
        self._physics._set_obj_xyz(place)

    def mark(self, place: NDArray[np.float64]) -> None:
        """Where films show a goal, [3]."""
        self._physics.model.site("goal").pos = place
        self._settled.update()

    def step(self, move: NDArray[Any], *, effort: float) -> None:
        """One control step with a move of the hand [3] and the effort that closes the gripper, both in [-1, 1]."""
        self._physics.set_xyz_action(move)
        self._physics.do_simulation([effort, -effort], self._physics.frame_skip)
        self._settled.update()

    def render(self) -> Any:
        frame = self._physics.render()
        return None if frame is None else np.rot90(frame, 2).copy()  # Meta-World's cameras hang upside down

    def close(self) -> None:
        self._physics.close()


def _check_noise(noise: float) -> None:
    if noise < 0:
        raise ValueError(f"noise = {noise}; valid: a number >= 0")


def _move(hand: NDArray[Any], place: NDArray[Any], gain: float = _GAIN) -> Array:
    """The action that takes the hand towards a place, [3]."""
    action: Array = np.clip(gain * (place - hand), -1, 1).astype(np.float32)
    return action


def _distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(np.linalg.norm(first - second))
