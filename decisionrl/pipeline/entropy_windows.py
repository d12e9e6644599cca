"""ARES: windows of high entropy, how hard a start is, and the reward and KL weight that follow (arXiv 2510.08457).

In a pipeline, in this order and before any other reward shaping: ``Difficulty``, ``HighEntropyWindows``, then
``EntropyReward`` and, after ``ReferenceLogProb``, ``KLController``. They hand on, in extras:

- ``correct`` [batch]: the row's outcome counts as success.
- ``difficulty`` [batch]: of the row's group; EASY, MEDIUM or HARD.
- ``high_entropy`` [batch, step]: a window of high entropy begins at the step.
- ``in_window`` [batch, step]: the step lies in one.
- ``kl_weight`` [batch, step]: a factor on the KL penalty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.regularizers import kl_estimate
from decisionrl.pipeline.returns import outcomes
from decisionrl.pipeline.rewards import add_to_last_step, reference_log_ratio

EASY, MEDIUM, HARD = 0, 1, 2
NUM_BUCKETS = 3

Threshold = Literal["paper", "release"]


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Sets ``extras["correct"]`` and, from the success rate of the group, ``extras["difficulty"]``, both [batch].

    Easy from a rate of ``easy`` on, medium from ``medium`` on, hard below. The defaults are the paper's (appendix G):
    of 8 rows 6 or more correct, 3 to 5, at most 2. The release has 2/3 and 1/3.

    Attributes:
        success: a row is correct if its outcome, the sum of its rewards, reaches this.

    Raises:
        ValueError: the batch has no groups.
    """

    easy: float = 0.75
    medium: float = 0.375
    success: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.medium <= self.easy <= 1:
            raise ValueError(f"easy = {self.easy}, medium = {self.medium}; valid: 0 <= medium <= easy <= 1")

    def __call__(self, batch: Trajectories) -> Trajectories:
        if batch.group is None:
            raise ValueError("group is None; valid: the number of each row's group, [batch]")
        correct = outcomes(batch.reward, batch.mask) >= self.success
        group = torch.unique(batch.group, return_inverse=True)[1]
        # In float64 a rate of 2 in 3 equals the bound 2/3.
        rate = (torch.bincount(group, weights=correct.double()) / torch.bincount(group))[group]
        difficulty = HARD - (rate >= self.medium).long() - (rate >= self.easy).long()
        return batch.replace(extras={**batch.extras, "correct": correct, "difficulty": difficulty})


class HighEntropyWindows:
    """Sets ``extras["high_entropy"]`` and ``extras["in_window"]``, both [batch, step].

    The entropy of a window is ``Hbar_t = mean of H_t .. H_{t+w-1}`` over a row's own steps, fewer at its end. It is
    high from the threshold tau on, which is made of quantiles over each row:

    - "paper": tau = mean over rows of the quantile of H_t.
    - "release": tau = median over rows of the quantile of Hbar_t.

    and then averaged over batches, ``tau <- decay tau + (1 - decay) tau_batch``, beginning with the first batch's.
    The list of trigger words of the paper's appendix H is left out.
    """

    def __init__(
        self, *, width: int = 4, quantile: float = 0.95, threshold: Threshold = "paper", decay: float = 0.0
    ) -> None:
        """
        width: w.
        quantile: of each row, in [0, 1].
        threshold: "paper" or "release".
        decay: 0, as in the paper, is this batch's threshold alone; the release has 0.99.
        """
        if width < 1:
            raise ValueError(f"width = {width}; valid: a whole number >= 1")
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile = {quantile}; valid: in [0, 1]")
        if threshold not in get_args(Threshold):
            raise ValueError(f"threshold = {threshold!r}; valid: {', '.join(get_args(Threshold))}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}; valid: in [0, 1)")
        self.width, self.quantile, self.threshold, self.decay = width, quantile, threshold, decay
        self._tau: Tensor | None = None

    def __call__(self, batch: Trajectories) -> Trajectories:
        """Find the windows; reports ``high_entropy_threshold`` and ``high_entropy_count``, the mean over rows.

        Raises:
            ValueError: the batch has no entropy.
        """
        if batch.entropy is None:
            raise ValueError("entropy is None; windows need the entropy at collection")
        mask = batch.mask
        windows = window_means(batch.entropy, mask, self.width)
        rows = mask.any(1)
        if rows.any():
            self._observe((batch.entropy if self.threshold == "paper" else windows)[rows], mask[rows])
        tau = windows.new_tensor(torch.inf) if self._tau is None else self._tau.to(windows)
        high = mask & (windows >= tau)
        metrics = {"high_entropy_threshold": tau, "high_entropy_count": high.sum(1).to(windows.dtype).mean()}
        return batch.replace(
            extras={**batch.extras, "high_entropy": high, "in_window": covered(high, mask, self.width)},
            metrics={**batch.metrics, **metrics},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"tau": self._tau}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._tau = state["tau"]

    def _observe(self, entropy: Tensor, mask: Tensor) -> None:
        quantiles = torch.nanquantile(torch.where(mask, entropy, torch.nan), self.quantile, dim=1)
        new = quantiles.mean() if self.threshold == "paper" else quantiles.quantile(0.5)
        self._tau = new if self._tau is None else self.decay * self._tau.to(new) + (1 - self.decay) * new


