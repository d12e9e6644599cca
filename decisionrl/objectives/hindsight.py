"""The objectives of OPPO (arXiv 2305.16217): hindsight matching, and the vector z* that preferences point to.

Two learners take turns on every batch (a :class:`~decisionrl.composition.ChainedLearner`): :class:`HindsightObjective`
trains encoder and policy with z* held fixed, :class:`ContextObjective` trains z* with the encodings held fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decisionrl.experience.hindsight import LabeledBatch
from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Loss, Objective
from decisionrl.objectives.terms import masked_mean
from decisionrl.policies.hindsight import HindsightPolicy, Prediction
from decisionrl.policies.sequence import Window


def hindsight_matching(
    predicted: Float[Tensor, "batch step features"],
    target: Float[Tensor, "batch step features"],
    mask: Bool[Tensor, "batch step"] | None,
) -> Float[Tensor, ""]:
    """Mean of (a_hat - a)^2 over the steps of the mask and the features."""
    return masked_mean((predicted - target).square().mean(-1), mask)


def triplet(
    context: Float[Tensor, " d"],
    preferred: Float[Tensor, "n d"],
    other: Float[Tensor, "n d"],
    *,
    margin: float | Float[Tensor, " n"] = 1.0,
) -> Float[Tensor, " n"]:
    """max(0, ||z* - z+|| - ||z* - z-|| + margin)."""
    return (_distance(context, preferred) - _distance(context, other) + margin).clamp(min=0)


def soft_norm(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean of (||z|| - 1)^2."""
    return (_length(z) - 1).square().mean()


