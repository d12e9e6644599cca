"""Policies trained with Stable-Baselines3: live models wrapped, saved actor-critics rebuilt without unpickling."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies.actor_critic import ActorCritic, LastLayer, Steps
from decisionrl.policies.distributions import DiagonalGaussian, SquashedGaussian, head_for
from decisionrl.policies.encoders import Activation, is_image
from decisionrl.policies.evaluation import Batch, Evaluation, Observation


def from_stable_baselines3(model: Any) -> StableBaselines3Policy:
    """A live model as a policy that shares its weights: PPO and A2C whole; DQN, SAC, TD3 and DDPG to act only.

    Observations are those that the model's own ``predict`` takes, or images with channels last. Statistics of a
    VecNormalize belong to the model's environment, not to the model, and are not applied.

    Raises:
        ImportError: stable_baselines3 is not installed.
        TypeError: a model of another kind.
        ValueError: the model uses generalized state-dependent exploration (use_sde).
    """
    try:
        from stable_baselines3.common.policies import ActorCriticPolicy
        from stable_baselines3.dqn.policies import DQNPolicy
        from stable_baselines3.sac.policies import SACPolicy
        from stable_baselines3.td3.policies import TD3Policy
    except ImportError as error:
        raise ImportError("this needs stable-baselines3; install decisionrl[sb3]") from error
    if getattr(model, "use_sde", False):
        raise ValueError("use_sde = True; valid: a model without generalized state-dependent exploration")
    kinds: dict[type, type[StableBaselines3Policy]] = {
        ActorCriticPolicy: _OnPolicy,
        DQNPolicy: _Greedy,
        SACPolicy: _SoftActor,
        TD3Policy: _DeterministicActor,
    }
    for kind, wrapper in kinds.items():
        if isinstance(model.policy, kind):
            return wrapper(model.policy)
    known = ", ".join(kind.__name__ for kind in kinds)
    raise TypeError(f"a model with a {type(model.policy).__name__}; valid: one with a {known}")


class StableBaselines3Policy(nn.Module, ABC):
    """A policy of Stable-Baselines3 that acts; see :func:`from_stable_baselines3`."""

    noise_shape: tuple[int, ...] = (0,)

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy.eval()

    @abstractmethod
    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Actions [N, ...] for observations [N, ...]: the mode, or what the noise leads to."""

    def value(self, observation: Observation, state: Tensor | None = None) -> Float[Tensor, " n"] | None:
        """None: there is no V."""
        return None

    def evaluate(self, batch: Batch) -> Evaluation:
        """Only for on-policy models."""
        raise NotImplementedError(
            f"a {type(self.policy).__name__} of Stable-Baselines3 can only act; "
            "valid for evaluate: the policy of PPO or A2C"
        )

    def initial_state(self, n: int) -> None:
        """None: there is no memory."""

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``shape`` actions, [*shape, ...]; empty where the policy is deterministic."""
        weight = next(self.policy.parameters())
        return torch.randn((*shape, *self.noise_shape), generator=generator, dtype=weight.dtype, device=weight.device)

    def _observation(self, observation: Observation) -> Observation:
        return _channels_first(observation, self.policy.observation_space)

    def _unscale(self, action: Tensor) -> Tensor:
        """From [-1, 1] to the box."""
        space = self.policy.action_space
        low, high = (
            torch.as_tensor(bound, dtype=action.dtype, device=action.device) for bound in (space.low, space.high)
        )
        return low + 0.5 * (action + 1) * (high - low)


class _OnPolicy(StableBaselines3Policy):
    """PPO and A2C. The action distribution is ours, over their network's outputs."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.head = head_for(policy.action_space)
        if isinstance(self.head, DiagonalGaussian):
            self.head.log_std = policy.log_std

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        outputs = self.policy.action_net(self._hidden(observation)[0])
        return (self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise)), None

    def value(self, observation: Observation, state: Tensor | None = None) -> Float[Tensor, " n"]:
        value: Tensor = self.policy.predict_values(self._observation(observation))
        return value.squeeze(-1)

    def evaluate(self, batch: Batch) -> Evaluation:
        steps = Steps(batch.mask)
        actor, critic = self._hidden(steps.take_observation(batch.observation))
        outputs, action = self.policy.action_net(actor), steps.take(batch.action)
        log_prob, entropy = self.head.evaluate(outputs, action)
        return Evaluation(
            log_prob=steps.put(log_prob),
            entropy=None if entropy is None else steps.put(entropy),
            value=steps.put(self.policy.value_net(critic)),
            head=LastLayer(self.head, actor.detach(), outputs.detach(), action, steps),
        )

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        weight = self.policy.action_net.weight
        return self.head.noise(shape, generator=generator, dtype=weight.dtype, device=weight.device)

    def _hidden(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """The last hidden layers of actor and critic."""
        policy = self.policy
        features = policy.extract_features(self._observation(observation))
        if policy.share_features_extractor:
            return policy.mlp_extractor(features)  # type: ignore[no-any-return]
        actor, critic = features
        return policy.mlp_extractor.forward_actor(actor), policy.mlp_extractor.forward_critic(critic)


class _Greedy(StableBaselines3Policy):
    """DQN: the action of greatest value; noise changes nothing."""

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        return self.policy.q_net(self._observation(observation)).argmax(-1), None


class _DeterministicActor(StableBaselines3Policy):
    """TD3 and DDPG; noise changes nothing."""

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        action = self.policy.actor(self._observation(observation))
        return self._unscale(action.unflatten(-1, self.policy.action_space.shape)), None


class _SoftActor(StableBaselines3Policy):
    """SAC: a squashed Gaussian."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        space = policy.action_space
        self.head = SquashedGaussian(space.low, space.high, std="dependent")
        self.noise_shape = self.head.noise_shape

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        mean, log_std, _ = self.policy.actor.get_action_dist_params(self._observation(observation))
        outputs = torch.cat([mean, log_std], -1)
        return (self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise)), None


def _channels_first(observation: Observation, space: spaces.Space[Any]) -> Observation:
    """Images as Stable-Baselines3 wants them, which moves their channels to the front of the space."""
    if isinstance(observation, dict):
        assert isinstance(space, spaces.Dict)
        return {key: _channels_first(observation[key], entry) for key, entry in space.spaces.items()}  # type: ignore[misc]
    if is_image(space) and observation.shape[1:] != space.shape:
        return observation.permute(0, 3, 1, 2)
    return observation


def load_stable_baselines3(
    path: Path | str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    activation: Activation = "tanh",
) -> ActorCritic:
    """An :class:`ActorCritic` with the weights of a PPO or A2C model that was saved with ``model.save(path)``.

    Reads nothing of the file but the tensors in ``policy.pth``, so a file from a stranger is safe. Vector
    observations (MlpPolicy, or MultiInputPolicy without images) and hidden layers of the same widths in actor
    and critic can be rebuilt; the activation is not among the weights. Statistics of a VecNormalize are saved
    elsewhere and are not applied.

    Raises:
        ValueError: the file is no such model, or does not fit the spaces; the message says why.
    """
    weights = _read_weights(Path(path))
    layers = {name: _linear_layers(weights, f"mlp_extractor.{name}") for name in ("policy_net", "value_net")}
    recognized = {"log_std", "action_net.weight", "action_net.bias", "value_net.weight", "value_net.bias"}
    missing = recognized - {"log_std"} - weights.keys()
    strange = {key for key in weights if key not in recognized and not re.match(r"mlp_extractor\.\w+_net\.\d+\.", key)}
    if missing or strange:
        what = f"has {sorted(strange)[0]}" if strange else f"lacks {sorted(missing)[0]}"
        raise ValueError(f"{path} {what}; valid: the model of a PPO or A2C with MlpPolicy and without use_sde")
    widths = {name: [len(weight) for weight, _ in each] for name, each in layers.items()}
    if widths["policy_net"] != widths["value_net"]:
        raise ValueError(
            f"{path} has hidden layers {widths['policy_net']} and {widths['value_net']} in actor and critic; "
            "valid: the same widths (from_stable_baselines3 wraps any live model)"
        )
    entries = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    if any(is_image(entry) for entry in entries):
        raise ValueError(f"observation_space = {observation_space} has images; valid: vectors and numbers")
    policy = ActorCritic(observation_space, action_space, hidden=widths["policy_net"], activation=activation)
    state = policy.state_dict()
    for i, pair in enumerate(zip(layers["policy_net"], layers["value_net"], strict=True)):
        state[f"decision.towers.weight_{i}"] = torch.stack([weight.T for weight, _ in pair])
        state[f"decision.towers.bias_{i}"] = torch.stack([bias[None] for _, bias in pair])
    for ours, theirs in (("actor", "action_net"), ("critic", "value_net")):
        for part in ("weight", "bias"):
            state[f"decision.{ours}.{part}"] = weights[f"{theirs}.{part}"]
    if "log_std" in weights:
        state["decision.head.log_std"] = weights["log_std"]
    try:
        policy.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {observation_space} and {action_space}: {error}") from error
    return policy


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read("policy.pth")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} has no policy.pth; valid: the zip file of a Stable-Baselines3 model") from error
    try:
        weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"policy.pth in {path} holds something other than tensors") from error
    return weights


def _linear_layers(weights: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of the Linear layers of a Sequential, in order."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.weight")
    numbers = sorted(int(match[1]) for key in weights if (match := pattern.fullmatch(key)))
    return [(weights[f"{prefix}.{i}.weight"], weights[f"{prefix}.{i}.bias"]) for i in numbers]
