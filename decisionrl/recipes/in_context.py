"""What the recipes of in-context learning share: learning histories, their filter, the transformer, the test tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, ParamSpec, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.envs.gridworld.family import TaskFamily
from decisionrl.envs.gridworld.world import FAMILIES, made_family
from decisionrl.evaluation.in_context import EPISODES, InContextEvaluator
from decisionrl.experience.data import open_histories_of
from decisionrl.experience.datasets import DatasetSource
from decisionrl.experience.histories import LearningHistories
from decisionrl.experience.history_windows import HistoryWindows, Teacher
from decisionrl.experience.store import DatasetError
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner, Objective
from decisionrl.pipeline.history_filter import Filtered, HistoryFilter, Mode
from decisionrl.policies.in_context import Embedding, InContextPolicy
from decisionrl.recipes.offline import at_least, cosine, positive
from decisionrl.seeding import generator

P = ParamSpec("P")

Filter = Literal["none", "lhf"]
Sizes = Literal["paper", "light", "cpu"]

BETAS = (0.9, 0.99)

LAB = "lab/darkroom"

SMALL: Mapping[str, Any] = {
    "sizes": "cpu",
    "steps": 1500,
    "batch": 64,
    "learning_rate": 3e-3,
    "warmup": 50,
    "every": 2,
    "evaluation_episodes": 30,
}
"""What takes minutes on one core with the histories of the makers."""

ONE_EPISODE: Mapping[str, Any] = {**SMALL, "context_episodes": 1, "every": 1, "evaluation_episodes": 1}
"""Of bandits: all that there is to learn from is in one episode."""


class InContextOptions(TypedDict, total=False):
    """The arguments that the recipes of in-context learning take; see :class:`Histories` for what they mean."""

    data: str
    family: TaskFamily | str | None
    filter: Filter
    stability_weight: float
    alpha: float | None
    filter_mode: Mode
    max_return: Literal["task", "data"]
    share: float
    context_episodes: int
    every: int
    sizes: Sizes
    embedding: Embedding
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    clip_norm: float | None
    evaluation_episodes: int
    seed: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Learning histories, a transformer and its optimizer; the defaults are those of DICP (arXiv 2502.19009) and of
    filtered learning histories (LHF, arXiv 2505.15143), but that a window teaches an action at each of its steps, not
    at the last only, and consists of whole episodes.

    Attributes:
        data: a directory of ``make-dataset histories``, or a lab.
        family: the tasks, of which the histories' ids are; by default what the data's ``info`` names.
        filter: "lhf" draws each task's histories anew by how steadily their learners improved.
        stability_weight: lambda of LHF's score.
        alpha: temperature of its softmax rule; None is the linear rule.
        filter_mode: how it draws, see :class:`~decisionrl.pipeline.history_filter.HistoryFilter`.
        max_return: its R_max is the task's own or the largest return in the data.
        share: of each history, from its beginning, that there is to learn from; the paper's partial histories have 0.5.
        context_episodes: of a window and of what the policy remembers; 4 on grids.
        every: the episodes of a window are so far apart; with 1 they follow each other.
        sizes: "paper" (4 layers, 4 heads, width 32, feedforward 128), "light" (2, 2, 16, 64) or "cpu".
        embedding: of observations, see :class:`~decisionrl.policies.in_context.StepTokens`.
        batch: windows of an update.
        warmup: updates in which the learning rate rises from 0; then it falls on half a cosine to 0 at the end.
        evaluation_episodes: in a row, in each of the test tasks.
    """

    data: str = LAB
    family: TaskFamily | str | None = None
    filter: Filter = "none"
    stability_weight: float = 1.0
    alpha: float | None = None
    filter_mode: Mode = "resample"
    max_return: Literal["task", "data"] = "task"
    share: float = 1.0
    context_episodes: int = 4
    every: int = 1
    sizes: Sizes = "paper"
    embedding: Embedding = "axis"
    steps: int = 50_000
    batch: int = 512
    learning_rate: float = 1e-2
    warmup: int = 0
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    evaluation_episodes: int = EPISODES
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch, evaluation_episodes=self.evaluation_episodes)
        at_least(0, warmup=self.warmup)
        positive(learning_rate=self.learning_rate)
        for name, choices in (("filter", Filter), ("max_return", Literal["task", "data"])):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} = {getattr(self, name)!r}; valid: {', '.join(get_args(choices))}")

    @cached_property
    def recorded(self) -> LearningHistories:
        """All histories, as far as they are to be known."""
        return open_histories_of(self.data).beginning(self.share)

    @cached_property
    def tasks(self) -> TaskFamily:
        """The family of the tasks.

        Raises:
            DatasetError: the data does not say of which, or its ids are not those of the family.
        """
        info, family = self.recorded.info, made_family(self.family, {}) if self.family is not None else None
        if family is None:
            if info.get("env") not in FAMILIES:
                raise DatasetError(
                    f"env of {self.data} is {info.get('env')!r}; valid: {', '.join(FAMILIES)}, or family = one of yours"
                )
            family = made_family(info["env"], info.get("env_options") or {})
        last, horizon = int(self.recorded.task.max()), self.recorded.horizon
        if last >= family.num_tasks or horizon != family.horizon:
            raise DatasetError(
                f"{self.data} has tasks up to {last} and a horizon of {horizon}; valid for {family.name}: tasks below "
                f"{family.num_tasks}, a horizon of {family.horizon}"
            )
        return family.to(self.device)

    @cached_property
    def filtered(self) -> Filtered | None:
        """What the filter chooses; None where there is none."""
        if self.filter == "none":
            return None
        lhf = HistoryFilter(stability_weight=self.stability_weight, alpha=self.alpha, mode=self.filter_mode)
        r_max: Tensor | Literal["data"] = self.recorded.max_return if self.max_return == "task" else "data"
        return lhf(self.recorded.episode_returns(), r_max, generator(self.seed, "filter"))

    def windows(self, *, teacher: Teacher | None = None) -> HistoryWindows:
        """Of the filtered histories."""
        filtered, histories = self.filtered, self.recorded
        return HistoryWindows(
            histories=histories if filtered is None else histories.select(filtered.index),
            size=self.batch,
            episodes=self.context_episodes,
            every=self.every,
            weight=filtered.weight if filtered is not None and self.filter_mode == "weight" else None,
            teacher=teacher,
            device=self.device,
        )

    @cached_property
    def teacher(self) -> Teacher:
        """Knows the optimal actions, on the CPU, where windows are cut."""
        family = self.tasks.to("cpu")
        return lambda observation, collected, task: family.optimal_action(family.state_of(observation, collected), task)

    def policy(self) -> InContextPolicy:
        """A new transformer."""
        return InContextPolicy(
            self.tasks.observation_space,
            self.tasks.action_space,
            context=self.context_episodes * self.recorded.horizon,
            sizes=self.sizes,
            embedding=self.embedding,
            generator=generator(self.seed, "policy"),
        ).to(self.device)

    def learner(self, policy: nn.Module, objective: Objective) -> GradientLearner:
        """AdamW steps on the objective."""
        optimizer = torch.optim.AdamW(
            policy.parameters(), self.learning_rate, betas=BETAS, weight_decay=self.weight_decay, fused=True
        )
        schedule = LambdaLR(optimizer, cosine(self.steps, warmup=self.warmup))
        return GradientLearner(
            policy,
            objective,
            optimizer,
            clip_norm=self.clip_norm,
            components={"schedule": schedule},
            after_update=[schedule.step],
        )

    @property
    def evaluator(self) -> InContextEvaluator:
        """Measures in the test tasks of the data's split."""
        _, test = self.tasks.split(self.recorded.info.get("split_seed"))
        return InContextEvaluator(family=self.tasks, tasks=test, episodes=self.evaluation_episodes)

    def experiment(
        self,
        recipe: str,
        *,
        learner: GradientLearner,
        windows: HistoryWindows,
        metadata: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Experiment:
        """The parts as an Experiment."""
        config = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "device"}
        config["family"] = None if self.family is None else self.tasks.name
        return Experiment(
            policy=learner.policy,
            source=DatasetSource(windows, seed=self.seed),
            learner=learner,
            config={"recipe": recipe, **config, **options},
            metadata=metadata,
            evaluate=self.evaluator,
        )


def tuned_on_histories(recipe: Callable[P, Experiment]) -> Callable[P, Experiment]:
    """Let a recipe begin from a preset where its data is of the library's makers; arguments take precedence."""

    @functools.wraps(recipe)
    def with_preset(*args: P.args, **kwargs: P.kwargs) -> Experiment:
        info = open_histories_of(str(kwargs.get("data", LAB))).info
        preset = ONE_EPISODE if info.get("env") == "bandit" else SMALL
        return recipe(*args, **{**(preset if info.get("maker") == "histories" else {}), **kwargs})

    return with_preset
