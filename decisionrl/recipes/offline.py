"""What the recipes on recorded data share: the data, the policy, the optimizer, where the policy is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypedDict

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.composition import Phase, PhasedLearner
from decisionrl.envs.make import EnvironmentNameError, EnvLike, env_name, make_world
from decisionrl.envs.world import EnvironmentFault, World
from decisionrl.evaluation.episodes import COPIES, ReturnEvaluator
from decisionrl.experience.data import open_data, open_score_names, open_segments
from decisionrl.experience.datasets import DatasetSource, DensePairs, Draw, Pairs
from decisionrl.experience.preference_formats import load_pairs
from decisionrl.experience.preferences import PreferencePairs, Segments
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.teachers import preference_pairs
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner, Learner, Objective, Stateful
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.policies.behavior import BehaviorPolicy
from decisionrl.seeding import generator

TOLERANCE = 1e-5
"""By how much recorded bounds of actions may exceed the environment's, after a change of precision."""


class DataOptions(TypedDict, total=False):
    """The arguments that every recipe on recorded data takes; see :class:`Recorded` for what they mean."""

    data: str
    env: EnvLike | None
    env_options: dict[str, Any]
    max_steps: int | None
    evaluation: bool
    steps: int
    batch: int
    learning_rate: float
    clip_norm: float | None
    seed: int
    device: str


class OfflineOptions(DataOptions, total=False):
    """The arguments that recipes with perceptrons take; see :class:`Offline` for what they mean."""

    hidden: list[int]
    dropout: float
    normalize_observations: bool


class ComparedOptions(DataOptions, total=False):
    """The arguments that recipes on preferences take; see :class:`Preferences` for what they mean."""

    teacher: str | None
    pairs: int | str | None
    flip: float


class PreferenceOptions(OfflineOptions, ComparedOptions, total=False):
    """The arguments that recipes on preferences with perceptrons take."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Recorded data, the optimizer of what is learned from it, and where that is measured.

    Attributes:
        data: what :func:`~decisionrl.experience.data.open_data` opens: a folder, a local Minari id, a D4RL file, a lab.
        env: where the trained policy is measured; by default what the data's ``info`` names.
        env_options: keyword arguments of the environment; by default those that the data's ``info`` names.
        max_steps: truncate evaluation episodes of as many steps.
        evaluation: False trains without measuring the policy, for want of the environment.
        steps: updates.
        batch: what an update sees: pairs, segments, windows or transitions, as the recipe says.
        learning_rate: of Adam.
        clip_norm: the largest gradient norm.
    """

    data: str = "lab/point"
    env: EnvLike | None = None
    env_options: Mapping[str, Any] | None = None
    max_steps: int | None = None
    evaluation: bool = True
    steps: int = 500_000
    batch: int = 96
    learning_rate: float = 1e-4
    clip_norm: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch=self.batch)
        positive(learning_rate=self.learning_rate)
        if isinstance(self.env, VectorEnv):
            raise ValueError(
                f"env = {env_name(self.env)} is a VectorEnv; valid: an id, or a function that makes one copy"
            )

    @cached_property
    def episodes(self) -> EpisodeStore:
        """The recorded episodes, on the device."""
        return open_data(self.data).to(self.device)

    @property
    def timesteps(self) -> int:
        """Steps of the longest episode, by the data's own numbers of steps if it has such."""
        longest, own = int(self.episodes.length.max()), self.episodes.extras.get("timestep")
        return longest if own is None else max(longest, int(own.max()) + 1)

    def require_boxes(self, what: str) -> None:
        """Refuse data whose observations or actions are no vectors of real numbers.

        Raises:
            DatasetError: they are not.
        """
        for which in ("observation_space", "action_space"):
            if not isinstance(space := getattr(self.episodes, which), spaces.Box):
                raise DatasetError(f"{which} of {self.data} is {space}; valid for {what}: a Box")

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
        at_least(0, warmup=warmup)
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
        at_least(0, cloning_steps=updates)
        last = Phase(learner=learner, begin=begin)
        if not updates:
            return PhasedLearner([last]) if begin else learner
        cloning = self.learner(learner.policy, BehaviorCloning())
        return PhasedLearner([Phase(learner=cloning, updates=updates), last])

    def source(self, draw: Draw) -> DatasetSource:
        """Batches that are drawn from the data."""
        return DatasetSource(draw, seed=self.seed)

    @property
    def environment(self) -> tuple[EnvLike | None, Mapping[str, Any]]:
        """Where the policy is measured, and the environment's keyword arguments; None where nobody names one."""
        if not self.evaluation:
            return None, {}
        info = self.episodes.info
        env, options = self.env, self.env_options
        if env is None:
            env, options = info.get("env"), info.get("env_options") if options is None else options
        return env, options or {}

    def make_world(self, num_envs: int) -> World:
        """Copies of the environment that policies are measured in.

        Raises:
            DatasetError: the data does not fit its spaces, or names an environment that cannot be made here.
        """
        env, options = self.environment
        assert env is not None
        try:
            world = make_world(env, num_envs=num_envs, options=options, max_steps=self.max_steps, device=self.device)
        except (EnvironmentNameError, EnvironmentFault) as error:
            if self.env is not None:
                raise
            raise DatasetError(
                f"{self.data} is from an environment that cannot be made here: {error}; valid: env = one that can, or "
                "evaluation = false"
            ) from error
        check_spaces(self.data, self.episodes, world)
        return world

    def evaluate(self, policy: Any, **how: Any) -> dict[str, Any]:
        """Returns of whole episodes; the normalized score where the data has its two reference scores, and
        ``success_rate``, the mean return, where success is all that is rewarded."""
        result = self._evaluator(policy, **how)
        info = self.episodes.info
        if info.get("random_score") is not None and info.get("expert_score") is not None:
            for name, key in (("normalized_score", "mean_return"), ("score_low", "low"), ("score_high", "high")):
                result[name] = self.episodes.normalized_score(result[key])
        env, options = self.environment
        at_home = env is not None and env_name(env) == info.get("env")
        if options.get("success_reward") or (at_home and info.get("success_reward")):
            result["success_rate"] = result["mean_return"]
        return result

    copies: ClassVar[int] = COPIES
    """Evaluation episodes that are played side by side."""

    @cached_property
    def _evaluator(self) -> ReturnEvaluator:
        return ReturnEvaluator(self.make_world, copies=self.copies)

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
        env, env_options = self.environment
        if env is not None:
            self.make_world(1).close()  # what cannot be measured is told before the training
        config = {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "device"}
        config["env"], config["env_options"] = None if env is None else env_name(env), dict(env_options)
        return Experiment(
            policy=learner.policy,
            source=self.source(draw),
            learner=learner,
            config={"recipe": recipe, **config, **options},
            metadata=metadata,
            evaluate=None if env is None else self.evaluate,
        )


