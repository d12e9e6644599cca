"""A bandit with prompts: the smallest world of language-model learning, with every answer known exactly."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

Info = dict[str, Any]


class PromptBandit(gymnasium.Env[Any, Any]):
    """One step an episode: a prompt is drawn, one action answers it, and the reward is 1 for a success, else 0.

    Prompt m is drawn with probability 1 / M, and action k then succeeds with the fixed probability ``success[m, k]``. A
    policy pi(k | m) so has the value

        J(pi) = 1/M sum_m sum_k pi(k | m) success[m, k],

    whose gradient automatic differentiation of :meth:`value` gives without an error. A reset's seed decides the prompt
    and the luck of the answer: episodes of equal seeds differ by their actions alone.

    Args:
        prompts: M. actions: K.
        table_seed: draws the success probabilities, uniform on [0, 1].

    Raises:
        ValueError: prompts or actions is less than 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(self, *, prompts: int = 8, actions: int = 6, table_seed: int = 0) -> None:
        for name, count in (("prompts", prompts), ("actions", actions)):
            if count < 1:
                raise ValueError(f"{name} = {count}; valid: a whole number >= 1")
        self.observation_space: gymnasium.Space[Any] = spaces.Discrete(prompts)
        self.action_space: gymnasium.Space[Any] = spaces.Discrete(actions)
        generator = torch.Generator().manual_seed(table_seed)
        self.success = torch.rand(prompts, actions, dtype=torch.float64, generator=generator)
        self._prompt: int | None = None

    @property
    def optimal_value(self) -> float:
        """The largest J there is: the best action for every prompt."""
        return float(self.success.amax(1).mean())

    def value(self, policy: Float[Tensor, "prompts actions"]) -> Float[Tensor, ""]:
        """J of a policy given by its probabilities; differentiable in them."""
        return (policy * self.success.to(policy)).sum(1).mean()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, Info]:
        super().reset(seed=seed)
        self._prompt = int(self.np_random.integers(self.success.shape[0]))
        return self._prompt, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, Info]:
        """Raises RuntimeError when the episode is over or has not begun."""
        if self._prompt is None:
            raise RuntimeError("PromptBandit: no episode is running; call reset()")
        prompt, self._prompt = self._prompt, None
        reward = float(self.np_random.random() < self.success[prompt, action])
        return prompt, reward, True, False, {}
