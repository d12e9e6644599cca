"""python examples/own_demonstrations.py: your own environment, your own demonstrations, and a policy that remembers."""

from pathlib import Path

import gymnasium
import numpy as np

from decisionrl.experience.minari import save_minari
from decisionrl.experience.store import store_episodes
from decisionrl.recipes.ptp import ptp
from decisionrl.trainer import Trainer


class Lamp(gymnasium.Env):  # a lamp shines for two steps on the side to which a robot on a line is to go later
    observation_space, action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,)), gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side, self.place, self.time = self.np_random.choice([-1, 1]), self.np_random.uniform(-0.1, 0.1), 0
        return np.array([self.place, self.side], np.float32), {}

    def step(self, action):
        self.place, self.time = self.place + 0.25 * float(action[0]) + self.np_random.normal(0, 0.01), self.time + 1
        over, seen = abs(self.place) > 0.9, np.array([self.place, self.side * (self.time < 2)], np.float32)
        return seen, float(over and self.place * self.side > 0), over, self.time == 20 and not over, {}


def demonstrate(env, seed):  # an expert who stays in the middle for five or six steps
    seen, steps = [env.reset(seed=seed)[0]], []
    while not (steps and any(steps[-1][2:])):  # terminated or truncated
        action = np.clip(np.float32([env.side if len(steps) >= 5 + seed % 2 else -4 * env.place]), -1, 1)
        observation, *outcome, _ = env.step(action)
        seen.append(observation)  # one more than there are actions
        steps.append([action, *outcome])
    columns = zip(("action", "reward", "terminated", "truncated"), map(np.array, zip(*steps, strict=True)), strict=True)
    return {"observation": np.array(seen), **dict(columns)}


def main(data="data/lamp", steps=300, observations=8):
    if not Path(data).exists():
        spaces = {"observation_space": Lamp.observation_space, "action_space": Lamp.action_space}
        save_minari(store_episodes([demonstrate(Lamp(), seed) for seed in range(100)], **spaces), data)
    small = {"sizes": "cpu", "future": 4, "learning_rate": 1e-3, "warmup": 50, "steps": steps}
    experiment = ptp(data=str(data), env=Lamp, observations=observations, **small)
    Trainer(experiment).fit(steps)
    return experiment.evaluate(experiment.policy, episodes=100)["mean_return"]


if __name__ == "__main__":
    print(f"went to the right side in {main():.0%} of 100 episodes")
