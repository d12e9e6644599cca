"""Several epochs of minibatches on every batch, around any GradientLearner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import GradientLearner, Update
from decisionrl.seeding import generator

Unit = Literal["step", "sequence"]


class MinibatchLearner:
    """One update is ``epochs`` passes over the batch in shuffled minibatches, an optimizer step each.

    Args:
        learner: takes the optimizer steps.
        epochs: passes over the batch.
        size: of a minibatch, in units; the last one of a pass may be smaller. None: the whole batch.
        unit: "step" cuts the sequences into single steps, for policies without memory and losses that need no
            more; "sequence" keeps them whole.
        target_kl: no further minibatch once the metric ``approx_kl`` exceeds 1.5 times this. (Stable-Baselines3 has the
            same limit, and leaves out the step on the minibatch that exceeds it as well.)
        seed: of the shuffling.
    """

    def __init__(
        self,
        learner: GradientLearner,
        *,
        epochs: int = 1,
        size: int | None = None,
        unit: Unit = "step",
        target_kl: float | None = None,
        seed: int = 0,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs = {epochs}; valid: a whole number >= 1")
        if size is not None and size < 1:
            raise ValueError(f"size = {size}; valid: a whole number >= 1, or None")
        if unit not in get_args(Unit):
            raise ValueError(f"unit = {unit!r}; valid: {', '.join(get_args(Unit))}")
        if target_kl is not None and not target_kl > 0:
            raise ValueError(f"target_kl = {target_kl}; valid: a positive number, or None")
        self.learner, self.epochs, self.size, self.unit, self.target_kl = learner, epochs, size, unit, target_kl
        self._generator = generator(seed, "minibatches")

    @property
    def policy(self) -> nn.Module:
        return self.learner.policy

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, for schedules."""
        return self.learner.optimizer

    def update(self, batch: Trajectories, /) -> Update:
        """Metrics are means over the minibatches, and what the batch itself reports.

        Raises:
            ValueError: unit = "step" with the batch of a policy with memory, or target_kl without ``approx_kl``.
        """
        if self.unit == "step" and batch.state is not None:
            raise ValueError('unit = "step" forgets what a policy with memory remembers; valid: "sequence"')
        units = batch.flat() if self.unit == "step" else batch
        count = units.num_sequences
        size = max(1, min(self.size or count, count))
        seen: list[dict[str, Tensor]] = []
        for _ in range(self.epochs):
            shuffled = units if size >= count else units.rows(self._permutation(count, units.mask.device))
            for start in range(0, count, size):
                seen.append(self.learner.update(shuffled.rows(slice(start, start + size))).metrics)
                if self._has_strayed(seen[-1]):
                    return self._update(seen, batch)
        return self._update(seen, batch)

    def state_dict(self) -> dict[str, Any]:
        return {**self.learner.state_dict(), "shuffling": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.learner.load_state_dict(state)
        self._generator.set_state(state["shuffling"])

    def _has_strayed(self, metrics: Mapping[str, Tensor]) -> bool:
        if self.target_kl is None:
            return False
        if "approx_kl" not in metrics:
            raise ValueError(f"target_kl needs a metric 'approx_kl'; the objective reports {sorted(metrics)}")
        return float(metrics["approx_kl"]) > 1.5 * self.target_kl

    def _permutation(self, count: int, device: torch.device) -> Tensor:
        return torch.randperm(count, generator=self._generator).to(device)

    def _update(self, seen: list[dict[str, Tensor]], batch: Trajectories) -> Update:
        means = {name: torch.stack([metrics[name] for metrics in seen]).mean() for name in seen[0]} if seen else {}
        return Update({**means, **batch.metrics})
