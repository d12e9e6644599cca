"""What the recipes on recorded data share: the data, the policy, the optimizer, where the policy is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypedDict

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.composition import Phase, PhasedLearner
from decisionrl.envs.make import EnvLike, env_name, make_world
from decisionrl.envs.world import World
from decisionrl.evaluation.episodes import ReturnEvaluator
from decisionrl.experience.data import open_data, open_segments
from decisionrl.experience.datasets import DatasetSource, DensePairs, Draw, Pairs
from decisionrl.experience.preferences import Segments
from decisionrl.experience.store import EpisodeStore
from decisionrl.experience.teachers import preference_pairs
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner, Learner, Objective, Stateful
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.policies.behavior import BehaviorPolicy
from decisionrl.seeding import generator


class OfflineOptions(TypedDict, total=False):
    """The arguments that every recipe on recorded data takes; see :class:`Offline` for what they mean."""

    data: str
    env: EnvLike | None
    env_options: dict[str, Any]
    max_steps: int | None
    steps: int
    batch: int
    hidden: list[int]
    dropout: float
    normalize_observations: bool
    learning_rate: float
    clip_norm: float | None
    seed: int
    device: str


class PreferenceOptions(OfflineOptions, total=False):
    """The arguments that every recipe on preferences takes; see :class:`Preferences` for what they mean."""

    teacher: str
    pairs: int | None
    flip: float


@dataclass(frozen=True, kw_only=True)
class Offline:
    """Recorded data, a network and its optimizer.

    Attributes:
        data: what :func:`~decisionrl.experience.data.open_data` opens: a folder, a local Minari id, a D4RL file, a lab.
        env: where the trained policy is measured; by default what the data's ``info`` names.
        env_options: keyword arguments of the environment; by default those that the data's ``info`` names.
        max_steps: truncate evaluation episodes of as many steps.
        steps: updates.
        batch: what an update sees: pairs, segments, windows or transitions, as the recipe says.
        hidden: widths of the hidden layers.
        dropout: in the hidden layers of the policy.
        normalize_observations: by the mean and variance of the data.
        learning_rate: of Adam.
        clip_norm: the largest gradient norm.
    """

    data: str = "lab/point"
    env: EnvLike | None = None
    env_options: Mapping[str, Any] | None = None
    max_steps: int | None = None
    steps: int = 500_000
    batch: int = 96
    hidden: Sequence[int] = (512, 512)
    dropout: float = 0.25
    normalize_observations: bool = True
    learning_rate: float = 1e-4
    clip_norm: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; valid: a whole number >= 1")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate = {self.learning_rate}; valid: a positive number")

    @cached_property
    def episodes(self) -> EpisodeStore:
        """The recorded episodes, on the device."""
        return open_data(self.data).to(self.device)

    def policy(self) -> BehaviorPolicy:
        """The network, its observation statistics those of the data."""
        policy = BehaviorPolicy(
            self.episodes.observation_space,
            self.episodes.action_space,
            hidden=tuple(self.hidden),
            dropout=self.dropout,
            normalize_observations=self.normalize_observations,
            generator=generator(self.seed, "policy"),
        ).to(self.device)
        policy.update_normalizer(self.episodes.observation)
        return policy

    def adam(self, *modules: nn.Module, learning_rate: float | None = None) -> torch.optim.Adam:
        """Adam on all parameters of the modules."""
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return torch.optim.Adam(parameters, self.learning_rate if learning_rate is None else learning_rate, fused=True)

    def adamw(self, *modules: nn.Module, weight_decay: float) -> torch.optim.AdamW:
        """AdamW on all parameters of the modules."""
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return torch.optim.AdamW(parameters, self.learning_rate, weight_decay=weight_decay, fused=True)

    def learner(
        self,
        policy: nn.Module,
        objective: Objective,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        warmup: int = 0,
        components: Mapping[str, Stateful] | None = None,
        after_update: Sequence[Callable[[], object]] = (),
    ) -> GradientLearner:
        """Adam steps on the objective, the learning rate rising linearly from 0 over the first ``warmup`` of them."""
        optimizer = optimizer or self.adam(policy)
        components = dict(components or {})
        if warmup:
            schedule = linear_warmup(optimizer, warmup)
            components["schedule"] = schedule
            after_update = (*after_update, schedule.step)
        return GradientLearner(
            policy,
            objective,
            optimizer,
            clip_norm=self.clip_norm,
            components=components,
            after_update=after_update,
        )

    def pretrained(self, learner: GradientLearner, *, updates: int, begin: Callable[[], None] | None = None) -> Learner:
        """Behavior cloning of everything for so many updates, then the learner.

        begin: called in between, or at the very beginning where there is no pre-training.
        """
        last = Phase(learner=learner, begin=begin)
        if not updates:
            return PhasedLearner([last]) if begin else learner
        cloning = self.learner(learner.policy, BehaviorCloning())
        return PhasedLearner([Phase(learner=cloning, updates=updates), last])

    def source(self, draw: Draw) -> DatasetSource:
        """Batches that are drawn from the data."""
        return DatasetSource(draw, seed=self.seed)

    def make_world(self, num_envs: int) -> World:
        """Copies of the environment that policies are measured in."""
        info = self.episodes.info
        env, options = self.env, self.env_options
        if env is None:
            env, options = info["env"], info.get("env_options") if options is None else options
        return make_world(env, num_envs=num_envs, options=options, max_steps=self.max_steps, device=self.device)

    def evaluate(self, policy: Any, **how: Any) -> dict[str, Any]:
        """Returns of whole episodes, and the normalized score where the data has its two reference scores."""
        result = self._evaluator(policy, **how)
        info = self.episodes.info
        if info.get("random_score") is not None and info.get("expert_score") is not None:
            for name, key in (("normalized_score", "mean_return"), ("score_low", "low"), ("score_high", "high")):
                result[name] = self.episodes.normalized_score(result[key])
        return result

    @cached_property
    def _evaluator(self) -> ReturnEvaluator:
        return ReturnEvaluator(self.make_world)

    def experiment(
        self,
        recipe: str,
        *,
        learner: Learner,
        draw: Draw,
        metadata: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Experiment:
        """The parts as an Experiment; it has an evaluation where an environment is known."""
        known = self.env is not None or self.episodes.info.get("env") is not None
        config = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "device"}
        config["env"] = None if self.env is None else env_name(self.env)
        return Experiment(
            policy=learner.policy,
            source=self.source(draw),
            learner=learner,
            config={"recipe": recipe, **config, **options},
            metadata=metadata,
            evaluate=self.evaluate if known else None,
        )


@dataclass(frozen=True, kw_only=True)
class Preferences(Offline):
    """Recorded segments and what a teacher thinks of them.

    Attributes:
        teacher: whose scores: those that stand beside the data, such as "regret", "return" or "distance".
        pairs: as many comparisons of random segments, drawn once; None compares all segments of a batch with each
            other, the paper's dense data.
        flip: the share of wrong labels among the pairs.
        batch: segments, or pairs if there are such.
    """

    teacher: str = "regret"
    pairs: int | None = None
    flip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flip and self.pairs is None:
            raise ValueError(f"flip = {self.flip}; valid with pairs = a number of comparisons, which it is a share of")

    @cached_property
    def segments(self) -> Segments:
        """The segments with the teacher's scores."""
        segments = open_segments(self.data, score=self.teacher)
        score = None if segments.score is None else segments.score.to(self.device)
        return replace(
            segments,
            episodes=self.episodes,
            episode=segments.episode.to(self.device),
            start=segments.start.to(self.device),
            score=score,
        )

    @cached_property
    def draw(self) -> DensePairs | Pairs:
        """Batches of comparisons."""
        if self.pairs is None:
            return DensePairs(segments=self.segments, size=self.batch)
        labels = generator(self.seed, "labels")
        return Pairs(
            pairs=preference_pairs(self.segments, pairs=self.pairs, flip=self.flip, generator=labels), size=self.batch
        )


def linear_warmup(optimizer: torch.optim.Optimizer, updates: int) -> LambdaLR:
    """From 0 at the first update up to the learning rate at update ``updates``, constant from there."""
    return LambdaLR(optimizer, lambda done: min(1.0, done / updates))
