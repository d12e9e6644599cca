"""What the recipes of diffusion policies share: demonstrations, the context, the network, its averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from gymnasium import spaces
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.composition import AveragedLearner
from decisionrl.ema import PowerAverage
from decisionrl.experience.context_windows import ContextWindows
from decisionrl.experience.store import DatasetError
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.objectives.denoising import denoising, regression
from decisionrl.policies.action_normalizer import LinearNormalizer
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, PAPER, DiffusionPolicy, DiffusionSettings, PastTokens
from decisionrl.policies.diffusion_unet import DiffusionUnetSizes
from decisionrl.recipes.offline import DataOptions, Offline, at_least, cosine
from decisionrl.seeding import generator

Network = Literal["transformer", "unet"]
Head = Literal["diffusion", "regression"]
Sizes = Literal["paper", "cpu"]

SETTINGS: Mapping[tuple[str, str], DiffusionSettings] = {
    ("transformer", "paper"): PAPER,
    ("transformer", "cpu"): CPU,
    ("unet", "paper"): replace(PAPER, network=DiffusionUnetSizes()),
    ("unet", "cpu"): replace(CPU, network=DiffusionUnetSizes(channels=(32, 64), step_width=32)),
}
"""By network and size."""

BETAS: Mapping[str, tuple[float, float]] = {"transformer": (0.9, 0.95), "unet": (0.95, 0.999)}
"""Of AdamW, by network."""


class DiffusionOptions(DataOptions, total=False):
    """The arguments that the recipes of diffusion policies take; see :class:`Demonstrations` for what they mean."""

    sizes: Sizes
    warmup: int
    weight_decay: float
    encoder_decay: float
    constant_actions: Literal["error", "center"]


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Offline):
    """Recorded demonstrations, a diffusion policy and its optimizer; the defaults are the paper's (arXiv 2505.09561).

    Attributes:
        sizes: "paper", or "cpu" for small problems.
        warmup: updates in which the learning rate rises from 0; then it falls on half a cosine to 0 at the end.
        weight_decay, encoder_decay: of AdamW, on the matrices of the network and of the encoder.
        constant_actions: what to do about an action dimension that never changes in the data: "error" refuses it,
            "center" moves it to 0.
    """

    data: str = "lab/return-side"
    batch: int = 64
    sizes: Sizes = "paper"
    warmup: int = 1000
    weight_decay: float = 1e-3
    encoder_decay: float = 1e-6
    constant_actions: Literal["error", "center"] = "error"

    copies: ClassVar[int] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, warmup=self.warmup)
        if self.sizes not in get_args(Sizes):
            raise ValueError(f"sizes = {self.sizes!r}; valid: {', '.join(get_args(Sizes))}")

    def diffusion_policy(
        self,
        *,
        context: Context,
        past_tokens: PastTokens,
        network: Network,
        past_steps: int | None = None,
        head: Head = "diffusion",
        action_steps: int = 1,
        candidates: int = 1,
    ) -> DiffusionPolicy:
        """The policy, its normalizers fitted to the data.

        Raises:
            DatasetError: actions are no Box of floats, or a dimension of them is constant.
            ValueError: an option has no valid value.
        """
        if network not in get_args(Network):
            raise ValueError(f"network = {network!r}; valid: {', '.join(get_args(Network))}")
        episodes = self.episodes
        if not isinstance(episodes.action_space, spaces.Box):
            raise DatasetError(f"action_space of {self.data} is {episodes.action_space}; valid for diffusion: a Box")
        policy = DiffusionPolicy(
            episodes.observation_space,
            episodes.action_space,
            context=context,
            past_tokens=past_tokens,
            past_steps=past_steps,
            head=head,
            settings=SETTINGS[network, self.sizes],
            action_steps=action_steps,
            candidates=candidates,
            action_normalizer=LinearNormalizer((episodes.action[0].numel(),), constant=self.constant_actions),
            generator=generator(self.seed, "policy"),
        ).to(self.device)
        try:
            policy.fit_normalizers(episodes.observation, episodes.action)
        except ValueError as error:
            raise DatasetError(f"actions of {self.data}: {error}") from error
        return policy

    def averaged(self, policy: DiffusionPolicy, *, network: Network) -> AveragedLearner:
        """AdamW steps on the loss of the policy's head, and the average of its weights that acts."""
        groups = policy.parameter_groups(weight_decay=self.weight_decay, encoder_decay=self.encoder_decay)
        optimizer = torch.optim.AdamW(groups, self.learning_rate, betas=BETAS[network], fused=True)
        schedule = LambdaLR(optimizer, cosine(self.steps, warmup=self.warmup))
        learner = GradientLearner(
            policy,
            regression if policy.schedule is None else denoising,
            optimizer,
            clip_norm=self.clip_norm,
            components={"schedule": schedule},
            after_update=[schedule.step],
        )
        return AveragedLearner(learner, PowerAverage(policy))

    def trained(
        self,
        recipe: str,
        policy: DiffusionPolicy,
        *,
        network: Network,
        about: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Experiment:
        """Training on all windows of the demonstrations, each step being the present one of one of them."""
        return self.experiment(
            recipe,
            learner=self.averaged(policy, network=network),
            draw=ContextWindows(episodes=self.episodes, context=policy.context, size=self.batch),
            metadata=about,
            options=options,
        )
