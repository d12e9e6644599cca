"""Diffusion policies (arXiv 2303.04137) with a long context and past-token prediction (arXiv 2505.09561)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from decisionrl.policies.action_normalizer import LinearNormalizer
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion_network import DiffusionTransformer, DiffusionTransformerSizes, decay_groups
from decisionrl.policies.diffusion_sampling import (
    DiffusionSchedule,
    PredictionType,
    Sampler,
    content_seed,
    row_normals,
    row_seeds,
)
from decisionrl.policies.diffusion_unet import DiffusionUnet, DiffusionUnetSizes
from decisionrl.policies.encoders import Encoder, encoder_for
from decisionrl.policies.evaluation import Batch, Evaluation, Observation

PastTokens = Literal["predict", "unsupervised", "absent"]


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """The network of a :class:`DiffusionPolicy` and its diffusion; see :class:`DiffusionSchedule`.

    network: sizes of the transformer or of the U-Net, which also say which of them it is.
    """

    network: DiffusionTransformerSizes | DiffusionUnetSizes
    prediction: PredictionType
    sampler: Sampler
    train_steps: int = 100
    inference_steps: int = 100


PAPER = DiffusionSettings(network=DiffusionTransformerSizes(), prediction="epsilon", sampler="ddpm")
"""Of the released code of arXiv 2505.09561."""

CPU = DiffusionSettings(
    network=DiffusionTransformerSizes(width=48, layers=2, dropout=0.0),
    prediction="sample",
    sampler="ddim",
    inference_steps=10,
)
"""For small problems on a CPU."""


class DiffusionPolicy(nn.Module):
    """``a_{t-To+1}, ..., a_{t+F-1} ~ pi(. | o_{t-To+1}, ..., o_t)``, by taking noise away from random action tokens.

    Of what is sampled the present action and the ``action_steps - 1`` after it are executed; then it is sampled anew.
    Of N > 1 ``candidates`` the one is used whose past tokens are closest to the actions that were really executed
    (self-verification, arXiv 2505.09561):

        argmin_i sum_tau ||a_hat^(i)_tau - a_tau||^2, in normalized units,

    over the past tokens that are trained. Until the episode has lasted as long as they reach back, the first is used.

    The policy acts by ``act(observation, state, noise=...)`` like every other; its state holds the features of the last
    To s observations, the actions executed then and those still to be executed, and rows are independent of each other.
    Noise is one whole number a row, the seed of all that is random in it. Without noise the seed is a function of what
    was observed so far, so that the action is one too, and still distributed as a sample. Every bit counts: features
    that another batch size rounds another way give another, equally good sample.

    Args:
        observation_space: of any kind that has an encoder; observations are encoded one by one.
        action_space: a Box of floats.
        context: To, F, the stride s, and which frames are seen.
        past_tokens: "predict": the decoder has past tokens, and they are trained (past-token prediction).
            "unsupervised": it has them, untrained; the paper's baseline. "absent": it has the F others only.
        past_steps: with "predict", train only so many of the past tokens, the last ones; None: all To - 1.
        head: "diffusion", or "regression": the same network reads zeros at diffusion step 0 and says the actions.
        settings: ``PAPER``, ``CPU`` or others.
        action_steps: Ta, at most F.
        candidates: N, at least 1; more than one with past tokens that are trained.
        encoder: of observations [n, ...]; by default that of the space, with normalized Boxes.
        action_normalizer: of actions [..., Da]; by default to the limits of the data, and before
            :meth:`fit_normalizers` to those of the Box if it has any.
        generator: draws the weights; by default torch's global generator.

    Attributes:
        network: :class:`DiffusionTransformer` or :class:`DiffusionUnet`.
        schedule: of the diffusion; None for regression.
        present: the token of the present action.
        first_trained: the first token that is trained.

    Raises:
        TypeError: a space is of an unsupported kind.
        ValueError: an option has no valid value.
        ImportError: diffusers is not installed, which only regression does without.
    """

    low: Tensor
    high: Tensor
    schedule: DiffusionSchedule | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        context: Context | None = None,
        past_tokens: PastTokens = "predict",
        past_steps: int | None = None,
        head: Literal["diffusion", "regression"] = "diffusion",
        settings: DiffusionSettings = PAPER,
        action_steps: int = 1,
        candidates: int = 1,
        encoder: Encoder | None = None,
        action_normalizer: LinearNormalizer | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(action_space, spaces.Box) or not np.issubdtype(action_space.dtype, np.floating):
            raise TypeError(f"action_space = {action_space}; valid: a Box of floats")
        context = context or Context()
        for name, value, valid in (
            ("past_tokens", past_tokens, get_args(PastTokens)),
            ("head", head, ("diffusion", "regression")),
        ):
            if value not in valid:
                raise ValueError(f"{name} = {value!r}; valid: {', '.join(valid)}")
        if not 1 <= action_steps <= context.future:
            raise ValueError(f"action_steps = {action_steps}; valid: 1 to future = {context.future}")
        if past_steps is not None and not (past_tokens == "predict" and 1 <= past_steps <= context.past):
            raise ValueError(
                f"past_steps = {past_steps}; valid: None, or with past_tokens = 'predict' 1 to {context.past}, the "
                "observations less one"
            )
        verifies = past_tokens == "predict" and head == "diffusion" and context.past > 0
        if candidates < 1 or (candidates > 1 and not verifies):
            raise ValueError(
                f"candidates = {candidates}; valid: 1, or more with head = 'diffusion', past_tokens = 'predict' and at "
                "least two observations"
            )
        self.context, self.action_steps, self.candidates = context, action_steps, candidates
        self.present = 0 if past_tokens == "absent" else context.past
        self.first_trained = self.present
        if past_tokens == "predict":
            self.first_trained -= context.past if past_steps is None else past_steps
        self.tokens = self.present + context.future

        self.action_shape, self.action_features = action_space.shape, math.prod(action_space.shape)
        low, high = (
            torch.as_tensor(bound.reshape(-1), dtype=torch.get_default_dtype())
            for bound in (action_space.low, action_space.high)
        )
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.encoder = encoder or encoder_for(observation_space, normalize=True, generator=generator)
        if action_normalizer is None:
            action_normalizer = LinearNormalizer((self.action_features,))
            if action_space.is_bounded():
                action_normalizer.fit(torch.stack([low, high]))
        self.action_normalizer = action_normalizer
        self.network = _network(
            settings.network, self.encoder.features, self.action_features, context, self.tokens, self.present, generator
        )
        self.schedule = None
        if head == "diffusion":
            self.schedule = DiffusionSchedule(
                prediction=settings.prediction,
                sampler=settings.sampler,
                train_steps=settings.train_steps,
                inference_steps=settings.inference_steps,
                clip=action_normalizer.mode == "limits",
            )
        self._remembered: Tensor | None = None

    def fit_normalizers(self, observation: Observation, action: Tensor) -> None:
        """Take the statistics of recorded observations [rows, ...] and actions [rows, ...]; once, before training."""
        self.encoder.update(observation)
        self.action_normalizer.fit(action.reshape(-1, self.action_features))

    def parameter_groups(self, *, weight_decay: float = 1e-3, encoder_decay: float = 1e-6) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, without those that hold nothing; see :func:`decay_groups`."""
        groups = decay_groups(self.network, weight_decay) + decay_groups(self.encoder, encoder_decay)
        return [group for group in groups if group["params"]]

    def features(self, observation: Observation) -> Float[Tensor, "batch To Do"]:
        """Observations [batch, To, ...], encoded one by one.

        Raises:
            ValueError: the context is shorter or longer.
        """
        seen = (observation if isinstance(observation, Tensor) else next(iter(observation.values()))).shape[1]
        if seen != self.context.observations:
            raise ValueError(f"observation: {seen} in a context; valid: {self.context.observations}")
        if isinstance(observation, Tensor):
            encoded = self.encoder.forward(observation.flatten(0, 1))
        else:
            encoded = self.encoder.forward({key: value.flatten(0, 1) for key, value in observation.items()})
        return encoded.to(self.dtype).view(-1, self.context.observations, self.encoder.features)

    def action_tokens(self, action: Float[Tensor, "batch T ..."]) -> Float[Tensor, "batch tokens Da"]:
        """Actions of the whole context as the decoder's tokens, in normalized units."""
        return self.action_normalizer(self.own_tokens(action))  # type: ignore[no-any-return]

    def own_tokens(self, values: Float[Tensor, "batch T ..."]) -> Float[Tensor, "batch tokens Da"]:
        """Of values for the whole context those at the decoder's tokens, flat."""
        own = values[:, self.context.tokens - self.tokens :]
        return own.reshape(-1, self.tokens, self.action_features).to(self.dtype)

    def sample(
        self, features: Float[Tensor, "n To Do"], seed: Int[Tensor, " n"], candidates: int = 1
    ) -> Float[Tensor, "n candidates tokens Da"]:
        """Tokens in normalized units, as many independent ones for each row; the first ones do not depend on how many
        there are. Regression knows one."""
        memory = self.network.encode(features).repeat_interleave(candidates, 0)
        rows, shape = len(memory), (self.tokens, self.action_features)
        if self.schedule is None:
            tokens = self.network(memory.new_zeros(rows, *shape), torch.zeros_like(seed), memory)
        else:
            seeds = row_seeds(seed, candidates).flatten()

            def predicted(noisy: Tensor, step: int) -> Tensor:
                return self.network(noisy, torch.full((rows,), step, device=memory.device), memory)  # type: ignore[no-any-return]

            tokens = self.schedule.sample(
                predicted, lambda stream: row_normals(seeds, shape, stream=stream, dtype=self.dtype)
            )
        return tokens.view(-1, candidates, *shape)  # type: ignore[no-any-return]

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Int[Tensor, " n"] | None = None
    ) -> tuple[Tensor, Float[Tensor, "n state"]]:
        """Actions [n, ...] for observations [n, ...], and the next state. Only rows that have no action left of what
        they sampled last are computed; in training mode with dropout."""
        features = self.encoder.forward(observation).to(self.dtype)
        memory = self._unpacked(self.initial_state(len(features)) if state is None else state).seeing(features)
        due = (memory.left == 0).nonzero().squeeze(1)
        if len(due):
            memory = memory.planning(due, self._chunk(memory.rows(due), None if noise is None else noise[due]))
        action, memory = memory.acting()
        return action.view(-1, *self.action_shape), memory.packed()

    @torch.no_grad()
    def predict_action_chunk(
        self, observation: Observation, *, noise: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n F ..."]:
        """One sample of the present action and those after it, for contexts of observations [n, To, ...]."""
        features = self.features(observation)
        tokens = self.sample(features, content_seed(features) if noise is None else noise)[:, 0, self.present :]
        return self._actions(tokens).view(*tokens.shape[:2], *self.action_shape)

    @torch.no_grad()
    def select_action(self, observation: Observation, *, generator: torch.Generator | None = None) -> Tensor:
        """Actions [n, ...] for the next observations [n, ...] of n episodes that :meth:`reset` began, with memory kept
        in the policy itself; in evaluation mode from then on."""
        self.eval()
        noise = None
        if generator is not None:
            rows = len(observation if isinstance(observation, Tensor) else next(iter(observation.values())))
            noise = self.sample_noise((rows,), generator)
        action, self._remembered = self.act(observation, self._remembered, noise=noise)
        return action

    def reset(self) -> None:
        """Let :meth:`select_action` begin new episodes."""
        self._remembered = None

    def initial_state(self, n: int) -> Float[Tensor, "n state"]:
        """The state before the first observation of an episode: zeros."""
        context = self.context
        history = context.frames * (self.encoder.features + self.action_features)
        return self.low.new_zeros(n, history + self.action_steps * self.action_features + 2)

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Int[Tensor, ...]:
        """Seeds for ``shape`` actions."""
        device = self.low.device if generator is None else generator.device
        limits = torch.iinfo(torch.int64)
        seeds = torch.randint(
            limits.min, limits.max, tuple(shape), generator=generator, dtype=torch.int64, device=device
        )
        return seeds.to(self.low.device)

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no critic."""

    def evaluate(self, batch: Batch) -> Evaluation:
        """Refused.

        Raises:
            TypeError: always; the probability of an action has no closed form.
        """
        raise TypeError("a diffusion policy has no log-probabilities; valid: decisionrl.objectives.denoising")

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that normalize them."""
        self.encoder.update(observation, mask)

    @property
    def dtype(self) -> torch.dtype:
        """Of features and tokens."""
        return self.low.dtype

    def _chunk(self, memory: _Memory, noise: Tensor | None) -> Float[Tensor, "n Ta Da"]:
        """The actions to execute from now on."""
        seed = content_seed(memory.history) if noise is None else noise
        tokens = self._chosen(memory, seed)[:, self.present : self.present + self.action_steps]
        return self._actions(tokens)

    def _chosen(self, memory: _Memory, seed: Tensor) -> Float[Tensor, "n tokens Da"]:
        """The candidate that is most consistent with what was executed; the first where that was too little."""
        kept = self.context.kept(seed.device)
        features = memory.frames[:, kept]
        if self.candidates > 1:
            known = memory.count >= self.context.frames - kept[self.first_trained]
            if known.any():
                past = slice(self.first_trained, self.present)
                tokens = self.sample(features, seed, self.candidates)
                executed = self.action_normalizer(memory.actions[:, kept[past]])
                best = torch.where(known, most_consistent(tokens[:, :, past], executed), 0)
                return tokens[torch.arange(len(best), device=best.device), best]
        return self.sample(features, seed)[:, 0]

    def _actions(self, tokens: Float[Tensor, "n step Da"]) -> Float[Tensor, "n step Da"]:
        return self.action_normalizer.inverse(tokens).clamp(self.low, self.high)

    def _unpacked(self, state: Tensor) -> _Memory:
        rows, steps, acted = len(state), self.context.frames, self.action_features
        sizes = [steps * self.encoder.features, steps * acted, self.action_steps * acted, 1, 1]
        frames, actions, queue, count, left = torch.split(state, sizes, 1)
        return _Memory(
            frames=frames.view(rows, steps, -1),
            actions=actions.view(rows, steps, -1),
            queue=queue.view(rows, self.action_steps, -1),
            count=count.squeeze(1),
            left=left.squeeze(1),
        )


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """What the episodes of n rows have been like, oldest first.

    Attributes:
        frames: features of the last To s observations; before the first one, that again.
        actions: executed at them; that of the newest is still to come.
        queue: sampled last, the newest ones last.
        count: observations so far.
        left: how many of the queue are still to be executed.
    """

    frames: Float[Tensor, "n frame Do"]
    actions: Float[Tensor, "n frame Da"]
    queue: Float[Tensor, "n Ta Da"]
    count: Float[Tensor, " n"]
    left: Float[Tensor, " n"]

    @property
    def history(self) -> Float[Tensor, "n features"]:
        """What was observed, and for how long."""
        return torch.cat([self.frames.flatten(1), self.count[:, None]], 1)

    def packed(self) -> Float[Tensor, "n state"]:
        """As one tensor."""
        parts = [self.frames, self.actions, self.queue]
        return torch.cat([*(part.flatten(1) for part in parts), self.count[:, None], self.left[:, None]], 1)

    def rows(self, index: Int[Tensor, " m"]) -> _Memory:
        """Some of the rows."""
        return _Memory(**{name: value[index] for name, value in vars(self).items()})

    def seeing(self, features: Float[Tensor, "n Do"]) -> _Memory:
        """With one observation more."""
        newest = features[:, None]
        frames = torch.cat([self.frames[:, 1:], newest], 1)
        begun = (self.count > 0)[:, None, None]
        actions = torch.cat([self.actions[:, 1:], torch.zeros_like(self.actions[:, :1])], 1)
        return replace(self, frames=torch.where(begun, frames, newest), actions=actions, count=self.count + 1)

    def planning(self, rows: Int[Tensor, " m"], chunk: Float[Tensor, "m Ta Da"]) -> _Memory:
        """With actions to execute in these rows."""
        left = self.left.index_fill(0, rows, chunk.shape[1])
        return replace(self, queue=self.queue.index_copy(0, rows, chunk), left=left)

    def acting(self) -> tuple[Float[Tensor, "n Da"], _Memory]:
        """The next action of every row, and the memory of having executed it."""
        place = (self.queue.shape[1] - self.left).long()
        action = self.queue[torch.arange(len(place), device=place.device), place]
        actions = torch.cat([self.actions[:, :-1], action[:, None]], 1)
        return action, replace(self, actions=actions, left=self.left - 1)


def most_consistent(
    candidates: Float[Tensor, "n candidate step Da"], executed: Float[Tensor, "n step Da"]
) -> Int[Tensor, " n"]:
    """Of each row the candidate with the smallest squared error, the first of equal ones."""
    return (candidates - executed[:, None]).square().sum((2, 3)).argmin(1)


def _network(
    sizes: DiffusionTransformerSizes | DiffusionUnetSizes,
    observation_features: int,
    action_features: int,
    context: Context,
    tokens: int,
    present: int,
    generator: torch.Generator | None,
) -> DiffusionTransformer | DiffusionUnet:
    features, observations = (observation_features, action_features), context.observations
    if isinstance(sizes, DiffusionUnetSizes):
        return DiffusionUnet(*features, observations=observations, tokens=tokens, sizes=sizes, generator=generator)
    return DiffusionTransformer(
        *features, observations=observations, tokens=tokens, present=present, sizes=sizes, generator=generator
    )
