"""The two ways in which a surrogate gets its advantages: from groups of episodes, or from a critic on streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experience.rollouts import RolloutSource
from decisionrl.experience.source import Source
from decisionrl.minibatches import Unit
from decisionrl.objectives.aggregation import Aggregation, seq_mean_token_mean, token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.terms import Surrogate
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.advantages import GAE
from decisionrl.pipeline.curricula import FreshStarts, Starts
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.policies.actor_critic import ActorCritic
from decisionrl.policies.recurrent import RecurrentActorCritic
from decisionrl.recipes.control import Control

BaseName = Literal["group", "critic"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """A policy with its source of advantages, and what an objective needs to fit them."""

    policy: ActorCritic | RecurrentActorCritic
    source: Source
    unit: Unit
    aggregate: Aggregation
    value_loss: ValueLoss | None = None
    normalize_advantage: bool = False

    def objective(self, surrogate: Surrogate, **parts: Any) -> PolicyGradient:
        """The policy gradient with this surrogate and further parts of :class:`PolicyGradient`."""
        own = {
            "aggregate": self.aggregate,
            "value_loss": self.value_loss,
            "normalize_advantage": self.normalize_advantage,
        }
        return PolicyGradient(surrogate=surrogate, **{**own, **parts})


def base(
    control: Control,
    kind: BaseName,
    *,
    groups: int,
    group_size: int,
    horizon: int,
    gamma: float,
    gae_lambda: float,
    aggregate: Aggregation = seq_mean_token_mean,
    advantage: PipelineStep | None = None,
    starts: Starts | None = None,
    then: Sequence[PipelineStep] = (),
) -> Base:
    """Groups of episodes, or streams with a critic.

    kind: "group": ``group_size`` episodes from each of ``groups`` starts, ``advantage`` (default: GRPO's) and
    ``aggregate``; sequences stay whole. "critic": windows of ``horizon`` steps with generalized advantage estimation,
    cut into single steps, as in PPO. then: further steps of the pipeline.

    Raises:
        ValueError: no such kind.
    """
    if kind not in get_args(BaseName):
        raise ValueError(f"base = {kind!r}; valid: {', '.join(get_args(BaseName))}")
    if kind == "group":
        policy = control.policy(critic=False)
        source: Source = EpisodeSource(
            control.world,
            policy,
            starts=starts or FreshStarts(groups=groups, group_size=group_size),
            pipeline=[advantage or GroupNormalized(), *then],
            seed=control.seed,
        )
        return Base(policy=policy, source=source, unit="sequence", aggregate=aggregate)
    policy = control.policy(critic=True)
    source = RolloutSource(
        control.world,
        policy,
        horizon=horizon,
        pipeline=[GAE(gamma=gamma, lam=gae_lambda), *then],
        seed=control.seed,
    )
    return Base(
        policy=policy,
        source=source,
        unit="sequence" if control.recurrent else "step",
        aggregate=token_mean,
        value_loss=ValueLoss(),
        normalize_advantage=True,
    )
