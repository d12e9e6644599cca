"""Stable-Baselines3's PPO with the very hyperparameters of our recipe ``ppo``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decisionrl.benchmarks.control_training import RECENT, TRAINING_SHARE, Record
from decisionrl.benchmarks.executors import Progress
from decisionrl.envs.make import env_maker
from decisionrl.policies.evaluation import Observation
from decisionrl.policies.stable_baselines3 import StableBaselines3Policy, from_stable_baselines3

if TYPE_CHECKING:
    from stable_baselines3 import PPO

PEER = "sb3_ppo"

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}

ONLY_OURS = {
    "recurrent": False,
    "shared": False,
    "squash": False,
    "dependent_std": False,
    "workers": 0,
    "setting": None,
}
"""Arguments of the recipe for which there is no counterpart, and the value that means it is not asked for."""


def peer(config: Mapping[str, Any], *, device: str = "cpu") -> PPO:
    """The model for the resolved ``config`` of a ``ppo`` experiment: same environments, network and schedules.

    Observations and rewards are normalized by a VecNormalize where the recipe does. Adam is the peer's own choice of
    implementation, as is everything else that does not change what is computed.

    Raises:
        ValueError: an argument that Stable-Baselines3's PPO has no counterpart for.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    for name, neutral in ONLY_OURS.items():
        if config[name] != neutral:
            raise ValueError(f"{name} = {config[name]!r}; valid beside Stable-Baselines3's PPO: {neutral!r}")
    make = env_maker(config["env"], config["env_options"] or {})
    env: VecEnv = make_vec_env(make, n_envs=config["num_envs"], seed=config["seed"])
    if config["normalize_observations"] or config["normalize_rewards"]:
        env = VecNormalize(
            env,
            norm_obs=config["normalize_observations"],
            norm_reward=config["normalize_rewards"],
            gamma=config["gamma"],
        )
    rate, hidden = config["learning_rate"], list(config["hidden"])
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=(lambda remaining: rate * remaining) if config["anneal"] else rate,
        n_steps=config["horizon"],
        batch_size=config["minibatch"],
        n_epochs=config["epochs"],
        gamma=config["gamma"],
        gae_lambda=config["gae_lambda"],
        clip_range=config["clip"],
        clip_range_vf=config["value_clip"],
        ent_coef=config["entropy_coefficient"],
        vf_coef=config["value_coefficient"],
        max_grad_norm=float("inf") if config["clip_norm"] is None else config["clip_norm"],
        target_kl=config["target_kl"],
        policy_kwargs={
            "net_arch": {"pi": hidden, "vf": hidden},
            "activation_fn": ACTIVATIONS[config["activation"]],
            "log_std_init": config["initial_log_std"],
            "optimizer_kwargs": {"eps": config["adam_epsilon"]},
        },
        stats_window_size=RECENT,
        seed=config["seed"],
        device=device,
    )


def train_peer(model: PPO, steps: int, progress: Progress) -> Record:
    """Train for so many environment steps."""
    from stable_baselines3.common.callbacks import BaseCallback

    record = Record()

    class Watch(BaseCallback):  # type: ignore[misc]  # its package has no types here
        def _on_training_start(self) -> None:
            record.clock.start()

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:  # the update on the rollout before is done
            self._keep()

        def _on_training_end(self) -> None:
            self._keep()
            record.clock.stop()

        def _keep(self) -> None:
            record.clock.stop()
            record.steps = self.num_timesteps
            episodes = self.model.ep_info_buffer
            if episodes:
                record.add(record.steps, sum(episode["r"] for episode in episodes) / len(episodes))
            progress(TRAINING_SHARE * min(1.0, record.steps / steps), f"step {record.steps}")
            record.clock.start()

    model.learn(steps, callback=Watch())
    return record


def peer_policy(model: PPO) -> StableBaselines3Policy | Normalized:
    """The trained policy for our own evaluation, with the normalization of its environment."""
    policy, normalizer = from_stable_baselines3(model), model.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs:
        return policy
    statistics = normalizer.obs_rms
    assert not isinstance(statistics, dict)
    return Normalized(
        policy,
        mean=torch.as_tensor(statistics.mean, dtype=torch.float32),
        std=torch.as_tensor(statistics.var + normalizer.epsilon, dtype=torch.float32).sqrt(),
        limit=normalizer.clip_obs,
    )


class Normalized(nn.Module):
    """A policy that acts on normalized observations: less the mean, by the standard deviation, clipped."""

    mean: Tensor
    std: Tensor

    def __init__(self, policy: StableBaselines3Policy, *, mean: Tensor, std: Tensor, limit: float) -> None:
        super().__init__()
        self.policy, self.limit = policy, limit
        device = next(policy.parameters()).device
        self.register_buffer("mean", mean.to(device))
        self.register_buffer("std", std.to(device))

    def act(self, observation: Observation, state: None = None, *, noise: Tensor | None = None) -> tuple[Tensor, None]:
        """As the policy's own."""
        assert isinstance(observation, Tensor)
        return self.policy.act(((observation - self.mean) / self.std).clamp(-self.limit, self.limit), noise=noise)

    def initial_state(self, n: int) -> None:
        """None: there is no memory."""
