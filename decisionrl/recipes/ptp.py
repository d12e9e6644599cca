"""Past-token prediction (arXiv 2505.09561): a diffusion policy with a long context."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.policies.context import Context, Spread
from decisionrl.policies.diffusion import PastTokens
from decisionrl.recipes.control import own_options
from decisionrl.recipes.diffusion import Demonstrations, DiffusionOptions, Head, Network
from decisionrl.recipes.offline_presets import tuned_on_demonstrations

METADATA = {
    "title": "Past-token prediction: long-context diffusion policies",
    "arxiv": "2505.09561",
    "changes": "the decoder is trained on the actions of the whole context, past ones too; samples are checked by them",
    "limit": "observations = 1: diffusion policy of one observation, whatever past_tokens",
    "kinds": "recorded demonstrations",
}


@tuned_on_demonstrations
def ptp(
    *,
    observations: int = 16,
    future: int = 17,
    stride: int = 1,
    spread: Spread = "even",
    past_tokens: PastTokens = "predict",
    past_steps: int | None = None,
    head: Head = "diffusion",
    network: Network = "transformer",
    action_steps: int = 1,
    candidates: int = 1,
    **common: Unpack[DiffusionOptions],
) -> Experiment:
    """Denoising of ``observations - 1`` past actions, the present one and ``future - 1`` after it, given the context.

    past_tokens: "predict" trains all of them, or with ``past_steps`` the last so many past ones; "unsupervised" is the
    paper's baseline, "absent" a decoder of the present and the future. stride, spread: which frames are seen.
    candidates: samples at every decision, of which the one is executed that remembers best.
    """
    options = own_options(locals())
    demonstrations = Demonstrations(**common)
    policy = demonstrations.diffusion_policy(
        context=Context(observations=observations, future=future, stride=stride, spread=spread),
        past_tokens=past_tokens,
        past_steps=past_steps,
        head=head,
        network=network,
        action_steps=action_steps,
        candidates=candidates,
    )
    return demonstrations.trained("ptp", policy, network=network, about=METADATA, options=options)
