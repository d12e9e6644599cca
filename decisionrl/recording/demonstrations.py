"""Demonstrations of the tasks that need memory, by experts who remember."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import torch

from decisionrl.envs.make import make_world
from decisionrl.envs.registration import MEMORY_TASKS
from decisionrl.envs.robotics.memory import MemoryWorld
from decisionrl.experience.minari import minari_module, save_minari
from decisionrl.experience.store import EpisodeStore
from decisionrl.names import pick
from decisionrl.seeding import generator

METADATA = {
    "title": "Demonstrations of tasks that need memory, by scripted experts",
    "arxiv": "2505.09561",
    "changes": "point masses in place of robots; what is hidden is, as in the paper, a side or a number of visits",
    "kinds": f"the point-mass tasks {', '.join(MEMORY_TASKS)}",
}


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
        UnknownNameError, ValueError, TypeError: see :func:`record_demonstrations`; or the directory is there already.
    """
    minari_module()
    task = pick("env", env, MEMORY_TASKS)
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
    """Episodes of the scripted expert, all played side by side.

    Their ``extras["success"]`` (bool) is the success of every step. ``info["random_score"]`` is 0, about what random
    actions reach, and ``info["expert_score"]`` 1, so that normalized scores are success rates in percent.

    Args:
        env: the Gymnasium id of a task that needs memory.
        env_options: its arguments, such as ``{"step_length": 0.15, "pixels": True}``.
        seed: of the starts and of how long the expert waits.

    Raises:
        UnknownNameError: env is not one of the ids.
        ValueError, TypeError: episodes < 1, or the options are not valid.
    """
    pick("env", env, MEMORY_TASKS)
    if episodes < 1:
        raise ValueError(f"episodes = {episodes}; valid: a whole number >= 1")
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
    return EpisodeStore(
        observation=torch.stack(seen, 1)[watched],
        action=torch.stack(actions, 1)[played],
        reward=reward,
        terminated=torch.stack([step.terminated for step in steps], 1)[played],
        truncated=torch.stack([step.truncated for step in steps], 1)[played],
        length=played.sum(1),
        observation_space=world.observation_space,
        action_space=world.action_space,
        extras={"success": reward > 0},
        info={
            "maker": "demonstrations",
            "env": env,
            "env_options": dict(env_options or {}),
            "episodes": episodes,
            "seed": seed,
            "success_reward": True,
            "success_rate": float(reward.sum()) / episodes,
            "random_score": 0.0,
            "expert_score": 1.0,
        },
    )
