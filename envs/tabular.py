"""Deterministic finite MDPs, whose every answer is known exactly, and a sparse-goal gridworld of the kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

Info = dict[str, Any]

TOLERANCE = 1e-12
"""Where soft policy iteration stops: no value changes by more than this by 1 / (1 - gamma), relative to the largest."""


@dataclass(frozen=True, kw_only=True)
class SoftOptimum:
    """The answers of a soft-optimal MDP, all in float64.

    Attributes:
        q: Q*(s, a), [S, A].
        value: V*(s) = temperature * log sum_a exp(Q*(s, a) / temperature), [S]; 0 in terminal states.
        advantage: A* = Q* - V*, [S, A].
        policy: pi*(a | s) = exp(A*(s, a) / temperature), [S, A].
    """

    q: Float[Tensor, "S A"]
    value: Float[Tensor, " S"]
    advantage: Float[Tensor, "S A"]
    policy: Float[Tensor, "S A"]


@dataclass(frozen=True, kw_only=True)
class DeterministicMDP:
    """Finitely many states and actions; action a in state s leads to ``next_state[s, a]`` for ``reward[s, a]``.

    Attributes:
        next_state: [S, A].
        reward: [S, A], float64.
        terminal: states that have no future, [S]; what the tables say of them is never read.
        gamma: discount, in (0, 1).
        start: the probability that an episode begins in each state, [S].

    Raises:
        ValueError: tables that do not fit together, or a gamma outside (0, 1).
    """

    next_state: Int[Tensor, "S A"]
    reward: Float[Tensor, "S A"]
    terminal: Bool[Tensor, " S"]
    gamma: float
    start: Float[Tensor, " S"]

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma = {self.gamma}; valid: between 0 and 1")
        if self.next_state.dim() != 2 or self.reward.shape != self.next_state.shape:
            raise ValueError(
                f"next_state {tuple(self.next_state.shape)} and reward {tuple(self.reward.shape)}; valid: both [S, A]"
            )
        if not self.terminal.shape == self.start.shape == self.next_state.shape[:1]:
            raise ValueError(
                f"terminal {tuple(self.terminal.shape)} and start {tuple(self.start.shape)}; valid: [{self.num_states}]"
            )
        if self.next_state.min() < 0 or self.next_state.max() >= self.num_states:
            raise ValueError(
                f"next_state is from {int(self.next_state.min())} to {int(self.next_state.max())}; valid: 0 to "
                f"{self.num_states - 1}"
            )
        if (self.start < 0).any() or abs(float(self.start.sum()) - 1) > 1e-9 or self.start[self.terminal].any():
            raise ValueError("start: valid are probabilities with sum 1 that are 0 in terminal states")

    @property
    def num_states(self) -> int:
        """S."""
        return self.next_state.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.next_state.shape[1]

    def soft_optimum(self, temperature: float) -> SoftOptimum:
        """Q*, V*, A* and pi* of the maximum-entropy objective at the temperature alpha:

            Q*(s, a) = r(s, a) + gamma V*(s'),   V*(s) = alpha log sum_a exp(Q*(s, a) / alpha).

        Soft policy iteration: each policy's value is the solution of a linear system, and the next policy its softmax.
        This is Newton's method, which takes a few rounds to be exact.

        Raises:
            ValueError: the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}; valid: a positive number")
        policy = torch.full_like(self.reward, 1 / self.num_actions)
        before = torch.full_like(self.start, -torch.inf)
        while True:
            entropy = -torch.xlogy(policy, policy).sum(1)
            value = self._solved(policy, (policy * self.reward).sum(1) + temperature * entropy)
            q = self.reward + self.gamma * value[self.next_state]
            policy = (q / temperature).softmax(1)
            if (value - before).abs().max() * (1 - self.gamma) <= TOLERANCE * value.abs().max().clamp(min=1):
                break
            before = value
        value = torch.where(self.terminal, 0.0, temperature * (q / temperature).logsumexp(1))
        q = self.reward + self.gamma * value[self.next_state]
        return SoftOptimum(q=q, value=value, advantage=q - value[:, None], policy=(q / temperature).softmax(1))

    def evaluate(self, policy: Float[Tensor, "S A"]) -> Float[Tensor, " S"]:
        """V^pi(s), the discounted return of a policy from every state, exactly."""
        return self._solved(policy, (policy * self.reward).sum(1))

    def _solved(self, policy: Tensor, income: Tensor) -> Float[Tensor, " S"]:
        """V = income + gamma P V, with V = 0 in terminal states."""
        transition = torch.zeros(self.num_states, self.num_states, dtype=self.reward.dtype)
        transition.scatter_add_(1, self.next_state, policy)
        alive = (~self.terminal).to(self.reward)
        system = torch.eye(self.num_states, dtype=self.reward.dtype) - self.gamma * alive[:, None] * transition
        value: Tensor = torch.linalg.solve(system, alive * income)
        return value


def gridworld(size: int = 5, *, gamma: float = 0.9) -> DeterministicMDP:
    """``size * size`` cells, numbered row by row; actions 0 to 3 go right, down, left and up, and stay at a wall.

    Entering the last cell, the goal, rewards 1 and ends the episode; nothing else is rewarded. Episodes begin anywhere
    else with equal probability.

    Raises:
        ValueError: size is less than 2.
    """
    if size < 2:
        raise ValueError(f"size = {size}; valid: a whole number >= 2")
    cell = torch.arange(size * size)
    row, column = cell // size, cell % size
    moves = ((0, 1), (1, 0), (0, -1), (-1, 0))
    led_to = [(row + down).clamp(0, size - 1) * size + (column + right).clamp(0, size - 1) for down, right in moves]
    next_state = torch.stack(led_to, 1)
    terminal = cell == size * size - 1
    return DeterministicMDP(
        next_state=next_state,
        reward=((next_state == size * size - 1) & ~terminal[:, None]).double(),
        terminal=terminal,
        gamma=gamma,
        start=(~terminal).double() / (size * size - 1),
    )


class TabularEnv(gymnasium.Env[int, int]):
    """A deterministic MDP as a Gymnasium environment; the observation is the number of the state.

    Args:
        mdp: default ``gridworld(size)``.
        size: of the default gridworld.
        max_steps: episodes are truncated after as many.

    Raises:
        ValueError: size or max_steps is too small.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(self, mdp: DeterministicMDP | None = None, *, size: int = 5, max_steps: int = 50) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1")
        self.mdp = gridworld(size) if mdp is None else mdp
        self.max_steps = max_steps
        self.observation_space = spaces.Discrete(self.mdp.num_states)  # type: ignore[assignment]  # of np.int64
        self.action_space = spaces.Discrete(self.mdp.num_actions)  # type: ignore[assignment]
        self._start = self.mdp.start.numpy()
        self._next, self._reward = self.mdp.next_state.tolist(), self.mdp.reward.tolist()
        self._terminal = self.mdp.terminal.tolist()
        self._state, self._steps = -1, max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, Info]:
        super().reset(seed=seed)
        self._state, self._steps = int(self.np_random.choice(len(self._start), p=self._start)), 0
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, Info]:
        """Raises gymnasium.error.ResetNeeded when the episode is over or has not begun."""
        if self._steps >= self.max_steps or self._terminal[self._state]:
            raise gymnasium.error.ResetNeeded("TabularEnv: no episode is running; call reset()")
        reward = self._reward[self._state][action]
        self._state, self._steps = self._next[self._state][action], self._steps + 1
        terminated = self._terminal[self._state]
        return self._state, reward, terminated, not terminated and self._steps == self.max_steps, {}
