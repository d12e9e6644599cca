"""A bandit with prompts whose answers are single characters: gradients and their variance are known exactly."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.text.task import TextTaskDefaults, checked_index, random_numbers

Advantage = Callable[[Tensor], Tensor]
"""From the rewards of groups [prompts, outcomes, group_size] to their advantages, of the same shape."""

MAX_OUTCOMES = 2**18
"""How many groups of answers to one prompt :meth:`PromptBandit.gradient_moments` goes through."""


class GradientMoments(NamedTuple):
    """The expectation of an estimator of the gradient, and the trace of its covariance."""

    mean: Float[Tensor, "prompts actions"]
    variance: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class PromptBandit(TextTaskDefaults):
    """Prompt m is ``"m:"`` and is answered by one of K letters; each prompt has its own right letters.

    How many are right is uniform on 1, ..., K - 1, so that prompts differ in difficulty. The reward is 1 or 0. Prompts
    are equally likely in all expectations here, and a policy is a table of ``logits`` [M, K].

    Args:
        prompts: M. actions: K.
        table_seed: draws the right letters.

    Raises:
        ValueError: prompts < 1, or actions is not from 2 to 26.
    """

    prompts: int = 8
    actions: int = 6
    table_seed: int = 0

    name = "text/prompt-bandit"
    max_tokens = 2
    best_reward = 1.0

    def __post_init__(self) -> None:
        check_whole("prompts", self.prompts, 1)
        check_whole("actions", self.actions, 2)
        check_whole("table_seed", self.table_seed, 0)
        if self.actions > len(string.ascii_lowercase):
            raise ValueError(f"actions = {self.actions}; valid: 2 to {len(string.ascii_lowercase)}")

    @property
    def num_prompts(self) -> int:
        return self.prompts

    @property
    def letters(self) -> str:
        """The K answers, in the order of the columns of every table."""
        return string.ascii_lowercase[: self.actions]

    @property
    def alphabet(self) -> str:
        return f"0123456789:{self.letters}"

    @cached_property
    def right(self) -> tuple[str, ...]:
        """The right letters of each prompt."""
        rng = random_numbers(self.name, self.table_seed)
        return tuple(
            "".join(sorted(rng.sample(self.letters, rng.randint(1, self.actions - 1)))) for _ in range(self.prompts)
        )

    @cached_property
    def table(self) -> Float[Tensor, "prompts actions"]:
        """The reward of each answer, in float64."""
        return torch.tensor([[letter in right for letter in self.letters] for right in self.right]).double()

    def prompt(self, index: int, /) -> str:
        return f"{checked_index(self, index)}:"

    def reward(self, index: int, response: str, /) -> float:
        right = self.right[checked_index(self, index)]
        return float(len(response) == 1 and response in right)

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        """One of the right letters, each as likely."""
        right = self.right[checked_index(self, index)]
        return right[int(torch.randint(len(right), (), generator=generator, device=generator.device))]

    def value(self, logits: Float[Tensor, "prompts actions"]) -> Float[Tensor, ""]:
        """J = 1/M sum_m sum_k pi(k | m) r(m, k); differentiable in the logits."""
        return (logits.softmax(1) * self.table.to(logits)).sum(1).mean()

    def gradient(self, logits: Float[Tensor, "prompts actions"]) -> Float[Tensor, "prompts actions"]:
        """The policy gradient dJ / dlogits[m, k] = 1/M pi(k | m) (r(m, k) - v(m)), v(m) being the value of prompt m."""
        policy, reward = logits.softmax(1), self.table.to(logits)
        return policy * (reward - (policy * reward).sum(1, keepdim=True)) / self.prompts

    def gradient_moments(
        self, logits: Float[Tensor, "prompts actions"], advantage: Advantage, *, group_size: int = 1
    ) -> GradientMoments:
        """The moments of g = 1/G sum_i A_i grad log pi(a_i | m) for one prompt m and a group of G answers to it.

        All K^G groups of every prompt are gone through. REINFORCE is ``lambda reward: reward``, a baseline [M]
        ``lambda reward: reward - baseline[:, None, None]``; leave-one-out and group-normalized advantages are functions
        of the last dimension. Over n independent groups the variance is one n-th.

        Raises:
            ValueError: there are more than 2^18 groups, or the advantages are of another shape than the rewards.
        """
        check_whole("group_size", group_size, 1)
        if self.actions**group_size > MAX_OUTCOMES:
            raise ValueError(f"group_size = {group_size}; valid: actions^group_size <= {MAX_OUTCOMES:,}")
        policy, reward = logits.softmax(1), self.table.to(logits)
        choices = [torch.arange(self.actions, device=logits.device)] * group_size
        group = torch.cartesian_prod(*choices).view(-1, group_size)
        probability = policy[:, group].prod(2)
        given = advantage(reward[:, group])
        if given.shape != (self.prompts, *group.shape):
            raise ValueError(f"advantage has shape {list(given.shape)}; valid: {[self.prompts, *group.shape]}")
        # grad log pi(a | m) is e_a - pi(m) in the row of m, and 0 in the others.
        chosen = torch.nn.functional.one_hot(group, self.actions).to(logits)
        estimate = torch.einsum("mog,ogk->mok", given, chosen) - given.sum(2, keepdim=True) * policy[:, None]
        estimate = estimate / group_size
        mean = torch.einsum("mo,mok->mk", probability, estimate) / self.prompts
        second = (probability * estimate.square().sum(2)).sum() / self.prompts
        return GradientMoments(mean, second - mean.square().sum())
