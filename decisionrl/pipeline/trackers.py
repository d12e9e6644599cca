"""Advantages against what is remembered of a prompt or start (SPO, arXiv 2509.13232; DCPO, arXiv 2509.02333).

Both remember numbers by ``start_id``, in tensors with a row for each that was seen. Rows with start_id -1 are never
seen again: they are treated as on a first visit and not remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.groups import Groups, numbered, occurrence, rows
from decisionrl.pipeline.requirements import required
from decisionrl.pipeline.returns import outcomes, whitened, with_advantage

if TYPE_CHECKING:
    from decisionrl.experience.acting import EvaluatingPolicy
    from decisionrl.learner import Update


class Memory:
    """A row of numbers for every id that was written, float64; ``initial`` for the others."""

    def __init__(self, *initial: float) -> None:
        self._initial = torch.tensor([initial], dtype=torch.float64)
        self._ids = torch.zeros(0, dtype=torch.int64)  # ascending
        self._table = self._initial[:0]

    def read(self, ids: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], ...]:
        """The columns at these ids; the initial values at those never written, such as negative ones."""
        self._move(ids.device)
        # One row more, so that there is always one to look at.
        rows = torch.cat([self._table, self._initial])
        row = torch.searchsorted(self._ids, ids)
        row = torch.where(self._written(ids, row), row, len(rows) - 1)
        return rows[row].unbind(1)

    def write(self, ids: Int[Tensor, " n"], *columns: Float[Tensor, " n"]) -> None:
        """Set the columns at distinct ids of 0 or more."""
        self._move(ids.device)
        new = ids[~self._written(ids, torch.searchsorted(self._ids, ids))]
        if len(new):
            self._ids, order = torch.cat([self._ids, new]).sort()
            self._table = torch.cat([self._table, self._initial.expand(len(new), -1)])[order]
        self._table[torch.searchsorted(self._ids, ids)] = torch.stack(columns, 1).to(self._table)

    def state_dict(self) -> dict[str, Tensor]:
        """The ids and the table."""
        return {"ids": self._ids.clone(), "table": self._table.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved table; without ids, as earlier versions had it, they are 0, 1, 2, ..."""
        self._table = state["table"].clone()
        self._ids = state["ids"].clone() if "ids" in state else torch.arange(len(self._table))

    def _written(self, ids: Tensor, row: Tensor) -> Tensor:
        """Which ids are those of the rows where they would stand."""
        if not len(self._ids):
            return torch.zeros_like(ids, dtype=torch.bool)
        return self._ids[row.clamp(max=len(self._ids) - 1)] == ids

    def _move(self, device: torch.device) -> None:
        self._ids, self._table = self._ids.to(device), self._table.to(device)
        self._initial = self._initial.to(device)


