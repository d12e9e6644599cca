"""Small filters and weights of steps: what the pipeline decided, and the steps of highest entropy."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from decisionrl.objectives.terms import Terms, masked_quantile


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Keep the steps that ``batch.extras[key]`` says, bool [batch, step], or [batch] for whole sequences."""

    key: str = "kept"

    def __call__(self, terms: Terms) -> Bool[Tensor, "batch step"]:
        return _extra(terms, self.key).bool()


@dataclass(frozen=True, kw_only=True)
class BatchWeight:
    """Weigh the steps by ``batch.extras[key]``, [batch, step], or [batch] for whole sequences."""

    key: str = "weight"

    def __call__(self, terms: Terms) -> Float[Tensor, "batch step"]:
        return _extra(terms, self.key)


@dataclass(frozen=True, kw_only=True)
class TopEntropy:
    """Keep that fraction of the minibatch's steps where the policy's entropy is highest, and those equal to the last.

    Source: arXiv 2506.01939, which trains on the top 0.2.
    """

    fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction = {self.fraction}; valid: in (0, 1]")

    def __call__(self, terms: Terms) -> Bool[Tensor, "batch step"]:
        return terms.entropy >= masked_quantile(terms.entropy, terms.mask, 1 - self.fraction)


def _extra(terms: Terms, key: str) -> Tensor:
    """The extra of that name at every step.

    Raises:
        ValueError: the batch has none.
    """
    if key not in terms.batch.extras:
        raise ValueError(f"extras have no {key!r}, only {sorted(terms.batch.extras)}; a pipeline step must set it")
    values = terms.batch.extras[key]
    return values if values.shape[1:] else values.unsqueeze(1).expand_as(terms.mask)
