"""How close a policy's samples are to demonstrations that it was not trained on."""

from __future__ import annotations

from typing import TypedDict

import torch

from decisionrl.experience.context_windows import ContextWindows
from decisionrl.modes import evaluating
from decisionrl.policies.diffusion import DiffusionPolicy
from decisionrl.seeding import generator


class TokenErrors(TypedDict):
    """Mean squared errors over windows and action dimensions, in normalized units.

    executed: of the present action. past: of the past tokens, trained or not; None for a policy without any.
    """

    executed: float
    past: float | None


@torch.no_grad()
def token_errors(policy: DiffusionPolicy, windows: ContextWindows, *, seed: int = 0) -> TokenErrors:
    """``mean (a_hat - a)^2`` of one sample a_hat for every window, in evaluation mode.

    It compares policies whose losses are taken over different tokens (with or without past-token prediction,
    arXiv 2505.09561), before any episode is played. All windows count, ``size`` at a time; by default every recorded
    step is the present one of one of them. One sample is drawn for each, however many candidates the policy weighs up
    when it acts.

    Args:
        policy: of diffusion or regression.
        windows: of held-out episodes, on the policy's device.
        seed: of the samples.

    Raises:
        ValueError: the windows have another context than the policy.
    """
    if windows.context != policy.context:
        raise ValueError(f"windows: {windows.context}; valid: {policy.context}, as the policy has")
    device = windows.episodes.length.device
    seeds = policy.sample_noise((len(windows),), generator(seed, "token_errors"))
    total = torch.zeros(policy.tokens, dtype=torch.float64, device=device)
    with evaluating(policy):
        for index in torch.split(torch.arange(len(windows), device=device), windows.size):
            observation, action = windows.windows(index)
            tokens = policy.sample(policy.features(observation), seeds[index])[:, 0]
            total += (tokens - policy.action_tokens(action)).double().square().mean(2).sum(0)
    error = (total / len(windows)).tolist()
    past = error[: policy.present]
    return TokenErrors(executed=error[policy.present], past=sum(past) / len(past) if past else None)
