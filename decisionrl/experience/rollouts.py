"""RolloutSource: windows of the streams of experience that the copies of a world yield."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decisionrl.envs.world import World
from decisionrl.experience.acting import (
    ActingPolicy,
    EpisodeStatistics,
    Recorder,
    joined_rows,
    rows_of,
    update_normalizer,
)
from decisionrl.experience.trajectories import Trajectories, each_key
from decisionrl.pipeline import PipelineStep, load_states, states, tell
from decisionrl.policies.evaluation import Observation
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from decisionrl.learner import Update

Cut = tuple[int, list[int], Observation, Tensor | None]
"""Truncated episodes: the step, the copies, what they saw last, and their recurrent state."""


class RolloutSource:
    """``horizon`` steps of every copy at a time; episodes go on from one window to the next.

    The policy's log-probabilities, entropies and values are worked out for the whole window at once when it is full,
    by the same ``evaluate`` that the objective calls. ``next_value`` of a truncated step is the value of the episode's
    own last state. If the policy has a ``normalizer``, its statistics take in the window after the update on it, so
    that all of a window and of the update on it sees the same ones.

    Args:
        world: where the policy acts.
        policy: what acts.
        horizon: steps of a window.
        pipeline: what is done to each window; ends in an advantage estimator.
        seed: of the episodes' starts and the actions.
    """

    def __init__(
        self, world: World, policy: ActingPolicy, *, horizon: int, pipeline: Sequence[PipelineStep] = (), seed: int = 0
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon = {horizon}; valid: a whole number >= 1")
        self.world, self.policy, self.horizon, self.pipeline = world, policy, horizon, tuple(pipeline)
        self._starts = generator(seed, "starts")
        self._noise = generator(seed, "actions", world.device)
        self._episodes = EpisodeStatistics(world.num_envs)
        self._observation: Observation | None = None
        self._state: Tensor | None = None
        self._begun: Tensor | None = None
        self._window: Trajectories | None = None

    @property
    def steps_per_sample(self) -> int:
        return self.world.num_envs * self.horizon

    def sample(self) -> Trajectories:
        with torch.no_grad():
            self._window = batch = self._collected()
            self._episodes.add(batch)
            for step in self.pipeline:
                batch = step(batch)
        return batch.replace(metrics={**batch.metrics, **self._episodes.metrics()})

    def observe(self, update: Update) -> None:
        tell(self.pipeline, update)
        if self._window is not None:
            update_normalizer(self.policy, self._window)
            self._window = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "started": self._observation is not None,
            "world": None if self._observation is None else self.world.state_dict(),
            "starts": self._starts.get_state(),
            "noise": self._noise.get_state(),
            "episodes": self._episodes.state_dict(),
            "state": self._state,
            "begun": self._begun,
            "pipeline": states(self.pipeline),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        world, device = state["world"], self.world.device
        if state["started"] and world is None:
            warnings.warn(
                f"{self.world.name}: its state cannot be saved; the resumed run goes on with new episodes, and differs "
                "from an uninterrupted one (a world made from an id, a class or a function can be resumed)",
                RuntimeWarning,
                stacklevel=2,
            )
        self._observation = None if world is None else self.world.load_state_dict(world)
        self._starts.set_state(state["starts"])
        self._noise.set_state(state["noise"].cpu())
        self._episodes.load_state_dict(state["episodes"])
        self._state = None if state["state"] is None else state["state"].to(device)
        self._begun = None if state["begun"] is None else state["begun"].to(device)
        load_states(self.pipeline, state["pipeline"])

    def _seeds(self, count: int) -> list[int]:
        return torch.randint(2**31, (count,), generator=self._starts).tolist()

    def _collected(self) -> Trajectories:
        world, policy = self.world, self.policy
        if self._observation is None:
            self._begin()
            assert self._observation is not None
        current, state, begun = self._observation, self._state, self._begun
        first_state = None if state is None else state.clone()
        noise = policy.sample_noise((self.horizon, world.num_envs), self._noise).unbind(0)
        record = Recorder(self.horizon)
        cuts: list[Cut] = []
        for t in range(self.horizon):
            record.before(t, current, begun)
            action, state = policy.act(current, state, noise=noise[t])
            step = world.step(action)
            record.after(t, action, step)
            current = step.observation
            if step.over:
                terminated = step.terminated.tolist()
                lost = [i for i in step.over if not terminated[i]]
                if lost:
                    cuts.append((t, lost, rows_of(current, lost), None if state is None else state[lost]))
                current = world.restart(step.over, self._seeds(len(step.over)))
            if state is not None:
                begun = step.terminated | step.truncated
                if step.skipped is not None:
                    begun = begun | step.skipped
                state = self._forgotten(state, begun)
        self._observation, self._state, self._begun = current, state, begun
        return self._evaluated(record.trajectories(first_state), cuts)

    def _begin(self) -> None:
        world = self.world
        self._observation = world.reset(self._seeds(world.num_envs))
        self._state = self.policy.initial_state(world.num_envs)
        remembers = self._state is not None
        self._begun = torch.ones(world.num_envs, dtype=torch.bool, device=world.device) if remembers else None
        self._episodes.begin_anew()

    def _forgotten(self, state: Tensor, begun: Tensor) -> Tensor:
        """The recurrent state, which is the initial one in copies that begin anew."""
        initial = self.policy.initial_state(self.world.num_envs)
        assert initial is not None
        return torch.where(begun.view(-1, *[1] * (state.ndim - 1)), initial, state)

    def _evaluated(self, batch: Trajectories, cuts: Sequence[Cut]) -> Trajectories:
        """With what the policy says of the window, and the values of the states that episodes were cut at."""
        evaluation = self.policy.evaluate(batch)
        batch = batch.replace(log_prob=evaluation.log_prob, entropy=evaluation.entropy, value=evaluation.value)
        if evaluation.value is None:
            return batch
        assert self._observation is not None
        observations = [self._observation, *(seen for _, _, seen, _ in cuts)]
        states = [state for state in (self._state, *(state for *_, state in cuts)) if state is not None]
        value = self.policy.value(each_key(joined_rows, observations), joined_rows(states) if states else None)
        assert value is not None
        copies = self.world.num_envs
        next_value = torch.cat([evaluation.value[:, 1:], value[:copies, None]], 1)
        if cuts:
            row = torch.tensor([i for _, lost, _, _ in cuts for i in lost], device=value.device)
            column = torch.tensor([t for t, lost, _, _ in cuts for _ in lost], device=value.device)
            next_value[row, column] = value[copies:]
        return batch.replace(next_value=next_value)
