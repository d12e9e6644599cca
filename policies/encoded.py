"""EncodedPolicy: a policy on embeddings behind the encoder that makes them, for a robot that sees the world itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from decisionrl.policies.diffusion import DiffusionPolicy
from decisionrl.policies.encoders import Encoder
from decisionrl.policies.evaluation import Batch, Evaluation, Observation


class EncodedPolicy(nn.Module):
    """``a ~ head(encoder(o))`` with a frozen encoder, the third stage of multistage training (arXiv 2505.09561).

    The head is trained on embeddings that were made once (``decisionrl.experience.embeddings``); the robot, which sees
    observations, acts with both. The encoder is a copy of the given one as it is now. It never has gradients and is
    always in evaluation mode, also after ``train()``; nor are there statistics of observations to update. The head
    is trained by itself: ``denoising(policy.head, batch)`` with batches of embeddings.

    Args:
        encoder: of observations, trained before.
        head: reads embeddings as they are: a Box of ``encoder.features`` numbers with a
            :class:`~decisionrl.policies.encoders.Flat` encoder.

    Raises:
        ValueError: the head reads embeddings of another size.
    """

    def __init__(self, encoder: Encoder, head: DiffusionPolicy) -> None:
        super().__init__()
        if head.encoder.features != encoder.features:
            raise ValueError(
                f"head.encoder.features = {head.encoder.features}; valid: {encoder.features}, as the encoder has"
            )
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.head = head

    def train(self, mode: bool = True) -> Self:
        """The mode of the head; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def embed(self, observation: Observation) -> Float[Tensor, "n Do"]:
        """Observations [n, ...] encoded, one by one."""
        return self.encoder.forward(observation)

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Int[Tensor, " n"] | None = None
    ) -> tuple[Tensor, Float[Tensor, "n state"]]:
        """Actions [n, ...] for observations [n, ...], and the head's next state."""
        return self.head.act(self.embed(observation), state, noise=noise)

    def predict_action_chunk(
        self, observation: Observation, *, noise: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n F ..."]:
        """The head's sample for contexts of observations [n, To, ...], each encoded by itself."""
        if isinstance(observation, Tensor):
            embedded = self.embed(observation.flatten(0, 1))
        else:
            embedded = self.embed({key: value.flatten(0, 1) for key, value in observation.items()})
        contexts = embedded.view(-1, self.head.context.observations, self.encoder.features)
        return self.head.predict_action_chunk(contexts, noise=noise)

    def select_action(self, observation: Observation, *, generator: torch.Generator | None = None) -> Tensor:
        """The head's next actions [n, ...], with memory kept in it; in evaluation mode from then on."""
        self.eval()
        return self.head.select_action(self.embed(observation), generator=generator)

    def reset(self) -> None:
        """Let :meth:`select_action` begin new episodes."""
        self.head.reset()

    def initial_state(self, n: int) -> Float[Tensor, "n state"]:
        """The head's state before the first observation of an episode."""
        return self.head.initial_state(n)

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Int[Tensor, ...]:
        """The head's noise for ``shape`` actions."""
        return self.head.sample_noise(shape, generator)

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no critic."""

    def evaluate(self, batch: Batch) -> Evaluation:
        """Refused, as by the head.

        Raises:
            TypeError: always; the probability of an action has no closed form.
        """
        return self.head.evaluate(batch)
