"""Published methods as an engine of others runs them: what happens to a rollout once, and the loss.

The engine generates, scores, evaluates and updates; advantages, surrogates, weights, filters and aggregation are those
of the recipes. Options have the recipes' names and, unless a function says otherwise, their defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from decisionrl.experience.trajectories import Trajectories
from decisionrl.names import pick
from decisionrl.objectives.adaptive_clipping import BalancedClip, Contribution, DynamicClip
from decisionrl.objectives.aggregation import (
    Aggregation,
    aggregation,
    only_token_mean,
    seq_mean_token_mean,
    seq_mean_token_sum,
    token_mean,
)
from decisionrl.objectives.heterogeneous import HeterogeneousClip
from decisionrl.objectives.policy_gradient import PolicyGradient, normalized
from decisionrl.objectives.sequence_ratios import SequenceClip
from decisionrl.objectives.step_filters import BatchWeight
from decisionrl.objectives.surrogates import Clip, Reinforce, SoftGate
from decisionrl.objectives.terms import Surrogate
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.filters import DynamicSampling
from decisionrl.pipeline.group_advantages import GroupNormalized, LeaveOneOut, Scale, TokenGroupAverage
from decisionrl.pipeline.returns import with_advantage
from decisionrl.pipeline.rewards import OverlongPenalty, ScaleReward
from decisionrl.pipeline.risk import Credit, Form, Risk
from decisionrl.pipeline.shaped_advantages import EntropyShaped
from decisionrl.pipeline.trackers import SmoothStandardized
from decisionrl.pipeline.weights import ConflictWeights
from decisionrl.policies.evaluation import Batch, Evaluation
from decisionrl.seeding import generator

RolloutNeed = Literal["group", "start_id", "entropy", "tokens"]
"""Answers to one prompt; a number of the prompt that lasts; the entropy at collection; which tokens they are."""

LossNeed = Literal["entropy", "extras"]
"""The entropy of the current policy; what the pipeline left in ``extras``."""

_ROW = "row"
"""The extra in which rows carry their number through the pipeline."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What an engine needs to run a method.

    What the method remembers is in its pipeline, so a Method belongs to one run.

    Attributes:
        name: under which it is registered and reported.
        pipeline: steps that make advantages from rewards, once on every rollout.
        objective: the loss on trajectories with advantages, without a value loss.
        rollout_needs: what the pipeline reads besides the rewards.
        loss_needs: what the objective reads besides log-probabilities and advantages.
    """

    name: str
    pipeline: Sequence[PipelineStep]
    objective: PolicyGradient
    rollout_needs: frozenset[RolloutNeed] = frozenset({"group"})
    loss_needs: frozenset[LossNeed] = frozenset()

    def prepare(self, batch: Trajectories) -> Trajectories:
        """The rollout with advantages, in the rows it had.

        An engine's batches do not shrink: a row that the pipeline drops comes back with an empty mask and zeros.
        """
        rows = torch.arange(batch.num_sequences, device=batch.mask.device)
        batch = batch.replace(extras={**batch.extras, _ROW: rows})
        for step in self.pipeline:
            batch = step(batch)
        kept = batch.extras[_ROW]
        if len(kept) < len(rows):
            batch = batch.map(lambda each: each.new_zeros(len(rows), *each.shape[1:]).index_copy(0, kept, each))
        return batch.replace(extras={key: each for key, each in batch.extras.items() if key != _ROW})


@dataclass(frozen=True)
class Evaluated:
    """Stands for the policy where an engine has evaluated it already."""

    evaluation: Evaluation

    def evaluate(self, batch: Batch, /) -> Evaluation:
        """The evaluation that there is."""
        return self.evaluation


def grpo(
    *,
    scale: Scale = "group",
    eps: float = 1e-6,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float | None = None,
    aggregate: str = "seq-mean-token-mean",
    length: int | None = None,
    entropy_coefficient: float = 0.0,
) -> Method:
    """Group relative policy optimization (arXiv 2402.03300); Dr. GRPO with scale = "none" and the last aggregation.

    eps: beside the standard deviation; 1e-4 in TRL. dual: of the dual clip; 3 in verl. aggregate: a name of
    ``objectives.aggregation``; length: the longest answer there can be, for "seq-mean-token-sum-norm".

    Raises:
        ValueError: that aggregation without a length: the padded length of an engine's batches varies.
    """
    if aggregate == "seq-mean-token-sum-norm" and length is None:
        raise ValueError(f"length = None; valid with aggregate = {aggregate!r}: the longest answer there can be")
    return Method(
        name="grpo",
        pipeline=[GroupNormalized(scale=scale, eps=eps)],
        objective=PolicyGradient(
            surrogate=Clip(low=clip_low, high=clip_high, dual=dual),
            aggregate=aggregation(aggregate, length=length),
            entropy_coefficient=entropy_coefficient,
        ),
    )


def rloo(*, entropy_coefficient: float = 0.0) -> Method:
    """REINFORCE leave-one-out (arXiv 2402.14740)."""
    return Method(
        name="rloo",
        pipeline=[LeaveOneOut()],
        objective=PolicyGradient(
            surrogate=Reinforce(), aggregate=seq_mean_token_sum, entropy_coefficient=entropy_coefficient
        ),
    )


def dapo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    overlong_length: int | None = None,
    overlong_buffer: int = 50,
    overlong_factor: float = 1.0,
) -> Method:
    """Decoupled clip and dynamic sampling (arXiv 2503.14476).

    Groups of equal rewards are left out of the loss; the engine does not generate others in their place.
    """
    overlong = (
        []
        if overlong_length is None
        else [OverlongPenalty(max_length=overlong_length, buffer=overlong_buffer, factor=overlong_factor)]
    )
    return Method(
        name="dapo",
        pipeline=[DynamicSampling(), *overlong, GroupNormalized()],
        objective=PolicyGradient(surrogate=Clip(low=clip_low, high=clip_high), aggregate=token_mean),
    )


def gspo(*, clip_low: float = 3e-4, clip_high: float = 4e-4, entropy_coefficient: float = 0.0) -> Method:
    """Group sequence policy optimization (arXiv 2507.18071), with the paper's bounds, which are for long answers."""
    return Method(
        name="gspo",
        pipeline=[GroupNormalized()],
        objective=PolicyGradient(
            surrogate=SequenceClip(low=clip_low, high=clip_high),
            aggregate=seq_mean_token_mean,
            entropy_coefficient=entropy_coefficient,
        ),
    )


