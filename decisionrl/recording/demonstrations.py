"""Demonstrations by scripted experts, of the tasks that need memory and of Push-T."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from decisionrl.envs.make import make_world
from decisionrl.envs.registration import MEMORY_TASKS, METAWORLD_MEMORY_TASKS, PUSH_T
from decisionrl.envs.robotics.memory import MemoryWorld
from decisionrl.envs.robotics.metaworld_memory import Expert
from decisionrl.experience.minari import minari_module, save_minari
from decisionrl.experience.store import EpisodeStore, store_episodes
from decisionrl.names import pick
from decisionrl.seeding import generator

METADATA = {
    "title": "Demonstrations by scripted experts",
    "arxiv": "2505.09561",
    "changes": "point masses and Meta-World's arm in place of the paper's robots; what is hidden is, as there, a side "
    "or a number of visits",
    "kinds": f"the point-mass tasks {', '.join(MEMORY_TASKS)}, on Meta-World {', '.join(METAWORLD_MEMORY_TASKS)}, and "
    f"{', '.join(PUSH_T)}",
}

TASKS = MEMORY_TASKS | METAWORLD_MEMORY_TASKS | PUSH_T
"""Ids and names of the tasks."""

LEAST_SUCCESS = 0.1
"""Where the expert succeeds less often, nobody would want to imitate it."""


def demonstrations(
    *,
    env: str = "decisionrl/ReturnSide-v0",
    env_options: dict[str, Any] | None = None,
    episodes: int = 200,
    seed: int = 0,
    out: str | Path = "data",
) -> list[Path]:
    """Write :func:`record_demonstrations` as ``OUT/ENV-demonstrations-seedN``, a Minari dataset.

    Raises:
        ImportError: minari or h5py, of the extra ``decisionrl[offline]``, are not installed.
        UnknownNameError, ValueError: see :func:`record_demonstrations`; or the directory is there already.
    """
    minari_module()
    task = pick("env", env, TASKS)
    directory = Path(out) / f"{task.replace('_', '-')}-demonstrations-seed{seed}"
    if directory.exists():
        raise ValueError(f"out = {out}: {directory} is there already; valid: a folder without it")
    recorded = record_demonstrations(env=env, env_options=env_options, episodes=episodes, seed=seed)
    spec = copy.deepcopy(gymnasium.spec(env))
    spec.kwargs |= env_options or {}
    save_minari(recorded, directory, env_spec=spec, description=METADATA["title"])
    return [directory]


def record_demonstrations(
    *,
    env: str = "decisionrl/ReturnSide-v0",
    env_options: Mapping[str, Any] | None = None,
    episodes: int = 200,
    seed: int = 0,
) -> EpisodeStore:
    """Episodes of the scripted expert.

    Those of point masses are recorded whatever comes of them; the others only if they succeed, and more are played in
    place of those that do not. ``extras["success"]`` (bool) is the success of every step. ``info["success_rate"]``
    is that of all ``info["played"]`` episodes. ``info["random_score"]`` is 0, about what random actions reach, and
    ``info["expert_score"]`` 1, so that normalized scores are success rates in percent, or scores of Push-T.

    Args:
        env: the Gymnasium id of one of ``TASKS``.
        env_options: its arguments, such as ``{"step_length": 0.15, "pixels": True}``.
        episodes: how many are recorded.
        seed: of the starts and of how long the expert waits.

    Raises:
        UnknownNameError: env is not one of the ids.
        ValueError: episodes < 1, the options are not valid, or the expert hardly ever succeeds with them.
        ImportError: Meta-World (the extra ``decisionrl[robotics]``) or gym-pusht (``decisionrl[pusht]``) is needed and
            not installed.
    """
    pick("env", env, TASKS)
    if episodes < 1:
        raise ValueError(f"episodes = {episodes}; valid: a whole number >= 1")
    play = _side_by_side if env in MEMORY_TASKS else _one_by_one
    store, played = play(env, dict(env_options or {}), episodes, seed)
    info = {
        "maker": "demonstrations",
        "env": env,
        "env_options": dict(env_options or {}),
        "episodes": episodes,
        "seed": seed,
        "success_reward": env not in PUSH_T,
        "played": played,
        "success_rate": float(store.extras["success"].sum()) / played,
        "random_score": 0.0,
        "expert_score": 1.0,
    }
    return replace(store, info=info)


def _side_by_side(env: str, env_options: dict[str, Any], episodes: int, seed: int) -> tuple[EpisodeStore, int]:
    """Episodes of point masses, and how many were played."""
    with _named_options(env, env_options):
        world = make_world(env, num_envs=episodes, options=env_options)
    assert isinstance(world, MemoryWorld)
    seeds = torch.randint(2**31, (episodes,), generator=generator(seed, "demonstrations/starts"))
    world.reset(seeds.tolist())
    expert = world.task.expert(world.position, generator(seed, "demonstrations/expert"))
    running = [torch.ones(episodes, dtype=torch.bool)]
    seen, actions, steps = [world.observation], [], []
    while running[-1].any():
        actions.append(expert.act(world.position))
        steps.append(world.step(actions[-1]))
        seen.append(world.observation)
        running.append(running[-1] & ~(steps[-1].terminated | steps[-1].truncated))

    played = torch.stack(running[:-1], 1)  # [episodes, steps]; a final observation follows every last step
    watched = torch.stack(running[:1] + running[:-1], 1)
    reward = torch.stack([step.reward for step in steps], 1)[played]
    store = EpisodeStore(
        observation=torch.stack(seen, 1)[watched],
        action=torch.stack(actions, 1)[played],
        reward=reward,
        terminated=torch.stack([step.terminated for step in steps], 1)[played],
        truncated=torch.stack([step.truncated for step in steps], 1)[played],
        length=played.sum(1),
        observation_space=world.observation_space,
        action_space=world.action_space,
        extras={"success": reward > 0},
    )
    return store, episodes


def _one_by_one(env: str, env_options: dict[str, Any], episodes: int, seed: int) -> tuple[EpisodeStore, int]:
    """Successful episodes of a single environment, and how many were played."""
    with _named_options(env, env_options):
        single = gymnasium.make(env, disable_env_checker=True, **env_options)
    starts, waits = (generator(seed, f"demonstrations/{name}") for name in ("starts", "expert"))
    kept: list[dict[str, Any]] = []
    played = 0
    while len(kept) < episodes:
        start = int(torch.randint(2**31, (), generator=starts))
        episode = _played(single, single.unwrapped.expert(waits), start)  # type: ignore[attr-defined]
        played += 1
        if episode["success"][-1]:
            kept.append(episode)
        elif len(kept) < LEAST_SUCCESS * (played - 10):
            options = f"env_options = {env_options}: the expert succeeded in {len(kept)} of {played} episodes"
            raise ValueError(f"{options}; valid: options with which it does in {LEAST_SUCCESS:.0%} or more")
    single.close()
    store = store_episodes(kept, observation_space=single.observation_space, action_space=single.action_space)
    return store, played


@contextmanager
def _named_options(env: str, env_options: dict[str, Any]) -> Iterator[None]:
    """Raise ValueError for an option that the environment does not have."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"env_options = {env_options}: {error}; valid: options of {env}") from error


def _played(single: gymnasium.Env[Any, Any], expert: Expert, seed: int) -> dict[str, Any]:
    """One episode, as ``store_episodes`` takes it."""
    observation, _ = single.reset(seed=seed)
    seen: list[Any] = [observation]
    steps: list[tuple[Any, ...]] = []
    over = False
    while not over:
        action = expert.act(seen[-1])
        observation, reward, terminated, truncated, info = single.step(action)
        seen.append(observation)
        steps.append((action, reward, terminated, truncated, info["success"]))
        over = terminated or truncated
    fields = ("action", "reward", "terminated", "truncated", "success")
    columns = (np.array(column) for column in zip(*steps, strict=True))
    return {"observation": _stacked(seen), **dict(zip(fields, columns, strict=True))}


def _stacked(observations: list[Any]) -> Any:
    if not isinstance(observations[0], Mapping):
        return np.stack(observations)
    return {name: np.stack([each[name] for each in observations]) for name in observations[0]}
