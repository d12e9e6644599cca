"""Offline data from one run of SAC on a continuous-control environment: replay, medium, expert and their mixtures.

Made in the way of D4RL's MuJoCo sets (arXiv 2004.07219), with Stable-Baselines3's SAC (arXiv 1801.01290).
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from decisionrl.envs.make import env_maker, make_world
from decisionrl.envs.world import World
from decisionrl.experience.acting import ActingPolicy
from decisionrl.experience.episodes import Played
from decisionrl.experience.minari import Layout, minari_module, save_minari
from decisionrl.experience.store import store_episodes
from decisionrl.policies.stable_baselines3 import from_stable_baselines3
from decisionrl.recording import RecordingError
from decisionrl.recording.scores import expert_score, played_episodes, random_score
from decisionrl.seeding import random_state_kept
from decisionrl.version import code_version

METADATA = {
    "title": "Offline sets from one SAC run: replay, medium-replay, medium, expert, medium-expert",
    "arxiv": "2004.07219",
    "kinds": "Gymnasium environments with continuous actions",
}

KINDS = ("replay", "medium-replay", "medium", "expert", "medium-expert")
"""The sets, in the order in which they are written."""

COPIES = 10
"""Episodes that are played side by side."""

logger = logging.getLogger(__name__)

Episode = Mapping[str, Any]
"""``observation`` [T + 1, ...], ``action``, ``reward``, ``terminated`` and ``truncated`` [T, ...]."""


def sac(
    *,
    out: Path | str,
    env: str = "Hopper-v5",
    steps: int = 300_000,
    seed: int = 0,
    hidden: Sequence[int] = (256, 256),
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    learning_starts: int = 5_000,
    medium: float = 1 / 3,
    rollout_steps: int = 50_000,
    evaluate_every: int = 5_000,
    evaluation_episodes: int = 5,
    reference_episodes: int = 50,
    layout: Layout = "hdf5",
) -> list[Path]:
    """Train SAC and write five Minari datasets ``OUT/TASK-KIND``; returns their directories.

    * ``replay``: every episode that was finished in training.
    * ``medium-replay``: those finished up to the medium policy.
    * ``medium``: about ``rollout_steps`` transitions with the random actions of the medium policy.
    * ``expert``: the same with the best policy of all evaluations.
    * ``medium-expert``: the two under each other.

    The medium policy is the first evaluated one whose return reaches R_random + medium (R_best - R_random). Each
    set's ``info`` holds ``random_score``, the mean return of uniformly random actions, and ``expert_score``, that of
    the best policy's deterministic actions, both over ``reference_episodes`` new episodes.

    Args:
        out: the folder of the sets; none of them may be there already.
        env: Gymnasium id or ``module:Class``.
        steps: environment steps of training, one gradient step for each after ``learning_starts``.
        hidden: sizes of the layers of actor and critics.
        learning_starts: steps of uniformly random actions at the beginning.
        evaluate_every: steps between evaluations of the deterministic policy over ``evaluation_episodes`` episodes.

    Raises:
        ImportError: Stable-Baselines3 or Minari is not installed.
        ValueError: a number out of its range, or a set that is there already.
        RecordingError: no episode was finished, or no policy was better than random actions; in the second case
            ``replay`` is there nevertheless.
    """
    _check(
        steps=steps,
        medium=medium,
        learning_starts=learning_starts,
        rollout_steps=rollout_steps,
        evaluate_every=evaluate_every,
        evaluation_episodes=evaluation_episodes,
        reference_episodes=reference_episodes,
    )
    minari_module()  # what is missing is told before the training
    directories = {kind: Path(out) / f"{_task(env)}-{kind}" for kind in KINDS}
    for directory in directories.values():
        if directory.exists():
            raise ValueError(f"out = {out}: {directory} is there already; valid: a folder without it")
    world = make_world(env, num_envs=COPIES)
    for name, space in (("observations", world.observation_space), ("actions", world.action_space)):
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"env = {env!r} has {name} in {space}; valid for SAC: a Box")
    episodes = RecordedEpisodes(env_maker(env, {})())
    with random_state_kept():
        model = _model(
            episodes,
            seed=seed,
            hidden=hidden,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_starts=learning_starts,
        )
        policy = from_stable_baselines3(model)
        trained = _trained(model, policy, world, episodes, steps, evaluate_every, evaluation_episodes, seed)
        stages = [stage for stage in trained if stage.episodes]
    if not stages:
        raise RecordingError(f"{env}: no episode was finished in {steps} steps; valid: more steps")
    best = max(stages, key=lambda stage: stage.mean_return)
    best.restore(policy)
    floor = random_score(world, episodes=reference_episodes, seed=seed)
    info = {
        "env": env,
        "maker": "sac",
        "algorithm": "SAC",
        "seed": seed,
        "training_steps": steps,
        "hidden": list(hidden),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "learning_starts": learning_starts,
        "random_score": floor,
        "expert_score": expert_score(world, policy, episodes=reference_episodes, seed=seed),
        "reference_episodes": reference_episodes,
        "versions": _versions(),
    }

    def write(kind: str, episodes: Sequence[Episode], policy_steps: int | list[int]) -> None:
        """policy_steps: the training steps behind the policies that acted, the last ones of a range."""
        store = store_episodes(
            episodes,
            observation_space=world.observation_space,
            action_space=world.action_space,
            info={**info, "kind": kind, "policy_steps": policy_steps},
        )
        save_minari(store, directories[kind], layout=layout, env_spec=_spec(env), algorithm_name="SAC")
        logger.info("%s: %d episodes, %d steps", directories[kind], store.num_episodes, store.num_steps)

    write("replay", episodes.finished, steps)
    if best.mean_return <= floor:
        raise RecordingError(
            f"{env}: the best return in {steps} steps of SAC is {best.mean_return:.4g}, that of random actions "
            f"{floor:.4g}; valid: more steps, until it is better"
        )
    target = floor + medium * (best.mean_return - floor)
    middle = next(stage for stage in stages if stage.mean_return >= target)
    write("medium-replay", episodes.finished[: middle.episodes], middle.steps)
    rolled: dict[str, list[Episode]] = {}
    for kind, stage in (("medium", middle), ("expert", best)):
        stage.restore(policy)
        rolled[kind] = list(_rolled_out(world, policy, rollout_steps, seed, kind))
        write(kind, rolled[kind], stage.steps)
    write("medium-expert", rolled["medium"] + rolled["expert"], [middle.steps, best.steps])
    return list(directories.values())


class RecordedEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps every finished episode of an environment in ``finished``, with its last observation and how it ended.

    A replay buffer of Stable-Baselines3 has neither.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.finished: list[Episode] = []
        self._seen: list[Any] = []
        self._rows: list[tuple[Any, float, bool, bool]] = []

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._seen, self._rows = [np.array(observation, np.float32)], []
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._seen.append(np.array(observation, np.float32))
        self._rows.append((np.array(action), float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            actions, rewards, terminations, truncations = zip(*self._rows, strict=True)
            self.finished.append(
                {
                    "observation": np.stack(self._seen),
                    "action": np.stack(actions),
                    "reward": np.array(rewards, np.float32),
                    "terminated": np.array(terminations),
                    "truncated": np.array(truncations),
                }
            )
        return observation, float(reward), terminated, truncated, info


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A policy of the training: its actor, after how many steps and finished episodes, and what it reached."""

    steps: int
    episodes: int
    mean_return: float
    weights: Mapping[str, Tensor] = field(repr=False)

    def restore(self, policy: Any) -> None:
        """Give a policy this one's weights."""
        policy.policy.actor.load_state_dict(self.weights)


