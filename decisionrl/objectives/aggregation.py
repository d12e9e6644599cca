"""From a loss for every step to one number: the five aggregations in use, by name.

Each is a function ``(loss [batch, step], mask [batch, step]) -> scalar``; a mask of None means that all steps count.
With equal lengths ``token_mean`` and ``seq_mean_token_mean`` agree. Where nothing is left by the mask the result is
zero, with a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decisionrl.names import pick
from decisionrl.objectives.terms import masked_mean, sequence_mean

Aggregation = Callable[[Float[Tensor, "batch step"], Bool[Tensor, "batch step"] | None], Float[Tensor, ""]]


def token_mean(loss: Tensor, mask: Tensor | None) -> Tensor:
    """sum(l m) / sum(m): every step counts the same (DAPO, arXiv 2503.14476)."""
    return masked_mean(loss, mask)


def seq_mean_token_mean(loss: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over sequences of the mean over their steps (GRPO, arXiv 2402.03300); empty sequences do not count."""
    return only_token_mean(loss, mask) / _sequences(loss, mask)


def seq_mean_token_sum(loss: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over sequences of the sum over their steps; empty sequences do not count."""
    return _sum(loss, mask) / _sequences(loss, mask)


def seq_mean_token_sum_norm(loss: Tensor, mask: Tensor | None, *, length: int | None = None) -> Tensor:
    """sum(l m) / (batch x length), with a constant length (Dr. GRPO, arXiv 2503.20783).

    length: the longest a sequence can be; by default the padded length, which then must not vary between batches.
    """
    return _sum(loss, mask) / (loss.shape[0] * (length or loss.shape[1]))


def only_token_mean(loss: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over sequences of the mean over their steps, not divided by their number (DCPO, arXiv 2509.02333)."""
    return sequence_mean(loss, mask).sum()


AGGREGATIONS: dict[str, Aggregation] = {
    "token-mean": token_mean,
    "seq-mean-token-mean": seq_mean_token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "seq-mean-token-sum-norm": seq_mean_token_sum_norm,
    "only-token-mean": only_token_mean,
}


def aggregation(name: str, *, length: int | None = None) -> Aggregation:
    """The aggregation of that name; UnknownNameError if there is none.

    length: the constant of "seq-mean-token-sum-norm".
    """
    function = pick("aggregation", name, AGGREGATIONS)
    return partial(seq_mean_token_sum_norm, length=length) if function is seq_mean_token_sum_norm else function


def _sum(loss: Tensor, mask: Tensor | None) -> Tensor:
    """Over the mask's steps, whatever stands at the others."""
    return loss.sum() if mask is None else torch.where(mask, loss, 0.0).sum()


def _sequences(loss: Tensor, mask: Tensor | None) -> Tensor | int:
    """How many sequences have a step that counts, at least 1."""
    return loss.shape[0] if mask is None else mask.any(1).sum().clamp(min=1)
