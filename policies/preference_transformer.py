"""The preference transformer (arXiv 2303.00957): rewards that depend on the past, learned from preferences."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.policies.evaluation import Batch, Observation
from decisionrl.policies.sequence import StepTransformer, TransformerSizes, Window, WindowReader, linear

Score = Literal["mean", "sum"]

REFERENCE = TransformerSizes(width=256, layers=1, heads=4, feedforward=1024)
"""Of the released code."""


class PreferenceTransformer(nn.Module):
    """A reward r_hat_t of the steps up to t, and a score of a segment.

    A causal transformer reads the tokens a_0, s_0, a_1, s_1, ...; x_t is its output at s_t. With ``weighted_sum``,
    r_hat_t, a query and a key are linear in x_t, and the preference attention (Section 4 of the paper)

        z_i = sum_t softmax_t(q_i . k_t / sqrt(width)) r_hat_t

    makes the score, ``mean_i z_i = sum_t w_t r_hat_t``, a weighted sum of the rewards. Without it r_hat_t is a
    perceptron of x_t with one hidden layer of half the width, and z_t = r_hat_t.

    Args:
        observation_space, action_space: Boxes, the latter with bounds.
        sizes: of the transformer.
        weighted_sum: with preference attention; the released code needs to be told so, the paper has it.
        score: "mean" or "sum" of z over the segment.
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
        sizes: TransformerSizes = REFERENCE,
        weighted_sum: bool = True,
        score: Score = "mean",
        timesteps: int = 1000,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if score not in get_args(Score):
            raise ValueError(f"score = {score!r}; valid: {', '.join(get_args(Score))}")
        self.score, self.weighted_sum = score, weighted_sum
        self.reader = WindowReader(observation_space, action_space)
        self.steps = StepTransformer(
            {"action": self.reader.action_features, "observation": self.reader.observation_features},
            sizes,
            timesteps=timesteps,
            causal=True,
            generator=generator,
        )
        width = sizes.width
        self.head: nn.Module
        if weighted_sum:
            self.head = linear(width, 1, generator)
            self.query, self.key = linear(width, width, generator), linear(width, width, generator)
        else:
            self.head = nn.Sequential(linear(width, width // 2, generator), nn.ReLU(), linear(width // 2, 1, generator))

    def rewards(self, batch: Batch) -> Float[Tensor, "batch step"]:
        """r_hat_t of every step given those before it in its row; 0 at masked steps."""
        window = self.reader(batch)
        return self._rewards(self._hidden(window), window)

    def segment_scores(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The score of every row's steps in the mask."""
        window = self.reader(batch)
        hidden = self._hidden(window)
        scores = self._rewards(hidden, window)
        if self.weighted_sum:
            logits = self.query(hidden) @ self.key(hidden).mT / hidden.shape[-1] ** 0.5
            if window.mask is not None:
                logits = logits.masked_fill(~window.mask[:, None, :], torch.finfo(logits.dtype).min)
            scores = (logits.softmax(-1) @ scores[..., None]).squeeze(-1)
            if window.mask is not None:
                scores = torch.where(window.mask, scores, 0)
        total = scores.sum(1)
        return total / batch.mask.sum(1).clamp(min=1) if self.score == "mean" else total

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that standardize them."""
        self.reader.update(observation, mask)

    def _hidden(self, window: Window) -> Float[Tensor, "batch step width"]:
        parts = {"action": window.action, "observation": window.observation}
        return self.steps(parts, window.timestep, window.mask)["observation"]  # type: ignore[no-any-return]

    def _rewards(self, hidden: Tensor, window: Window) -> Float[Tensor, "batch step"]:
        rewards: Tensor = self.head(hidden).squeeze(-1)
        return rewards if window.mask is None else torch.where(window.mask, rewards, 0)
