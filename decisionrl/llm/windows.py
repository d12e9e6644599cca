"""Windows of responses that are still being written: learning before they are finished (T-PPO, arXiv 2506.15050)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from decisionrl.checkpoint import CheckpointError
from decisionrl.envs.world import EnvironmentFault
from decisionrl.experience.acting import EpisodeStatistics
from decisionrl.experience.episodes import Task, evaluated, seed_of
from decisionrl.experience.trajectories import Trajectories, joined
from decisionrl.llm.responses import responses
from decisionrl.llm.world import TextWorld
from decisionrl.pipeline import PipelineStep, load_states, states, tell
from decisionrl.pipeline.returns import rewards_to_go
from decisionrl.policies.language import LanguagePolicy
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from decisionrl.learner import Update


@dataclass(frozen=True)
class _Response:
    """A prompt, and what has been written of the response so far.

    own: which of its tokens are the policy's. log_prob: of the tokens, by the policy that wrote them.
    """

    start: int
    written: tuple[int, ...] = ()
    own: tuple[bool, ...] = ()
    log_prob: tuple[float, ...] = ()


class TokenWindows:
    """``horizon`` tokens more of every response at a time; those that are finished give way to new prompts.

    A row is one window; what comes before it is in its state. Behind the windows there is a row for every response
    that was finished in the batch, from its first token on:

    - ``extras["kept"]`` [batch, step]: the windows' own tokens, for the policy; each is in one batch only.
    - ``extras["valued"]`` [batch, step]: the own tokens of finished responses, for the value function. Their
      ``returns`` are the discounted rewards to come, their advantage is 0, and their log-probabilities are of when
      they were written.

    Args:
        world: prompts and rewards; ``num_envs`` responses are being written.
        policy: writes them; has a critic.
        horizon: tokens of a window.
        pipeline: what is done to the windows; ends in an advantage estimator.
        gamma: the discount of the returns.
        seed: of the sampling and of the order of the prompts, of which each is met once before any is met again.

    Raises:
        ValueError: horizon < 1.
    """

    def __init__(
        self,
        world: TextWorld,
        policy: LanguagePolicy,
        *,
        horizon: int,
        pipeline: Sequence[PipelineStep] = (),
        gamma: float = 1.0,
        seed: int = 0,
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon = {horizon}; valid: a whole number >= 1")
        self.world, self.policy, self.horizon, self.pipeline = world, policy, horizon, tuple(pipeline)
        self.steps_per_sample = 0
        self._gamma, self._seed = gamma, seed
        self._choice, self._noise = generator(seed, "windows"), generator(seed, "actions", world.device)
        self._episodes = EpisodeStatistics(0)
        self._pool: list[_Response] = []
        self._begun = 0

    def sample(self) -> Trajectories:
        """A batch; if the world fails, the next one begins where this one did.

        Raises:
            EnvironmentFault: the world failed.
        """
        noise = self._noise.get_state()
        try:
            return self._sample()
        except EnvironmentFault:
            self._noise.set_state(noise)
            raise

    def _sample(self) -> Trajectories:
        while len(self._pool) < self.world.num_envs:
            self._pool.append(_Response(seed_of(self._begun, seed=self._seed, count=self.world.num_starts)))
            self._begun += 1
        tasks = [Task(each.start, prefix=torch.tensor(each.written, dtype=torch.int64)) for each in self._pool]
        with torch.no_grad():
            played = self.world.play(self.policy, tasks, generator=self._noise, more=self.horizon)
            goes_on = played.truncated.any(1)
            batch = evaluated(self.policy, replace(played, truncated=torch.zeros_like(played.truncated)))
            for step in self.pipeline:
                batch = step(batch)
        columns = (played.action, played.mask, batch.log_prob, played.steps)
        written = [
            replace(
                each,
                written=each.written + tuple(token[present].tolist()),
                own=each.own + tuple(mine[present].tolist()),
                log_prob=each.log_prob + tuple(log_prob[present].tolist()),
            )
            for each, token, mine, log_prob, present in zip(
                self._pool, *(column.cpu() for column in columns), strict=True
            )
        ]
        over = (~goes_on).nonzero()[:, 0].tolist()
        self._pool = [written[i] for i in goes_on.nonzero()[:, 0].tolist()]
        self.steps_per_sample = int(played.mask.sum())
        outcome = played.outcome.tolist()
        # Those that were begun earlier, which are longer, stand first in the pool; so the last would be the short ones.
        for i in torch.tensor(over, dtype=torch.int64)[torch.randperm(len(over), generator=self._choice)].tolist():
            self._episodes.ended(outcome[i], sum(written[i].own))
        rows = [_marked(batch, kept=True)]
        if over:
            rows.append(_marked(self._finished([written[i] for i in over], played.outcome[over]), kept=False))
        return joined(rows).replace(metrics={**batch.metrics, **self._episodes.metrics()})

    def observe(self, update: Update, /) -> None:
        tell(self.pipeline, update)

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": torch.tensor([each.start for each in self._pool], dtype=torch.int64),
            "length": torch.tensor([len(each.written) for each in self._pool], dtype=torch.int64),
            "written": torch.tensor([token for each in self._pool for token in each.written], dtype=torch.int64),
            "own": torch.tensor([own for each in self._pool for own in each.own], dtype=torch.bool),
            "log_prob": torch.tensor([value for each in self._pool for value in each.log_prob], dtype=torch.float64),
            "begun": self._begun,
            "choice": self._choice.get_state(),
            "noise": self._noise.get_state(),
            "episodes": self._episodes.state_dict(),
            "pipeline": states(self.pipeline),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        if "begun" not in state:
            raise CheckpointError("windows of responses as an earlier version saved them; valid: of this version")
        length = state["length"].tolist()
        parts = [state[name].split(length) for name in ("written", "own", "log_prob")]
        self._pool = [
            _Response(start, *(tuple(part.tolist()) for part in each))
            for start, *each in zip(state["start"].tolist(), *parts, strict=True)
        ]
        self._begun = state["begun"]
        self._choice.set_state(state["choice"])
        self._noise.set_state(state["noise"].cpu())
        self._episodes.load_state_dict(state["episodes"])
        load_states(self.pipeline, state["pipeline"])

    def _finished(self, over: Sequence[_Response], outcome: Tensor) -> Trajectories:
        """The whole responses, with the returns of their tokens."""
        prompts = [self.world.prompt(each.start) for each in over]
        rows = responses(prompts, [each.written for each in over], [each.own for each in over]).to(self.world.device)
        mask = rows.mask
        last = mask.long().cumsum(1).argmax(1, keepdim=True)
        reward = torch.zeros_like(rows.reward, dtype=outcome.dtype).scatter_(1, last, outcome[:, None])
        zeros = torch.zeros_like(reward)
        return rows.replace(
            reward=reward,
            log_prob=pad_sequence(
                [torch.tensor(each.log_prob, dtype=zeros.dtype) for each in over], batch_first=True
            ).to(zeros),
            value=zeros,
            next_value=zeros,
            entropy=zeros,
            advantage=zeros,
            returns=rewards_to_go(reward, mask, rows.terminated, self._gamma),
            extras={"problem": torch.tensor([self.world.number(each.start) for each in over], device=mask.device)},
        )


def _marked(batch: Trajectories, *, kept: bool) -> Trajectories:
    none = torch.zeros_like(batch.mask)
    policy, value = (batch.mask, none) if kept else (none, batch.mask)
    return batch.replace(extras={**batch.extras, "kept": policy, "valued": value})
