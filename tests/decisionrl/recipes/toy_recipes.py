"""Tiny experiments of every recipe, and one batch of raw experience that all of them can be given."""

import inspect
from typing import Any

import torch
from torch import Tensor

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experience.rollouts import RolloutSource
from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.learner import Objective
from decisionrl.minibatches import MinibatchLearner
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.recipes import ON_ENVIRONMENTS, recipe

NAMES = [*ON_ENVIRONMENTS]
"""The recipes on environments."""

SIZES = {
    "num_envs": 2,
    "hidden": [8],
    "groups": 2,
    "group_size": 3,
    "episodes": 3,
    "num_starts": 6,
    "horizon": 16,
    "budget": 7,
    "base_size": 2,
    "epochs": 2,
    "max_rounds": 2,
    "interval": 8,
    "rollouts": 2,
    "learning_rate": 0.01,
}

WITH_CRITIC = ["sapo", "bapo", "dcpo", "capo", "d3s", "hapo"]
"""Recipes with the argument ``base``."""


def tiny(name: str, **arguments: Any) -> Experiment:
    """The recipe on CartPole with networks, groups and windows as small as can be."""
    function = recipe(name)
    own = {*inspect.signature(function).parameters, "num_envs", "hidden", "learning_rate"}
    sizes = {key: value for key, value in SIZES.items() if key in own}
    return function(**{"env": "CartPole-v1", "seed": 1, **sizes, **arguments})


def updates(experiment: Experiment, count: int) -> list[dict[str, Tensor]]:
    """The metrics of that many updates."""
    metrics = []
    for _ in range(count):
        update = experiment.learner.update(experiment.source.sample())
        experiment.source.observe(update)
        metrics.append(update.metrics)
    return metrics


def episodes(seed: int = 0) -> Trajectories:
    """12 episodes from 3 starts, in float64, with all that any recipe reads; random rewards, so that none are equal."""
    experiment = tiny("grpo", seed=seed)
    assert isinstance(experiment.source, EpisodeSource)
    source = EpisodeSource(
        experiment.source.world, experiment.source.policy, starts=FreshStarts(groups=3, group_size=4), seed=seed
    )
    batch = doubled(source.sample())
    generator = torch.Generator().manual_seed(seed)
    shape, rows = batch.mask.shape, batch.num_sequences
    extras = {
        "greedy_return": torch.randn(rows, generator=generator, dtype=torch.float64)[batch.group],
        "cut": batch.mask & (torch.rand(shape, generator=generator) < 0.3),
        "state_value": torch.randn(shape, generator=generator, dtype=torch.float64),
    }
    return batch.replace(
        reward=torch.rand(shape, generator=generator, dtype=torch.float64),
        value=torch.randn(shape, generator=generator, dtype=torch.float64),
        extras=extras,
    )


def streams(seed: int = 0) -> Trajectories:
    """Windows of 64 steps of 2 copies, in float64, under the tiny policies with a critic."""
    experiment = tiny("ppo", seed=seed)
    assert isinstance(experiment.source, RolloutSource)
    source = RolloutSource(experiment.source.world, experiment.source.policy, horizon=64, seed=seed)
    return doubled(source.sample())


def raw(experiment: Experiment) -> Trajectories:
    """The kind of experience that the experiment learns from."""
    return streams() if isinstance(experiment.source, RolloutSource) else episodes()


def doubled(batch: Trajectories) -> Trajectories:
    """In float64."""
    return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def gradient(experiment: Experiment, batch: Trajectories, *, moved: float = 0.3) -> Tensor:
    """Of the experiment's first update on this raw batch in one minibatch, after the policy has moved by that much."""
    assert isinstance(experiment.source, EpisodeSource | RolloutSource)
    assert isinstance(experiment.learner, MinibatchLearner)
    objective = experiment.learner.learner._objective
    return gradient_of(
        experiment, objective, experiment.source.pipeline, batch, unit=experiment.learner.unit, moved=moved
    )


def gradient_of(
    experiment: Experiment,
    objective: Objective | PolicyGradient,
    pipeline: tuple[PipelineStep, ...],
    batch: Trajectories,
    *,
    unit: str = "sequence",
    moved: float = 0.3,
) -> Tensor:
    """The same with another objective and pipeline; the experiment lends its policy, which stays as it was."""
    weights = {name: value.clone() for name, value in experiment.policy.state_dict().items()}
    policy: Any = experiment.policy.double()
    try:
        with torch.no_grad():
            now = policy.evaluate(batch)
            batch = batch.replace(log_prob=torch.where(batch.mask, now.log_prob, batch.log_prob))
            for step in pipeline:
                batch = step(batch)
            generator = torch.Generator().manual_seed(3)
            for parameter in policy.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise, alpha=moved)
        loss = objective(policy, batch.flat() if unit == "step" else batch).value
        parts = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])
    finally:
        policy.float().load_state_dict(weights)