@dataclass(frozen=True, kw_only=True)
class Offline(Recorded):
    """Recorded data, a perceptron and its optimizer.

    Attributes:
        hidden: widths of the hidden layers.
        dropout: in the hidden layers of the policy.
        normalize_observations: by the mean and variance of the data.
    """

    hidden: Sequence[int] = (512, 512)
    dropout: float = 0.25
    normalize_observations: bool = True

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


@dataclass(frozen=True, kw_only=True)
class Preferences(Offline):
    """Recorded segments and what a teacher thinks of them.

    Attributes:
        teacher: whose scores: those that stand beside the data, such as "regret", "return" or "distance"; None: the
            first of them.
        pairs: as many comparisons of random segments, drawn once; a file of ``save_pairs``, such as a person's labels;
            None compares all segments of a batch with each other, the paper's dense data.
        flip: the share of wrong labels among the pairs that are drawn.
        batch: segments, or pairs if there are such.
    """

    teacher: str | None = None
    pairs: int | str | None = None
    flip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flip and not isinstance(self.pairs, int):
            raise ValueError(f"flip = {self.flip}; valid with pairs = a number of comparisons, which it is a share of")
        if isinstance(self.pairs, str) and self.teacher is not None:
            raise ValueError(f"teacher = {self.teacher!r}; valid with pairs = {self.pairs!r}, which has labels: none")

    @cached_property
    def segments(self) -> Segments:
        """The segments with the teacher's scores.

        Raises:
            DatasetError: there are none.
        """
        teacher = self.teacher
        if teacher is None:
            names = open_score_names(self.data)
            if not names:
                raise DatasetError(f"the segments of {self.data} have no score; valid: pairs = a file of comparisons")
            teacher = names[0]
        segments = open_segments(self.data, score=teacher)
        assert segments.score is not None
        return replace(
            segments,
            episodes=self.episodes,
            episode=segments.episode.to(self.device),
            start=segments.start.to(self.device),
            score=segments.score.to(self.device),
        )

    @cached_property
    def comparisons(self) -> PreferencePairs | None:
        """The pairs; None where all segments of a batch are compared.

        Raises:
            DatasetError: the file of pairs cannot be used.
        """
        if self.pairs is None:
            return None
        if isinstance(self.pairs, str):
            try:
                return load_pairs(self.pairs, self.episodes)
            except FileNotFoundError:
                raise DatasetError(f"pairs = {self.pairs!r}: there is no such file; valid: one of save_pairs") from None
        labels = generator(self.seed, "labels")
        return preference_pairs(self.segments, pairs=self.pairs, flip=self.flip, generator=labels)

    @property
    def segment_length(self) -> int:
        """Steps of a segment."""
        return (self.segments if self.comparisons is None else self.comparisons.segments).length

    @cached_property
    def draw(self) -> DensePairs | Pairs:
        """Batches of comparisons."""
        if self.comparisons is None:
            return DensePairs(segments=self.segments, size=self.batch)
        return Pairs(pairs=self.comparisons, size=self.batch)


