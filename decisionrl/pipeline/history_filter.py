"""Learning histories drawn anew, so that those whose learners improved steadily stand in the data more often.

What learns in context imitates the learners in its data, the bad ones too. Learning history filtering (LHF, arXiv
2505.15143) scores every history, ``pipeline/history_scores.py``, and draws each task's set anew from itself.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.pipeline.history_scores import (
    PerTask,
    check_alpha,
    check_stability_weight,
    episodes,
    largest_returns,
    retention,
    score,
)

Mode = Literal["resample", "shuffled", "multinomial", "weight"]


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """Which histories to train on. A task has as many afterwards as before, some of them more than once.

    Attributes:
        index: the history that stands in each place, 0 to the number of histories - 1.
        weight: factor on the loss of what stands there, in the dtype of the returns; 1 unless the mode is ``"weight"``.
        probability: P of each of the task's histories before the filter, in float64.
        score: U of each of them, in float64.
    """

    index: Int[Tensor, "task history"]
    weight: Float[Tensor, "task history"]
    probability: Float[Tensor, "task history"]
    score: Float[Tensor, "task history"]


@dataclass(frozen=True, kw_only=True)
class HistoryFilter:
    """LHF (arXiv 2505.15143): each task's histories drawn anew by ``retention`` of their ``score``.

    ``mode`` is how P is used. With many histories of a task the expected loss is the same in all modes:

    * ``"resample"``: the paper's Algorithm 1, see ``resample``. The last pass ends when the list is full, so the last
      histories of a task appear too rarely: of five with P = 0, 1/4, .. 1 the best fills 0.349 of the places, not 0.4.
    * ``"shuffled"``: the same with another order in each pass, so that a history's number has no say. The best still
      appears a little too often, 0.410 in that example, since short passes are followed by another one.
    * ``"multinomial"``: independent draws in proportion to P; exactly 0.4.
    * ``"weight"``: every history once, with the weight P / mean P on its loss; what multinomial draws are on average.

    The histories of a task with the lowest score have P = 0 and are gone. Where all scores are equal, so are all P:
    ``"resample"`` and ``"weight"`` change nothing, ``"shuffled"`` only the order, and multinomial draws are uniform.

    A history need not be of reinforcement learning. Which training runs of a language model got better at which
    prompts, from the mean reward of their checkpoints on each::

        rewards = torch.rand(prompts, runs, checkpoints)  # R_max = 1
        filtered = HistoryFilter(stability_weight=0.5)(rewards, 1.0, seeding.generator(0, "histories"))
        kept_runs = filtered.index  # [prompt, run]: of which runs to take the answers to a prompt

    Attributes:
        stability_weight: lambda of the score; the paper tries 0, 0.5, 1, 2 and 1000.
        alpha: temperature of the softmax rule, in the paper 1/16 to 1; None for the linear rule.
        mode: see above.

    Raises:
        ValueError: an attribute out of range.
    """

    stability_weight: float = 1.0
    alpha: float | None = None
    mode: Mode = "resample"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode = {self.mode!r}; valid: {', '.join(get_args(Mode))}")
        check_stability_weight(self.stability_weight)
        check_alpha(self.alpha)

    def __call__(
        self,
        returns: Float[Tensor, "task history episode"],
        r_max: PerTask | Literal["data"],
        generator: torch.Generator,
        *,
        mask: Bool[Tensor, "task history episode"] | None = None,
    ) -> Filtered:
        """Score the histories and choose, on the device of the returns.

        Warns once, with their number, if returns are outside [0, R_max] by more than 1e-6 R_max. The formulas are then
        applied as they stand, and improvement and stability may leave [0, 1]; ``scale_returns`` is the remedy.

        Args:
            returns: of the episodes, in the order of learning.
            r_max: the largest return that each task allows; ``"data"`` for the largest that it has in the data.
            generator: random numbers, not used by ``"weight"``; one on the CPU gives the same choice on any device.
            mask: which episodes there are, in histories of different lengths.

        Raises:
            ValueError: R_max is not positive and finite, a return is not finite, a history has no episode, or shapes
                do not fit.
        """
        mask = episodes(returns, mask)
        wide = returns.detach().double()
        if isinstance(r_max, str):
            if r_max != "data":
                raise ValueError(f"r_max = {r_max!r}; valid: a number, one for each task, or 'data'")
            r_max = largest_returns(wide, mask=mask)
        value = score(wide, r_max, stability_weight=self.stability_weight, mask=mask)
        _warn_outside(wide, r_max, mask)
        probability = retention(value, alpha=self.alpha)
        index, weight = self._choose(probability, generator)
        return Filtered(index=index, weight=weight.to(returns.dtype), probability=probability, score=value)

    def _choose(self, probability: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The index and the weight of a ``Filtered``."""
        ones, uniform = torch.ones_like(probability), _uniform(probability, generator)
        if self.mode == "weight":
            return _in_order(probability), probability / probability.mean(-1, keepdim=True)
        if self.mode == "multinomial":
            return multinomial(probability, next(uniform)), ones
        if self.mode == "shuffled":
            # Both are taken from one stream in turn: v of a pass, then its order.
            return resample(probability, uniform, order=(each.argsort(-1) for each in uniform)), ones
        return resample(probability, uniform), ones


