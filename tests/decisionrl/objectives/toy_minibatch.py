"""A minibatch made of plain tensors, and a policy that says of it what it is told."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.adaptive_clipping import BalancedClip, DynamicClip
from decisionrl.objectives.heterogeneous import HeterogeneousClip
from decisionrl.objectives.sequence_ratios import SequenceClip
from decisionrl.objectives.surrogates import CISPO, Clip, Reinforce, SoftGate
from decisionrl.objectives.terms import Surrogate, Terms
from decisionrl.policies.evaluation import Batch, Evaluation, Head

EVERY_SURROGATE: list[Surrogate] = [
    Reinforce(),
    Clip(),
    Clip(low=0.2, high=0.28, dual=3.0),
    CISPO(),
    CISPO(low=0.2, high=0.2),
    SoftGate(),
    SequenceClip(),
    SequenceClip(low=0.2, high=0.2, dual=3.0),
    SequenceClip(token_gradient=False),
    BalancedClip(),
    BalancedClip(old_probability=False, order="low_first", contribution="active_gradient", dual=3.0),
    DynamicClip(),
    HeterogeneousClip(beta=0.0),
    HeterogeneousClip(released_sign=True),
]


@dataclass
class Told:
    """A policy that evaluates every batch to the same."""

    evaluation: Evaluation

    def evaluate(self, batch: Batch, /) -> Evaluation:
        return self.evaluation


def tensor(values: Sequence[object]) -> Tensor:
    """float64 [batch, step]; a flat list is one row."""
    result = torch.tensor(values, dtype=torch.float64)
    return result if result.dim() == 2 else result.unsqueeze(0)


def trajectories(log_prob: Tensor, advantage: Tensor, mask: Tensor | None = None, **fields: object) -> Trajectories:
    """Trajectories with that log-probability at collection."""
    none = torch.zeros_like(log_prob, dtype=torch.bool)
    return Trajectories(
        observation=torch.zeros_like(log_prob),
        action=torch.zeros_like(log_prob),
        reward=torch.zeros_like(log_prob),
        mask=~none if mask is None else mask,
        log_prob=log_prob,
        terminated=none,
        truncated=none,
        advantage=advantage,
        **fields,  # type: ignore[arg-type]
    )


def terms_of(
    ratio: Tensor,
    advantage: Tensor,
    *,
    mask: Tensor | None = None,
    old_log_prob: Tensor | None = None,
    entropy: Tensor | None = None,
    head: Head | None = None,
    **fields: object,
) -> Terms:
    """Terms whose ratios are those given; their log_prob is a leaf."""
    old = torch.full_like(ratio, -1.0) if old_log_prob is None else old_log_prob
    batch = trajectories(old, advantage, mask, **fields)
    log_prob = (old + ratio.log()).requires_grad_()
    return Terms(Evaluation(log_prob, entropy, None, head), batch, advantage, batch.mask)


def random_terms(
    rows: int, columns: int, *, seed: int = 0, spread: float = 0.4, advantage_per: str = "step", padded: bool = True
) -> Terms:
    """Rows of random lengths, of which the first has all steps; garbage at the padding."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.ones(rows, columns, dtype=torch.bool)
    if padded:
        lengths = torch.randint(1, columns + 1, (rows,), generator=generator)
        lengths[0] = columns
        mask = torch.arange(columns) < lengths.unsqueeze(1)
    old = -0.1 - normal(rows, columns).abs()
    log_prob = old + spread * normal(rows, columns)
    advantage = normal(rows, columns if advantage_per == "step" else 1).expand(rows, columns).clone()
    entropy = normal(rows, columns).exp()
    garbage = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    for each in (old, log_prob, advantage, entropy):
        each[~mask] = garbage[torch.arange(int((~mask).sum())) % 3]
    batch = trajectories(old, advantage, mask)
    return Terms(Evaluation(log_prob.requires_grad_(), entropy.requires_grad_()), batch, advantage, mask)