def _plain(value: Any) -> Any:
    """A sequence as a list, as JSON gives it back."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def at_least(least: int, **numbers: int) -> None:
    """Raise ValueError for a number that is smaller."""
    for name, value in numbers.items():
        if value < least:
            raise ValueError(f"{name} = {value}; valid: a whole number >= {least}")


def positive(**numbers: float) -> None:
    """Raise ValueError for a number that is not positive and finite."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} = {value}; valid: a positive number")


def check_spaces(name: str, episodes: EpisodeStore, world: World) -> None:
    """Raise DatasetError unless a policy of the data's spaces can act in the world."""
    for which in ("observation_space", "action_space"):
        for part, recorded, wanted in _parts(which, getattr(episodes, which), getattr(world, which)):
            if isinstance(recorded, spaces.Dict) and isinstance(wanted, spaces.Dict):
                found, keys = set(recorded), set(wanted)
                raise DatasetError(
                    f"{part} of {name} has the keys {_listed(found)}; valid: {_listed(keys)}, those of {world.name} "
                    f"(missing: {_listed(keys - found)}; too many: {_listed(found - keys)})"
                )
            if not _fits(recorded, wanted, bounded=which == "action_space"):
                raise DatasetError(f"{part} of {name} is {recorded}; valid: {wanted}, that of {world.name}")


def _parts(
    name: str, recorded: spaces.Space[Any], wanted: spaces.Space[Any]
) -> Iterator[tuple[str, spaces.Space[Any], spaces.Space[Any]]]:
    """Two spaces under their name; those of every key instead where both are Dicts of the same keys."""
    if isinstance(recorded, spaces.Dict) and isinstance(wanted, spaces.Dict) and set(recorded) == set(wanted):
        for key in recorded:
            yield from _parts(f"{name}[{key!r}]", recorded[key], wanted[key])
    else:
        yield name, recorded, wanted


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _fits(recorded: spaces.Space[Any], wanted: spaces.Space[Any], *, bounded: bool) -> bool:
    """Boxes of one shape fit, with ``bounded`` if the recorded one lies within; other spaces must be equal."""
    if not (isinstance(recorded, spaces.Box) and isinstance(wanted, spaces.Box)):
        return recorded == wanted
    if recorded.shape != wanted.shape:
        return False
    within = (recorded.low >= wanted.low - TOLERANCE) & (recorded.high <= wanted.high + TOLERANCE)
    return not bounded or bool(within.all())


def rising(updates: int) -> Callable[[int], float]:
    """A factor that is 0 at the first update, 1 at update ``updates`` and straight between; 1 always if that is 0."""
    return lambda done: min(1.0, done / updates) if updates else 1.0


def cosine(updates: int, *, warmup: int = 0) -> Callable[[int], float]:
    """A factor that rises as :func:`rising` does and then falls on half a cosine, to 0 after update ``updates``."""
    rise = rising(warmup)

    def factor(done: int) -> float:
        share = min(1.0, max(0, done - warmup) / max(1, updates - warmup))
        return rise(done) * 0.5 * (1 + math.cos(math.pi * share))

    return factor


def linear_warmup(optimizer: torch.optim.Optimizer, updates: int) -> LambdaLR:
    """From 0 at the first update up to the learning rate at update ``updates``, constant from there."""
    return LambdaLR(optimizer, rising(updates))
