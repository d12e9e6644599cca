"""Learners around learners: one after the other in time, or on every batch, or with an average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from decisionrl.ema import PowerAverage
from decisionrl.learner import Learner, Update


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a training.

    Attributes:
        learner: a learner of its own has optimizer moments of its own, which so begin afresh with the phase.
        updates: how many; None for the last phase, which does not end.
        begin: called before the first update, such as the ``snapshot`` of a reference policy.
    """

    learner: Learner
    updates: int | None = None
    begin: Callable[[], None] | None = None


class PhasedLearner:
    """Learners of one policy that take over from each other, such as behavior cloning before a preference loss."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        if not phases or phases[-1].updates is not None or any((phase.updates or 0) < 1 for phase in phases[:-1]):
            raise ValueError("phases: valid are at least one, all but the last with updates >= 1, the last with None")
        if any(phase.learner.policy is not phases[0].learner.policy for phase in phases):
            raise ValueError("phases: their learners have different policies")
        self.phases = tuple(phases)
        self.updates = 0

    @property
    def policy(self) -> nn.Module:
        return self.phases[0].learner.policy

    def update(self, batch: Any, /) -> Update:
        before = 0
        for phase in self.phases:
            if phase.updates is None or self.updates < before + phase.updates:
                break
            before += phase.updates
        if self.updates == before and phase.begin is not None:
            phase.begin()
        update = phase.learner.update(batch)
        self.updates += 1
        return update

    def state_dict(self) -> dict[str, Any]:
        """The learners' states; the policy's weights are in each of them."""
        return {
            "updates": self.updates,
            "policy": self.policy.state_dict(),
            "phases": [phase.learner.state_dict() for phase in self.phases],
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.updates = state["updates"]
        for phase, saved in zip(self.phases, state["phases"], strict=True):
            phase.learner.load_state_dict(saved)


class ChainedLearner:
    """Learners that each take an update on every batch, in order, such as a network and then a vector it is frozen for.

    Args:
        learners: by name; metrics are reported as ``name/metric``, those of the first without the name.
        every: learners that take only every so-many-th batch, by name, the first of them included.
        policy: what acts; by default the first learner's.
    """

    def __init__(
        self,
        learners: Mapping[str, Learner],
        *,
        every: Mapping[str, int] | None = None,
        policy: nn.Module | None = None,
    ) -> None:
        if not learners:
            raise ValueError("learners is empty; valid: at least one")
        self.learners = dict(learners)
        self.every = dict(every or {})
        unknown = set(self.every) - set(self.learners)
        if unknown or any(value < 1 for value in self.every.values()):
            raise ValueError(f"every = {self.every}; valid: names among {sorted(self.learners)} and numbers >= 1")
        self._policy = policy
        self.updates = 0

    @property
    def policy(self) -> nn.Module:
        return self._policy if self._policy is not None else next(iter(self.learners.values())).policy

    def update(self, batch: Any, /) -> Update:
        metrics: dict[str, Tensor] = {}
        carry = None
        for number, (name, learner) in enumerate(self.learners.items()):
            if self.updates % self.every.get(name, 1):
                continue
            update = learner.update(batch)
            metrics |= {key if not number else f"{name}/{key}": value for key, value in update.metrics.items()}
            carry = update.carry if carry is None else carry
        self.updates += 1
        return Update(metrics, carry)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "policy": self.policy.state_dict(),
            "learners": {name: learner.state_dict() for name, learner in self.learners.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.updates = state["updates"]
        self.policy.load_state_dict(state["policy"])
        for name, learner in self.learners.items():
            learner.load_state_dict(state["learners"][name])


class AveragedLearner:
    """A learner whose policy is a running average of the weights that another learner trains."""

    def __init__(self, learner: Learner, average: PowerAverage[Any]) -> None:
        self.learner, self.average = learner, average

    @property
    def policy(self) -> nn.Module:
        policy: nn.Module = self.average.module
        return policy

    def update(self, batch: Any, /) -> Update:
        update = self.learner.update(batch)
        self.average.follow()
        return update

    def state_dict(self) -> dict[str, Any]:
        average = self.average.state_dict()
        return {"policy": average["module"], "updates": average["updates"], "learner": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.average.load_state_dict({"module": state["policy"], "updates": state["updates"]})
        self.learner.load_state_dict(state["learner"])
