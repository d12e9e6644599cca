"""Segment policy optimization, the chain (arXiv 2505.23564)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.branching import SegmentValues
from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.step_filters import Kept
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.segments import SegmentMonteCarlo
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Segment policy optimization",
    "arxiv": "2505.23564",
    "changes": "credit for segments of an episode, from the values that fresh episodes give the states between them",
    "limit": "one segment, threshold above 1: the return less the Monte-Carlo value of the start",
    "kinds": "discrete actions, an environment that can be started from a seed, no memory, workers = 0",
}


@tuned
def segment_spo(
    *,
    episodes: int = 8,
    interval: int = 5,
    rollouts: int = 9,
    threshold: float = 0.9,
    clip: float = 0.2,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """PPO's clip on the steps where the policy hesitated, each with the advantage of its segment.

    A segment begins at every ``interval``-th step whose action had a probability below ``threshold``; the state there
    is valued by ``rollouts`` fresh episodes, which count as environment steps. With the paper's 5 and 9, a policy that
    hesitates at every step pays nearly twice as many steps as an episode has, times its length; on long control tasks
    choose a larger interval and fewer rollouts. minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    control.require_probabilities("segment SPO's threshold")
    if control.recurrent:
        raise ValueError("recurrent = True; valid: False, for episodes are taken up again from states of the world")
    policy = control.policy(critic=False)
    return control.experiment(
        "segment_spo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=episodes, group_size=1),
            values=SegmentValues(interval=interval, rollouts=rollouts, threshold=threshold),
            pipeline=[SegmentMonteCarlo(threshold=threshold)],
            seed=control.seed,
        ),
        objective=PolicyGradient(surrogate=Clip(low=clip, high=clip), aggregate=token_mean, filters=(Kept(),)),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
