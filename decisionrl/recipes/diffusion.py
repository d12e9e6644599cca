"""What the recipes of diffusion policies share: demonstrations, the context, the network, its averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NotRequired, TypedDict, Unpack, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.checkpoint import CheckpointError, load_weights
from decisionrl.composition import AveragedLearner
from decisionrl.ema import PowerAverage
from decisionrl.experience.embeddings import cached_embeddings, embedded
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.learner import GradientLearner, Loss, Objective
from decisionrl.objectives.denoising import denoising, regression
from decisionrl.policies.action_normalizer import ConstantDimensionsError, LinearNormalizer
from decisionrl.policies.context import Context
from decisionrl.policies.diffusion import CPU, PAPER, DiffusionPolicy, DiffusionSettings, PastTokens
from decisionrl.policies.diffusion_network import DiffusionTransformerSizes
from decisionrl.policies.diffusion_sampling import PredictionType
from decisionrl.policies.diffusion_unet import DiffusionUnetSizes
from decisionrl.policies.encoded import EncodedPolicy
from decisionrl.policies.encoders import Encoder
from decisionrl.policies.image_encoders import Pool, context_encoder
from decisionrl.recipes.offline import DataOptions, Recorded, at_least, cosine
from decisionrl.run import FINAL
from decisionrl.seeding import generator

Network = Literal["transformer", "unet"]
Head = Literal["diffusion", "regression"]
Sizes = Literal["paper", "medium", "cpu"]
ConstantActions = Literal["error", "center"]

SETTINGS: Mapping[tuple[str, str], DiffusionSettings] = {
    ("transformer", "paper"): PAPER,
    ("transformer", "medium"): replace(CPU, network=DiffusionTransformerSizes(width=96, layers=2, dropout=0.0)),
    ("transformer", "cpu"): CPU,
    ("unet", "paper"): replace(PAPER, network=DiffusionUnetSizes()),
    ("unet", "medium"): replace(CPU, network=DiffusionUnetSizes(channels=(64, 128), step_width=64)),
    ("unet", "cpu"): replace(CPU, network=DiffusionUnetSizes(channels=(32, 64), step_width=32)),
}
"""By network and size."""

BETAS: Mapping[str, tuple[float, float]] = {"transformer": (0.9, 0.95), "unet": (0.95, 0.999)}
"""Of AdamW, by network."""


class DiffusionOptions(DataOptions, total=False):
    """The arguments that the recipes of diffusion policies take; see :class:`Demonstrations` for what they mean."""

    sizes: Sizes
    prediction: PredictionType | None
    image_features: int
    image_pool: Pool
    crop: int | None
    warmup: int
    weight_decay: float
    encoder_decay: float
    constant_actions: ConstantActions


class DiffusionParts(TypedDict):
    """What makes a diffusion policy; see :class:`~decisionrl.policies.diffusion.DiffusionPolicy`."""

    context: Context
    past_tokens: PastTokens
    past_steps: NotRequired[int | None]
    head: NotRequired[Head]
    action_steps: NotRequired[int]
    candidates: NotRequired[int]


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Recorded):
    """Recorded demonstrations, a diffusion policy and its optimizer; the defaults are the paper's (arXiv 2505.09561).

    Attributes:
        sizes: "paper", "cpu" for small problems, or "medium" for those that take precision, such as grasping.
        prediction: what the network says, the noise "epsilon" or the clean actions, "sample"; by default what goes with
            the sizes.
        image_features, image_pool, crop: of the encoder of images, see
            :func:`~decisionrl.policies.image_encoders.context_encoder`.
        warmup: updates in which the learning rate rises from 0; then it falls on half a cosine to 0 at the end.
        weight_decay, encoder_decay: of AdamW, on the matrices of the network and of the encoder.
        constant_actions: what to do about an action dimension that never changes in the data: "error" refuses it,
            "center" moves it to 0.
    """

    data: str = "lab/return-side"
    batch: int = 64
    sizes: Sizes = "paper"
    prediction: PredictionType | None = None
    image_features: int = 32
    image_pool: Pool = "flatten"
    crop: int | None = None
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

    def policy_on(
        self,
        episodes: EpisodeStore,
        *,
        network: Network,
        encoder: Encoder | None = None,
        **parts: Unpack[DiffusionParts],
    ) -> DiffusionPolicy:
        """A policy on the observations of these episodes, its normalizers fitted to them.

        encoder: of observations; by default a new one.

        Raises:
            DatasetError: actions are no Box of floats, or a dimension of them is constant.
            ValueError: an option has no valid value.
        """
        _one_of(Network, network=network)
        settings = SETTINGS[network, self.sizes]
        if isinstance(settings.network, DiffusionUnetSizes):
            multiple = 2 ** (len(settings.network.channels) - 1)
            self._check_halving(parts["context"], parts["past_tokens"], multiple=multiple)
        actions = episodes.action_space
        if not isinstance(actions, spaces.Box) or not np.issubdtype(actions.dtype, np.floating):
            raise DatasetError(f"action_space of {self.data} is {actions}; valid for diffusion: a Box of floats")
        weights = generator(self.seed, "policy")
        policy = DiffusionPolicy(
            episodes.observation_space,
            actions,
            settings=settings if self.prediction is None else replace(settings, prediction=self.prediction),
            encoder=encoder or self.encoder(weights),
            action_normalizer=LinearNormalizer((episodes.action[0].numel(),), constant=self.constant_actions),
            generator=weights,
            **parts,
        ).to(self.device)
        try:
            policy.fit_normalizers(episodes.observation, episodes.action)
        except ConstantDimensionsError as error:
            raise DatasetError(
                f"action of {self.data} never changes in dimensions {error.dimensions}; valid: actions that vary in "
                "every dimension, or constant_actions = 'center'"
            ) from error
        return policy

    def encoder(self, weights: torch.Generator) -> Encoder:
        """A new encoder of the data's observations."""
        return context_encoder(
            self.episodes.observation_space,
            features=self.image_features,
            pool=self.image_pool,
            crop=self.crop,
            generator=weights,
        )

    def trained_encoder(self, run: str) -> Encoder:
        """The encoder of a run of one of these recipes, or of a file of its weights.

        Raises:
            DatasetError: there is none that fits the data.
        """
        path = Path(run)
        encoder = self.encoder(generator(self.seed, "policy")).to(self.device)
        try:
            load_weights(encoder, path / FINAL if path.is_dir() else path, part="encoder")
        except CheckpointError as error:
            raise DatasetError(
                f"encoder = {run!r}: {error}; valid: the folder of a finished run on such data, with equal "
                "image_features, image_pool and crop"
            ) from error
        return encoder

    def embeddings(self, encoder: Encoder, cache: str | None) -> EpisodeStore:
        """The episodes with every observation embedded, as they are kept in the file ``cache`` if there is one.

        Raises:
            StaleCacheError: the file holds embeddings by another encoder, or of other data.
        """
        made = embedded(self.episodes, encoder) if cache is None else cached_embeddings(cache, self.episodes, encoder)
        return made.to(self.device)

    def averaged(self, policy: DiffusionPolicy | EncodedPolicy, *, network: Network) -> AveragedLearner:
        """AdamW steps on the loss of the policy's head, and the average of its weights that acts."""
        head = policy.head if isinstance(policy, EncodedPolicy) else policy
        objective: Objective = regression if head.schedule is None else denoising
        groups = head.parameter_groups(weight_decay=self.weight_decay, encoder_decay=self.encoder_decay)
        optimizer = torch.optim.AdamW(groups, self.learning_rate, betas=BETAS[network], fused=True)
        schedule = LambdaLR(optimizer, cosine(self.steps, warmup=self.warmup))
        learner = GradientLearner(
            policy,
            objective if head is policy else _of_head(objective),
            optimizer,
            clip_norm=self.clip_norm,
            components={"schedule": schedule},
            after_update=[schedule.step],
        )
        return AveragedLearner(learner, PowerAverage(policy))

    def _check_halving(self, context: Context, past_tokens: PastTokens, *, multiple: int) -> None:
        """Raise ValueError unless a U-Net can halve the tokens as often as it does."""
        absent = past_tokens == "absent"
        tokens, what = (context.future, "future") if absent else (context.tokens, "observations - 1 + future")
        if tokens % multiple:
            raise ValueError(
                f"observations = {context.observations}, future = {context.future}: {tokens} action tokens; valid with "
                f"network = 'unet', sizes = {self.sizes!r}: {what} is a multiple of {multiple}"
            )


def _of_head(objective: Objective) -> Objective:
    def of_head(policy: EncodedPolicy, batch: Any, /) -> Loss:
        return objective(policy.head, batch)

    return of_head


def _one_of(choices: Any, **values: str) -> None:
    """Raise ValueError for a value that is not in the Literal."""
    for name, value in values.items():
        if value not in get_args(choices):
            raise ValueError(f"{name} = {value!r}; valid: {', '.join(get_args(choices))}")
