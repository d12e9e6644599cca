"""Sequences with log-probabilities that a test chooses, a policy that is a table of logits, and pairs of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Loss
from decisionrl.objectives.preference_methods import METHODS, PreferenceObjective, build
from decisionrl.policies.evaluation import Batch, Evaluation

ARGUMENTS: dict[str, dict[str, Any]] = {"kto": {"baseline": "zero"}}
"""What a method needs beyond its defaults on pairs."""

EVERY_METHOD = sorted(METHODS)


def every_objective(name: str) -> PreferenceObjective:
    return build(name, **ARGUMENTS.get(name, {}))


class Stated(nn.Module):
    """Says of every batch the log-probabilities [n, t] that it was given, which are its parameter."""

    def __init__(self, log_prob: Tensor) -> None:
        super().__init__()
        self.log_prob = nn.Parameter(log_prob.clone())

    def evaluate(self, batch: Batch, /) -> Evaluation:
        return Evaluation(self.log_prob)


class Table(nn.Module):
    """A softmax over actions for every state; observations and actions are integers [n, t]."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def evaluate(self, batch: Batch, /) -> Evaluation:
        assert isinstance(batch.observation, Tensor)
        log_prob = self.logits.log_softmax(-1)[batch.observation]
        return Evaluation(log_prob.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1))


def sequences(
    mask: Tensor, *, extras: dict[str, Tensor] | None = None, observation: Tensor | None = None, **fields: Any
) -> Trajectories:
    """Trajectories of this mask [n, t], of which preferences read little more."""
    numbers = torch.zeros(mask.shape, dtype=torch.float64)
    return Trajectories(
        observation=torch.zeros_like(mask, dtype=torch.long) if observation is None else observation,
        action=fields.pop("action", torch.zeros_like(mask, dtype=torch.long)),
        reward=numbers,
        mask=mask,
        log_prob=numbers,
        terminated=torch.zeros_like(mask),
        truncated=torch.zeros_like(mask),
        extras=extras or {},
        **fields,
    )


def batch_of(
    mask: Tensor,
    label: Sequence[float],
    *,
    extras: dict[str, Tensor] | None = None,
    weight: Sequence[float] | None = None,
    score: Tensor | None = None,
) -> PreferenceBatch:
    """Rows 0 to n - 1 against rows n to 2 n - 1."""
    first = torch.arange(len(label))
    return PreferenceBatch(
        segments=sequences(mask, extras=extras),
        first=first,
        second=first + len(label),
        label=torch.tensor(label, dtype=torch.float64),
        weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
        score=score,
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_case(
    label: Sequence[float] = (1.0, 0.0, 1.0, 0.3), *, steps: int = 5, seed: int = 0, same: bool = False
) -> tuple[Stated, PreferenceBatch]:
    """A policy and pairs of sequences of different lengths, with every extra that a method may want.

    same: the reference says what the policy says.
    """
    rows = 2 * len(label)
    log_prob = -drawn(rows, steps, seed=seed).abs() - 0.1
    reference = log_prob if same else -drawn(rows, steps, seed=seed + 1).abs() - 0.1
    length = 1 + torch.arange(rows) % steps
    extras = {
        "reference_log_prob": reference,
        "log_expected_prob": -drawn(rows, steps, seed=seed + 2).abs(),
        "forward_kl": drawn(rows, steps, seed=seed + 3).abs(),
        "win_probability": torch.linspace(0.1, 0.9, rows, dtype=torch.float64),
    }
    mask = torch.arange(steps) < length.unsqueeze(1)
    score = drawn(rows, seed=seed + 4)
    return Stated(log_prob), batch_of(mask, label, extras=extras, score=score)


def loss_and_gradient(objective: PreferenceObjective, policy: Stated, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """The value of the loss and its gradient in the log-probabilities [n, t]."""
    loss: Loss = objective(policy, batch)
    (gradient,) = torch.autograd.grad(loss.value, policy.log_prob)
    return loss.value.detach(), gradient