def hinge_norm(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean of max(0, ||z|| - 1), of the variant for human labels."""
    return (_length(z) - 1).clamp(min=0).mean()


@dataclass(frozen=True, kw_only=True)
class PreferenceTerm:
    """L_PM, the triplet losses of the pairs, z+ being the encoding of the preferred window and z- that of the other.

    Attributes:
        margin: of pairs with a preference.
        tie_margin: None leaves ties (label 0.5) out: L_PM is the mean over the other pairs by their weights, and 0 if
            there are none. A number keeps them, the first window standing for z+, and L_PM is the mean over all pairs;
            0 in the variant for human labels.
    """

    margin: float = 1.0
    tie_margin: float | None = None

    def __call__(
        self, context: Float[Tensor, " d"], z: Float[Tensor, "sequences d"], batch: PreferenceBatch
    ) -> Float[Tensor, ""]:
        preferred, other = _ordered(z, batch)
        tied = batch.label == 0.5
        if self.tie_margin is None:
            weight = torch.where(tied, 0, _weight(batch))
            total = weight.sum()
            loss = (weight * triplet(context, preferred, other, margin=self.margin)).sum()
            return loss / torch.where(total > 0, total, 1)
        margin = torch.where(tied, self.tie_margin, self.margin)
        return (_weight(batch) * triplet(context, preferred, other, margin=margin)).mean()


STRICT = PreferenceTerm()
"""Of the released code for scripted teachers."""

WITH_TIES = PreferenceTerm(tie_margin=0.0)
"""Of the released code for human labels."""


@dataclass(frozen=True, kw_only=True)
class HindsightObjective:
    """Encoder and policy: L_HIM + c_pref L_PM(sg(z*), z) + c_norm L_norm(z), on a PreferenceBatch.

    L_HIM (:func:`hindsight_matching` given the window's own z) and L_norm are summed over the two windows of the pairs.
    A policy that also reconstructs observations adds their mean squared error to L_HIM.

    Attributes:
        preference_weight, norm_weight: c_pref, c_norm; 10 and 0.1 with human labels.
        preference: L_PM.
        norm: ``soft_norm``, or ``hinge_norm`` with human labels.
        learn_context: add L_PM(z*, sg(z)), for a single learner whose optimizer holds z* as well. That spares
            :class:`ContextObjective` and its second encoding; z* then follows the encodings before the step, not after.
    """

    preference_weight: float = 0.1
    norm_weight: float = 0.1
    preference: PreferenceTerm = STRICT
    norm: Callable[[Tensor], Tensor] = soft_norm
    learn_context: bool = False

    def __call__(self, policy: HindsightPolicy, batch: PreferenceBatch) -> Loss:
        window = policy.reader(batch.segments)
        z = policy.encoder(window)
        prediction = policy.contextual(window, z)
        sides = (batch.first, batch.second)
        matching = torch.stack([_reconstruction(prediction, window, rows) for rows in sides]).sum()
        norm = torch.stack([self.norm(z[rows]) for rows in sides]).sum()
        context = policy.context.detach()
        preference = self.preference(context, z, batch)
        value = matching + self.preference_weight * preference + self.norm_weight * norm
        if self.learn_context:
            value = value + self.preference(policy.context, z.detach(), batch)
        metrics = {"matching": matching, "preference": preference, "norm": norm}
        return Loss(value, {**metrics, "accuracy": _accuracy(context, z, batch)})


@dataclass(frozen=True, kw_only=True)
class ContextObjective:
    """z*: L_PM(z*, sg(I_theta(tau))), on a PreferenceBatch, which is encoded anew."""

    preference: PreferenceTerm = STRICT

    def __call__(self, policy: HindsightPolicy, batch: PreferenceBatch) -> Loss:
        with torch.no_grad():
            z = policy.encode(batch.segments)
        return Loss(self.preference(policy.context, z, batch), {"context_norm": _length(policy.context)})


@dataclass(frozen=True, kw_only=True)
class MatchingObjective:
    """Encoder and policy without preferences: L_HIM on Trajectories.

    Where the batch has ``extras["observation_noise"]`` (:class:`~decisionrl.experience.hindsight.NoisyWindows`), the
    policy sees noisy observations and is to reconstruct from them what happened; the encoder does not.
    """

    def __call__(self, policy: HindsightPolicy, batch: Trajectories) -> Loss:
        window = policy.reader(batch)
        seen, noise = window, batch.extras.get("observation_noise")
        if noise is not None:
            seen = dataclasses.replace(window, observation=window.observation + noise)
        prediction = policy.contextual(seen, policy.encoder(window))
        return Loss(_reconstruction(prediction, window, slice(None)))


@dataclass(frozen=True)
class OnPart:
    """An objective on one part of a :class:`~decisionrl.experience.hindsight.LabeledBatch`.

    With human labels OPPO's release chains three learners: ``OnPart("windows", MatchingObjective())`` for encoder and
    policy on every second batch, ``OnPart("pairs", HindsightObjective(...))`` for the encoder alone, and
    ``OnPart("pairs", ContextObjective(...))`` for z*.
    """

    part: Literal["pairs", "windows"]
    objective: Objective

    def __call__(self, policy: Any, batch: LabeledBatch) -> Loss:
        return self.objective(policy, getattr(batch, self.part))


def _reconstruction(prediction: Prediction, window: Window, rows: Tensor | slice) -> Float[Tensor, ""]:
    mask = None if window.mask is None else window.mask[rows]
    error = hindsight_matching(prediction.action[rows], window.action[rows], mask)
    if prediction.observation is None:
        return error
    return error + hindsight_matching(prediction.observation[rows], window.observation[rows], mask)


@torch.no_grad()
def _accuracy(context: Tensor, z: Tensor, batch: PreferenceBatch) -> Float[Tensor, ""]:
    """The share of the pairs with a preference whose z+ is closer to z* than z-; 0 if there are none."""
    preferred, other = _ordered(z, batch)
    counts = (batch.label != 0.5) & (_weight(batch) > 0)
    closer = (_distance(context, preferred) < _distance(context, other)).to(z.dtype)
    return masked_mean(closer, counts)


def _ordered(z: Float[Tensor, "sequences d"], batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """z+ and z- of every pair; for a tie the first and the second."""
    first, second = z[batch.first], z[batch.second]
    swapped = (batch.label > 0.5)[:, None]
    return torch.where(swapped, second, first), torch.where(swapped, first, second)


def _weight(batch: PreferenceBatch) -> Float[Tensor, " pairs"]:
    return torch.ones_like(batch.label) if batch.weight is None else batch.weight


def _distance(context: Tensor, z: Tensor) -> Float[Tensor, " n"]:
    return _length(context - z)


def _length(z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    length: Tensor = torch.linalg.vector_norm(z, dim=-1)
    return length
