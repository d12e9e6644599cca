"""Learning histories of learners in families of grid tasks, for in-context learning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.envs.gridworld.darkroom import GridFamily
from decisionrl.envs.gridworld.world import FAMILIES, made_family
from decisionrl.experience.histories import HistoryLayout, LearningHistories, Transitions, write_histories
from decisionrl.names import pick
from decisionrl.recording.sb3_sources import sb3_ppo
from decisionrl.recording.tabular_sources import a2c, q_learning, tabular_ppo

METADATA = {
    "title": "Learning histories for in-context learning",
    "arxiv": "2505.15143",
    "changes": "tabular learners, all tasks at once, in place of neural networks (which source = sb3_ppo has); next "
    "observations at the end of an episode are terminal ones, not those of the next start",
    "kinds": "the dark rooms " + ", ".join(name for name in FAMILIES if name != "hidden_reach"),
}

SOURCES: dict[str, tuple[Callable[..., Iterable[Transitions]], str]] = {
    "ppo": (tabular_ppo, "learning_rate"),
    "a2c": (a2c, "learning_rate"),
    "q_learning": (q_learning, "step_size"),
    "sb3_ppo": (sb3_ppo, "learning_rate"),
}
"""Name -> the algorithm and what it calls its learning rate."""

logger = logging.getLogger(__name__)


def histories(
    *,
    env: str = "darkroom",
    env_options: dict[str, Any] | None = None,
    source: str = "ppo",
    source_options: dict[str, Any] | None = None,
    rates: list[float] | None = None,
    streams: int = 100,
    steps: int = 1000,
    noise: float = 0.0,
    test_tasks: bool = False,
    split_seed: int | None = None,
    tasks_per_shard: int = 128,
    seed: int = 0,
    device: str = "cpu",
    out: str | Path = "data",
) -> list[Path]:
    """Record how learners learn, as ``OUT/ENV-SOURCE[-noiseN]-train-seedN``; the directories of
    :func:`~decisionrl.experience.histories.open_histories`.

    A call that was cut off goes on where it was when it is made again, and what is complete is left as it is. The
    defaults are those of DICP (arXiv 2502.19009) and LHF (arXiv 2505.15143), whose noisy data have ``noise = 0.3``.

    Args:
        env: a family of grid tasks: darkroom, darkroom_permuted, darkroom_large or dark_key_to_door.
        env_options: of the family, such as ``{"size": 5, "horizon": 10}``.
        source: the algorithm: ppo, a2c or q_learning, of ``decisionrl.recording.tabular_sources``, or sb3_ppo of
            ``decisionrl.recording.sb3_sources``, the published one: a minute or two of one core for each task.
        source_options: of the algorithm, such as ``{"learning_rate": 0.02}``.
        rates: learning rates, which the streams of each task take in turn; every stream then has a learner of its own,
            so that histories of different quality come about. Not for sb3_ppo.
        streams: histories of each task.
        steps: of each history, a whole number of episodes.
        noise: the share of each task's streams that act at random.
        test_tasks: record those of the test tasks, too, in another directory ``...-test-seedN``.
        split_seed: of the split into training and test tasks; without it the published split.
        tasks_per_shard: which are played at once.
        seed: of the learners.
        device: where they learn; only on a CPU are they the same in every run, bit for bit.
        out: the folder of the directories.

    Raises:
        UnknownNameError: there is no such env or source.
        ValueError: another argument is not valid.
        DatasetError: a directory has histories of other settings, or other files.
    """
    family = _family(env, env_options or {}).to(device)
    pick("source", source, SOURCES)
    if steps < 1 or steps % family.horizon:
        raise ValueError(f"steps = {steps}; valid: whole episodes of {family.horizon} steps")
    if rates == []:
        raise ValueError("rates is empty; valid: one learning rate or more")
    settings = {
        "env": env,
        "env_options": dict(env_options or {}),
        "source": source,
        "source_options": dict(source_options or {}),
        "rates": rates,
        "streams": streams,
        "steps": steps,
        "noise": noise,
        "split_seed": split_seed,
        "seed": seed,
    }
    given = {"streams": streams, "episodes": steps // family.horizon, "noise": noise, "seed": seed}
    learn = partial(_learning, family, source, source_options or {}, rates, given)
    train, test = family.split(split_seed)
    with _named_options("source_options", source_options or {}, source):
        learn(train[:1])  # what is not valid is told before anything is written
    name = f"{env}-{source}{f'-noise{noise:g}' if noise else ''}".replace("_", "-")
    directories = []
    for part, tasks in (("train", train), ("test", test)) if test_tasks else (("train", train),):
        directory = Path(out) / f"{name}-{part}-seed{seed}"
        layout = HistoryLayout(
            task=tasks.tolist(),
            max_return=family.max_return[tasks].tolist(),
            histories=streams,
            episodes=steps // family.horizon,
            horizon=family.horizon,
            observation_shape=family.observation_space.shape,
            observation_dtype=np.min_scalar_type(family.size - 1).name,
            reward_dtype="uint8",
            tasks_per_shard=tasks_per_shard,
            info={"maker": "histories", **settings, "tasks": part},
        )
        _log_returns(directory, write_histories(directory, layout, learn, progress=_Progress(directory)))
        directories.append(directory)
    return directories


class _Progress:
    """Logs each tenth of the steps."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.tenths = directory, 0

    def __call__(self, done: int, steps: int) -> None:
        if 10 * done // steps > self.tenths:
            self.tenths = 10 * done // steps
            logger.info("%s: %d of %d steps", self.directory, done, steps)


def _log_returns(directory: Path, made: LearningHistories) -> None:
    mean = made.episode_returns().mean((0, 1))
    logger.info(
        "%s: %d tasks, %d histories of %d episodes each; mean return %.3g in the first episode, %.3g in the last, "
        "%.3g possible",
        directory,
        made.num_tasks,
        made.num_histories,
        made.episodes,
        mean[0],
        mean[-1],
        made.max_return.mean(),
    )


def _family(env: str, options: Mapping[str, Any]) -> GridFamily:
    pick("env", env, FAMILIES)
    with _named_options("env_options", options, env):
        family = made_family(env, options)
    if not isinstance(family, GridFamily):
        raise ValueError(f"env = {env!r} has no table of states; valid: a family on a grid")
    return family


def _learning(
    family: GridFamily,
    source: str,
    options: Mapping[str, Any],
    rates: Sequence[float] | None,
    given: Mapping[str, Any],
    tasks: Int[Tensor, " task"],
) -> Iterable[Transitions]:
    """The source on some tasks."""
    algorithm, rate = SOURCES[source]
    if rates is None:
        return algorithm(family, tasks, **options, **given)
    streams = given["streams"]
    each = torch.tensor(rates)[torch.arange(streams) % len(rates)].expand(len(tasks), streams)
    return algorithm(family, tasks, **{rate: each}, **options, **given)


@contextmanager
def _named_options(name: str, options: Mapping[str, Any], owner: str) -> Iterator[None]:
    """ValueError for an option that the owner does not have."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"{name} = {dict(options)}: {error}; valid: options of {owner}") from error