def sapo(*, tau_positive: float = 1.0, tau_negative: float = 1.05, entropy_coefficient: float = 0.0) -> Method:
    """Soft adaptive policy optimization (arXiv 2511.20347)."""
    return Method(
        name="sapo",
        pipeline=[GroupNormalized()],
        objective=PolicyGradient(
            surrogate=SoftGate(tau_positive=tau_positive, tau_negative=tau_negative),
            aggregate=seq_mean_token_mean,
            entropy_coefficient=entropy_coefficient,
        ),
    )


def bapo(
    *,
    target: float = 0.4,
    low_start: float = 0.6,
    low_end: float = 0.9,
    high_start: float = 1.2,
    high_end: float = 3.0,
    contribution: Contribution = "value",
    old_probability: bool = True,
) -> Method:
    """Balanced policy optimization with adaptive clipping (arXiv 2510.18927)."""
    return Method(
        name="bapo",
        pipeline=[GroupNormalized()],
        objective=PolicyGradient(
            surrogate=BalancedClip(
                target=target,
                low=(low_start, low_end),
                high=(high_start, high_end),
                contribution=contribution,
                old_probability=old_probability,
            ),
            aggregate=seq_mean_token_mean,
        ),
    )


def dcpo(*, clip_low: float = 0.16, clip_high: float = 0.2, clip_cap: float = 10.0) -> Method:
    """Dynamic clipping policy optimization (arXiv 2509.02333)."""
    return Method(
        name="dcpo",
        pipeline=[SmoothStandardized()],
        objective=PolicyGradient(
            surrogate=DynamicClip(low=clip_low, high=clip_high, cap=clip_cap), aggregate=only_token_mean
        ),
        rollout_needs=frozenset({"group", "start_id"}),
    )


