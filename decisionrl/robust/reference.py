"""KL regularization of a policy towards a reference: V_h^pi = <pi, Q_h> - (1 / eta) KL(pi || pi_ref)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

TOLERANCE = 1e-9


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

    def __post_init__(self) -> None:
        eta = torch.as_tensor(self.eta, dtype=torch.float64)
        if not (eta > 0).all():
            raise ValueError(f"eta = {self.eta}; valid: a positive number, or inf for no regularization")
        object.__setattr__(self, "eta", eta)
        if self.policy is None:
            return
        bad = ~((self.policy > 0).all(-1) & ((self.policy.sum(-1) - 1).abs() <= TOLERANCE))
        if bad.any():
            entry = tuple(int(i) for i in bad.nonzero()[0])
            place = f"[{', '.join(map(str, entry))}]" if entry else ""
            raise ReferencePolicyError(
                f"policy{place} = {self.policy[entry].tolist()}; valid: positive probabilities that sum to 1 "
                "(index: ..., stage, state)"
            )

    def log_policy(self, h: int, q: Float[Tensor, "*batch S A"]) -> Float[Tensor, "*batch S A"]:
        """log pi_ref at stage h, in the shape (up to broadcasting) and on the device of q."""
        actions = q.shape[-1]
        if self.policy is None:
            return torch.full((actions,), -math.log(actions), dtype=q.dtype, device=q.device)
        log_policy = self.policy.to(q.device).log()
        if log_policy.dim() < 3:
            return log_policy
        stage: Tensor = log_policy[..., h if log_policy.shape[-3] > 1 else 0, :, :]
        return stage

    def best(
        self, h: int, q: Float[Tensor, "*batch S A"]
    ) -> tuple[Float[Tensor, "*batch S A"], Float[Tensor, "*batch S"]]:
        """The policy that maximizes <pi, Q> - (1 / eta) KL(pi || pi_ref), and the maximum.

        pi is proportional to pi_ref exp(eta Q), V = (1 / eta) log sum_a pi_ref exp(eta Q); where eta = inf, the first
        of the best actions and its Q.
        """
        finite, eta = self._eta(q)
        greedy = nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)
        logits = self.log_policy(h, q) + eta[..., None, None] * q
        soft, value = logits.softmax(-1), logits.logsumexp(-1) / eta.unsqueeze(-1)
        return (
            torch.where(finite[..., None, None], soft, greedy),
            torch.where(finite.unsqueeze(-1), value, q.amax(-1)),
        )

    def value(
        self, h: int, q: Float[Tensor, "*batch S A"], policy: Float[Tensor, "*batch S A"]
    ) -> Float[Tensor, "*batch S"]:
        """<pi, Q> - (1 / eta) KL(pi || pi_ref)."""
        finite, eta = self._eta(q)
        divergence: Tensor = (torch.xlogy(policy, policy) - policy * self.log_policy(h, q)).sum(-1)
        price = torch.where(finite, 1 / eta, 0.0)
        return (policy * q).sum(-1) - price.unsqueeze(-1) * divergence

    def _eta(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Whether eta is finite, and eta, 1 where it is not."""
        assert isinstance(self.eta, Tensor)
        eta = self.eta.to(q)
        return eta.isfinite(), torch.where(eta.isfinite(), eta, 1.0)
