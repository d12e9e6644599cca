"""Your own environment, trained in a script: a thermostat that heats a room just as much as needed.

python examples/custom_env.py            or: decisionrl train ppo --env custom_env:Thermostat --steps 100000
"""

import gymnasium
import numpy as np

from decisionrl.callbacks import Progress
from decisionrl.recipes.ppo import ppo
from decisionrl.trainer import Trainer


class Thermostat(gymnasium.Env):
    """See room and outdoor temperature less 20 degrees, choose the heating power; 96 quarters of an hour."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room, self.outdoor, self.time = self.np_random.uniform(-5.0, 5.0), self.np_random.uniform(-25.0, -5.0), 0
        return self._observation(), {}

    def step(self, action):
        self.room += 0.1 * (self.outdoor - self.room) + 3.0 * float(action[0])
        self.outdoor += self.np_random.normal(0.0, 0.5)
        self.time += 1
        reward = -abs(self.room) - float(action[0])  # degrees off target, and the price of heating
        return self._observation(), reward, False, self.time == 96, {}

    def _observation(self):
        return np.array([self.room, self.outdoor], np.float32) / 10


if __name__ == "__main__":
    experiment = ppo(env=Thermostat, steps=100_000, horizon=256, gamma=0.9, learning_rate=1e-3)
    Trainer(experiment, callbacks=[Progress(show=("episode_return",))], seed=0).fit(100_000)
    print(experiment.evaluate(experiment.policy, episodes=100))
