"""An average of a network's weights whose decay rises with training: what a diffusion policy acts with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class PowerAverage(Generic[Module]):
    """``average <- d average + (1 - d) weights`` after every update, with a decay d that rises to ``largest``.

    At the update with number i = 0, 1, ... and ``n = i - 1``

        d = 0 if n <= 0, else min(1 - (1 + n / inverse_gamma)^(-power), largest),

    as in Diffusion Policy (arXiv 2303.04137): 0.999 after ten thousand updates with the defaults. Buffers and frozen
    parameters are copied.

    An :class:`~decisionrl.composition.AveragedLearner` acts with it and saves it. In a GradientLearner it is both a
    component and, with its ``follow``, in ``after_update``.

    Attributes:
        module: the average, in evaluation mode; before the first update a copy of the source.

    Raises:
        ValueError: an option has no valid value.
    """

    def __init__(
        self, source: Module, *, power: float = 0.75, inverse_gamma: float = 1.0, largest: float = 0.9999
    ) -> None:
        for name, value in (("power", power), ("inverse_gamma", inverse_gamma)):
            if not value > 0:
                raise ValueError(f"{name} = {value}; valid: positive")
        if not 0 <= largest < 1:
            raise ValueError(f"largest = {largest}; valid: at least 0 and below 1")
        self.power, self.inverse_gamma, self.largest = power, inverse_gamma, largest
        self.module = copy.deepcopy(source).requires_grad_(False).eval()
        self._updates = 0
        pairs = list(zip(self.module.parameters(), source.parameters(), strict=True))
        self._averages: list[Tensor] = [own for own, weight in pairs if weight.requires_grad]
        self._weights: list[Tensor] = [weight.detach() for _, weight in pairs if weight.requires_grad]
        self._copied: list[tuple[Tensor, Tensor]] = list(zip(self.module.buffers(), source.buffers(), strict=True))
        self._copied += [(own, weight.detach()) for own, weight in pairs if not weight.requires_grad]

    @property
    def decay(self) -> float:
        """d of the next update."""
        n = self._updates - 1
        return 0.0 if n <= 0 else min(1 - (1 + n / self.inverse_gamma) ** -self.power, self.largest)

    @torch.no_grad()
    def follow(self) -> None:
        """Be told of one update of the source."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)
        for own, value in self._copied:
            own.copy_(value)
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.module.load_state_dict(state["module"])
        self._updates = state["updates"]
