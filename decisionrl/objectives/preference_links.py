"""From two scores to the loss of a pair: link functions.

Every link is ``(scores) -> loss [pairs]``. Most look only at the gap ``u = S+ - lambda S- - margin``; those with
``absolute`` look at each score by itself, so that neither lambda nor a margin can be used with them, and a constant
added to both scores changes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from decisionrl.objectives.preference_scores import Pairs


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of pairs.

    Attributes:
        pairs: whose.
        chosen, rejected: S+ and S-, [pairs].
        bias: lambda.
        margin: subtracted from the gap, [pairs] or a number.
    """

    pairs: Pairs
    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    bias: float = 1.0
    margin: Tensor | float = 0.0

    @cached_property
    def gap(self) -> Float[Tensor, " pairs"]:
        """u = S+ - lambda S- - margin."""
        return self.chosen.sub(self.rejected, alpha=self.bias) - self.margin


class Link(Protocol):
    """The loss of every pair."""

    @property
    def absolute(self) -> bool: ...

    def __call__(self, scores: Scores, /) -> Float[Tensor, " pairs"]: ...


@dataclass(frozen=True)
class Logistic:
    """``-log sigmoid(u)`` (DPO, arXiv 2305.18290, eq. 7; CPL, arXiv 2310.13639, eq. 5)."""

    absolute: ClassVar[bool] = False

    def __call__(self, scores: Scores) -> Tensor:
        return softplus(-scores.gap)


@dataclass(frozen=True)
class Hinge:
    """``max(0, delta - u)`` (SLiC-HF, arXiv 2305.10425; with scores relative to a reference RSO, 2309.06657)."""

    delta: float = 1.0
    absolute: ClassVar[bool] = False

    def __call__(self, scores: Scores) -> Tensor:
        return (self.delta - scores.gap).relu()


@dataclass(frozen=True)
class Squared:
    """``(u - target)^2`` (IPO, arXiv 2310.12036, with the target 1 / (2 tau))."""

    target: float
    absolute: ClassVar[bool] = False

    def __call__(self, scores: Scores) -> Tensor:
        return (scores.gap - self.target).square()


@dataclass(frozen=True)
class ReverseKL:
    """EXO (arXiv 2402.00856): ``q log(q / (1 - eps)) + (1 - q) log((1 - q) / eps)`` with q = sigmoid(u)."""

    epsilon: float = 1e-3
    absolute: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 0.5:
            raise ValueError(f"epsilon = {self.epsilon}; valid: above 0 and below 0.5")

    def __call__(self, scores: Scores) -> Tensor:
        u = scores.gap
        preferred = u.sigmoid() * (logsigmoid(u) - math.log1p(-self.epsilon))
        return preferred + (-u).sigmoid() * (logsigmoid(-u) - math.log(self.epsilon))


@dataclass(frozen=True)
class DiscoPOP:
    """``(1 - s) (-log sigmoid(u)) + s exp(-u)`` with s = sigmoid(u / tau) (arXiv 2406.08414)."""

    tau: float = 0.05
    absolute: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:  # above 1 the product s exp(-u) would grow without bound
            raise ValueError(f"tau = {self.tau}; valid: in (0, 1]")

    def __call__(self, scores: Scores) -> Tensor:
        u = scores.gap
        return (-u / self.tau).sigmoid() * softplus(-u) + (logsigmoid(u / self.tau) - u).exp()


@dataclass(frozen=True)
class NoiseContrastive:
    """NCA (arXiv 2402.05369): ``-log sigmoid(S+) - 1/2 log sigmoid(-S+) - 1/2 log sigmoid(-S-)``."""

    absolute: ClassVar[bool] = True

    def __call__(self, scores: Scores) -> Tensor:
        return softplus(-scores.chosen) + 0.5 * softplus(scores.chosen) + 0.5 * softplus(scores.rejected)


@dataclass(frozen=True)
class BinaryClassifier:
    """BCO on a pair without a shift (arXiv 2404.04656): ``-log sigmoid(S+) - log sigmoid(-S-)``."""

    absolute: ClassVar[bool] = True

    def __call__(self, scores: Scores) -> Tensor:
        return softplus(-scores.chosen) + softplus(scores.rejected)


@dataclass(frozen=True)
class AnchoredUp:
    """APO-zero (arXiv 2408.06266, eq. 7): ``1 - sigmoid(S+) + sigmoid(S-)``."""

    absolute: ClassVar[bool] = True

    def __call__(self, scores: Scores) -> Tensor:
        return (-scores.chosen).sigmoid() + scores.rejected.sigmoid()


@dataclass(frozen=True)
class AnchoredDown:
    """APO-down (arXiv 2408.06266, eq. 8): ``sigmoid(S+) + 1 - sigmoid(S+ - S-)``."""

    absolute: ClassVar[bool] = True

    def __call__(self, scores: Scores) -> Tensor:
        return scores.chosen.sigmoid() + (-scores.gap).sigmoid()


@dataclass(frozen=True)
class SelfPlay:
    """SPPO with hard labels (arXiv 2405.00675): ``(S+ - target)^2 + (S- + target)^2``, target = 1 / (2 beta)."""

    target: float
    absolute: ClassVar[bool] = True

    def __call__(self, scores: Scores) -> Tensor:
        return (scores.chosen - self.target).square() + (scores.rejected + self.target).square()


@dataclass(frozen=True)
class SelfPlaySoft:
    """SPPO (arXiv 2405.00675): ``1/2 (S+ - (p+ - 1/2) / beta)^2 + 1/2 (S- - (p- - 1/2) / beta)^2``.

    p is how often a sequence wins against the current policy's, from ``extras[win_probability]`` [n].
    """

    beta: float
    win_probability: str = "win_probability"
    absolute: ClassVar[bool] = True

    def __call__(self, scores: Scores) -> Tensor:
        chosen, rejected = scores.pairs.of((scores.pairs.sequences.extra(self.win_probability) - 0.5) / self.beta)
        return 0.5 * (scores.chosen - chosen).square() + 0.5 * (scores.rejected - rejected).square()
