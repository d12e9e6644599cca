"""Actor and critic on Gymnasium spaces: the policy of PPO and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from decisionrl.policies.distributions import ActionHead, Std, head_for
from decisionrl.policies.encoders import Activation, Towers, encoder_for, orthogonal
from decisionrl.policies.evaluation import Batch, Evaluation, Head, Observation

Critic = Literal["separate", "shared"]


class ActorCritic(nn.Module):
    """A feed-forward actor, and a critic if wanted, for any supported pair of observation and action space.

    Features (:func:`~decisionrl.policies.encoders.encoder_for`) pass through hidden layers to the outputs of a
    distribution over actions (:func:`~decisionrl.policies.distributions.head_for`) and to a value. Orthogonal
    initialization: gain sqrt 2 in hidden layers, 0.01 for the actor's outputs, 1 for the value.

    Args:
        observation_space: Box, image, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        action_space: Discrete, MultiDiscrete, MultiBinary or a Box of floats.
        hidden: widths of the hidden layers.
        activation: "tanh", "relu" or "elu".
        critic: "separate" has hidden layers of its own (an image's convolutions are always shared), "shared" has
            only an output of its own, None is no critic.
        std: of a Gaussian, "independent" of the state (a parameter) or "dependent" on it (an output).
        initial_log_std: of an untrained Gaussian.
        squash: keep actions inside the Box by tanh; otherwise the world clips them.
        normalize_observations: Boxes of floats, by running statistics that :meth:`update_normalizer` gathers.
        generator: draws the weights; by default torch's global generator.

    Raises:
        TypeError: a space is of an unsupported kind.
        ValueError: an option has no valid value, or does not fit the spaces.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        critic: Critic | None = "separate",
        std: Std = "independent",
        initial_log_std: float = 0.0,
        squash: bool = False,
        normalize_observations: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder_for(observation_space, normalize=normalize_observations, generator=generator)
        head = head_for(action_space, std=std, squash=squash, initial_log_std=initial_log_std)
        self.decision = Decision(
            self.encoder.features, head, hidden=hidden, activation=activation, critic=critic, generator=generator
        )

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Actions [N, ...] for observations [N, ...]: the mode, or what the noise of :meth:`sample_noise` leads to."""
        return self.decision.act(self._features(observation), noise), None

    def value(self, observation: Observation, state: Tensor | None = None) -> Float[Tensor, " n"] | None:
        """V [N] of observations [N, ...]; None without a critic."""
        return self.decision.value(self._features(observation))

    def evaluate(self, batch: Batch) -> Evaluation:
        """log_prob, entropy, value and head of the batch's actions. Masked steps are not computed; they are 0."""
        steps = Steps(batch.mask)
        features = self._features(steps.take_observation(batch.observation))
        return self.decision.evaluate(features, steps.take(batch.action), steps)

    def initial_state(self, n: int) -> Tensor | None:
        """None: there is no memory."""
        return None

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``shape`` actions, [*shape, ...], such as [steps, copies, ...] for a whole rollout."""
        return self.decision.sample_noise(shape, generator)

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that normalize them."""
        self.encoder.update(observation, mask)

    def _features(self, observation: Observation) -> Float[Tensor, "n features"]:
        return self.encoder.forward(observation).to(self.decision.actor.weight.dtype)


class Decision(nn.Module):
    """From features [n, ...] to actions and values: hidden layers, the actor's and the critic's last layer."""

    def __init__(
        self,
        features: int,
        head: ActionHead,
        *,
        hidden: Sequence[int],
        activation: Activation,
        critic: Critic | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        if critic is not None and critic not in get_args(Critic):
            raise ValueError(f"critic = {critic!r}; valid: {', '.join(get_args(Critic))}, None")
        self.head = head
        towers = 2 if critic == "separate" else 1
        self.towers = Towers(features, hidden, towers=towers, activation=activation, generator=generator)
        width = self.towers.features
        self.actor = orthogonal(nn.Linear, width, head.num_outputs, gain=0.01, generator=generator)
        with torch.no_grad():
            self.actor.bias.copy_(head.initial_outputs())
        self.critic = None if critic is None else orthogonal(nn.Linear, width, 1, gain=1.0, generator=generator)

    def act(self, features: Float[Tensor, "n features"], noise: Tensor | None) -> Tensor:
        actor = self.actor
        outputs = functional.linear(self.towers.only(0, features), actor.weight, actor.bias)
        return self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise)

    def value(self, features: Float[Tensor, "n features"]) -> Float[Tensor, " n"] | None:
        if self.critic is None:
            return None
        hidden = self.towers.only(-1, features)
        return functional.linear(hidden, self.critic.weight, self.critic.bias).squeeze(-1)

    def evaluate(self, features: Float[Tensor, "n features"], action: Tensor, steps: Steps) -> Evaluation:
        hidden = self.towers(features)
        actor, critic = self.actor, self.critic
        outputs = functional.linear(hidden[0], actor.weight, actor.bias)
        log_prob, entropy = self.head.evaluate(outputs, action)
        value = None if critic is None else functional.linear(hidden[-1], critic.weight, critic.bias)
        return Evaluation(
            log_prob=steps.put(log_prob),
            entropy=None if entropy is None else steps.put(entropy),
            value=None if value is None else steps.put(value),
            head=LastLayer(self.head, hidden[0].detach(), outputs.detach(), action, steps),
        )

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        weight = self.actor.weight
        return self.head.noise(shape, generator=generator, dtype=weight.dtype, device=weight.device)


class LastLayer(Head):
    """A Head that is worked out, without a graph, when it is first looked at: few objectives do."""

    def __init__(self, head: ActionHead, hidden: Tensor, outputs: Tensor, action: Tensor, steps: Steps) -> None:
        vars(self).update(_head=head, _hidden=hidden, _outputs=outputs, _action=action, _steps=steps)

    _head: ActionHead
    _hidden: Tensor
    _outputs: Tensor
    _action: Tensor
    _steps: Steps

    @cached_property
    def hidden(self) -> Tensor:
        return self._steps.put(self._hidden, self._hidden.shape[1])

    @cached_property
    @torch.no_grad()
    def score(self) -> Tensor:
        return self._steps.put(self._head.score(self._outputs, self._action), self._outputs.shape[1])

    @cached_property
    @torch.no_grad()
    def fisher(self) -> Callable[[Tensor], Tensor]:
        product = self._head.fisher(self._outputs)
        return lambda u: self._steps.put(product(self._steps.take(u)), self._outputs.shape[1])


class Steps:
    """The steps of a mask [batch, step] one after the other, [n, ...], and back, with 0 elsewhere."""

    def __init__(self, mask: Bool[Tensor, "batch step"]) -> None:
        self.shape = mask.shape
        self.index = None if mask.all() else mask.nonzero(as_tuple=True)

    def take(self, tensor: Tensor) -> Tensor:
        """[batch, step, ...] -> [n, ...]."""
        return tensor.flatten(0, 1) if self.index is None else tensor[self.index]

    def take_observation(self, observation: Observation) -> Observation:
        """``take`` of every tensor of an observation."""
        if isinstance(observation, Tensor):
            return self.take(observation)
        return {key: self.take(tensor) for key, tensor in observation.items()}

    def put(self, tensor: Tensor, *trailing: int) -> Tensor:
        """[n, *trailing] (or [n, 1] for no trailing dimensions) -> [batch, step, *trailing]."""
        if self.index is None:
            return tensor.view(*self.shape, *trailing)
        return tensor.new_zeros(*self.shape, *trailing).index_put(self.index, tensor.view(-1, *trailing))
