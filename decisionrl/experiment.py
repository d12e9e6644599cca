"""What a recipe returns: the parts of a run, ready for a Trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from decisionrl.experience.source import Source
from decisionrl.learner import Learner

if TYPE_CHECKING:
    from decisionrl.callbacks import Callback


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A policy, where its experience comes from, and how it learns from it.

    Attributes:
        policy: the policy under training, the same object as ``learner.policy``.
        source: yields the batches.
        learner: improves the policy from each batch.
        callbacks: what the recipe itself needs each step, such as a learning-rate schedule. The caller's own
            callbacks (progress, checkpoints) are given to the Trainer.
        config: every resolved setting as JSON-like plain values. A run is resumed only with an equal config.
        metadata: about the recipe: title, arXiv id, what it changes.
        evaluate: ``evaluate(policy, episodes=N, seed=S)`` measures a policy in the recipe's world and returns
            plain values: ``mean_return`` or ``mean_cost``, ``low``, ``high``, ``episodes``, and where a
            reference is known ``reference``, ``reference_kind`` and ``gap``.
    """

    policy: nn.Module
    source: Source
    learner: Learner
    callbacks: tuple["Callback", ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Callable[..., dict[str, Any]] | None = None
