"""Your own recordings and your own verdicts: of two hours in a room that somebody overheats, one felt better.

python examples/own_preferences.py
"""

import numpy as np
import torch
from custom_env import Thermostat

from decisionrl.callbacks import Progress
from decisionrl.envs.make import make_world
from decisionrl.evaluation.episodes import ReturnEvaluator
from decisionrl.experience.datasets import DatasetSource, Pairs
from decisionrl.experience.preferences import PreferencePairs, sample_segments
from decisionrl.experience.store import store_episodes
from decisionrl.learner import GradientLearner
from decisionrl.objectives.preference_methods import build
from decisionrl.policies.behavior import BehaviorPolicy
from decisionrl.seeding import generator
from decisionrl.trainer import Trainer


def record(seed):
    """A day in the form of a store's episode: one observation more than there are actions."""
    env, rng, over = Thermostat(), np.random.default_rng(seed), False
    seen, actions, rewards, aim = [env.reset(seed=seed)[0]], [], [], rng.uniform(0.0, 6.0)  # degrees too warm
    while not over:
        room, outdoor = 10 * seen[-1]
        actions.append(np.clip([(aim - 0.9 * room - 0.1 * outdoor) / 3 + rng.normal(0.0, 0.1)], 0, 1).astype("float32"))
        observation, reward, _, over, _ = env.step(actions[-1])
        seen.append(observation)
        rewards.append(reward)
    last = np.arange(len(rewards)) == len(rewards) - 1
    columns = {"observation": seen, "action": actions, "reward": rewards, "terminated": last & False, "truncated": last}
    return {name: np.array(column) for name, column in columns.items()}


def main(steps=2000, days=100):
    env = Thermostat()
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    store = store_episodes([record(day) for day in range(days)], **spaces)
    segments = sample_segments(store, 1000, length=8, generator=generator(0, "segments"))
    first, second = torch.arange(1000).chunk(2)
    discomfort = segments.rows(torch.arange(1000)).observation[..., 0].abs().sum(1)
    label = (discomfort[second] < discomfort[first]).float()  # yours: the probability that the second is preferred
    pairs = PreferencePairs(segments=segments, first=first, second=second, label=label)

    policy = BehaviorPolicy(env.observation_space, env.action_space, hidden=(64, 64), generator=generator(0, "policy"))
    policy.update_normalizer(store.observation)
    learner = GradientLearner(policy, build("cpl"), torch.optim.Adam(policy.parameters(), 1e-3))
    Trainer(learner, DatasetSource(Pairs(pairs=pairs, size=64)), callbacks=[Progress(show=("accuracy",))]).fit(steps)
    evaluate = ReturnEvaluator(lambda copies: make_world(Thermostat, num_envs=copies))
    trained, recorded = evaluate(policy, episodes=100)["mean_return"], float(store.returns.mean())
    print(f"return of a day: {trained:.1f}, in the recordings {recorded:.1f}")
    return trained, recorded


if __name__ == "__main__":
    main()
