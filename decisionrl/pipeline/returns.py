"""Rewards to go, generalized advantages and their statistics: functions of tensors [batch, step].

Steps where ``mask`` is False are passed over, whatever stands there: a return or trace goes through them unchanged.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories


def accumulated(addend: Float[Tensor, "*batch step"], decay: Float[Tensor, "*batch step"]) -> Tensor:
    """x with ``x_t = addend_t + decay_t x_{t+1}`` and x = 0 after the end.

    By doubling: after k rounds x_t holds the sum over the 2^k steps from t on. That is log2(steps) operations on whole
    tensors rather than one for every step.
    """
    steps = addend.shape[-1]
    total = addend.clone()
    span = 1
    while span < steps:
        total[..., :-span] += decay[..., : steps - span] * total[..., span:]
        decay = decay[..., :-span] * decay[..., span:]
        span *= 2
    return total


def latest(flag: Bool[Tensor, "batch step"]) -> Int[Tensor, "batch step"]:
    """The last step at or before t where the flag is set; -1 if there is none."""
    return torch.where(flag, torch.arange(flag.shape[1], device=flag.device), -1).cummax(1).values


def following(flag: Bool[Tensor, "batch step"]) -> Int[Tensor, "batch step"]:
    """The first step after t where the flag is set; the number of steps if there is none."""
    steps = flag.shape[1]
    marked = torch.where(flag, torch.arange(steps, device=flag.device), steps)
    at_or_after = marked.flip(1).cummin(1).values.flip(1)
    return torch.nn.functional.pad(at_or_after[:, 1:], (0, 1), value=steps)


def final_step(mask: Bool[Tensor, "batch step"]) -> Bool[Tensor, "batch step"]:
    """True at the last step of every row's mask."""
    return mask & (following(mask) == mask.shape[1])


def next_values(
    value: Float[Tensor, "batch step"], mask: Bool[Tensor, "batch step"], final_value: Float[Tensor, " batch"]
) -> Float[Tensor, "batch step"]:
    """V(s_{t+1}) for rows that are one sequence each: V at the next step of the mask, ``final_value`` after the last.

    Not for rows in which episodes end: behind a truncation it would read the V of another episode.
    """
    return torch.cat([value, final_value.unsqueeze(1)], 1).gather(1, following(mask))


def rewards_to_go(
    reward: Float[Tensor, "batch step"],
    mask: Bool[Tensor, "batch step"],
    done: Bool[Tensor, "batch step"],
    gamma: float = 1.0,
) -> Float[Tensor, "batch step"]:
    """``G_t = r_t + gamma G_{t+1}``, without the second term where ``done``; at masked steps G of the next step."""
    decay = torch.where(done, 0.0, torch.full_like(reward, gamma))
    return accumulated(torch.where(mask, reward, 0.0), torch.where(mask, decay, 1.0))


def generalized_advantages(
    reward: Float[Tensor, "batch step"],
    value: Float[Tensor, "batch step"],
    next_value: Float[Tensor, "batch step"],
    terminated: Bool[Tensor, "batch step"],
    truncated: Bool[Tensor, "batch step"],
    mask: Bool[Tensor, "batch step"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "batch step"]:
    """``A_t = delta_t + gamma lam A_{t+1}`` (arXiv 1506.02438, eq. 16), ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``.

    V(s_{t+1}) is 0 where the episode terminated; the trace ends where it terminated or was truncated. At masked steps
    A is that of the next step.
    """
    delta = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    decay = torch.where(terminated | truncated, 0.0, torch.full_like(reward, gamma * lam))
    return accumulated(torch.where(mask, delta, 0.0), torch.where(mask, decay, 1.0))


def outcomes(
    reward: Float[Tensor, "batch step"], mask: Bool[Tensor, "batch step"], gamma: float = 1.0
) -> Float[Tensor, " batch"]:
    """R of every row: the sum of its rewards, each times gamma to the number of the policy's steps before it."""
    if gamma != 1:
        reward = reward * gamma ** (mask.cumsum(1) - 1).clamp(min=0)
    return torch.where(mask, reward, 0.0).sum(1)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """``(x - mean) / sqrt(var + 1e-8)`` over the mask, with the unbiased variance; 0 elsewhere."""
    count = mask.sum()
    mean = torch.where(mask, values, 0.0).sum() / count.clamp(min=1)
    centered = torch.where(mask, values - mean, 0.0)
    return centered * (centered.square().sum() / (count - 1).clamp(min=1) + 1e-8).rsqrt()


def with_advantage(batch: Trajectories, advantage: Tensor, returns: Tensor | None = None) -> Trajectories:
    """The trajectories with this advantage, [batch, step] or [batch, 1], and returns; 0 at masked steps, no graph."""
    changes = {"advantage": advantage} if returns is None else {"advantage": advantage, "returns": returns}
    return batch.replace(**{name: torch.where(batch.mask, each, 0.0).detach() for name, each in changes.items()})
