"""Little environments whose every transition can be worked out by hand."""

from copy import deepcopy

import gymnasium
import numpy as np
from gymnasium import spaces


class Counting(gymnasium.Env):
    """Observation (seed, time, last action); an episode terminates after 3 + seed % 4 steps or is cut after 5."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, limit=5):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is None:  # a start that the environment draws itself
            seed = int(self.np_random.integers(1000))
        self.seed, self.time = seed % 1000, 0
        return self.observed(0), {}

    def step(self, action):
        assert self.time >= 0, "the episode is over"
        self.time += 1
        terminated = self.time >= 3 + self.seed % 4
        truncated = self.time >= self.limit and not terminated
        observation, reward = self.observed(action), self.seed + 10.0 * self.time + action
        if terminated or truncated:
            self.time = -1
        return observation, reward, terminated, truncated, {}

    def observed(self, action):
        return np.array([self.seed, self.time, action], np.float64)


class Noisy(gymnasium.Env):
    """A random walk; the action is its drift."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.position = 0, self.np_random.normal()
        return self.observed(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        self.position += float(action[0]) + self.np_random.normal()
        return self.observed(), self.position, False, self.time >= 8, {}

    def observed(self):
        return np.array([self.position], np.float32)


class Sampled(gymnasium.Env):
    """Samples of given spaces; never ends. It keeps the actions it was given."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = deepcopy(observation_space)  # a space has random numbers of its own
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.given = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.last = self.observation_space.sample()
        return self.last, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.given.append(action)
        self.last = self.observation_space.sample()
        return self.last, 1.0, False, False, {}


class Broken(gymnasium.Env):
    """Behaves, but for what ``faults`` replaces: {step: function of the proper outcome}; step 0 is the reset."""

    def __init__(self, faults=None, space=None):
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32) if space is None else space
        self.action_space = spaces.Discrete(2)
        self.faults = faults or {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.faulty((self.observation_space.sample(), {}))

    def step(self, action):
        self.time += 1
        return self.faulty((self.observation_space.sample(), 0.5, False, False, {}))

    def faulty(self, outcome):
        return self.faults[self.time](outcome) if self.time in self.faults else outcome