class SingleStream:
    """``A = r - v`` with v the tracked mean outcome of the prompt: one answer is enough (SPO, arXiv 2509.13232).

    v is the mean of a Beta(a, b) belief that forgets, ``a <- rho a + r``, ``b <- rho b + 1 - r``. It is kept as v and
    N = a + b, where the same update reads ``v <- v + (r - v) / (rho N + 1)``, ``N <- rho N + 1`` and holds for any
    outcome r. ``rho = 2^(-D / half_life)``, clipped to [rho_min, rho_max], with D the KL of the policy that was added
    by ``add_kl`` since the prompt's last visit.

    v is from before the batch. Rows with one start_id all use it and then update it in row order; between them the
    policy has not moved, D = 0.

    Args:
        rho_min, rho_max: bounds on what an update keeps of the past.
        half_life: D_half; the paper does not state it.
        v0: the value of a prompt never initialized.
        prior: N of a prompt before its first visit; 1 / (1 - rho_min) by default.
        normalize: bring A to mean 0 and variance 1 over the rows of the batch.
        policy: after each update it is asked for the batch's log-probabilities once more, which gives D (k3, the mean
            over steps). Without it D is what the update reports, which was measured before its optimizer steps.

    Raises:
        ValueError: an argument out of range, or trajectories without ``start_id``.
    """

    def __init__(
        self,
        *,
        rho_min: float = 0.875,
        rho_max: float = 0.96,
        half_life: float = 0.1,
        v0: float = 0.5,
        prior: float | None = None,
        normalize: bool = True,
        policy: EvaluatingPolicy | None = None,
    ) -> None:
        if not 0 <= rho_min <= rho_max <= 1:
            raise ValueError(f"rho_min = {rho_min}, rho_max = {rho_max}; valid: 0 <= rho_min <= rho_max <= 1")
        if not half_life > 0:
            raise ValueError(f"half_life = {half_life}; valid: a positive KL in nats")
        if prior is None and rho_min == 1:
            raise ValueError("rho_min = 1 never forgets and needs a prior; valid: 0 or more")
        if prior is not None and not prior >= 0:
            raise ValueError(f"prior = {prior}; valid: 0 or more")
        self.rho_min, self.rho_max, self.half_life, self.normalize = rho_min, rho_max, half_life, normalize
        self.prior = 1 / (1 - rho_min) if prior is None else prior
        self._memory = Memory(v0, self.prior, 0.0)
        self._kl = torch.zeros((), dtype=torch.float64)
        self._policy = policy
        self._batch: Trajectories | None = None

    def __call__(self, batch: Trajectories) -> Trajectories:
        self._batch = batch if self._policy is not None else None
        ids = required(batch, "start_id", self)
        outcome = outcomes(batch.reward, batch.mask).detach()
        answered = batch.mask.any(1)
        advantage = outcome - self.value(ids).to(outcome.dtype)
        remembered = answered & (ids >= 0)
        self._update(ids[remembered], outcome[remembered].double())
        return with_advantage(batch, (whitened(advantage, answered) if self.normalize else advantage).unsqueeze(1))

    def value(self, ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """v of these prompts."""
        return self._memory.read(ids)[0]

    def weights(self, ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What to sample prompts in proportion to: ``sqrt(v (1 - v)) + 0.05``, for v in [0, 1]."""
        value = self.value(ids)
        return (value * (1 - value)).clamp(min=0).sqrt() + 0.05

    def initialize(self, ids: Int[Tensor, " n"], mean_outcome: Float[Tensor, " n"]) -> None:
        """Start distinct prompts from the mean outcome of a few answers of the present policy (8 in the paper)."""
        value = mean_outcome.double()
        self._memory.write(ids, value, torch.full_like(value, self.prior), self._kl.to(value.device).expand_as(value))

    def add_kl(self, kl: float | Tensor) -> None:
        """Tell how far an update has moved the policy: the mean KL over its steps."""
        self._kl = self._kl + torch.as_tensor(kl).detach()

    def observe(self, update: Update) -> None:
        """``add_kl`` of how far the policy is from the one that collected the batch."""
        if self._policy is None or self._batch is None:
            self.add_kl(update.metrics["approx_kl"])
            return
        batch, self._batch = self._batch, None
        with torch.no_grad():
            moved = (self._policy.evaluate(batch).log_prob - batch.log_prob).double()
        divergence = torch.where(batch.mask, moved.expm1() - moved, 0.0)
        self.add_kl(divergence.sum() / batch.mask.sum().clamp(min=1))

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of every prompt, and the KL so far."""
        return {"memory": self._memory.state_dict(), "kl": self._kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self._memory.load_state_dict(state["memory"])
        self._kl = state["kl"]

    def _update(self, ids: Int[Tensor, " n"], outcome: Float[Tensor, " n"]) -> None:
        """The tracker's recursion over the rows of each prompt, in closed form.

        Of m rows, number k (from 0) counts ``rho_max^(m - 1 - k)`` in the end, the past ``rho rho_max^(m - 1)``.
        """
        distinct, index, visits = torch.unique(ids, return_inverse=True, return_counts=True)
        value, weight, kl = self._memory.read(distinct)
        now = self._kl.to(ids.device).expand_as(kl)
        rho = torch.exp2((kl - now) / self.half_life).clamp(self.rho_min, self.rho_max)
        share = self.rho_max ** (visits[index] - 1 - occurrence(index)).double()
        new = torch.zeros_like(weight).index_add(0, index, share)
        surprise = torch.zeros_like(weight).index_add(0, index, share * (outcome - value[index]))
        weight = rho * self.rho_max ** (visits - 1).double() * weight + new
        self._memory.write(distinct, value + surprise / weight, weight, now)


class SmoothStandardized:
    """Standardized by this visit and by all visits to the prompt, whichever says less (DCPO, arXiv 2509.02333).

    On visit i, with mu_new and var_new (unbiased) of the G outcomes of this visit,

        ``mu_i = ((i - 1) mu_{i-1} + mu_new) / i``,
        ``var_i = [(i - 1) var_{i-1} + var_new + (i - 1)/i (mu_new - mu_{i-1})^2] / i``,
        ``A_new = (R - mu_new) / sigma_new``, ``A_tot = (R - mu_i) / sigma_i`` (0 where sigma is 0),
        ``SA_new = (i - 1)/i A_new + 1/i A_tot``, ``SA_tot = 1/i A_new + (i - 1)/i A_tot``,

    and A is the one of the two with the smaller absolute value. The first visit is GRPO's with eps = 0; a group of
    equal outcomes has A != 0 if earlier visits differed. Rows with one start_id are one visit.

    Raises:
        ValueError: trajectories without ``group`` or ``start_id``.
    """

    def __init__(self) -> None:
        self._memory = Memory(0.0, 0.0, 0.0)

    def __call__(self, batch: Trajectories) -> Trajectories:
        ids = required(batch, "start_id", self)
        visit = _visits(ids, rows(batch, self))
        outcome = outcomes(batch.reward, batch.mask).double().detach()
        mean_new, std_new = visit.mean(outcome), visit.std(outcome)
        before, mean, variance = self._memory.read(ids)
        count = before + 1
        change = mean_new - mean
        variance = (before * variance + std_new.square() + before / count * change.square()) / count
        mean = torch.where(before > 0, mean + change / count, mean_new)
        seen = (ids >= 0) & (visit.weight > 0)
        first = seen.clone()
        first[seen] = occurrence(ids[seen]) == 0
        self._memory.write(ids[first], count[first], mean[first], variance[first])
        new = _ratio(visit.centered(outcome), std_new)
        total = _ratio(outcome - mean, variance.sqrt())
        past = before / count
        smooth_new, smooth_total = past * new + total / count, new / count + past * total
        advantage = torch.where(smooth_new.abs() < smooth_total.abs(), smooth_new, smooth_total)
        return with_advantage(batch, advantage.to(batch.reward.dtype).unsqueeze(1))

    def state_dict(self) -> dict[str, Any]:
        """Visits, mean and variance by start_id."""
        return {"memory": self._memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self._memory.load_state_dict(state["memory"])


def _visits(ids: Tensor, groups: Groups) -> Groups:
    """The rows of one start_id, or of one group where the start_id is -1."""
    index, count = numbered(torch.where(ids >= 0, ids, -1 - groups.index))
    return Groups(index, groups.weight.double(), count)


def _ratio(difference: Tensor, std: Tensor) -> Tensor:
    return torch.where(std > 0, difference / std, 0.0)
