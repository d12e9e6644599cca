"""From a loss for every step to one number: the five aggregations in use, by name.

Each is a function ``(loss [batch, step], mask [batch, step]) -> scalar``. With equal lengths ``token_mean`` and
``seq_mean_token_mean`` agree. Where nothing is left by the mask the result is zero, with a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decisionrl.names import pick

Aggregation = Callable[[Float[Tensor, "batch step"], Bool[Tensor, "batch step"]], Float[Tensor, ""]]


def token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """sum(l m) / sum(m): every step counts the same (DAPO, arXiv 2503.14476)."""
    return _kept(loss, mask).sum() / mask.sum().clamp(min=1)


def seq_mean_token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Mean over sequences of the mean over their steps (GRPO, arXiv 2402.03300); empty sequences do not count."""
    return only_token_mean(loss, mask) / _sequences(mask)


def seq_mean_token_sum(loss: Tensor, mask: Tensor) -> Tensor:
    """Mean over sequences of the sum over their steps; empty sequences do not count."""
    return _kept(loss, mask).sum() / _sequences(mask)


def seq_mean_token_sum_norm(loss: Tensor, mask: Tensor, *, length: int | None = None) -> Tensor:
    """sum(l m) / (batch x length), with a constant length (Dr. GRPO, arXiv 2503.20783).

    length: the longest a sequence can be; by default the padded length, which then must not vary between batches.
    """
    return _kept(loss, mask).sum() / (mask.shape[0] * (length or mask.shape[1]))


def only_token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Sum over sequences of the mean over their steps, not divided by their number (DCPO, arXiv 2509.02333)."""
    return (_kept(loss, mask).sum(1) / mask.sum(1).clamp(min=1)).sum()


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
    function = AGGREGATIONS[pick("aggregation", name, AGGREGATIONS)]
    return partial(seq_mean_token_sum_norm, length=length) if function is seq_mean_token_sum_norm else function


def _kept(loss: Tensor, mask: Tensor) -> Tensor:
    """The loss where the mask is set, 0 elsewhere, whatever stands there."""
    return torch.where(mask, loss, 0.0)


def _sequences(mask: Tensor) -> Tensor:
    return mask.any(1).sum().clamp(min=1)
