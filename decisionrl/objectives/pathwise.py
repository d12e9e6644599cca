"""Differentiate the cost of a rollout through the simulator (hindsight differentiable policy optimisation)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from decisionrl.envs.inventory.simulator import Scenario, Simulator, Slots
from decisionrl.learner import Loss


class Pathwise:
    """Mean cost per period and store of a rollout, J = 1/(B T S) sum c(x_t, pi(o_t), w_t) (arXiv 2306.11246).

    The gradient runs through every period and node; there is no critic and no exploration noise. ``carry`` is
    the final pipeline, for a source that continues from it. unit: the loss is measured in this many units of
    money, so that a gradient norm means the same in every setting. compile: hand the rollout to
    ``torch.compile`` (the first call takes tens of seconds, the later ones are faster).
    """

    def __init__(self, simulator: Simulator, *, unit: float = 1.0, compile: bool = False) -> None:
        if not unit > 0:
            raise ValueError(f"unit = {unit}; valid: a positive amount of money")
        self.simulator, self.unit = simulator, unit
        self._rollout: Callable[[nn.Module, Scenario], tuple[Tensor, Slots]] = self._run
        if compile:
            self._rollout = torch.compile(self._run, dynamic=False)

    def __call__(self, policy: nn.Module, scenario: Scenario) -> Loss:
        cost, slots = self._rollout(policy, scenario)
        return Loss(
            value=cost / self.unit,
            metrics={"cost": cost.detach()},
            carry=tuple(slot.detach() for slot in slots),
        )

    def _run(self, policy: nn.Module, scenario: Scenario) -> tuple[Tensor, Slots]:
        rollout = self.simulator.rollout(policy, scenario)
        return rollout.cost.mean() / self.simulator.network.num_stores, rollout.slots
