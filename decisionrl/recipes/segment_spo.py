"""Segment policy optimization, as a chain or as a tree (arXiv 2505.23564)."""

from __future__ import annotations

from typing import Literal, Unpack

from decisionrl.experience.branching import SegmentValues, Tree
from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.step_filters import Kept
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.segments import KeepUnlikely, SegmentMonteCarlo
from decisionrl.pipeline.trees import TreeAdvantage
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
    form: Literal["chain", "tree"] = "chain",
    episodes: int = 8,
    interval: int = 5,
    rollouts: int = 9,
    branching: list[int] | None = None,
    segment: int = 30,
    threshold: float = 0.9,
    clip: float = 0.2,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """PPO's clip on the steps where the policy hesitated, each with the advantage of its segment.

    "chain": a segment begins at every ``interval``-th step whose action had a probability below ``threshold``; the
    state there is valued by ``rollouts`` fresh episodes, which count as environment steps. With the paper's 5 and 9, a
    policy that hesitates at every step pays nearly twice as many steps as an episode has, times its length; on long
    control tasks choose a larger interval and fewer rollouts. "tree": from each start ``branching`` (default: 6, 6, 6)
    edges of ``segment`` steps grow at every depth, and what the leaves bring is their value. episodes: starts in a
    batch. minibatch: episodes, or edges, in one.
    """
    options = own_options(locals())
    if form not in ("chain", "tree"):
        raise ValueError(f"form = {form!r}; valid: chain, tree")
    control = Control(**common)
    control.require_probabilities("segment SPO's threshold")
    if control.recurrent:
        raise ValueError("recurrent = True; valid: False, for episodes are taken up again from states of the world")
    policy = control.policy(critic=False)
    chain = form == "chain"
    return control.experiment(
        "segment_spo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=episodes, group_size=1),
            values=SegmentValues(interval=interval, rollouts=rollouts, threshold=threshold) if chain else None,
            tree=None if chain else Tree(branching=tuple(branching or (6, 6, 6)), steps=segment),
            pipeline=[SegmentMonteCarlo(threshold=threshold)]
            if chain
            else [TreeAdvantage(), KeepUnlikely(threshold=threshold)],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Clip(low=clip, high=clip),
            aggregate=token_mean,
            filters=(Kept(),),
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
