"""Dark rooms: a grid in which only one's own place is seen, and what is rewarded has to be found out.

    family = darkroom()
    task = torch.arange(family.num_tasks)[:, None]
    state = family.start(torch.rand(family.num_tasks, 50, family.start_draws))  # 50 streams in each task
    state, reward = family.step(state, family.optimal_action(state, task), task)

The defaults are the settings of DICP (arXiv 2502.19009) and of filtered learning histories (arXiv 2505.15143). Others
are options:

    darkroom(size=17, reward_once=True)                                 Dark Room Hard of AD (arXiv 2210.14215, sec. 4)
    dark_key_to_door(start="random")                                    Dark Key-to-Door of AD
    darkroom(size=10, horizon=100, start="corner", train_share=0.8, shuffle="numpy")         DPT (arXiv 2306.14892)
    darkroom_permuted(size=10, horizon=100)                             Darkroom with permuted actions of DPT
    darkroom(start="random", action_order="toy_meta_gym")               the environment of toy-meta-gym
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from decisionrl.envs.gridworld.family import Shuffle, check_split, check_whole, split_ids

Start = Literal["center", "corner", "random"]
"""Where episodes begin: at (size // 2, size // 2), at (0, 0), or in any cell."""

ActionOrder = Literal["axes", "toy_meta_gym"]

MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))
"""What the primitives 0, ..., 4 add to the cell (x0, x1)."""

