"""Least-squares value iteration as a Learner: online from episodes, offline from a dataset, nominal or robust."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.linear_mdp.sampling import Episodes
from decisionrl.learner import NonFiniteError, Update
from decisionrl.policies.tabular import TabularPolicy
from decisionrl.robust.ambiguity import Ambiguity
from decisionrl.robust.planning import Bonus, Greedy, Improvement, Plan, by_stage, plan
from decisionrl.robust.regression import CountedLeastSquares, Estimates, RecursiveLeastSquares


@dataclass(frozen=True, kw_only=True)
class VarianceWeights:
    """Regressions weighted by 1 / sigma^2 (VA-DRPVI, arXiv 2403.09621, Algorithm 3).

        sigma_h^2(s, a) = max(1, clip(phi . z2_h, 0, cap^2) - clip(phi . z1_h, 0, cap)^2)

    with z1_h and z2_h the regressions on V'_{h+1} and its square, and V' the plan without weights, from the same data.

    ridge: of the weighted regressions; the paper's is 1 / H^2.
    """

    ridge: float


class LeastSquaresLearner:
    """Takes in the episodes of every run, and plans again.

    Online methods have ``RecursiveLeastSquares``, an optimistic bonus, and episodes of the learner's own policy;
    offline ones ``CountedLeastSquares``, a pessimistic bonus, and a dataset. The first policy is that of no data.

    Args:
        policy: where the policy is written, [runs, H, S, A].
        regression: of the runs.
        bonus: with its sign.
        ambiguity: what the method is robust to; None is the nominal model. Its radii may be [runs, H, d].
        improvement: greedy, or proximal.
        variance: weight the regressions by variances; needs ``CountedLeastSquares``.
        rare_switching: a run's policy changes only when det Lambda_h of some stage has doubled since the last change
            (arXiv 2409.20521), O(d H log K) times in K episodes; needs ``RecursiveLeastSquares``.

    Attributes:
        plan: the last one; its ``values`` are the method's bounds of V*.
        switches: how often the policy was changed, [runs].
        steps: updates so far.

    The metrics of an update: ``episode_return``, the mean of the batch, and ``planned_value``, V_0 of the new plan at
    the first states of the batch.
    """

    def __init__(
        self,
        policy: TabularPolicy,
        regression: RecursiveLeastSquares | CountedLeastSquares,
        *,
        bonus: Bonus,
        ambiguity: Ambiguity | None = None,
        improvement: Improvement | None = None,
        variance: VarianceWeights | None = None,
        rare_switching: bool = False,
    ) -> None:
        if variance is not None and not isinstance(regression, CountedLeastSquares):
            raise ValueError("variance weights need the counts of a CountedLeastSquares")
        if rare_switching and not isinstance(regression, RecursiveLeastSquares):
            raise ValueError("rare switching needs the determinants of a RecursiveLeastSquares")
        stages, states, actions, _ = regression.problem.shape
        shape = (regression.runs, stages, states, actions)
        if policy.table.shape != shape:
            raise ValueError(
                f"the policy's table is {list(policy.table.shape)}; valid: [runs, H, S, A] = {list(shape)}"
            )
        self.policy = policy
        self.regression = regression
        self.steps = 0
        self._bonus, self._variance = bonus, variance
        self._ambiguities = by_stage(ambiguity, stages)
        self._improvement = improvement or Greedy()
        self._rare_switching = rare_switching
        nothing = torch.zeros_like(policy.table)
        first = [self._improvement.first(h, nothing[:, h]) for h in range(stages)]
        self.plan = self._planned(torch.stack(first, 1))
        self.policy.table.copy_(self.plan.log_policy.exp())
        self.switches = nothing.new_zeros(len(nothing))
        self._volume_at_switch = nothing.new_zeros(len(nothing), stages)

    @torch.no_grad()
    def update(self, batch: Episodes, /) -> Update:
        """One episode of every run, or one part of its dataset."""
        self.regression.add(batch)
        self.steps += 1
        due = self._due()
        if due is None:
            self._follow(self._planned(self.plan.log_policy))
        elif due.any():
            self._follow(_chosen(due, self._planned(self.plan.log_policy), self.plan))
        start = batch.states[..., 0].view(len(self.switches), -1)
        metrics = {
            "episode_return": batch.rewards.sum() / start.numel(),
            "planned_value": self.plan.values[:, 0].gather(1, start).mean(),
        }
        return Update(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Everything; references to the live tensors.

        Raises:
            NonFiniteError: a plan that is not finite.
        """
        if not self.plan.q.isfinite().all():
            raise NonFiniteError(self.steps, "Q")
        return {
            "steps": self.steps,
            "policy": self.policy.state_dict(),
            "regression": self.regression.state_dict(),
            "plan": {"q": self.plan.q, "values": self.plan.values, "log_policy": self.plan.log_policy},
            "switches": self.switches,
            "volume_at_switch": self._volume_at_switch,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue from the ``state_dict`` of an equally built learner."""
        self.steps = state["steps"]
        self.policy.load_state_dict(state["policy"])
        self.regression.load_state_dict(state["regression"])
        device = self.policy.table.device
        self.plan = Plan(**{name: tensor.to(device, copy=True) for name, tensor in state["plan"].items()})
        self.switches.copy_(state["switches"])
        self._volume_at_switch.copy_(state["volume_at_switch"])

    def _due(self) -> Tensor | None:
        """Which runs change their policy, [runs]; None is all of them."""
        if not self._rare_switching:
            self.switches += 1
            return None
        assert isinstance(self.regression, RecursiveLeastSquares)
        volume = self.regression.log_volume
        due = (volume >= self._volume_at_switch + math.log(2)).any(-1)
        self._volume_at_switch = torch.where(due.unsqueeze(-1), volume, self._volume_at_switch)
        self.switches += due
        return due

    def _follow(self, new: Plan) -> None:
        self.plan = new
        torch.exp(new.log_policy, out=self.policy.table)

    def _planned(self, previous: Float[Tensor, "runs H S A"]) -> Plan:
        found = self._plan(self.regression.estimates(), previous)
        if self._variance is None:
            return found
        assert isinstance(self.regression, CountedLeastSquares)
        weights = 1 / self._variances(found)
        return self._plan(self.regression.estimates(weights=weights, ridge=self._variance.ridge), previous)

    def _plan(self, estimates: Estimates, previous: Float[Tensor, "runs H S A"]) -> Plan:
        return plan(
            self.regression.problem,
            estimates,
            bonus=self._bonus,
            improvement=self._improvement,
            ambiguities=self._ambiguities,
            previous=previous,
        )

    def _variances(self, first: Plan) -> Float[Tensor, "runs H S A"]:
        """sigma^2 of :class:`VarianceWeights`, from a plan without weights."""
        problem = self.regression.problem
        _, states, actions, _ = problem.shape
        value = first.values[:, 1:].unsqueeze(-1)
        transitions = self.regression.estimates().transitions
        cap = problem.caps[1:].unsqueeze(-1)
        mean, square = (
            (problem.rows @ (transitions @ moment)).squeeze(-1).clamp(min=0) for moment in (value, value.square())
        )
        variance = square.minimum(cap.square()) - mean.minimum(cap).square()
        return variance.clamp(min=1).view(*variance.shape[:-1], states, actions)


def _chosen(due: Tensor, new: Plan, old: Plan) -> Plan:
    """The new plan in the runs where it is due."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(due.view(-1, *[1] * (a.dim() - 1)), a, b)

    return Plan(
        q=choose(new.q, old.q),
        values=choose(new.values, old.values),
        log_policy=choose(new.log_policy, old.log_policy),
    )
