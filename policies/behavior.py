"""BehaviorPolicy: the policy of methods that learn from recorded behavior, for any supported pair of spaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.policies.actor_critic import LastLayer, Steps
from decisionrl.policies.distributions import ActionHead, head_for
from decisionrl.policies.dropout import HiddenLayers
from decisionrl.policies.encoders import encoder_for, orthogonal
from decisionrl.policies.evaluation import Batch, Evaluation, Observation


class BehaviorPolicy(nn.Module):
    """A perceptron with dropout: a mean action for a Box, a softmax for discrete actions; it has no critic.

    For a Box it is :class:`MeanAction`, the policy of contrastive preference learning (arXiv 2310.13639) and of
    cloning by squared error; other action spaces have the heads of :func:`~decisionrl.policies.distributions.head_for`.
    Layers are Linear, dropout and ReLU, all with orthogonal weights of gain 1 and biases 0. With ``hidden = ()`` on a
    Discrete observation it is a tabular softmax policy.

    Args:
        observation_space: Box, image, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        action_space: a bounded Box of floats, Discrete, MultiDiscrete or MultiBinary.
        hidden: widths of the hidden layers.
        dropout: probability that a hidden unit is dropped when :meth:`evaluate` runs in training mode; :meth:`act`
            drops none.
        noise: standard deviation of the actions in a Box that are drawn, see :class:`MeanAction`.
        normalize_observations: Boxes of floats, by statistics that :meth:`update_normalizer` gathers.
        generator: draws the weights; by default torch's global generator.

    Raises:
        TypeError: a space is of an unsupported kind.
        ValueError: an option has no valid value, or the Box of actions is not bounded.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        hidden: Sequence[int] = (512, 512),
        dropout: float = 0.25,
        noise: float = 0.0,
        normalize_observations: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder_for(observation_space, normalize=normalize_observations, generator=generator)
        self.head: ActionHead
        if isinstance(action_space, spaces.Box):
            self.head = MeanAction(action_space, noise=noise)
        else:
            self.head = head_for(action_space)
        self.hidden = HiddenLayers(self.encoder.features, hidden, dropout=dropout, generator=generator)
        self.last = orthogonal(nn.Linear, self.hidden.features, self.head.num_outputs, gain=1.0, generator=generator)

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Actions [N, ...] for observations [N, ...]: the mode, or what the noise of :meth:`sample_noise` leads to."""
        outputs = self.last(self.hidden.without_dropout(self._features(observation)))
        return self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise), None

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no critic."""

    def evaluate(self, batch: Batch) -> Evaluation:
        """log_prob, entropy and head of the batch's actions. Masked steps are not computed; they are 0."""
        steps = Steps(batch.mask)
        hidden = self.hidden(self._features(steps.take_observation(batch.observation)))
        outputs, action = self.last(hidden), steps.take(batch.action)
        log_prob, entropy = self.head.evaluate(outputs, action)
        return Evaluation(
            log_prob=steps.put(log_prob),
            entropy=None if entropy is None else steps.put(entropy),
            head=LastLayer(self.head, hidden.detach(), outputs.detach(), action, steps),
        )

    def initial_state(self, n: int) -> Tensor | None:
        """None: there is no memory."""
        return None

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``shape`` actions, [*shape, ...], such as [steps, copies, ...] for a whole rollout."""
        weight = self.last.weight
        return self.head.noise(shape, generator=generator, dtype=weight.dtype, device=weight.device)

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that normalize them."""
        self.encoder.update(observation, mask)

    def _features(self, observation: Observation) -> Float[Tensor, "n features"]:
        return self.encoder.forward(observation).to(self.last.weight.dtype)


class MeanAction(ActionHead):
    """``mu = tanh(outputs)`` in a bounded Box, in units in which the box is [-1, 1], and ``log_prob = -||mu - a||^2``.

    That is a Gaussian of variance 1/2 less its normalizing constant, as in the release of contrastive preference
    learning (arXiv 2310.13639): a sum over the action's dimensions, so that cloning minimizes the squared error. There
    is no entropy.

    Args:
        box: with finite ``low < high``.
        noise: standard deviation of what :meth:`sample` adds to mu, in the same units; the sum is clipped to the box.
            It is a choice of how to explore, and says nothing of log_prob.
    """

    center: Tensor
    radius: Tensor

    def __init__(self, box: spaces.Box, *, noise: float = 0.0) -> None:
        super().__init__()
        if not np.issubdtype(box.dtype, np.floating):
            raise TypeError(f"action_space = {box}; valid: a Box of floats (for integers, MultiDiscrete)")
        if not box.is_bounded() or not (box.low < box.high).all():
            raise ValueError(f"action_space = {box}; valid: a Box with finite low < high")
        if not (noise >= 0 and math.isfinite(noise)):
            raise ValueError(f"noise = {noise}; valid: a finite number >= 0")
        self.shape, self.num_outputs = box.shape, int(np.prod(box.shape))
        self.noise_shape, self.std = (self.num_outputs,), noise
        low, high = (
            torch.as_tensor(bound.reshape(-1), dtype=torch.get_default_dtype()) for bound in (box.low, box.high)
        )
        self.register_buffer("center", (high + low) / 2, persistent=False)
        self.register_buffer("radius", (high - low) / 2, persistent=False)

    def mode(self, outputs: Tensor) -> Tensor:
        return self._action(outputs.tanh())

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self._action((outputs.tanh() + self.std * noise).clamp(-1, 1))

    def _fill(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        return noise.normal_(generator=generator)

    def evaluate(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        return -self._difference(outputs, action)[1].square().sum(-1), None

    def entropy(self, outputs: Tensor) -> None:
        return None

    def score(self, outputs: Tensor, action: Tensor) -> Tensor:
        """2 (a - mu) (1 - mu^2)."""
        mean, difference = self._difference(outputs, action)
        return 2 * difference * (1 - mean.square())

    def fisher(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """F = diag(2 (1 - mu^2)^2), of the Gaussian."""
        diagonal = 2 * (1 - outputs.tanh().square()).square()
        return lambda u: diagonal * u

    def _action(self, unit: Tensor) -> Tensor:
        return torch.addcmul(self.center, self.radius, unit).reshape(*unit.shape[:-1], *self.shape)

    def _difference(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """mu, and a - mu."""
        mean = outputs.tanh()
        return mean, (action.reshape(outputs.shape) - self.center) / self.radius - mean
