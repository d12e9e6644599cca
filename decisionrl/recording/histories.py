"""Learning histories of learners in families of tasks, for in-context learning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.envs.gridworld.bandit_family import BanditFamily
from decisionrl.envs.gridworld.darkroom import GridFamily
from decisionrl.envs.gridworld.family import TaskFamily
from decisionrl.envs.gridworld.world import FAMILIES, made_family
from decisionrl.experience.histories import HistoryLayout, LearningHistories, Transitions, write_histories
from decisionrl.names import pick
from decisionrl.recording.bandit_source import mixture_pulls
from decisionrl.recording.sb3_sources import sb3_ppo
from decisionrl.recording.tabular_sources import a2c, q_learning, tabular_ppo

METADATA = {
    "title": "Learning histories for in-context learning",
    "arxiv": "2505.15143",
    "changes": "tabular learners, all tasks at once, in place of neural networks (which source = sb3_ppo has); next "
    "observations at the end of an episode are terminal ones, not those of the next start",
    "kinds": "the dark rooms and bandits: " + ", ".join(name for name in FAMILIES if name != "hidden_reach"),
}


class Algorithm(NamedTuple):
    """Who acts in some tasks of a family of that kind; rate: what it calls its learning rate, if it learns."""

    act: Callable[..., Iterable[Transitions]]
    kind: type[GridFamily] | type[BanditFamily]
    rate: str | None


SOURCES: dict[str, Algorithm] = {
    "ppo": Algorithm(tabular_ppo, GridFamily, "learning_rate"),
    "a2c": Algorithm(a2c, GridFamily, "learning_rate"),
    "q_learning": Algorithm(q_learning, GridFamily, "step_size"),
    "sb3_ppo": Algorithm(sb3_ppo, GridFamily, "learning_rate"),
    "mixture": Algorithm(mixture_pulls, BanditFamily, None),
}

Part = Literal["train", "test"]

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
        env: a family of tasks: darkroom, darkroom_permuted, darkroom_large, dark_key_to_door or bandit.
        env_options: of the family, such as ``{"size": 5, "horizon": 10}``.
        source: the algorithm: ppo, a2c or q_learning, of ``decisionrl.recording.tabular_sources``, or sb3_ppo of
            ``decisionrl.recording.sb3_sources``, the published one: a minute or two of one core for each task. For
            bandits mixture, of ``decisionrl.recording.bandit_source``.
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
    plan = HistoryPlan(
        env=env,
        env_options=env_options or {},
        source=source,
        source_options=source_options or {},
        rates=rates,
        streams=streams,
        steps=steps,
        noise=noise,
        split_seed=split_seed,
        seed=seed,
        device=device,
    )
    directories = []
    parts: tuple[Part, ...] = ("train", "test") if test_tasks else ("train",)
    for part in parts:
        directory = Path(out) / plan.name(part)
        layout = plan.layout(part, tasks_per_shard=tasks_per_shard)
        _log_returns(directory, write_histories(directory, layout, plan.learn, progress=_Progress(directory)))
        directories.append(directory)
    return directories


@dataclass(frozen=True, kw_only=True)
class HistoryPlan:
    """Which learners learn which tasks, with the arguments of :func:`histories`.

    collect_histories(plan.layout("train"), plan.learn)      # in memory

    Raises:
        UnknownNameError, ValueError: as :func:`histories`.
    """

    env: str = "darkroom"
    env_options: Mapping[str, Any] = field(default_factory=dict)
    source: str = "ppo"
    source_options: Mapping[str, Any] = field(default_factory=dict)
    rates: Sequence[float] | None = None
    streams: int = 100
    steps: int = 1000
    noise: float = 0.0
    split_seed: int | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        algorithm = pick("source", self.source, SOURCES)
        if not isinstance(self.family, algorithm.kind):
            fitting = [name for name, each in SOURCES.items() if isinstance(self.family, each.kind)]
            found = f"source = {self.source!r} with env = {self.env!r}"
            raise ValueError(f"{found}; valid with this env: {', '.join(fitting) or 'no source'}")
        if self.rates is not None and algorithm.rate is None:
            raise ValueError(f"rates = {self.rates}; valid with source = {self.source!r}, which does not learn: None")
        if self.steps < 1 or self.steps % self.family.horizon:
            raise ValueError(f"steps = {self.steps}; valid: whole episodes of {self.family.horizon} steps")
        if self.rates is not None and not self.rates:
            raise ValueError("rates is empty; valid: one learning rate or more")
        with _named_options("source_options", self.source_options, self.source):
            self.learn(self.tasks("train")[:1])  # what is not valid is told before anything is written

    @cached_property
    def family(self) -> TaskFamily:
        pick("env", self.env, FAMILIES)
        with _named_options("env_options", self.env_options, self.env):
            return made_family(self.env, self.env_options).to(self.device)

    @property
    def episodes(self) -> int:
        """Of each history."""
        return self.steps // self.family.horizon

    def name(self, part: Part) -> str:
        """Of the directory."""
        noise = f"-noise{self.noise:g}" if self.noise else ""
        return f"{self.env}-{self.source}{noise}-{part}-seed{self.seed}".replace("_", "-")

    def tasks(self, part: Part) -> Int[Tensor, " task"]:
        """Their ids."""
        return self.family.split(self.split_seed)[("train", "test").index(part)]

    def layout(self, part: Part, *, tasks_per_shard: int = 128) -> HistoryLayout:
        """Of the histories of a part of the tasks."""
        family, tasks = self.family, self.tasks(part)
        settings = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "device"}
        return HistoryLayout(
            task=tasks.tolist(),
            max_return=family.max_return[tasks].tolist(),
            histories=self.streams,
            episodes=self.episodes,
            horizon=family.horizon,
            observation_shape=family.observation_space.shape,
            observation_dtype=np.min_scalar_type(int(family.observation_space.high.max())).name,
            reward_dtype="uint8" if isinstance(family, GridFamily) else "float32",
            tasks_per_shard=tasks_per_shard,
            info={"maker": "histories", **settings, "tasks": part},
        )

    def learn(self, tasks: Int[Tensor, " task"]) -> Iterable[Transitions]:
        """The learners' steps in some tasks: a ``Source`` of histories."""
        algorithm = SOURCES[self.source]
        options = {**self.source_options, "noise": self.noise, "seed": self.seed}
        if self.rates is not None:
            each = torch.tensor(self.rates)[torch.arange(self.streams) % len(self.rates)]
            options = {str(algorithm.rate): each.expand(len(tasks), -1), **options}
        return algorithm.act(self.family, tasks, streams=self.streams, episodes=self.episodes, **options)


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


@contextmanager
def _named_options(name: str, options: Mapping[str, Any], owner: str) -> Iterator[None]:
    """ValueError for an option that the owner does not have."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"{name} = {dict(options)}: {error}; valid: options of {owner}") from error
