"""The decision transformer (arXiv 2106.01345): a policy conditioned on the return that is still to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.policies.evaluation import Batch, Evaluation, Observation
from decisionrl.policies.hindsight import ContextualPolicy
from decisionrl.policies.sequence import RecentSteps, TransformerSizes, WindowReader, extras_of, squared_error


class DecisionTransformer(nn.Module):
    """pi(a | R, s) over the tokens R_0, s_0, a_0, R_1, s_1, a_1, ...: R stands where z does in a ContextualPolicy.

    Training reads R_t from the batch's extras. When the policy acts, R_0 is ``target_return`` and
    ``R_{t+1} = R_t - r_t``, the rewards being told to :meth:`hear`.

    Args:
        observation_space, action_space: Boxes, the latter with bounds.
        target_return: R_0, in the units of the environment.
        return_scale: what the returns in the batches were divided by; target and rewards are so as well. 1000 for
            Hopper, HalfCheetah and Walker2d.
        return_name: the extra that holds R_t.
        constant_return: R is the same at all steps: when the policy acts ``target_return``, in training that of the
            row's first step. OPPO's release compares with this, R being the return of the next 200 steps
            (``return_name="future_return"``).
        sizes: of the transformer.
        window: K, the steps that the policy sees when it acts.
        timesteps: the longest episode.
        generator: draws the weights; by default torch's global generator.

    Raises:
        TypeError, ValueError: a space is no Box, or an option has no valid value.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        target_return: float,
        return_scale: float = 1.0,
        return_name: str = "return_to_go",
        constant_return: bool = False,
        sizes: TransformerSizes | None = None,
        window: int = 20,
        timesteps: int = 1000,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not return_scale > 0:
            raise ValueError(f"return_scale = {return_scale}; valid: positive")
        if window < 1:
            raise ValueError(f"window = {window}; valid: at least 1")
        self.target_return, self.return_scale = target_return, return_scale
        self.return_name, self.constant_return = return_name, constant_return
        self.window = window
        self.reader = WindowReader(observation_space, action_space)
        self.contextual = ContextualPolicy(
            self.reader.observation_features,
            self.reader.action_features,
            1,
            sizes=sizes or TransformerSizes(),
            timesteps=timesteps,
            generator=generator,
        )

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, "n state"]]:
        """Actions [N, ...] for observations [N, ...], and the next state; noise changes nothing."""
        reader = self.reader
        state = self.initial_state(len(observation)) if state is None else state
        target = state[:, :1]
        step = torch.cat([reader.opened(observation), target], 1)
        recent = RecentSteps.unpacked(state[:, 1:], self.window).followed_by(step)
        predicted = self.contextual(reader.recent(recent), recent.steps[..., -1:])
        action = reader.action(recent.newest(predicted.action))
        recent = recent.with_newest(action.flatten(1), reader.observation_features)
        return action, torch.cat([target, recent.packed()], 1)

    def hear(self, state: Float[Tensor, "n state"], reward: Float[Tensor, " n"]) -> Float[Tensor, "n state"]:
        """The state after the rewards of the step: they are no longer to come."""
        if self.constant_return:
            return state
        target = state[:, :1] - reward[:, None].to(state.dtype) / self.return_scale
        return torch.cat([target, state[:, 1:]], 1)

    def evaluate(self, batch: Batch) -> Evaluation:
        """``log_prob = -||a_hat_t - a_t||^2`` given the row's returns, with the Box scaled to [-1, 1]; 0 at masked
        steps.

        Raises:
            ValueError: the batch has no returns.
        """
        extras = extras_of(batch)
        if self.return_name not in extras:
            raise ValueError(f"extras has {sorted(extras)}; valid: with {self.return_name!r}, [batch, step]")
        window = self.reader(batch)
        returns = torch.where(batch.mask, extras[self.return_name], 0).to(self.reader.dtype)
        if self.constant_return:
            returns = returns[:, :1].expand_as(returns)
        return Evaluation(-squared_error(self.contextual(window, returns[..., None]).action, window))

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no critic."""

    def initial_state(self, n: int) -> Float[Tensor, "n state"]:
        """The state before the first observation of an episode: the target, and no steps."""
        features = self.reader.observation_features + self.reader.action_features + 1
        state = self.reader.center.new_zeros(n, 1 + self.window * features + 1)
        state[:, 0] = self.target_return / self.return_scale
        return state

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Nothing, [*shape, 0]: the policy is deterministic."""
        return self.reader.center.new_zeros(*shape, 0)

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that standardize them."""
        self.reader.update(observation, mask)
