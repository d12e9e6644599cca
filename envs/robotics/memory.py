"""Tasks that need memory as a batched world, thousands of copies in one tensor operation, and through Gymnasium.

    import gymnasium
    from decisionrl.envs.make import make_world

    world = make_world("decisionrl/ReturnSide-v0", num_envs=1000, options={"delay": 3})
    env = gymnasium.make("decisionrl/CountVisits-v0", visits=3)

The tasks themselves are in ``memory_tasks``.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.envs.robotics.memory_tasks import ARENA, REACHED, CountVisits, Progress, ReturnSide, made_task
from decisionrl.envs.seeded import uniform
from decisionrl.envs.world import Step
from decisionrl.envs.world_gymnasium import Array, Info, WorldEnv, WorldVectorEnv, as_array

SIDE = 32
"""Pixels along each side of an image."""

BLOB = 1.5
"""Standard deviation of the point's image, in pixels."""

PICTURE = 240
"""Pixels along each side of a frame of a film."""

_BLUE, _ORANGE, _GREEN, _GRAY, _BLACK = (76, 120, 168), (245, 133, 24), (84, 162, 75), (186, 186, 186), (0, 0, 0)

_PLACES = {
    "return_side": [
        (ReturnSide.HUB, _BLUE),
        ((-ReturnSide.SIDE, 0.0), _ORANGE),
        ((ReturnSide.SIDE, 0.0), _GREEN),
    ],
    "count_visits": [(CountVisits.HOME, _BLUE), (CountVisits.BOWL, _ORANGE), (CountVisits.EXIT, _GREEN)],
}
"""Where each task's circles are in films, and their colors."""


class MemoryWorld:
    """``num_envs`` copies of a point-mass task that needs memory.

    Observation [2]: the position p in [-1.2, 1.2]^2. Action a [2] in [-1, 1]: p' = clip(p + step_length a + noise w)
    with w standard normal. The reward is 1 at success, which ends the episode as failure does, and else 0; so the mean
    return is the success rate. What happens in a copy depends on its seed and its actions alone, on no other copy.

    Args:
        task: ``"return_side"`` or ``"count_visits"``, with the options of :class:`ReturnSide` or :class:`CountVisits`.
        noise: standard deviation of the noise of every step.
        oracle: the hidden variable is appended to the observation. Who fails even then needs more training, not more
            memory.
        pixels: the observation is a gray image [1, 32, 32] of uint8 instead, with a blob at p; y points up.
        max_steps: episodes are truncated after as many steps; by default the task's.

    Raises:
        ValueError: an option is not valid, or both oracle and pixels are given.
    """

    seedable = True

    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 1,
        noise: float = 0.01,
        oracle: bool = False,
        pixels: bool = False,
        max_steps: int | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs = {num_envs}; valid: a whole number >= 1")
        if noise < 0:
            raise ValueError(f"noise = {noise}; valid: a number >= 0")
        if oracle and pixels:
            raise ValueError("oracle = True, pixels = True; valid: at most one of them")
        self.task = made_task(task, options)
        self.max_steps = self.task.max_steps if max_steps is None else max_steps
        if self.max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1, or None")
        self.name, self.num_envs, self.device = task, num_envs, torch.device(device)
        self.noise, self.oracle, self.pixels = noise, oracle, pixels
        self.observation_space: gymnasium.Space[Any] = self._seen_space()
        self.action_space: gymnasium.Space[Any] = spaces.Box(-1, 1, (2,), np.float32)
        self._seed = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._steps = torch.zeros_like(self._seed)
        self._position, self._progress = self._started(self._seed)

    @property
    def position(self) -> Float[Tensor, "copies 2"]:
        """Where the points are, whatever is seen of it."""
        return self._position

    @property
    def hidden(self) -> Float[Tensor, " copies"]:
        """The hidden variable."""
        return self.task.hidden(self._progress)

    @property
    def observation(self) -> Tensor:
        """What is seen of it."""
        if self.pixels:
            return rendered(self._position)
        return torch.cat([self._position, self.hidden[:, None]], 1) if self.oracle else self._position

    def reset(self, seeds: Sequence[int]) -> Tensor:
        return self.restart(range(self.num_envs), seeds)

    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Tensor:
        if len(copies) != len(seeds):
            raise ValueError(f"{self.name}: {len(seeds)} seeds; valid: {len(copies)}, one for each copy")
        row = torch.as_tensor(copies, dtype=torch.int64, device=self.device)
        seed = torch.tensor([int(each) % 2**63 for each in seeds], dtype=torch.int64, device=self.device)
        position, progress = self._started(seed)
        self._seed = self._seed.index_copy(0, row, seed)
        self._steps = self._steps.index_fill(0, row, 0)
        self._position = self._position.index_copy(0, row, position)
        self._progress = tuple(old.index_copy(0, row, new) for old, new in zip(self._progress, progress, strict=True))
        return self.observation

    def step(self, action: Float[Tensor, "copies 2"], *, idle: Collection[int] = ()) -> Step:
        if action.shape != (self.num_envs, 2):
            raise ValueError(f"{self.name}: action has shape {list(action.shape)}; valid: {[self.num_envs, 2]}")
        self._steps = self._steps + 1
        move = self.task.step_length * action.to(self._position).clamp(-1, 1)
        moved = self._position + move + self.noise * _normal(self._seed, self._steps)
        self._position = moved.clamp(-ARENA, ARENA)
        self._progress, success, failure = self.task.judge(self._position, self._progress)
        terminated = success | failure
        truncated = (self._steps >= self.max_steps) & ~terminated
        over = [i for i in (terminated | truncated).nonzero().flatten().tolist() if i not in idle]
        return Step(self.observation, success.float(), terminated, truncated, over)

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "steps": self._steps,
            "position": self._position,
            "progress": tuple(self._progress),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> Tensor:
        if len(state["seed"]) != self.num_envs:
            raise ValueError(f"{self.name}: num_envs = {self.num_envs}; the saved world has {len(state['seed'])}")
        self._seed, self._steps, self._position = (
            state[name].to(self.device) for name in ("seed", "steps", "position")
        )
        self._progress = tuple(each.to(self.device) for each in state["progress"])
        return self.observation

    def close(self) -> None:
        """Nothing to close."""

    def _started(self, seed: Int[Tensor, " copies"]) -> tuple[Float[Tensor, "copies 2"], Progress]:
        return self.task.start(uniform(seed, torch.zeros_like(seed), 3).float())

    def _seen_space(self) -> spaces.Box:
        if self.pixels:
            return spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8)
        hidden = self.task.hidden_space
        low, high = np.full(2, -ARENA, np.float32), np.full(2, ARENA, np.float32)
        if self.oracle:
            low, high = np.append(low, hidden.low), np.append(high, hidden.high)
        return spaces.Box(low, high, dtype=np.float32)


