"""Risk-based policy optimization (arXiv 2510.00911)."""

from __future__ import annotations

from typing import Literal, Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import Aggregation, seq_mean_token_mean, token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.sequence_ratios import SequenceClip
from decisionrl.objectives.surrogates import Clip
from decisionrl.objectives.terms import Surrogate
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.rewards import ScaleReward
from decisionrl.pipeline.risk import Form, Risk
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned
from decisionrl.seeding import generator

METADATA = {
    "title": "Risk-based policy optimization",
    "arxiv": "2510.00911",
    "changes": "low returns count more: the gradient of a mixture of quantile ranges in place of the mean",
    "limit": "omega = 0: the conditional value at risk, A = -max(0, q_beta - R)",
    "kinds": "any environment that can be started from a seed",
}


@tuned
def riskpo(
    *,
    episodes: int = 64,
    alpha: float = 0.2,
    beta: float = 0.8,
    omega: float = 0.5,
    rate: float = 0.1,
    bundle: int = 1,
    form: Form = "paper",
    reward_scale: float = 1.0,
    center: bool = True,
    ratio: Literal["step", "sequence"] = "step",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """PPO's clip on returns that are weighed by the quantiles of the returns so far.

    alpha, beta: the lower tail is what lies below the alpha-quantile; what lies above the beta-quantile counts nothing.
    omega: the tail's extra weight. rate: the tracked quantiles move by up to as much in a batch, which suits
    returns in [0, 1]; reward_scale brings the environment's returns there. center: bring the advantages of a minibatch
    to mean 0 and variance 1, which subtracts a constant baseline (the paper's are at most 0). ratio: clip that of every
    step, as the released scripts do, or the sequence's, as the paper writes. bundle: R is the sum of the returns of so
    many episodes, put together at random; 5 in the paper and in the presets for text, where a reward alone is 0 or 1
    and has no quantiles to speak of. minibatch: episodes in one.

    Raises:
        ValueError: ``episodes`` cannot be divided by ``bundle``.
    """
    options = own_options(locals())
    control = Control(**common)
    if bundle < 1 or episodes % bundle:
        raise ValueError(f"episodes = {episodes}, bundle = {bundle}; valid: a multiple of a bundle of at least 1")
    clips: dict[str, tuple[Surrogate, Aggregation]] = {
        "step": (Clip(low=clip_low, high=clip_high), token_mean),
        "sequence": (SequenceClip(low=clip_low, high=clip_high), seq_mean_token_mean),
    }
    if ratio not in clips:
        raise ValueError(f"ratio = {ratio!r}; valid: {', '.join(clips)}")
    surrogate, aggregate = clips[ratio]
    policy = control.policy(critic=False)
    return control.experiment(
        "riskpo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=episodes, group_size=1),
            pipeline=[
                ScaleReward(factor=reward_scale),
                Risk(
                    alpha=alpha,
                    beta=beta,
                    omega=omega,
                    rate=rate,
                    bundle=bundle,
                    form=form,
                    generator=generator(control.seed, "bundles") if bundle > 1 else None,
                ),
            ],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=surrogate,
            aggregate=aggregate,
            normalize_advantage=center,
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
