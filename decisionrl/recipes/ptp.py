"""Past-token prediction (arXiv 2505.09561): a diffusion policy with a long context."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experiment import Experiment
from decisionrl.policies.context import Context, Spread
from decisionrl.policies.diffusion import DiffusionPolicy, PastTokens
from decisionrl.policies.encoded import EncodedPolicy
from decisionrl.policies.encoders import Flat
from decisionrl.recipes.control import own_options
from decisionrl.recipes.diffusion import Demonstrations, DiffusionOptions, DiffusionParts, Head, Network
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
    encoder: str | None = None,
    cache: str | None = None,
    **common: Unpack[DiffusionOptions],
) -> Experiment:
    """Denoising of ``observations - 1`` past actions, the present one and ``future - 1`` after it, given the context.

    past_tokens: "predict" trains all of them, or with ``past_steps`` the last so many past ones; "unsupervised" is the
    paper's baseline, "absent" a decoder of the present and the future. stride, spread: which frames are seen.
    candidates: samples at every decision, of which the one is executed that remembers best.

    encoder: the folder of a run of ``diffusion_policy`` on this data, whose encoder is kept as it is: every frame is
    embedded once, and the rest is trained on embeddings (multistage training). cache: a file that keeps them for the
    next time; without one they are made anew.
    """
    options = own_options(locals())
    demonstrations = Demonstrations(**common)
    if cache is not None and encoder is None:
        raise ValueError(f"cache = {cache!r}; valid with encoder = a run whose encoder is kept: none without")
    parts: DiffusionParts = {
        "context": Context(observations=observations, future=future, stride=stride, spread=spread),
        "past_tokens": past_tokens,
        "past_steps": past_steps,
        "head": head,
        "action_steps": action_steps,
        "candidates": candidates,
    }
    policy: DiffusionPolicy | EncodedPolicy
    if encoder is None:
        episodes = demonstrations.episodes
        policy = acting = demonstrations.policy_on(episodes, network=network, **parts)
    else:
        short = demonstrations.trained_encoder(encoder)
        episodes = demonstrations.embeddings(short, cache)
        acting = demonstrations.policy_on(episodes, network=network, encoder=Flat((short.features,)), **parts)
        policy = EncodedPolicy(short, acting)
    return demonstrations.experiment(
        "ptp",
        learner=demonstrations.averaged(policy, network=network),
        draw=ContextWindows(episodes=episodes, context=acting.context, size=demonstrations.batch),
        metadata=METADATA,
        options=options,
    )
