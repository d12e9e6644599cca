"""Diffusion policy (arXiv 2303.04137): short context, several actions at a time."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experiment import Experiment
from decisionrl.policies.context import Context
from decisionrl.recipes.control import own_options
from decisionrl.recipes.diffusion import Demonstrations, DiffusionOptions, Head, Network
from decisionrl.recipes.offline_presets import tuned_on_demonstrations

METADATA = {
    "title": "Diffusion policy",
    "arxiv": "2303.04137",
    "changes": "actions of a few steps by denoising, given the last observations; executed in chunks",
    "limit": "head = regression, action_steps = 1: behavior cloning with the squared error",
    "kinds": "recorded demonstrations",
}


@tuned_on_demonstrations
def diffusion_policy(
    *,
    observations: int = 2,
    future: int = 15,
    head: Head = "diffusion",
    network: Network = "unet",
    action_steps: int = 8,
    **common: Unpack[DiffusionOptions],
) -> Experiment:
    """Denoising of ``observations - 1 + future`` actions; ``action_steps`` are executed, from the present one on.

    The loss counts all of them, those before the present one too, as the original's does. With ``network =
    "transformer"`` and ``action_steps = 1`` it is the short-context policy whose encoder past-token prediction keeps.
    """
    options = own_options(locals())
    demonstrations = Demonstrations(**common)
    policy = demonstrations.policy_on(
        demonstrations.episodes,
        context=Context(observations=observations, future=future),
        past_tokens="predict",
        head=head,
        network=network,
        action_steps=action_steps,
    )
    return demonstrations.experiment(
        "diffusion_policy",
        learner=demonstrations.averaged(policy, network=network),
        draw=ContextWindows(episodes=demonstrations.episodes, context=policy.context, size=demonstrations.batch),
        metadata=METADATA,
        options=options,
    )
