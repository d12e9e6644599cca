"""P-IQL: a Bradley-Terry reward from preferences, and implicit Q-learning on it (arXiv 2310.13639, appendix B)."""

from __future__ import annotations

from typing import Literal, Unpack, get_args

from decisionrl.experiment import Experiment
from decisionrl.objectives.reward_model import BradleyTerryReward, with_reward_model
from decisionrl.policies.critics import RewardMLP
from decisionrl.policies.preference_transformer import PreferenceTransformer
from decisionrl.recipes.control import own_options
from decisionrl.recipes.implicit_q import implicit_q_learner
from decisionrl.recipes.offline import PreferenceOptions, Preferences, at_least
from decisionrl.recipes.offline_presets import tuned_offline
from decisionrl.seeding import generator

METADATA = {
    "title": "Implicit Q-learning on a reward learned from preferences",
    "arxiv": "2310.13639",
    "changes": "a reward model is fitted to the preferences, and IQL learns from what it says",
    "limit": "with the true reward: iql on the segments' steps",
    "kinds": "recorded segments with preferences",
}

RewardKind = Literal["mlp", "transformer"]


@tuned_offline
def p_iql(
    *,
    reward: RewardKind = "mlp",
    reward_steps: int = 50_000,
    gamma: float = 0.99,
    expectile: float = 0.7,
    temperature: float = 1 / 3,
    target_rate: float = 0.005,
    **common: Unpack[PreferenceOptions],
) -> Experiment:
    """IQL on the consecutive steps of the segments, from the first update on; their rewards are the model's.

    reward: "mlp", a sum of r(s, a); "transformer", the preference transformer (arXiv 2303.00957), whose reward of a
    step looks at the segment so far. reward_steps: updates in which the reward model learns too; then it stays.
    """
    options = own_options(locals())
    if reward not in get_args(RewardKind):
        raise ValueError(f"reward = {reward!r}; valid: {', '.join(get_args(RewardKind))}")
    at_least(1, reward_steps=reward_steps)
    offline = Preferences(**common)
    spaces = offline.episodes.observation_space, offline.episodes.action_space
    random = generator(offline.seed, "reward")
    model: RewardMLP | PreferenceTransformer
    if reward == "mlp":
        model = RewardMLP(*spaces, hidden=tuple(offline.hidden), generator=random)
    else:
        offline.require_boxes("a preference transformer")
        model = PreferenceTransformer(*spaces, timesteps=offline.timesteps, generator=random)
    model = model.to(offline.device)
    model.update_normalizer(offline.episodes.observation)
    learner = implicit_q_learner(
        offline,
        gamma=gamma,
        expectile=expectile,
        temperature=temperature,
        target_rate=target_rate,
        reward=model,
    )
    return offline.experiment(
        "p_iql",
        learner=with_reward_model(learner, offline.learner(model, BradleyTerryReward()), updates=reward_steps),
        draw=offline.draw,
        metadata=METADATA,
        options=options,
    )
