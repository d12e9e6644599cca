"""How much a learning history is worth keeping: whether its learner improved, and how steadily (arXiv 2505.15143).

A learning history is all episodes of one learner on one task, in the order in which they were played. Here it is no
more than its returns R_1 .. R_E, one undiscounted sum of rewards per episode: a tensor [task, history, episode], with
R_max the largest return that the task allows, [task] or one number for all. Where histories have different lengths,
``mask`` [task, history, episode] tells the episodes from the padding, whose values do not matter.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PerTask = Float[Tensor, " task"] | float
"""A value for every task, or one for all of them."""


def improvement(
    returns: Float[Tensor, "task history episode"],
    r_max: PerTask,
    *,
    mask: Bool[Tensor, "task history episode"] | None = None,
) -> Float[Tensor, "task history"]:
    """``(mean R + max R - min R) / (2 R_max)`` (arXiv 2505.15143, section 3); the order of the episodes has no say.

    In [0, 1] for returns in [0, R_max]. A constant history has a gap of 0 between its extremes, but its mean counts.

    Raises:
        ValueError: shapes or values that do not make sense, named.
    """
    mask = episodes(returns, mask)
    mean = torch.where(mask, returns, 0.0).sum(-1) / mask.sum(-1)
    most = torch.where(mask, returns, -torch.inf).amax(-1)
    least = torch.where(mask, returns, torch.inf).amin(-1)
    return (mean + most - least) / (2 * _checked_r_max(r_max, returns))


def stability(
    returns: Float[Tensor, "task history episode"],
    r_max: PerTask,
    *,
    mask: Bool[Tensor, "task history episode"] | None = None,
) -> Float[Tensor, "task history"]:
    """``1 + mean(d_e : d_e < 0) / R_max`` with ``d_e = R_{e+1} - R_e`` (arXiv 2505.15143, section 3).

    The mean is over the drops, not over all d: rare drops cost as much as frequent ones of the same size. Without a
    drop, as in a single episode, it is 1. In [0, 1] for returns in [0, R_max]. Only episodes that follow each other
    directly are compared; a gap in the mask is no drop.

    Raises:
        ValueError: shapes or values that do not make sense, named.
    """
    mask = episodes(returns, mask)
    compared = mask[..., 1:] & mask[..., :-1]
    drops = torch.where(compared, returns.diff(dim=-1), 0.0).clamp(max=0)
    mean = drops.sum(-1) / (drops < 0).sum(-1).clamp(min=1)
    return 1 + mean / _checked_r_max(r_max, returns)


def score(
    returns: Float[Tensor, "task history episode"],
    r_max: PerTask,
    *,
    stability_weight: float = 1.0,
    mask: Bool[Tensor, "task history episode"] | None = None,
) -> Float[Tensor, "task history"]:
    """``U = improvement + stability_weight * stability``, the paper's U with its lambda (arXiv 2505.15143, section 3).

    In [0, 1 + stability_weight] for returns in [0, R_max]. A learner that never scores is perfectly stable: with a
    weight of 1 its U is 1, above the 0.75 of one that alternates between 0 and R_max, and the more so the larger the
    weight.

    Raises:
        ValueError: shapes or values that do not make sense, named.
    """
    check_stability_weight(stability_weight)
    return improvement(returns, r_max, mask=mask) + stability_weight * stability(returns, r_max, mask=mask)


def retention(score: Float[Tensor, "task history"], *, alpha: float | None = None) -> Float[Tensor, "task history"]:
    """The probability P of keeping each history, from 0 for the worst of a task to 1 for its best.

    ``P = (S - min S) / (max S - min S)`` over the histories of one task, with S = U, the linear rule, or
    ``S = exp(U / alpha)`` (arXiv 2505.15143, section 3). A small ``alpha`` keeps little but the best; a large one
    approaches the linear rule. Where a task's scores are equal up to rounding, or there is only one, P is 1.

    Args:
        alpha: temperature of the softmax rule; None for the linear rule.

    Raises:
        ValueError: ``alpha`` is not positive, or a score is not finite.
    """
    check_alpha(alpha)
    if score.ndim != 2 or score.numel() == 0 or not score.is_floating_point():
        raise ValueError(f"score is {_kind(score)}; valid: floats [task, history], at least one of each")
    _refuse("score", score, ~score.isfinite(), "finite")

    wide = score.double()
    low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
    # Without the tolerance, rounding alone would make one of equal histories the worst and drop it.
    equal = high - low <= 64 * torch.finfo(score.dtype).eps * wide.abs().amax(-1, keepdim=True)
    span = torch.where(equal, 1.0, high - low)
    if alpha is None:
        probability = (wide - low) / span
    else:
        # The rule above with exp(max / alpha) divided out, and no difference of exponentials: nothing overflows for
        # a small alpha or cancels for a large one.
        probability = torch.exp((wide - high) / alpha) * torch.expm1((low - wide) / alpha) / torch.expm1(-span / alpha)
    return torch.where(equal, 1.0, probability).to(score.dtype)


def largest_returns(
    returns: Float[Tensor, "task history episode"], *, mask: Bool[Tensor, "task history episode"] | None = None
) -> Float[Tensor, " task"]:
    """The largest return of each task in the data: stands for R_max where the task does not tell it.

    Raises:
        ValueError: shapes or values that do not make sense, named.
    """
    return torch.where(episodes(returns, mask), returns, -torch.inf).amax((1, 2))


def scale_returns(
    returns: Float[Tensor, "task history episode"], *, low: PerTask, high: PerTask
) -> Float[Tensor, "task history episode"]:
    """``(R - low) / (high - low)``: returns from ``low`` to ``high``, costs for example, become 0 to R_max = 1.

    Scores do not change when returns and R_max are multiplied by one number, but they do when the returns are shifted:
    ``low`` should be the worst return of the task, not whatever the data happen to contain.

    Raises:
        ValueError: a bound is not finite, or not low < high, or shapes do not fit.
    """
    _check_returns(returns)
    bottom, top = _per_task("low", low, returns), _per_task("high", high, returns)
    _refuse("high", top[:, 0], (top <= bottom)[:, 0], "above low")
    return (returns - bottom[..., None]) / (top - bottom)[..., None]


def episodes(
    returns: Float[Tensor, "task history episode"], mask: Bool[Tensor, "task history episode"] | None
) -> Bool[Tensor, "task history episode"]:
    """The mask, all True where there is none.

    Raises:
        ValueError: the returns are no floats [task, history, episode], the mask does not fit them, a history has no
            episode, or the return of one is not finite.
    """
    _check_returns(returns)
    if mask is None:
        mask = torch.ones_like(returns, dtype=torch.bool)
    elif mask.shape != returns.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask is {_kind(mask)}; valid: torch.bool of shape {tuple(returns.shape)}")
    _refuse("number of episodes", mask.sum(-1), ~mask.any(-1), "one or more in every history")
    _refuse("returns", returns, mask & ~returns.isfinite(), "finite wherever the mask is True")
    return mask


def check_stability_weight(stability_weight: float) -> None:
    """ValueError unless it is finite and not negative."""
    if not 0 <= stability_weight < math.inf:
        raise ValueError(f"stability_weight = {stability_weight}; valid: finite, 0 or more")


def check_alpha(alpha: float | None) -> None:
    """ValueError unless it is a temperature or None."""
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"alpha = {alpha}; valid: finite and above 0, or None for the linear rule")


def _check_returns(returns: Tensor) -> None:
    if returns.ndim != 3 or returns.numel() == 0 or not returns.is_floating_point():
        raise ValueError(f"returns are {_kind(returns)}; valid: floats [task, history, episode], at least one of each")


def _checked_r_max(r_max: PerTask, returns: Tensor) -> Float[Tensor, "task 1"]:
    value = _per_task("r_max", r_max, returns)
    hint = "finite and above 0; scale_returns shifts returns that are never positive"
    _refuse("r_max", value[:, 0], value[:, 0] <= 0, hint)
    return value


def _per_task(name: str, value: PerTask, returns: Tensor) -> Float[Tensor, "task 1"]:
    given = torch.as_tensor(value, dtype=returns.dtype, device=returns.device)
    if given.shape not in ((), returns.shape[:1]):
        raise ValueError(f"{name} is of shape {tuple(given.shape)}; valid: a number or shape ({returns.shape[0]},)")
    given = given.expand(returns.shape[0])
    _refuse(name, given, ~given.isfinite(), "finite")
    return given[:, None]


def _refuse(name: str, values: Tensor, wrong: Tensor, valid: str) -> None:
    """ValueError with the place of the first wrong value and their number, if there are any."""
    if wrong.any():
        places = wrong.nonzero()
        place = tuple(places[0].tolist())
        others = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        raise ValueError(f"{name}[{', '.join(map(str, place))}] = {values[place].item()}{others}; valid: {valid}")


def _kind(values: Tensor) -> str:
    return f"{values.dtype} of shape {tuple(values.shape)}"
