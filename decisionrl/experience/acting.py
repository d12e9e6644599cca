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


class EvaluatingPolicy(Protocol):
    """A policy that says what it thinks of whole batches; enough for a world that plays its episodes itself."""

    def initial_state(self, copies: int, /) -> Tensor | None:
        """The recurrent state at the start of an episode; None without memory."""
        ...

    def evaluate(self, batch: Batch, /) -> Evaluation: ...

    def value(self, observation: Observation, state: Tensor | None = None) -> Tensor | None:
        """V [copies]; None without a critic."""
        ...


class ActingPolicy(EvaluatingPolicy, Protocol):
    """A policy for control; those of ``decisionrl.policies.actor_critic`` are, and a user's may be."""

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Actions [copies, ...] and the next recurrent state; without noise the deterministic action."""
        ...

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """The randomness of as many actions, [*shape, ...]."""
        ...


class Recorder:
    """A window of ``steps`` steps of all copies, filled step by step; [copies, steps, ...]."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._tracks: dict[str, tuple[Tensor, Sequence[Tensor]]] = {}

    def before(self, t: int, observation: Observation, begun: Tensor | None = None) -> None:
        """What the copies see before step t; begun: where an episode begins, for recurrent policies."""
        if isinstance(observation, Tensor):
            self._put("observation", t, observation)
        else:
            for key, value in observation.items():
                self._put(f"observation.{key}", t, value)
        if begun is not None:
            self._put("begun", t, begun)

    def after(self, t: int, action: Tensor, step: Step) -> None:
        """What was done in step t, and what came of it."""
        self._put("action", t, action)
        self._put("reward", t, step.reward)
        if step.over or not t:  # few steps end an episode, and each copy costs a microsecond
            self._put("terminated", t, step.terminated)
            self._put("truncated", t, step.truncated)
        if step.skipped is not None:
            self._put("skipped", t, step.skipped)

    def trajectories(self, state: Tensor | None) -> Trajectories:
        """All that was recorded; log-probabilities are still to be worked out.

        state: the recurrent state before the first step.
        """
        whole = {name: tensor for name, (tensor, _) in self._tracks.items()}
        reward, terminated = whole["reward"], whole["terminated"]
        prefix = "observation."
        keys = {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}
        return Trajectories(
            observation=keys or whole["observation"],
            action=whole["action"],
            reward=reward,
            mask=~whole["skipped"] if "skipped" in whole else torch.ones_like(terminated),
            log_prob=torch.zeros_like(reward),
            terminated=terminated,
            truncated=whole["truncated"],
            start=whole.get("begun"),
            state=state,
        )

    def _put(self, name: str, t: int, value: Tensor) -> None:
        if name not in self._tracks:
            whole = value.new_zeros(len(value), self._steps, *value.shape[1:])
            self._tracks[name] = whole, whole.unbind(1)
        self._tracks[name][1][t].copy_(value)


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

    def begin_anew(self) -> None:
        """Every copy begins a new episode; those that run are not counted."""
        self._running = [(0.0, 0)] * len(self._running)

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


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """Rows under each other."""
    return torch.cat(list(parts))


def update_normalizer(policy: EvaluatingPolicy, batch: Trajectories) -> None:
    """Let the policy's observation statistics take in a batch, if it has any."""
    update = getattr(policy, "update_normalizer", None)
    if update is not None:
        update(batch.observation, batch.mask)
