"""KL regularization of a policy towards a reference: V_h^pi = <pi, Q_h> - (1 / eta) KL(pi || pi_ref)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class ReferencePolicyError(ValueError):
    """A reference policy with zeros, or that is no distribution."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The regularizer (1 / eta) KL(pi_h(. | s) || pi_ref,h(. | s)).

    Attributes:
        eta: > 0, one number or [*batch]; inf is no regularization.
        policy: pi_ref, broadcasting to [*, H, S, A], all positive; None is uniform (so that the regularizer is
            (log A - entropy) / eta).

    Raises:
        ReferencePolicyError: with the first wrong entry of ``policy``.
        ValueError: an eta that is not positive.
    """

    eta: float | Float[Tensor, "*batch"] = torch.inf
    policy: Float[Tensor, "*batch H S A"] | None = None

    def log_policy(self, h: int, q: Float[Tensor, "*batch S A"]) -> Float[Tensor, "*batch S A"]:
        """log pi_ref at stage h, in the shape (up to broadcasting) and on the device of q."""
        raise NotImplementedError

    def best(
        self, h: int, q: Float[Tensor, "*batch S A"]
    ) -> tuple[Float[Tensor, "*batch S A"], Float[Tensor, "*batch S"]]:
        """The policy that maximizes <pi, Q> - (1 / eta) KL(pi || pi_ref), and the maximum.

        pi is proportional to pi_ref exp(eta Q), V = (1 / eta) log sum_a pi_ref exp(eta Q); where eta = inf, the first
        of the best actions and its Q.
        """
        raise NotImplementedError

    def value(
        self, h: int, q: Float[Tensor, "*batch S A"], policy: Float[Tensor, "*batch S A"]
    ) -> Float[Tensor, "*batch S"]:
        """<pi, Q> - (1 / eta) KL(pi || pi_ref)."""
        raise NotImplementedError
