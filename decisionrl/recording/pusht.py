"""Demonstrations of Push-T by the scripted pusher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from decisionrl.envs.robotics.pusht import PushTEnv
from decisionrl.envs.robotics.pusht_expert import PushTExpert
from decisionrl.experience.store import EpisodeStore, store_episodes
from decisionrl.seeding import generator

ENV = "decisionrl.envs.robotics.pusht:PushTEnv"


def record_pusht(*, env_options: Mapping[str, Any] | None = None, episodes: int = 200, seed: int = 0) -> EpisodeStore:
    """Episodes of the scripted pusher, which end when more than 0.95 of the outline are covered.

    Their ``extras["success"]`` (bool) is the success of every step. ``info["random_score"]`` is 0 and
    ``info["expert_score"]`` 1, so that normalized scores are scores of Push-T in percent.

    Args:
        env_options: of :class:`PushTEnv`, such as ``{"obs_type": "pixels_agent_pos"}``.
        episodes: how many.
        seed: of the starts; the pusher is deterministic.

    Raises:
        ValueError, TypeError: episodes < 1, or the options are not valid.
        ImportError: gym-pusht, of the extra ``decisionrl[pusht]``, is not installed.
    """
    if episodes < 1:
        raise ValueError(f"episodes = {episodes}; valid: a whole number >= 1")
    env = PushTEnv(**(env_options or {}))
    seeds = torch.randint(2**31, (episodes,), generator=generator(seed, "demonstrations/starts"))
    played = [_played(env, start) for start in seeds.tolist()]
    env.close()
    return store_episodes(
        played,
        observation_space=env.observation_space,
        action_space=env.action_space,
        info={
            "maker": "demonstrations",
            "env": ENV,
            "env_options": dict(env_options or {}),
            "episodes": episodes,
            "seed": seed,
            "success_rate": sum(bool(episode["success"].any()) for episode in played) / episodes,
            "random_score": 0.0,
            "expert_score": 1.0,
        },
    )


def _played(env: PushTEnv, seed: int) -> dict[str, Any]:
    """An episode of the pusher, as ``store_episodes`` takes it."""
    expert, seen, steps = PushTExpert(), [env.reset(seed=seed)[0]], []
    over = False
    while not over:
        action = expert.act(env.state)
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        steps.append((action, reward, terminated, truncated, info["success"]))
        over = terminated or truncated
    names = ("action", "reward", "terminated", "truncated", "success")
    columns = {name: np.stack(column) for name, column in zip(names, zip(*steps, strict=True), strict=True)}
    return {"observation": _stacked(seen), **columns}


def _stacked(observations: list[Any]) -> Any:
    if not isinstance(observations[0], Mapping):
        return np.stack(observations)
    return {name: np.stack([each[name] for each in observations]) for name in observations[0]}
