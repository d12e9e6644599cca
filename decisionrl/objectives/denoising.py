"""Losses of diffusion policies over action tokens, of which only those that the policy trains count."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.experience.context_windows import ContextBatch
from decisionrl.learner import Loss
from decisionrl.policies.diffusion import DiffusionPolicy


def denoising(policy: DiffusionPolicy, batch: ContextBatch, /) -> Loss:
    """``mean (net(A_k, k, C) - target)^2`` over rows, trained tokens and action dimensions (arXiv 2303.04137).

    A are the actions in normalized units, C the encoded observations, ``k = floor(K level)`` one diffusion step for all
    tokens of a row, ``A_k = sqrt(abar_k) A + sqrt(1 - abar_k) eps`` at every token, past ones too, and the target is
    eps or A. Trained are all tokens with past-token prediction (arXiv 2505.09561), or the last m past tokens and those
    from the present one on, or the latter only. Past and future tokens weigh the same.

    Raises:
        ValueError: the policy has a head for regression.
    """
    schedule = policy.schedule
    if schedule is None:
        raise ValueError("head = 'regression'; valid for denoising: head = 'diffusion'")
    actions, noise = policy.action_tokens(batch.action), policy.own_tokens(batch.noise)
    step = (batch.level * schedule.train_steps).long()
    memory = policy.network.encode(policy.features(batch.observation))
    output = policy.network(schedule.add_noise(actions, noise, step), step, memory)
    return _token_loss(policy, output, schedule.target(actions, noise))


def regression(policy: DiffusionPolicy, batch: ContextBatch, /) -> Loss:
    """``mean (net(0, 0, C) - A)^2`` over the same tokens: the network without diffusion (arXiv 2505.09561).

    Raises:
        ValueError: the policy has a head for diffusion.
    """
    if policy.schedule is not None:
        raise ValueError("head = 'diffusion'; valid for regression: head = 'regression'")
    actions = policy.action_tokens(batch.action)
    step = torch.zeros(len(actions), dtype=torch.long, device=actions.device)
    memory = policy.network.encode(policy.features(batch.observation))
    return _token_loss(policy, policy.network(torch.zeros_like(actions), step, memory), actions)


def _token_loss(
    policy: DiffusionPolicy, output: Float[Tensor, "batch token Da"], target: Float[Tensor, "batch token Da"]
) -> Loss:
    """With the errors of the tokens before the present one, trained or not, and from there on as metrics."""
    error = (output - target).square()
    metrics = {"future_error": error[:, policy.present :].mean()}
    if policy.present:
        metrics["past_error"] = error[:, : policy.present].mean()
    return Loss(error[:, policy.first_trained :].mean(), metrics)
