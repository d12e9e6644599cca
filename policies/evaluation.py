"""What a policy says of a batch of experience: the one interface between policies and objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

Observation = Tensor | dict[str, Tensor]
"""One tensor, or one for each key of a Dict space; leading dimensions are the batch's."""


class Batch(Protocol):
    """What ``evaluate`` reads of a batch: padded sequences, the policy's own steps marked by ``mask``.

    ``state`` is the recurrent state [batch, ...] before the first step, and ``start`` is True where an episode
    begins and the state is forgotten; a policy without memory ignores both, and both may be None.
    """

    @property
    def observation(self) -> Observation: ...

    @property
    def action(self) -> Tensor: ...

    @property
    def mask(self) -> Bool[Tensor, "batch step"]: ...

    @property
    def state(self) -> Tensor | None: ...

    @property
    def start(self) -> Bool[Tensor, "batch step"] | None: ...


@dataclass(frozen=True)
class Head:
    """The last linear layer of a policy, ``outputs = W hidden``, for methods that look at its curvature.

    Attributes:
        hidden: h, its input, [batch, step, d].
        score: v, the gradient of log_prob in the outputs, [batch, step, outputs]: ``onehot(a) - pi`` for a
            categorical policy, ``(a - mean) / std**2`` for a Gaussian.
        fisher: u [batch, step, outputs] -> F u, with F the Fisher information in the outputs.
    """

    hidden: Float[Tensor, "batch step hidden"]
    score: Float[Tensor, "batch step outputs"]
    fisher: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """A policy's log-probability of the actions taken, and what else it knows, at every step of a batch.

    ``entropy`` is that of the whole distribution in nats, None where it has no closed form; ``value`` is V(s_t),
    None without a critic; ``head`` is None where the last layer is not linear. Values at masked steps mean nothing.
    """

    log_prob: Float[Tensor, "batch step"]
    entropy: Float[Tensor, "batch step"] | None = None
    value: Float[Tensor, "batch step"] | None = None
    head: Head | None = None
