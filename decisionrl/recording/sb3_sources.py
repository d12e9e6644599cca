"""Learners of Stable-Baselines3 whose learning is recorded: the reference that published histories are made with.

    for episode in sb3_ppo(darkroom(), torch.tensor([38, 51])):  # Transitions [task, stream, step, ...]
        ...

DICP (arXiv 2502.19009), and LHF (arXiv 2505.15143) after it, train ``PPO("MlpPolicy")`` in each task on a
``DummyVecEnv`` of 100 copies; copy j is history j. Here the copies are one batched world, with which PPO sees the same
and is not kept waiting. Everything is on the CPU. All settings that are not arguments are Stable-Baselines3's own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.envs.gridworld.darkroom import GridFamily
from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.gridworld.world import TaskWorld
from decisionrl.envs.make import make_world
from decisionrl.envs.robotics.ml1 import ML1Env, Split
from decisionrl.envs.world import World
from decisionrl.experience.histories import HistoryLayout, LearningHistories, Transitions, write_histories
from decisionrl.recording.tabular_sources import Arena, make_arena
from decisionrl.seeding import generator, random_state_kept, seed_everything

PUBLISHED = {"dark_key_to_door": (100, 10)}
"""Families whose size of minibatches and number of epochs differ from ``USUAL`` (arXiv 2502.19009, appendix)."""

USUAL = (50, 20)

ML1_INSTANCES = 50
"""Of each split of Meta-World ML1."""

ML1_REWARD = 10.0
"""The largest of a step in Meta-World."""

logger = logging.getLogger(__name__)


def sb3_ppo(
    family: GridFamily,
    tasks: Int[Tensor, " task"],
    *,
    streams: int = 100,
    episodes: int = 50,
    noise: float = 0.0,
    seed: int = 0,
    learning_rate: float = 3e-4,
    minibatch: int | None = None,
    epochs: int | None = None,
    discount: float = 0.99,
) -> Iterator[Transitions]:
    """Stable-Baselines3's PPO with perceptrons in each task; an update after each episode of the task's streams.

    What happens in a task is a function of the seed and the task alone, as in ``tabular_sources``; the global random
    generators, of which Stable-Baselines3 draws, are left as they were. As in DICP, nothing comes after the last step
    of an episode, and it is not seen how many steps are left.

    Args:
        tasks: ids.
        streams: of each task, which share a learner.
        episodes: of each stream.
        noise: the share of each task's streams that act at random and are not learned from: those of
            :func:`~decisionrl.recording.tabular_sources.random_streams`, with the same actions as there.
        minibatch: samples in each step of Adam; by default the published 50, in Dark Key-to-Door 100.
        epochs: over each episode of the streams; by default the published 20, in Dark Key-to-Door 10.

    Raises:
        ValueError: an argument is out of its range, or a task is not one of the family.
        ImportError: Stable-Baselines3, of the extra ``decisionrl[sb3]``, is not installed.
    """
    usual_minibatch, usual_epochs = PUBLISHED.get(family.name, USUAL)
    options = _options(
        learning_rate,
        usual_minibatch if minibatch is None else minibatch,
        usual_epochs if epochs is None else epochs,
        discount,
    )
    check_whole("episodes", episodes, 1)
    arena = make_arena(family.to("cpu"), tasks.cpu(), streams=streams, noise=noise, seed=seed)
    samples = (streams - round(noise * streams)) * family.horizon
    if samples < 2:
        found = f"streams = {streams} with noise = {noise} give PPO {samples} samples for an update"
        raise ValueError(f"{found}; valid: at least 2")
    _ppo()
    return _played(arena, episodes, seed, options)


def ml1_histories(
    task: str = "reach",
    *,
    split: Split = "train",
    instances: int = ML1_INSTANCES,
    streams: int = 100,
    episodes: int = 100,
    horizon: int = 100,
    seed: int = 0,
    learning_rate: float = 3e-4,
    minibatch: int = 200,
    epochs: int = 20,
    discount: float = 0.99,
    out: str | Path = "data",
) -> LearningHistories:
    """Record how PPO learns in the first instances of a task of Meta-World ML1, as ``OUT/ml1-TASK-SPLIT-seedN``.

    Observations, actions (as executed, in the box) and rewards are float32; an instance is a task, with its index as
    id, and a shard of its own. A call that was cut off goes on with the instance at which it was. ``max_return`` is ten
    for each step, which no policy reaches, as the hand has to get there first; the largest return in the data is
    ``HistoryFilter``'s ``r_max="data"``.

    The defaults are those of arXiv 2502.19009: a million steps of MuJoCo for each instance, one after another in this
    process. All streams of an instance are in memory at once, 22 MiB each.

    Raises:
        ValueError: an argument is out of its range, or there is no such task.
        ImportError: Stable-Baselines3 or Meta-World is not installed.
        DatasetError: the directory has histories of other settings, or other files.
    """
    if instances not in range(1, ML1_INSTANCES + 1):
        raise ValueError(f"instances = {instances}; valid: from 1 to {ML1_INSTANCES}")
    options = _options(learning_rate, minibatch, epochs, discount)
    _ppo()
    one = ML1Env(task, split=split, max_steps=horizon)

    def learned(tasks: Int[Tensor, " task"]) -> Iterator[Transitions]:
        (index,) = tasks.tolist()
        where = {"task": one.task, "index": index, "split": split, "max_steps": horizon}
        world = make_world("decisionrl/ML1-v0", num_envs=streams, options=where)
        draws = generator(seed, f"ml1_histories {one.task} {split} {index}")
        for number, episode in enumerate(islice(_episodes(world, horizon, draws, options, time_limit=True), episodes)):
            mean = float(episode.reward.sum(1).mean())
            logger.info("%s %d: episode %d of %d, mean return %.4g", one.task, index, number + 1, episodes, mean)
            yield Transitions(*(value[None] for value in episode))

    layout = HistoryLayout(
        task=list(range(instances)),
        max_return=[ML1_REWARD * horizon] * instances,
        histories=streams,
        episodes=episodes,
        horizon=horizon,
        observation_shape=one.observation_space.shape or (),
        action_shape=one.action_space.shape or (),
        observation_dtype="float32",
        action_dtype="float32",
        tasks_per_shard=1,
        info={"maker": "ml1_histories", "env": one.task, "split": split, "seed": seed, **options},
    )
    return write_histories(Path(out) / f"ml1-{one.task}-{split}-seed{seed}", layout, learned)


def _played(arena: Arena, episodes: int, seed: int, options: dict[str, Any]) -> Iterator[Transitions]:
    family, learns = arena.family, ~arena.random
    learners = []
    for task, each in zip(arena.tasks.tolist(), learns, strict=True):
        world = TaskWorld(family, num_envs=int(each.sum()), task=task)
        learners.append(_episodes(world, family.horizon, generator(seed, f"sb3_ppo {task}"), options, time_limit=False))

    def at_random(row: Tensor) -> Tensor:
        return torch.full((*row.shape, family.num_actions), 1 / family.num_actions)

    for episode in range(episodes):
        piece = Transitions(*(value.clone() for value in arena.play(episode, at_random).transitions))
        for row, learner in enumerate(learners):
            for value, learned in zip(piece, next(learner), strict=True):
                value[row, learns[row]] = learned
        yield piece


def _episodes(
    world: World, horizon: int, draws: torch.Generator, options: dict[str, Any], *, time_limit: bool
) -> Iterator[Transitions]:
    """The episodes [stream, step, ...] of one learner without end; it has learned from all that were yielded."""
    from decisionrl.recording.sb3_vec_env import EpisodeVecEnv

    env = EpisodeVecEnv(world, generator=draws, time_limit=time_limit)
    with _seeded(draws):
        model = _ppo()("MlpPolicy", env, n_steps=horizon, device="cpu", **options)
    while True:
        with _seeded(draws):
            model.learn(horizon * env.num_envs, reset_num_timesteps=False, log_interval=None)
        yield env.episode


@contextmanager
def _seeded(draws: torch.Generator) -> Iterator[None]:
    """Global generators that go on from a drawn seed, and are afterwards as they were."""
    with random_state_kept():
        seed_everything(int(torch.randint(2**62, (), generator=draws)))
        yield


def _options(learning_rate: float, minibatch: int, epochs: int, discount: float) -> dict[str, Any]:
    """What Stable-Baselines3 calls them."""
    if isinstance(learning_rate, Tensor):
        found = f"learning_rate has shape {list(learning_rate.shape)}"
        raise ValueError(f"{found}; valid: a number, as the streams of a task share a learner")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate = {learning_rate}; valid: finite and above 0")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount = {discount}; valid: in [0, 1]")
    check_whole("minibatch", minibatch, 2)
    check_whole("epochs", epochs, 1)
    return {"learning_rate": learning_rate, "batch_size": minibatch, "n_epochs": epochs, "gamma": discount}


def _ppo() -> Any:
    try:
        from stable_baselines3 import PPO
    except ImportError as error:
        raise ImportError(f"Stable-Baselines3: {error}; pip install 'decisionrl[sb3]'") from error
    return PPO