def resample(
    probability: Float[Tensor, "task history"],
    uniform: Iterable[Float[Tensor, "task history"]],
    *,
    order: Iterable[Int[Tensor, "task history"]] | None = None,
) -> Int[Tensor, "task history"]:
    """Algorithm 1 of LHF (arXiv 2505.15143) for all tasks at once: pass by pass, until every task's list is full.

    In each pass over a task's histories, history l is appended if v_l < P_l, until there are as many as before. A
    history of P = 0 never is, one of P = 1 always: where the best has P = 1, as many passes as histories suffice.

    Args:
        probability: P, in [0, 1].
        uniform: v of each pass, in [0, 1): a tensor [pass, task, history], or an iterator to take from as needed.
        order: the histories in the order of each pass; 0, 1, 2, ... where not given, as in the paper.

    Returns:
        the histories in the order in which they were appended.

    Raises:
        ValueError: P is not in [0, 1], a task has none above 0, or the passes end before the lists are full.
    """
    _check(probability)
    tasks, histories = probability.shape
    orders = itertools.repeat(_in_order(probability)) if order is None else order
    # One place more than there are histories: it takes what is not appended.
    index = torch.zeros(tasks, histories + 1, dtype=torch.long, device=probability.device)
    full = torch.zeros(tasks, 1, dtype=torch.long, device=probability.device)
    for v, history in zip(uniform, orders, strict=False):
        kept = (v < probability).gather(1, history)
        place = full + kept.cumsum(1) - 1
        index.scatter_(1, torch.where(kept, place.clamp(max=histories), histories), history)
        full = full + kept.sum(1, keepdim=True)
        if (full >= histories).all():
            return index[:, :-1]
    short = int(full.argmin())
    raise ValueError(f"the passes ended with {int(full[short])} of {histories} histories for task {short}; draw more")


def multinomial(
    probability: Float[Tensor, "task history"], uniform: Float[Tensor, "task place"]
) -> Int[Tensor, "task place"]:
    """A history for every place of every task, independently and in proportion to P; never one of P = 0.

    Args:
        probability: P, in [0, 1].
        uniform: in [0, 1), in float64.

    Raises:
        ValueError: P is not in [0, 1], or a task has none above 0.
    """
    _check(probability)
    # The first history whose cumulative P is strictly above the draw has a share of its own in it. There always is one:
    # a number below 1 times the total is below the total in float64 too.
    cumulative = probability.double().cumsum(1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)


def _uniform(like: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers in [0, 1) of a shape, in float64, without end."""
    while True:
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=generator.device)
        yield drawn.to(like.device)


def _in_order(probability: Tensor) -> Int[Tensor, "task history"]:
    return torch.arange(probability.shape[1], device=probability.device).expand(probability.shape)


def _check(probability: Tensor) -> None:
    if probability.ndim != 2 or probability.numel() == 0:
        raise ValueError(
            f"probability is of shape {tuple(probability.shape)}; valid: [task, history], one or more each"
        )
    low, high = probability.amin().item(), probability.amax().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"probability is from {low} to {high}; valid: 0 to 1")
    dead = ~(probability > 0).any(-1)
    if dead.any():
        raise ValueError(f"probability of task {int(dead.nonzero()[0])} is all 0; valid: some history above 0")


def _warn_outside(returns: Tensor, r_max: PerTask, mask: Tensor) -> None:
    most = torch.as_tensor(r_max, dtype=returns.dtype, device=returns.device).reshape(-1, 1, 1)
    slack = 1e-6 * most  # sums of rewards in float32
    number = int((mask & ((returns < -slack) | (returns > most + slack))).sum())
    if number:
        played = returns[mask]
        warnings.warn(
            f"{number} of {played.numel()} returns are outside [0, R_max] (they are from {played.min().item():g} to "
            f"{played.max().item():g}): improvement and stability may leave [0, 1]; see scale_returns",
            stacklevel=3,
        )
