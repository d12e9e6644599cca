"""What sources share: the policy they need, the record of a window, the statistics of episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from decisionrl.envs.world import Step
from decisionrl.experience.trajectories import Trajectories
from decisionrl.policies.evaluation import Batch, Evaluation, Observation


class ActingPolicy(Protocol):
    """A policy for control; those of ``decisionrl.policies.actor_critic`` are, and a user's may be."""

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Actions [copies, ...] and the next recurrent state; without noise the deterministic action."""
        ...

    def sample_noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """The randomness of as many actions, [*shape, ...]."""
        ...

    def initial_state(self, copies: int) -> Tensor | None:
        """The recurrent state at the start of an episode; None without memory."""
        ...

    def evaluate(self, batch: Batch, /) -> Evaluation: ...

    def value(self, observation: Observation, state: Tensor | None = None) -> Tensor | None:
        """V [copies]; None without a critic."""
        ...


class Recorder:
    """A window of ``steps`` steps of all copies, filled step by step; [copies, steps, ...]."""

    def __init__(self, example: Observation, copies: int, steps: int) -> None:
        self._single = isinstance(example, Tensor)
        rows = {"": example} if isinstance(example, Tensor) else example
        device = next(iter(rows.values())).device
        self._observation = {
            key: torch.empty(copies, steps, *row.shape[1:], dtype=row.dtype, device=device) for key, row in rows.items()
        }
        self._columns = {key: list(rows.unbind(1)) for key, rows in self._observation.items()}
        self._copies, self._steps, self._device = copies, steps, device
        self._reward = torch.empty(copies, steps, device=device)
        self._flags = torch.zeros(3, copies, steps, dtype=torch.bool, device=device)  # terminated, truncated, skipped
        self._rewards = list(self._reward.unbind(1))
        self._terminated, self._truncated, self._skipped = (list(flag.unbind(1)) for flag in self._flags)
        self._begun: Tensor | None = None
        self._action: Tensor | None = None
        self._actions: list[Tensor] = []

    def before(self, t: int, observation: Observation, begun: Tensor | None = None) -> None:
        """What the copies see before step t; begun: where an episode begins, for recurrent policies."""
        if isinstance(observation, Tensor):
            self._columns[""][t].copy_(observation)
        else:
            for key, column in self._columns.items():
                column[t].copy_(observation[key])
        if begun is not None:
            if self._begun is None:
                self._begun = torch.zeros(self._copies, self._steps, dtype=torch.bool, device=self._device)
            self._begun[:, t] = begun

    def after(self, t: int, action: Tensor, step: Step) -> None:
        """What was done in step t, and what came of it."""
        if self._action is None:
            self._action = torch.empty(
                self._copies, self._steps, *action.shape[1:], dtype=action.dtype, device=self._device
            )
            self._actions = list(self._action.unbind(1))
        self._actions[t].copy_(action)
        self._rewards[t].copy_(step.reward)
        self._terminated[t].copy_(step.terminated)
        self._truncated[t].copy_(step.truncated)
        if step.skipped is not None:
            self._skipped[t].copy_(step.skipped)

    def trajectories(self, state: Tensor | None) -> Trajectories:
        """All that was recorded; log-probabilities are still to be worked out.

        state: the recurrent state before the first step.
        """
        assert self._action is not None
        terminated, truncated, skipped = self._flags
        return Trajectories(
            observation=self._observation[""] if self._single else self._observation,
            action=self._action,
            reward=self._reward,
            mask=~skipped,
            log_prob=torch.zeros_like(self._reward),
            terminated=terminated,
            truncated=truncated,
            start=self._begun,
            state=state,
        )


class EpisodeStatistics:
    """Returns and lengths of the last ``recent`` episodes that ended in a stream, means of which are reported."""

    def __init__(self, copies: int, recent: int = 100) -> None:
        self._running = [(0.0, 0)] * copies
        self._returns: deque[float] = deque(maxlen=recent)
        self._lengths: deque[int] = deque(maxlen=recent)

    def add(self, batch: Trajectories) -> None:
        """Take in a window of the streams: row i goes on where row i of the last one ended."""
        total = torch.where(batch.mask, batch.reward, 0.0).double().cumsum(1)
        count = batch.mask.cumsum(1)
        ended = (batch.terminated | batch.truncated) & batch.mask
        row, column = ended.nonzero(as_tuple=True)
        before = list(self._running)  # what each copy brought along, less what the window held before the episode
        for i, reached, steps in zip(
            row.tolist(), total[row, column].tolist(), count[row, column].tolist(), strict=True
        ):
            self.ended(before[i][0] + reached, before[i][1] + steps)
            before[i] = (-reached, -steps)
        for i, (reached, steps) in enumerate(zip(total[:, -1].tolist(), count[:, -1].tolist(), strict=True)):
            self._running[i] = (before[i][0] + reached, before[i][1] + steps)

    def ended(self, total: float, steps: int) -> None:
        """Take in one episode."""
        self._returns.append(total)
        self._lengths.append(steps)

    def metrics(self) -> dict[str, Tensor]:
        """``episode_return`` and ``episode_length``; nothing before the first episode has ended."""
        if not self._returns:
            return {}
        return {
            "episode_return": torch.tensor(sum(self._returns) / len(self._returns)),
            "episode_length": torch.tensor(sum(self._lengths) / len(self._lengths)),
        }

    def state_dict(self) -> dict[str, Any]:
        running = [list(each) for each in self._running]
        return {"running": running, "returns": list(self._returns), "lengths": list(self._lengths)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._running = [(float(total), int(steps)) for total, steps in state["running"]]
        self._returns.clear()
        self._returns.extend(state["returns"])
        self._lengths.clear()
        self._lengths.extend(state["lengths"])


def rows_of(observation: Observation, index: Sequence[int]) -> Observation:
    """Copies of some rows."""
    if isinstance(observation, Tensor):
        return observation[list(index)]
    return {key: value[list(index)] for key, value in observation.items()}


def update_normalizer(policy: ActingPolicy, batch: Trajectories) -> None:
    """Let the policy's observation statistics take in a batch, if it has any."""
    update = getattr(policy, "update_normalizer", None)
    if update is not None:
        update(batch.observation, batch.mask)