class EntropyReward:
    """ARES's hierarchical entropy reward, main text: a penalty on wrong rows, added at their last own step.

    ``R <- R - 1[wrong] lambda_d g_d(Delta)`` with N the number of ``high_entropy`` steps of the row, d its difficulty,
    ``Delta = N - target_d``, g = max(0, Delta) if easy, |Delta| if medium, max(0, -Delta) if hard, and
    ``lambda_d = max(0, (mean_d N - target_d) / (var_d N + epsilon))`` over the rows of this batch.

    The paper takes the mean of the same batch for the target, and lambda is then 0 whatever the data. Here
    ``target_d`` is the average over the batches before, ``target <- decay target + (1 - decay) mean_d N``, so that
    lambda measures its drift; the first batch with rows of a difficulty sets its target and is left as it is.
    """

    def __init__(self, *, decay: float = 0.9, epsilon: float = 1e-6) -> None:
        """
        decay: of the target; 0 is the batch before alone.
        epsilon: beside the variance.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}; valid: in [0, 1)")
        if not epsilon > 0:
            raise ValueError(f"epsilon = {epsilon}; valid: a number above 0")
        self.decay, self.epsilon = decay, epsilon
        self._target = torch.full((NUM_BUCKETS,), torch.nan, dtype=torch.float64)

    def __call__(self, batch: Trajectories) -> Trajectories:
        """Shape the rewards; reports ``entropy_penalty``, the mean over rows.

        Raises:
            ValueError: the batch lacks ``correct``, ``difficulty`` or ``high_entropy``.
        """
        correct, difficulty, count = _read(batch)
        mean, variance, seen = _bucket_moments(count, difficulty, batch.mask.any(1))
        target = self._target.to(mean.device)
        target = torch.where(target.isnan(), mean, target)
        lambdas = ((mean - target) / (variance + self.epsilon)).clamp(min=0)
        delta = count - target[difficulty]
        gap = torch.where(difficulty == MEDIUM, delta.abs(), torch.where(difficulty == EASY, delta, -delta))
        penalty = torch.where(correct, 0.0, lambdas[difficulty] * gap.clamp(min=0))
        self._target = torch.where(seen, self.decay * target + (1 - self.decay) * mean, self._target.to(mean.device))
        shaped = add_to_last_step(batch, -penalty.to(batch.reward.dtype))
        return shaped.replace(metrics={**batch.metrics, "entropy_penalty": penalty.mean()})

    def state_dict(self) -> dict[str, Any]:
        return {"target": self._target}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._target = state["target"]


class ReleasedEntropyReward:
    """The entropy reward of ARES's released code, added at the last own step of every row, right or wrong.

    N and d as in ``EntropyReward``; ``target_d = round(mean_d N)`` of this batch, Delta = N - target_d,
    margin ``m = max(1, f target)``, cap ``c = alpha_d (1, 1, 1.2)``, ``s(x) = 1 / (1 + exp(-x / T))`` and
    ``h(x) = x^2 / (2k) if x <= k else x - k / 2``, with f = .15, .25, .35, k = 2, 3, 4 and T = 2, 2.5, 3 if easy,
    medium, hard:

    - easy or medium, correct: ``-min(c, c h(x) / (m + k))`` at x = max(Delta - m, 0), |Delta| in place of Delta if
      medium.
    - easy or medium, wrong: ``+s(max(Delta - m, 0)) c (.6 or .8)``.
    - hard, correct: ``+s(Delta + m) c`` if Delta >= -m, else ``-min(c, c h(-Delta - m) / (m + k) / 2)``.
    - hard, wrong: ``+s(max(Delta - m, 0)) c``.

    alpha starts at .5 and moves by +.05 (mean - target) (easy, medium) or by the opposite (hard) within [0, 2]; as the
    target is the rounded mean of the same batch, that is rounding noise. A wrong row gets a bonus of at least
    s(0) c = c / 2 times its factor. Prefer ``EntropyReward`` unless the release is to be reproduced.
    """

    def __init__(self) -> None:
        self._alpha = torch.full((NUM_BUCKETS,), 0.5, dtype=torch.float64)

    def __call__(self, batch: Trajectories) -> Trajectories:
        """Shape the rewards; reports ``entropy_bonus``, the mean over rows.

        Raises:
            ValueError: the batch lacks ``correct``, ``difficulty`` or ``high_entropy``.
        """
        correct, difficulty, count = _read(batch)
        mean, _, seen = _bucket_moments(count, difficulty, batch.mask.any(1))
        target, alpha = mean.round(), self._alpha.to(mean.device)

        def by_bucket(*values: float) -> Tensor:
            return mean.new_tensor(values)

        margin = (by_bucket(0.15, 0.25, 0.35) * target).clamp(min=1)[difficulty]
        knee = by_bucket(2, 3, 4)[difficulty]
        temperature = by_bucket(2, 2.5, 3)[difficulty]
        cap = (alpha * by_bucket(1, 1, 1.2))[difficulty]
        wrong_factor = by_bucket(0.6, 0.8, 1)[difficulty]
        delta = count - target[difficulty]

        def penalty(excess: Tensor, factor: float) -> Tensor:
            excess = excess.clamp(min=0)
            huber = torch.where(excess <= knee, excess.square() / (2 * knee), excess - knee / 2)
            return -torch.minimum(cap, factor * cap * huber / (margin + knee))

        over = delta - margin
        if_wrong = torch.sigmoid(over.clamp(min=0) / temperature) * cap * wrong_factor
        enough = torch.sigmoid((delta + margin) / temperature) * cap
        if_hard = torch.where(delta >= -margin, enough, penalty(-delta - margin, 0.5))
        if_not_hard = penalty(torch.where(difficulty == MEDIUM, delta.abs() - margin, over), 1.0)
        bonus = torch.where(correct, torch.where(difficulty == HARD, if_hard, if_not_hard), if_wrong)

        drift = by_bucket(0.05, 0.05, -0.05) * (mean - target)
        self._alpha = torch.where(seen, alpha + drift, alpha).clamp(0, 2)
        shaped = add_to_last_step(batch, bonus.to(batch.reward.dtype))
        return shaped.replace(metrics={**batch.metrics, "entropy_bonus": bonus.mean()})

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self._alpha}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._alpha = state["alpha"]


class KLController:
    """Sets ``extras["kl_weight"]`` [batch, step]: kappa_d of the row's difficulty, times rho inside windows.

    Before that kappa_d follows the KL that the policy of this batch keeps from the reference outside windows, the mean
    of k3 over the steps of rows of difficulty d (algorithm 1, step 8):
    ``kappa_d <- clip(kappa_d (1 + rate (KL_d / target - 1)), low, high)``; a difficulty without such steps keeps it.
    A factor for a KL penalty with a small constant coefficient; the release has 0.01.
    """

    def __init__(
        self,
        *,
        rho: float = 0.5,
        target: float = 0.01,
        rate: float = 0.05,
        initial: float = 1.0,
        low: float = 1e-4,
        high: float = 1e2,
    ) -> None:
        """The paper gives no numbers; target, initial, low and high are those of the release.

        rho: the factor inside windows, in [0, 1]; 1 treats all steps alike.
        target: delta, the KL to keep, in nats a step.
        rate: a_k; 0 keeps kappa constant.
        initial, low, high: kappa at first, and its bounds.
        """
        if not 0 <= rho <= 1:
            raise ValueError(f"rho = {rho}; valid: in [0, 1]")
        if not target > 0:
            raise ValueError(f"target = {target}; valid: a number above 0")
        if not 0 <= rate < 1:
            raise ValueError(f"rate = {rate}; valid: in [0, 1)")
        if not 0 < low <= initial <= high:
            raise ValueError(f"low = {low}, initial = {initial}, high = {high}; valid: 0 < low <= initial <= high")
        self.rho, self.target, self.rate, self.low, self.high = rho, target, rate, low, high
        self._kappa = torch.full((NUM_BUCKETS,), initial, dtype=torch.float64)

    def __call__(self, batch: Trajectories) -> Trajectories:
        """Measure and weigh; reports kappa as ``kl_weight_easy``, ``kl_weight_medium`` and ``kl_weight_hard``.

        Raises:
            ValueError: the batch lacks ``difficulty``, ``in_window`` or ``reference_log_prob``.
        """
        difficulty = _extra(batch, "difficulty", "Difficulty")
        in_window = _extra(batch, "in_window", "HighEntropyWindows")
        outside = batch.mask & ~in_window
        kl = torch.where(outside, kl_estimate(reference_log_ratio(batch), "k3"), 0.0).sum(1).double()
        number = torch.bincount(difficulty, weights=outside.sum(1).double(), minlength=NUM_BUCKETS)
        measured = torch.bincount(difficulty, weights=kl, minlength=NUM_BUCKETS) / number.clamp(min=1)
        kappa = self._kappa.to(kl.device)
        moved = (kappa * (1 + self.rate * (measured / self.target - 1))).clamp(self.low, self.high)
        self._kappa = kappa = torch.where(number > 0, moved, kappa)
        outer = kappa[difficulty][:, None]
        weight = torch.where(in_window, self.rho * outer, outer).to(batch.log_prob.dtype)
        metrics = dict(zip(("kl_weight_easy", "kl_weight_medium", "kl_weight_hard"), kappa.unbind(), strict=True))
        return batch.replace(extras={**batch.extras, "kl_weight": weight}, metrics={**batch.metrics, **metrics})

    def state_dict(self) -> dict[str, Any]:
        return {"kappa": self._kappa}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._kappa = state["kappa"]


def window_means(
    values: Float[Tensor, "batch step"], mask: Bool[Tensor, "batch step"], width: int
) -> Float[Tensor, "batch step"]:
    """At every own step the mean over it and the next width - 1 own steps of the row; 0 elsewhere."""
    order, rank = _own_steps_first(mask)
    packed_mask = mask.gather(1, order)
    packed = torch.where(packed_mask, values.gather(1, order), 0.0)
    total = functional.pad(packed, (0, width - 1)).unfold(1, width, 1).sum(-1)
    number = functional.pad(packed_mask, (0, width - 1)).unfold(1, width, 1).sum(-1)
    return torch.where(mask, (total / number.clamp(min=1)).gather(1, rank), 0.0)


def covered(
    begins: Bool[Tensor, "batch step"], mask: Bool[Tensor, "batch step"], width: int
) -> Bool[Tensor, "batch step"]:
    """The own steps at which a window of ``width`` own steps begins, or less than ``width`` before which one does."""
    order, rank = _own_steps_first(mask)
    packed = (begins & mask).gather(1, order)
    lies_in = functional.pad(packed, (width - 1, 0)).unfold(1, width, 1).any(-1)
    return mask & lies_in.gather(1, rank)


def _own_steps_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The order [batch, step] that puts a row's own steps first, and the place of each step in it."""
    order = (~mask).long().argsort(dim=1, stable=True)
    return order, order.argsort(1)


def _extra(batch: Trajectories, name: str, step: str) -> Tensor:
    if name not in batch.extras:
        raise ValueError(f"extras[{name!r}] is missing; put {step} earlier into the pipeline")
    return batch.extras[name]


def _read(batch: Trajectories) -> tuple[Bool[Tensor, " batch"], Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Correct, difficulty and N, the number of high-entropy steps, of every row."""
    correct, difficulty = _extra(batch, "correct", "Difficulty"), _extra(batch, "difficulty", "Difficulty")
    return correct, difficulty, _extra(batch, "high_entropy", "HighEntropyWindows").sum(1).double()


def _bucket_moments(count: Tensor, difficulty: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and population variance of N over the valid rows of each difficulty, and which have any; [difficulty]."""
    count, difficulty = count[valid], difficulty[valid]
    number = torch.bincount(difficulty, minlength=NUM_BUCKETS)
    mean = torch.bincount(difficulty, weights=count, minlength=NUM_BUCKETS) / number.clamp(min=1)
    squares = (count - mean[difficulty]).square()
    variance = torch.bincount(difficulty, weights=squares, minlength=NUM_BUCKETS) / number.clamp(min=1)
    return mean, variance, number > 0
