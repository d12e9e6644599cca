"""The two ways in which a surrogate gets its advantages: from groups of episodes, or from a critic on streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experience.source import Source
from decisionrl.experiment import Experiment
from decisionrl.minibatches import Unit
from decisionrl.objectives.aggregation import Aggregation, seq_mean_token_mean, token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.terms import Surrogate
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.advantages import GAE
from decisionrl.pipeline.curricula import FreshStarts, Starts
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.recipes.control import Control, ControlOptions, ControlPolicy

BaseName = Literal["group", "critic"]


class BasedOptions(ControlOptions, total=False):
    """The arguments that every recipe with a choice of the base takes; see :class:`BasedControl`."""

    base: BaseName
    groups: int
    group_size: int
    horizon: int
    gamma: float
    gae_lambda: float
    epochs: int
    minibatch: int | None


@dataclass(frozen=True, kw_only=True)
class Base:
    """A policy with its source of advantages, and what an objective needs to fit them."""

    policy: ControlPolicy
    source: Source
    unit: Unit
    aggregate: Aggregation
    value_loss: ValueLoss | None = None
    entropy_coefficient: float = 0.0
    normalize_advantage: bool = False

    def objective(self, surrogate: Surrogate, **parts: Any) -> PolicyGradient:
        """The policy gradient with this surrogate and further parts of :class:`PolicyGradient`."""
        own = {
            "aggregate": self.aggregate,
            "value_loss": self.value_loss,
            "entropy_coefficient": self.entropy_coefficient,
            "normalize_advantage": self.normalize_advantage,
        }
        return PolicyGradient(surrogate=surrogate, **{**own, **parts})


@dataclass(frozen=True, kw_only=True)
class BasedControl(Control):
    """An environment, the networks, the optimizer, and where advantages come from.

    Attributes:
        base: "group" compares ``group_size`` episodes from each of ``groups`` starts, as GRPO does, and keeps sequences
            whole; "critic" has windows of ``horizon`` steps and generalized advantage estimation and cuts them into
            single steps, as PPO does.
        gamma, gae_lambda: of the critic's advantages.
        epochs: passes over a batch.
        minibatch: episodes in one, or single steps with a critic and no memory; None: all.
    """

    base: BaseName = "group"
    groups: int = 8
    group_size: int = 8
    horizon: int = 256
    gamma: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 4
    minibatch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base not in get_args(BaseName):
            raise ValueError(f"base = {self.base!r}; valid: {', '.join(get_args(BaseName))}")

    def based(
        self,
        *,
        aggregate: Aggregation = seq_mean_token_mean,
        advantage: PipelineStep | None = None,
        starts: Starts | None = None,
        then: Sequence[PipelineStep] = (),
        normalize: Literal["batch", "minibatch"] = "minibatch",
    ) -> Base:
        """The base. With groups it has this aggregation, advantage (default: GRPO's) and these starts (default: fresh
        ones); with either the pipeline goes on with ``then``. normalize: over what the critic's advantages are brought
        to mean 0 and variance 1, before ``then`` or after it."""
        if self.base == "group":
            policy = self.policy(critic=False)
            source: Source = EpisodeSource(
                self.world,
                policy,
                starts=starts or FreshStarts(groups=self.groups, group_size=self.group_size),
                pipeline=[advantage or GroupNormalized(), *then],
                seed=self.seed,
            )
            return Base(
                policy=policy,
                source=source,
                unit="sequence",
                aggregate=aggregate,
                entropy_coefficient=self.entropy_coefficient,
            )
        policy = self.policy(critic=True)
        advantages = GAE(gamma=self.gamma, lam=self.gae_lambda, whiten=normalize == "batch")
        source = self.stream(policy, horizon=self.horizon, pipeline=[advantages, *then])
        return Base(
            policy=policy,
            source=source,
            unit="sequence" if self.remembers else "step",
            aggregate=token_mean,
            value_loss=ValueLoss(),
            entropy_coefficient=self.entropy_coefficient,
            normalize_advantage=normalize == "minibatch",
        )

    def experiment_on(self, base: Base, recipe: str, **parts: Any) -> Experiment:
        """``Control.experiment`` on a base, with the epochs and minibatches of these arguments."""
        return self.experiment(
            recipe,
            policy=base.policy,
            source=base.source,
            unit=base.unit,
            epochs=self.epochs,
            minibatch=self.minibatch,
            **parts,
        )
