"""Single-stream policy optimization (arXiv 2509.13232)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.curricula import PrioritizedStarts
from decisionrl.pipeline.trackers import SingleStream
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Single-stream policy optimization",
    "arxiv": "2509.13232",
    "changes": "one episode from a start is enough: its baseline is what earlier visits to the start have brought",
    "limit": "a baseline that stays 0: PPO's clip on returns normalized over the batch",
    "kinds": "an environment that can be started from a seed, with a return from which an episode succeeds",
}


@tuned
def spo(
    *,
    num_starts: int | None = None,
    episodes: int = 32,
    success: float | None = None,
    rho_min: float = 0.875,
    rho_max: float = 0.96,
    half_life: float = 0.1,
    initial_value: float = 0.5,
    prior: float | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """PPO's clip with a remembered baseline, on starts chosen by how uncertain their success is.

    num_starts: ``episodes`` different ones of them are in a batch; by default all, or 64 of an endless number. success:
    the return from which an episode succeeds, by default the environment's reward threshold; only the choice of starts
    looks at it, the baseline is of returns.
    rho_min, rho_max, half_life: how fast the baseline forgets, see ``SingleStream``; the paper does not state the last.
    initial_value, prior: the baseline before the first visit and how many episodes it counts for (by default
    1 / (1 - rho_min)); the paper begins with the mean of 8 episodes from every start, and rewards in {0, 1}.
    minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    options["num_starts"] = control.starts(num_starts)
    policy = control.policy(critic=False)
    return control.experiment(
        "spo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=PrioritizedStarts(
                num_starts=options["num_starts"],
                episodes=episodes,
                rho=rho_min,
                initial=min(max(initial_value, 0.0), 1.0),
            ),
            score=control.success_score(success),
            pipeline=[
                SingleStream(
                    rho_min=rho_min,
                    rho_max=rho_max,
                    half_life=half_life,
                    v0=initial_value,
                    prior=prior,
                    policy=policy,
                )
            ],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Clip(low=clip_low, high=clip_high),
            aggregate=token_mean,
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