class MemoryEnv(WorldEnv):
    """One copy of :class:`MemoryWorld`, with its arguments; ``info["success"]`` says whether the step succeeded.

    With render_mode ``"rgb_array"``, ``render()`` is a picture of the task's places and of the point's way so far.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - Gymnasium's signature
    world: MemoryWorld

    def __init__(self, task: str, *, render_mode: Literal["rgb_array"] | None = None, **options: Any) -> None:
        super().__init__(MemoryWorld(task, num_envs=1, **options))
        self.render_mode = render_mode
        self._way = as_array(self.world.position)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        begun = super().reset(seed=seed, options=options)
        self._way = as_array(self.world.position)
        return begun

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Info]:
        stepped = super().step(action)
        self._way = np.append(self._way, as_array(self.world.position), 0)
        return stepped

    def render(self) -> Array | None:
        """An image of uint8 [240, 240, 3], or None without a render mode."""
        return None if self.render_mode is None else pictured(self.world.name, self._way)

    def told(self, reward: Array) -> Mapping[str, Array]:
        return {"success": reward > 0}


class MemoryVectorEnv(WorldVectorEnv):
    """``num_envs`` copies of :class:`MemoryWorld` with its arguments; each begins anew when its own episode has ended.

    Raises:
        ValueError: as MemoryWorld, or the mode is DISABLED.
    """

    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        super().__init__(MemoryWorld(task, num_envs=num_envs, **options), autoreset_mode=autoreset_mode)

    def told(self, reward: Array) -> Mapping[str, Array]:
        return {"success": reward > 0}


def rendered(position: Float[Tensor, "copies 2"]) -> Int[Tensor, "copies 1 side side"]:
    """Gray images of uint8: 255 exp(-d^2 / (2 BLOB^2)) at distance d, in pixels, from the point.

    The centers of the first and the last pixel of a side stand for -1.2 and 1.2; the first row is the uppermost.
    """
    pixel = torch.arange(SIDE, dtype=position.dtype, device=position.device)
    scale = (SIDE - 1) / (2 * ARENA)
    across = (position[:, :1] + ARENA) * scale - pixel
    down = (ARENA - position[:, 1:]) * scale - pixel
    row, column = ((-each.square() / (2 * BLOB**2)).exp() for each in (down, across))
    return (255 * row[:, :, None] * column[:, None, :]).round().to(torch.uint8)[:, None]


def pictured(task: str, way: Array) -> Array:
    """An image of uint8 [240, 240, 3]: the task's places as circles, and a way [points, 2] with its last point large.

    The centers of the first and the last pixel of a side stand for -1.2 and 1.2; y points up.
    """
    line = np.linspace(-ARENA, ARENA, PICTURE)
    pixel = np.stack(np.meshgrid(line, -line), -1)
    picture = np.full((PICTURE, PICTURE, 3), 255, np.uint8)

    def stroke(first: Array, second: Array, radius: float, color: tuple[int, int, int]) -> None:
        ahead = second - first
        share = (pixel - first) @ ahead / max(ahead @ ahead, 1e-12)
        nearest = first + share.clip(0, 1)[..., None] * ahead
        picture[((pixel - nearest) ** 2).sum(-1) <= radius**2] = color

    for place, color in _PLACES[task]:
        stroke(np.array(place), np.array(place), REACHED, color)
    for first, second in itertools.pairwise(way):
        stroke(first, second, 0.012, _GRAY)
    for point in way:
        stroke(point, point, 0.025, _BLACK)
    stroke(way[-1], way[-1], 0.06, _BLACK)
    return picture


def _normal(seed: Int[Tensor, " copies"], step: Int[Tensor, " copies"]) -> Float[Tensor, "copies 2"]:
    """Two standard normal numbers (Box and Muller): rounded from float64, so that the batch cannot show in them."""
    number = uniform(seed, step, 2)
    radius, angle = (-2 * number[:, 0].log()).sqrt(), 2 * torch.pi * number[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).float()
