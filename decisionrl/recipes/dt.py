"""Decision transformer (arXiv 2106.01345)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.datasets import Windows
from decisionrl.experience.hindsight import with_future_returns, with_returns_to_go
from decisionrl.experiment import Experiment
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.policies.decision_transformer import DecisionTransformer
from decisionrl.policies.sequence import TransformerSizes
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import DataOptions, Recorded
from decisionrl.recipes.offline_presets import tuned_offline
from decisionrl.seeding import generator

METADATA = {
    "title": "Decision transformer",
    "arxiv": "2106.01345",
    "changes": "a sequence model of returns to go, observations and actions; asking for a high return acts well",
    "limit": "data of one return: behavior cloning with memory",
    "kinds": "recorded episodes with rewards",
}


@tuned_offline
def dt(
    *,
    target_return: float | None = None,
    return_scale: float = 1000.0,
    horizon: int | None = None,
    window: int = 20,
    width: int = 128,
    layers: int = 3,
    heads: int = 1,
    warmup: int = 10_000,
    weight_decay: float = 1e-4,
    **common: Unpack[DataOptions],
) -> Experiment:
    """Cloning of actions given the return to go, ``batch`` windows of ``window`` steps an update.

    target_return: what to ask for; by default the best return of the data. horizon: condition on the return of the next
    so many steps instead, constant over a window, as OPPO's release does.
    """
    options = own_options(locals())
    offline = Recorded(**common)
    offline.require_boxes("a decision transformer")
    recorded = offline.episodes
    if horizon is None:
        episodes = with_returns_to_go(recorded, scale=return_scale)
        best = float(recorded.returns.max())
    else:
        episodes = with_future_returns(recorded, horizon, scale=return_scale)
        best = float(episodes.extras["future_return"].max()) * return_scale
    policy = DecisionTransformer(
        recorded.observation_space,
        recorded.action_space,
        target_return=best if target_return is None else target_return,
        return_scale=return_scale,
        return_name="return_to_go" if horizon is None else "future_return",
        constant_return=horizon is not None,
        sizes=TransformerSizes(width=width, layers=layers, heads=heads, feedforward=4 * width),
        window=window,
        timesteps=offline.timesteps,
        generator=generator(offline.seed, "policy"),
    ).to(offline.device)
    policy.update_normalizer(recorded.observation)
    learner = offline.learner(
        policy,
        BehaviorCloning(),
        optimizer=offline.adamw(policy, weight_decay=weight_decay),
        warmup=warmup,
    )
    return offline.experiment(
        "dt",
        learner=learner,
        draw=Windows(episodes=episodes, size=offline.batch, length=window),
        metadata=METADATA,
        options=options,
    )
