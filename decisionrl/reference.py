"""A copy of a network that follows it without gradients: a reference policy, or the target of a value function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Reference(Generic[Module]):
    """A frozen copy of ``source``, in evaluation mode, that may be moved toward it.

    Frozen (``every = None``): a reference policy as in DPO (arXiv 2305.18290), copied anew by :meth:`snapshot`.
    Periodic: every ``every`` calls of :meth:`follow`, ``copy <- rate source + (1 - rate) copy``; TR-DPO
    (arXiv 2404.09656) has rate 0.6 every 512 updates or rate 1 every 1024, a Polyak target rate 0.005 every update.

    Give it to a :class:`~decisionrl.learner.GradientLearner` both as a component, to be saved, and with its ``follow``
    in ``after_update``.

    Attributes:
        module: the copy.
    """

    def __init__(self, source: Module, *, every: int | None = None, rate: float = 1.0) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every = {every}; valid: a whole number >= 1, or None for a frozen copy")
        if not 0 < rate <= 1:
            raise ValueError(f"rate = {rate}; valid: above 0 and at most 1")
        self.every, self.rate = every, rate
        self.module = copy.deepcopy(source).requires_grad_(False).eval()
        self._source = source
        self._calls = 0
        self._pairs = list(zip(self.module.parameters(), source.parameters(), strict=True))

    @torch.no_grad()
    def snapshot(self) -> None:
        """Copy the source as it is now."""
        self.module.load_state_dict(self._source.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """Be told of one update of the source."""
        self._calls += 1
        if self.every is None or self._calls % self.every:
            return
        if self.rate == 1:
            self.snapshot()
            return
        torch._foreach_lerp_([own for own, _ in self._pairs], [source for _, source in self._pairs], self.rate)
        for own, buffer in zip(self.module.buffers(), self._source.buffers(), strict=True):
            own.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.module.load_state_dict(state["module"])
        self._calls = state["calls"]
