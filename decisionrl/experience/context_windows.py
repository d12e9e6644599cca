"""ContextWindows: windows with a long past and a few steps of the future, for policies that predict both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.trajectories import each_key
from decisionrl.policies.context import Context
from decisionrl.policies.evaluation import Observation


@dataclass(frozen=True)
class ContextBatch:
    """Windows and the randomness of a denoising loss on them.

    Attributes:
        observation: what is seen, the last being the present one, [batch, To, ...], or a dict of such tensors.
        action: [batch, T, ...].
        noise: standard normal, of the action's shape.
        level: uniform in [0, 1), one for each row; its diffusion step is ``floor(steps level)``.
    """

    observation: Observation
    action: Float[Tensor, "batch T ..."]
    noise: Float[Tensor, "batch T ..."]
    level: Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class ContextWindows:
    """``size`` windows of recorded episodes, chosen uniformly with replacement.

    A window is ``S = To s + F - 1`` steps; it begins at any of the steps ``-pad_before, ..., L - S + pad_after`` of an
    episode of L steps, which makes ``L - S + 1 + pad_before + pad_after`` windows of it (none if that is negative).
    Before its beginning an episode is continued by its first observation and action, behind its end by the last ones
    that belong together; no window crosses from one episode into another (arXiv 2303.04137, 2505.09561).

    Attributes:
        episodes: the recorded episodes.
        context: To, F, the stride s, and which of the To s frames are seen.
        size: of a batch.
        pad_before, pad_after: at most S - 1, larger ones count as that. By default To s - 1 and F - 1, with which every
            recorded step is the present one of exactly one window.

    Raises:
        DatasetError: a size that is not valid, or there is no window.
    """

    episodes: EpisodeStore
    context: Context
    size: int
    pad_before: int | None = None
    pad_after: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DatasetError(f"size = {self.size}; valid: at least 1")
        for name in ("pad_before", "pad_after"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise DatasetError(f"{name} = {value}; valid: at least 0, or None")
        if not len(self):
            raise DatasetError(
                f"a window spans {self.context.span} steps, and with pad_before = {self.pad_before} and pad_after = "
                f"{self.pad_after} none fits the longest episode, of {int(self.episodes.length.max())} steps; valid: "
                "a longer episode, a smaller context or larger pads"
            )

    def __len__(self) -> int:
        """The number of windows."""
        return self._total

    def __call__(self, generator: torch.Generator) -> ContextBatch:
        """A batch: windows, noise and levels drawn from the generator."""
        index = torch.randint(len(self), (self.size,), generator=generator).to(self.episodes.length.device)
        observation, action = self.windows(index)
        noise = torch.randn(action.shape, generator=generator, dtype=action.dtype).to(action.device)
        level = torch.rand(self.size, generator=generator, dtype=action.dtype).to(action.device)
        return ContextBatch(observation, action, noise, level)

    def windows(self, index: Int[Tensor, " batch"]) -> tuple[Observation, Float[Tensor, "batch T ..."]]:
        """Observations [batch, To, ...] and actions [batch, T, ...] of windows, numbered episode by episode from
        their beginnings on."""
        ends = self.count.cumsum(0)
        episode = torch.searchsorted(ends, index, right=True)
        start = index - (ends - self.count)[episode] - self._before
        device = index.device
        seen = self._rows(episode, start, self.context.kept(device))
        acted = self._rows(episode, start, self.context.acted(device))
        before = episode[:, None]  # each episode before has one observation more than steps
        observation = each_key(lambda each: each[0][seen + before], [self.episodes.observation])
        return observation, self.episodes.action[acted]

    @cached_property
    def count(self) -> Int[Tensor, " episodes"]:
        """The windows of each episode."""
        most = self.context.span - 1
        after = min(most, self.context.future - 1 if self.pad_after is None else self.pad_after)
        return (self.episodes.length - most + self._before + after).clamp(min=0)

    @cached_property
    def _total(self) -> int:
        return int(self.count.sum())

    @property
    def _before(self) -> int:
        before = self.context.frames - 1 if self.pad_before is None else self.pad_before
        return min(self.context.span - 1, before)

    def _rows(self, episode: Tensor, start: Tensor, steps: Tensor) -> Int[Tensor, "batch step"]:
        """The recorded steps at these places of the windows."""
        step = (start[:, None] + steps).clamp(min=0)
        return self.episodes.first[episode][:, None] + torch.minimum(step, self.episodes.length[episode][:, None] - 1)
