"""Least-squares value iteration for linear MDPs as it is written down: one run, plain loops over all past episodes.

The yardstick for the library's learners, and what their estimates are compared with. In episode k every regression is
solved afresh from the k episodes so far, and the value of every next state in them is the maximum over actions of
Q computed one by one. The dual of the total variation ball is maximized exactly, over 0, the cap and the values seen,
where the authors' code runs a search for each factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Step = tuple[int, int, float, int]
"""State, action, reward, next state."""


@dataclass(kw_only=True)
class PlainLeastSquares:
    """LSVI-UCB, DR-LSVI-UCB (with a radius), PEVI (sign -1) and DRPVI (sign -1, with a radius).

    Attributes:
        features: phi, [H][S][A] arrays of [d].
        rewards: [H, S, A].
        caps: upper bounds of V_0, ..., V_H.
        radius: [H, d], of a total variation ball; None is nominal.
        bonus: "full", "d1" or "d2"; sign: 1 is optimistic, -1 pessimistic.
        invert_always: invert Lambda_h for every Q, as the authors' code does; else once in every plan.
    """

    features: Array
    rewards: Array
    caps: list[float]
    fail_state: int
    radius: Array | None = None
    learn_rewards: bool = False
    ridge: float = 0.1
    beta: float = 1.0
    bonus: Literal["full", "d1", "d2"] = "d2"
    sign: int = 1
    invert_always: bool = False
    history: list[list[Step]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan()

    def add(self, episode: list[Step]) -> None:
        """Remember an episode, one step for each stage, and plan again."""
        self.history.append(episode)
        self.plan()

    def plan(self) -> None:
        """Solve the regressions backward over the stages."""
        stages, _, _, d = self.features.shape
        self.weight = np.zeros((stages, d))
        self.gram = np.zeros((stages, d, d))
        self.inverse = np.zeros((stages, d, d))
        for h in reversed(range(stages)):
            gram = self.gram[h]
            gram += self.ridge * np.eye(d)
            for episode in self.history:
                state, action, _, _ = episode[h]
                phi = self.features[h, state, action]
                gram += np.outer(phi, phi)
            self.inverse[h] = np.linalg.inv(gram)
            values = [self.value(h + 1, episode[h][3]) for episode in self.history]
            if self.radius is not None:
                self.weight[h] = self._robust(h, values)
            else:
                self.weight[h] = self._regression(h, values)
            if self.learn_rewards:
                self.weight[h] += self._regression(h, [episode[h][2] for episode in self.history])

    def q(self, h: int, state: int, action: int) -> float:
        """Q_h(s, a)."""
        if state == self.fail_state:
            return 0.0
        phi = self.features[h, state, action]
        inverse = np.linalg.inv(self.gram[h]) if self.invert_always else self.inverse[h]
        if self.bonus == "full":
            bonus = math.sqrt(phi @ inverse @ phi)
        elif self.bonus == "d1":
            bonus = sum(phi[i] * math.sqrt(inverse[i, i]) for i in range(len(phi)))
        else:
            bonus = math.sqrt(sum(phi[i] ** 2 * inverse[i, i] for i in range(len(phi))))
        reward = 0.0 if self.learn_rewards else self.rewards[h, state, action]
        q = reward + phi @ self.weight[h] + self.sign * self.beta * bonus
        return float(min(max(q, 0.0), self.caps[h]))

    def value(self, h: int, state: int) -> float:
        """max_a Q_h(s, a); 0 after the last stage."""
        stages, _, actions, _ = self.features.shape
        return 0.0 if h == stages else max(self.q(h, state, action) for action in range(actions))

    def act(self, h: int, state: int) -> int:
        """The first best action."""
        actions = self.features.shape[2]
        return int(np.argmax([self.q(h, state, action) for action in range(actions)]))

    def _regression(self, h: int, targets: list[float]) -> Array:
        """Lambda_h^{-1} sum_tau phi_tau y_tau."""
        total = np.zeros(self.features.shape[3])
        for episode, target in zip(self.history, targets, strict=True):
            state, action, _, _ = episode[h]
            total += self.features[h, state, action] * target
        estimate: Array = self.inverse[h] @ total
        return estimate

    def _robust(self, h: int, values: list[float]) -> Array:
        """max_a z_i(a) - rho_i a for every factor i; z_i(cap) where rho_i = 0."""
        assert self.radius is not None
        stages, cap = len(self.features), self.caps[h + 1]
        if h == stages - 1:
            return np.zeros(self.features.shape[3])
        found = {a: self._regression(h, [min(value, a) for value in values]) for a in {0.0, cap, *values}}
        nu = np.zeros(self.features.shape[3])
        for i, rho in enumerate(self.radius[h]):
            nu[i] = max(z[i] - rho * a for a, z in found.items()) if rho > 0 else found[cap][i]
        return nu


def play(method: PlainLeastSquares, kernel: Array, initial: Array, noise: Array) -> list[Step]:
    """One episode of the greedy policy: kernel [H, S, A, S], noise uniform, [1 + 2 H] (first state; action, next)."""
    stages = len(kernel)
    state = _draw(initial, noise[0])
    episode = []
    for h in range(stages):
        action = method.act(h, state)
        following = _draw(kernel[h, state, action], noise[2 + 2 * h])
        episode.append((state, action, float(method.rewards[h, state, action]), following))
        state = following
    return episode


def _draw(probabilities: Array, uniform: float) -> int:
    """The smallest k with p_0 + ... + p_k > u."""
    total = 0.0
    for k, probability in enumerate(probabilities):
        total += probability
        if total > uniform:
            return k
    return int(np.nonzero(probabilities)[0][-1])