def _model(env: gymnasium.Env[Any, Any], *, hidden: Sequence[int], **options: Any) -> Any:
    try:
        from stable_baselines3 import SAC
    except ImportError as error:
        raise ImportError(f"SAC needs stable-baselines3 ({error}): pip install 'decisionrl[offline]'") from error
    return SAC("MlpPolicy", env, policy_kwargs={"net_arch": list(hidden)}, device="cpu", **options)


def _trained(
    model: Any,
    policy: Any,
    world: World,
    episodes: RecordedEpisodes,
    steps: int,
    evaluate_every: int,
    evaluation_episodes: int,
    seed: int,
) -> Iterator[Stage]:
    """Train in pieces and measure the policy after each."""
    while (done := model.num_timesteps) < steps:
        model.learn(min(evaluate_every, steps - done), reset_num_timesteps=False)
        finished = len(episodes.finished)
        played = played_episodes(world, policy, episodes=evaluation_episodes, seed=seed, stream="evaluation")
        mean_return = float(played.outcome.double().mean())
        logger.info("%d of %d steps, %d episodes: return %.5g", model.num_timesteps, steps, finished, mean_return)
        weights = {name: tensor.clone() for name, tensor in policy.policy.actor.state_dict().items()}
        yield Stage(steps=model.num_timesteps, episodes=finished, mean_return=mean_return, weights=weights)


def _rolled_out(world: World, policy: ActingPolicy, steps: int, seed: int, kind: str) -> Iterator[Episode]:
    """Whole episodes with the policy's random actions until there are ``steps`` transitions."""
    done = number = 0
    while done < steps:
        stream = f"{kind} {number}"
        played = played_episodes(world, policy, episodes=COPIES, seed=seed, stream=stream, stochastic=True)
        for episode in _split(played):
            if done < steps:
                yield episode
            done += len(episode["reward"])
        number += 1


def _split(played: Played) -> Iterator[Episode]:
    assert isinstance(played.observation, Tensor)
    assert isinstance(played.final_observation, Tensor)
    for i, length in enumerate(played.mask.sum(1).tolist()):
        names = ("action", "reward", "terminated", "truncated")
        steps = {name: getattr(played, name)[i, :length] for name in names}
        seen = torch.cat([played.observation[i, :length], played.final_observation[i, None]])
        yield {"observation": seen, **steps}


def _task(env: str) -> str:
    """``hopper`` for ``Hopper-v5``, ``myenv`` for ``module:MyEnv``."""
    return re.sub(r"\W", "-", re.sub(r"-v\d+$", "", env.rpartition(":")[2])).lower()


def _spec(env: str) -> EnvSpec | None:
    """How Gymnasium makes the environment, where that can be written down: not for classes and functions."""
    spec = gymnasium.registry.get(env)
    return spec if spec is not None and isinstance(spec.entry_point, str) else None


def _check(*, medium: float, learning_starts: int, **counts: int) -> None:
    if not 0 < medium <= 1:
        raise ValueError(f"medium = {medium}; valid: in (0, 1]")
    if learning_starts < 0:
        raise ValueError(f"learning_starts = {learning_starts}; valid: a whole number >= 0")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} = {count}; valid: a whole number >= 1")


def _versions() -> dict[str, str]:
    found = {"decisionrl": code_version()}
    for package in ("gymnasium", "stable-baselines3", "torch", "mujoco", "minari"):
        with suppress(importlib.metadata.PackageNotFoundError):  # mujoco: not every environment needs it
            found[package] = importlib.metadata.version(package)
    return found
