"""What the recipes of diffusion policies share: demonstrations, the context, the network, its averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
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
from decisionrl.policies.action_normalizer import ConstantDimensionsError, LinearNormalizer
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, PAPER, DiffusionPolicy, DiffusionSettings, PastTokens
from decisionrl.policies.diffusion_unet import DiffusionUnetSizes
from decisionrl.recipes.offline import DataOptions, Recorded, at_least, cosine
from decisionrl.seeding import generator

Network = Literal["transformer", "unet"]
Head = Literal["diffusion", "regression"]
Sizes = Literal["paper", "cpu"]
ConstantActions = Literal["error", "center"]

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
    constant_actions: ConstantActions


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Recorded):
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
    constant_actions: ConstantActions = "error"

    copies: ClassVar[int] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, warmup=self.warmup)
        for name in ("weight_decay", "encoder_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}; valid: a number >= 0")
        _one_of(Sizes, sizes=self.sizes)
        _one_of(ConstantActions, constant_actions=self.constant_actions)

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
        _one_of(Network, network=network)
        settings = SETTINGS[network, self.sizes]
        if isinstance(settings.network, DiffusionUnetSizes):
            self._check_halving(context, past_tokens, multiple=2 ** (len(settings.network.channels) - 1))
        episodes, actions = self.episodes, self.episodes.action_space
        if not isinstance(actions, spaces.Box) or not np.issubdtype(actions.dtype, np.floating):
            raise DatasetError(f"action_space of {self.data} is {actions}; valid for diffusion: a Box of floats")
        policy = DiffusionPolicy(
            episodes.observation_space,
            actions,
            context=context,
            past_tokens=past_tokens,
            past_steps=past_steps,
            head=head,
            settings=settings,
            action_steps=action_steps,
            candidates=candidates,
            action_normalizer=LinearNormalizer((episodes.action[0].numel(),), constant=self.constant_actions),
            generator=generator(self.seed, "policy"),
        ).to(self.device)
        try:
            policy.fit_normalizers(episodes.observation, episodes.action)
        except ConstantDimensionsError as error:
            raise DatasetError(
                f"action of {self.data} never changes in dimensions {error.dimensions}; valid: actions that vary in "
                "every dimension, or constant_actions = 'center'"
            ) from error
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

    def _check_halving(self, context: Context, past_tokens: PastTokens, *, multiple: int) -> None:
        """Raise ValueError unless a U-Net can halve the tokens as often as it does."""
        absent = past_tokens == "absent"
        tokens, what = (context.future, "future") if absent else (context.tokens, "observations - 1 + future")
        if tokens % multiple:
            raise ValueError(
                f"observations = {context.observations}, future = {context.future}: {tokens} action tokens; valid with "
                f"network = 'unet', sizes = {self.sizes!r}: {what} is a multiple of {multiple}"
            )


def _one_of(choices: Any, **values: str) -> None:
    """Raise ValueError for a value that is not in the Literal."""
    for name, value in values.items():
        if value not in get_args(choices):
            raise ValueError(f"{name} = {value!r}; valid: {', '.join(get_args(choices))}")