ACTION_ORDERS: dict[ActionOrder, tuple[int, ...]] = {"axes": (0, 1, 2, 3, 4), "toy_meta_gym": (4, 1, 2, 0, 3)}
"""The primitives of the actions 0, ..., 4. ``"axes"``: +x0, -x0, +x1, -x1, stay, as in DPT and DICP;
``"toy_meta_gym"``: stay, up (-x0), right (+x1), down (+x0), left (-x1)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GridFamily:
    """Tasks on a grid of ``size`` x ``size`` cells; a :class:`~decisionrl.envs.gridworld.family.TaskFamily`.

    Action a executes the primitive ``primitives[task, a]``; the cell is clipped to the grid. A state [..., 3] is of
    int64: the cell (x0, x1), which is all that is seen, and how many rewards that come once the episode has given.

    A task has one goal or several, which are to be visited in their order. If ``once``, the visit of the next goal is
    rewarded with 1, and no step with more than that; where two goals coincide the second asks for one more step that
    ends there. Otherwise there is one goal, and every step that ends on it is rewarded with 1.

    Attributes:
        goals: cells; in the key-to-door tasks that of the key and that of the door.
        start_at: where episodes begin.
        train_share, split_seed, shuffle: the published split.

    Raises:
        ValueError: an option is not valid.
    """

    name: str
    size: int
    horizon: int
    start_at: Start
    goals: Int[Tensor, "tasks goals 2"] = field(repr=False)
    primitives: Int[Tensor, "tasks actions"] = field(repr=False)
    once: bool
    train_share: float
    split_seed: int
    shuffle: Shuffle

    start_draws = 2

    def __post_init__(self) -> None:
        check_whole("horizon", self.horizon, 1)
        if self.start_at not in get_args(Start):
            raise ValueError(f"start = {self.start_at!r}; valid: {', '.join(get_args(Start))}")
        check_split(self.train_share, self.shuffle)

    @property
    def num_tasks(self) -> int:
        return len(self.goals)

    @property
    def num_actions(self) -> int:
        return self.primitives.shape[1]

    @property
    def device(self) -> torch.device:
        return self.goals.device

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, self.size - 1, (2,), np.int32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    @cached_property
    def moves(self) -> Int[Tensor, "tasks actions 2"]:
        """What each action adds to the cell."""
        return torch.tensor(MOVES, device=self.device)[self.primitives]

    @cached_property
    def actions(self) -> Int[Tensor, "tasks actions"]:
        """The action that executes each primitive: the inverse of ``primitives``."""
        return self.primitives.argsort(1)

    @cached_property
    def max_return(self) -> Float[Tensor, " tasks"]:
        """With goal g, start s and horizon H it is clip(H + 1 - |g - s|_1, 0, H); if ``once``, how many goals can be
        visited in time. Random starts: of an episode that begins on the first goal."""
        first = self.goals[:, :1] if self._start is None else torch.full_like(self.goals[:, :1], self._start)
        legs = torch.cat([first, self.goals], 1).diff(dim=1).abs().sum(-1).clamp(min=1)
        reached = legs.cumsum(1)
        value = (reached <= self.horizon).sum(1) if self.once else (self.horizon + 1 - reached[:, -1]).clamp(min=0)
        return value.float()

    def to(self, device: torch.device | str) -> GridFamily:
        return replace(self, goals=self.goals.to(device), primitives=self.primitives.to(device))

    def split(self, seed: int | None = None) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
        """See :func:`~decisionrl.envs.gridworld.family.split_ids`; without a seed the published split."""
        seed = self.split_seed if seed is None else seed
        share, shuffle = self.train_share, self.shuffle
        return split_ids(self.name, self.num_tasks, train_share=share, seed=seed, shuffle=shuffle, device=self.device)

    def start(self, uniform: Float[Tensor, "... 2"]) -> Int[Tensor, "... 3"]:
        if self._start is None:
            return self.placed((uniform * self.size).long().clamp(max=self.size - 1))
        return self.placed(torch.full_like(uniform, self._start, dtype=torch.int64))

    def placed(self, cell: Int[Tensor, "... 2"]) -> Int[Tensor, "... 3"]:
        """The states of episodes that begin in these cells."""
        return functional.pad(cell, (0, 1))

    def step(
        self, state: Int[Tensor, "... 3"], action: Int[Tensor, ...], task: Int[Tensor, ...]
    ) -> tuple[Int[Tensor, "... 3"], Float[Tensor, ...]]:
        cell = (state[..., :2] + self.moves[task, action]).clamp(0, self.size - 1)
        given = state[..., 2]
        rewarded = (cell == self._goal(given, task)).all(-1)
        if self.once:
            rewarded = rewarded & (given < self.goals.shape[1])
            given = given + rewarded
        return torch.cat([cell, given[..., None]], -1), rewarded.float()

    def observation(self, state: Int[Tensor, "... 3"]) -> Int[Tensor, "... 2"]:
        return state[..., :2]

    def state_of(self, observation: Int[Tensor, "... 2"], collected: Float[Tensor, ...]) -> Int[Tensor, "... 3"]:
        given = collected.long() if self.once else torch.zeros_like(collected, dtype=torch.int64)
        return torch.cat([observation, given[..., None]], -1)

    def success(self, state: Int[Tensor, "... 3"], task: Int[Tensor, ...]) -> Bool[Tensor, ...]:
        """All goals have been visited; where rewards do not come once: the cell is the goal."""
        if self.once:
            return state[..., 2] == self.goals.shape[1]
        return (state[..., :2] == self._goal(state[..., 2], task)).all(-1)

    def optimal_action(self, state: Int[Tensor, "... 3"], task: Int[Tensor, ...]) -> Int[Tensor, ...]:
        """To the next goal, along x0 first; there, or if none is left, to stay."""
        x0, x1 = (self._goal(state[..., 2], task) - state[..., :2]).unbind(-1)
        along_x1 = torch.where(x1 > 0, 2, torch.where(x1 < 0, 3, 4))
        return self.actions[task, torch.where(x0 > 0, 0, torch.where(x0 < 0, 1, along_x1))]

    @property
    def _start(self) -> int | None:
        """Both coordinates of the start; None if it is random."""
        return {"center": self.size // 2, "corner": 0, "random": None}[self.start_at]

    def _goal(self, given: Int[Tensor, ...], task: Int[Tensor, ...]) -> Int[Tensor, "... 2"]:
        return self.goals[task, given.clamp(max=self.goals.shape[1] - 1)]


def darkroom(
    *,
    size: int = 9,
    horizon: int = 20,
    start: Start = "center",
    reward_once: bool = False,
    action_order: ActionOrder = "axes",
    train_share: float = 0.9,
    shuffle: Shuffle = "python",
) -> GridFamily:
    """A task for every cell, in row-major order, which is its goal (arXiv 2502.19009; 2505.15143, appendix).

    reward_once: the goal is rewarded on its first visit only, not on every step that ends there.
    """
    cells = _cells(size)
    return GridFamily(
        name="darkroom",
        size=size,
        horizon=horizon,
        start_at=start,
        goals=cells[:, None],
        primitives=_primitives(action_order).expand(len(cells), -1),
        once=reward_once,
        train_share=train_share,
        split_seed=0,
        shuffle=shuffle,
    )


def darkroom_large(*, size: int = 15, horizon: int = 50, **options: Any) -> GridFamily:
    """:func:`darkroom`, larger and longer (arXiv 2505.15143, appendix), with its options."""
    return replace(darkroom(size=size, horizon=horizon, **options), name="darkroom_large")


def darkroom_permuted(
    *,
    size: int = 9,
    horizon: int = 50,
    start: Start = "corner",
    reward_once: bool = False,
    action_order: ActionOrder = "axes",
    train_share: float = 0.9,
    shuffle: Shuffle = "python",
) -> GridFamily:
    """The goal is (size - 1, size - 1), and a task is one of the 120 permutations of the actions, in the order of
    ``itertools.permutations``: action a does what action ``permutation[a]`` would (arXiv 2306.14892; 2502.19009)."""
    check_whole("size", size, 2)
    permutations = torch.tensor(list(itertools.permutations(range(len(MOVES)))))
    return GridFamily(
        name="darkroom_permuted",
        size=size,
        horizon=horizon,
        start_at=start,
        goals=torch.full((len(permutations), 1, 2), size - 1),
        primitives=_primitives(action_order)[permutations],
        once=reward_once,
        train_share=train_share,
        split_seed=4,
        shuffle=shuffle,
    )


def dark_key_to_door(
    *,
    size: int = 9,
    horizon: int = 50,
    start: Start = "center",
    action_order: ActionOrder = "axes",
    train_share: float = 0.95,
    shuffle: Shuffle = "python",
) -> GridFamily:
    """First the key is to be found, then the door; each is rewarded once, and the key is not seen to be had.

    A task for every pair of cells: task ``key * size**2 + door``, cells in row-major order. From arXiv 2210.14215,
    sec. 4, with the start in the center of arXiv 2502.19009.
    """
    cells = _cells(size)
    pairs = torch.cartesian_prod(torch.arange(len(cells)), torch.arange(len(cells)))
    return GridFamily(
        name="dark_key_to_door",
        size=size,
        horizon=horizon,
        start_at=start,
        goals=cells[pairs],
        primitives=_primitives(action_order).expand(len(pairs), -1),
        once=True,
        train_share=train_share,
        split_seed=4,
        shuffle=shuffle,
    )


def _cells(size: int) -> Int[Tensor, "cells 2"]:
    """All cells in row-major order."""
    check_whole("size", size, 2)
    return torch.cartesian_prod(torch.arange(size), torch.arange(size))


def _primitives(order: ActionOrder) -> Int[Tensor, " actions"]:
    if order not in ACTION_ORDERS:
        raise ValueError(f"action_order = {order!r}; valid: {', '.join(ACTION_ORDERS)}")
    return torch.tensor(ACTION_ORDERS[order])