def hapo(
    *, clip_low: float = 0.2, clip_high: float = 0.28, alpha: float = 1.0, beta: float = 1.0, rho: float = 0.8
) -> Method:
    """Heterogeneous adaptive policy optimization (arXiv 2509.16591), without its sampling temperatures."""
    return Method(
        name="hapo",
        pipeline=[TokenGroupAverage()],
        objective=PolicyGradient(
            surrogate=HeterogeneousClip(low=clip_low, high=clip_high, alpha=alpha, beta=beta, rho=rho),
            aggregate=token_mean,
        ),
        loss_needs=frozenset({"entropy"}),
    )


def riskpo(
    *,
    alpha: float = 0.2,
    beta: float = 0.8,
    omega: float = 0.5,
    rate: float = 0.1,
    form: Form = "paper",
    bundle: int = 5,
    credit: Credit = "uniform",
    reward_scale: float = 1.0,
    center: bool = True,
    ratio: Literal["step", "sequence"] = "step",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    seed: int = 0,
) -> Method:
    """Risk-based policy optimization (arXiv 2510.00911).

    bundle: prompts whose rewards are added up, the paper's 5, for rewards that are 0 or 1; a rollout's number of
    prompts must be a multiple. center: over the whole rollout, not over a minibatch. seed: of the bundles.
    """
    clips: dict[str, tuple[Surrogate, Aggregation]] = {
        "step": (Clip(low=clip_low, high=clip_high), token_mean),
        "sequence": (SequenceClip(low=clip_low, high=clip_high), seq_mean_token_mean),
    }
    surrogate, aggregate = pick("ratio", ratio, clips)
    risk = Risk(
        alpha=alpha,
        beta=beta,
        omega=omega,
        bundle=bundle,
        rate=rate,
        form=form,
        credit=credit,
        generator=generator(seed, "bundles"),
    )
    return Method(
        name="riskpo",
        pipeline=[ScaleReward(factor=reward_scale), risk, *([_centered] if center else [])],
        objective=PolicyGradient(surrogate=surrogate, aggregate=aggregate),
        rollout_needs=frozenset({"group"} if bundle > 1 or credit == "sum-mean" else ()),
    )


def gtpo(*, entropy_weight: float = 0.1, entropy_threshold: float = math.log(2), reward_scale: float = 1.0) -> Method:
    """Group-relative trajectory-based policy optimization (arXiv 2508.03772); what is shared are equal tokens."""
    return Method(
        name="gtpo",
        pipeline=[
            ScaleReward(factor=reward_scale),
            EntropyShaped(gamma=entropy_weight, threshold=entropy_threshold),
            ConflictWeights(),
        ],
        objective=PolicyGradient(surrogate=Reinforce(), aggregate=seq_mean_token_mean, weights=(BatchWeight(),)),
        rollout_needs=frozenset({"group", "entropy", "tokens"}),
        loss_needs=frozenset({"extras"}),
    )


METHODS: dict[str, Callable[..., Method]] = {
    each.__name__: each for each in (grpo, rloo, dapo, gspo, sapo, bapo, dcpo, hapo, riskpo, gtpo)
}

BEYOND = {
    "ppo": "a critic",
    "reinforce": "a critic",
    "tppo": "a critic, and to stop and take up again the generation",
    "remax": "a greedy answer to every prompt",
    "segment_spo": "to generate from within an answer",
    "spo": "to choose the prompts",
    "vade": "to choose the prompts",
    "xrpo": "to choose how many answers a prompt gets",
    "capo": "the input of the last layer",
}
"""Recipes that an engine cannot run, and what they would need of it."""


def method(name: str, **options: Any) -> Method:
    """The method of that name with these options; see the functions of this module.

    Raises:
        ValueError: there is no such method, or an engine cannot run it.
    """
    if name in BEYOND:
        raise ValueError(
            f"{name} needs {BEYOND[name]}, which only this library's own trainer gives; "
            f"valid with TRL and verl: {', '.join(METHODS)}"
        )
    return pick("method", name, METHODS)(**options)


def _centered(batch: Trajectories) -> Trajectories:
    """Advantages of mean 0 and standard deviation 1 over the own steps of the rollout."""
    assert batch.advantage is not None
    return with_advantage(batch, normalized(batch.advantage, batch.mask))
