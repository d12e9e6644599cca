"""Which steps around the present a policy with a long context sees and which it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

Spread = Literal["even", "mixed"]


@dataclass(frozen=True, kw_only=True)
class Context:
    """``To`` observations, the last of which is the present one, and ``T = To - 1 + F`` actions around it.

    The observations are taken from the last ``To s`` frames. Action token j < To - 1 belongs to the frame of
    observation j, so that past tokens are as far apart as the observations; token To - 1 is the present action, and
    the F - 1 behind it follow step by step (arXiv 2505.09561).

    Attributes:
        observations: To.
        future: F, the present action and those after it.
        stride: s.
        spread: "even" keeps the frames s - 1, 2 s - 1, ..., To s - 1, counted from the oldest. "mixed" keeps the last
            ceil(To / 2) frames, and of those that "even" would keep before the newest s the last floor(To / 2).

    Raises:
        ValueError: a number below 1, another spread, or one that the stride has no room for.
    """

    observations: int = 16
    future: int = 17
    stride: int = 1
    spread: Spread = "even"

    def __post_init__(self) -> None:
        for name in ("observations", "future", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; valid: at least 1")
        if self.spread not in get_args(Spread):
            raise ValueError(f"spread = {self.spread!r}; valid: {', '.join(get_args(Spread))}")
        if self.spread == "mixed" and self._dense > self.stride:
            raise ValueError(
                f"stride = {self.stride}; valid with spread = 'mixed' and {self.observations} observations: at least "
                f"{self._dense}"
            )

    @property
    def past(self) -> int:
        """To - 1, the actions before the present one."""
        return self.observations - 1

    @property
    def tokens(self) -> int:
        """T, actions of the past, the present and the future."""
        return self.past + self.future

    @property
    def frames(self) -> int:
        """To s, the steps up to the present one that the observations are taken from."""
        return self.observations * self.stride

    @property
    def span(self) -> int:
        """To s + F - 1, the steps of a training window."""
        return self.frames + self.future - 1

    def kept(self, device: torch.device | str = "cpu") -> Int[Tensor, " To"]:
        """Which of the frames are seen, counted from the oldest; the last is the present one."""
        if self.spread == "even":
            return torch.arange(1, self.observations + 1, device=device) * self.stride - 1
        sparse = torch.arange(1, self.observations, device=device) * self.stride - 1
        dense = torch.arange(self.frames - self._dense, self.frames, device=device)
        return torch.cat([sparse[len(sparse) - self.observations // 2 :], dense])

    def acted(self, device: torch.device | str = "cpu") -> Int[Tensor, " T"]:
        """Which steps of a training window the action tokens belong to."""
        return torch.cat([self.kept(device), torch.arange(self.frames, self.span, device=device)])

    @property
    def _dense(self) -> int:
        return -(-self.observations // 2)
