"""Exact robust dynamic programming in linear MDPs, for many instances and radii at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.linear_mdp.model import LinearMDP
from decisionrl.robust.ambiguity import Ambiguity
from decisionrl.robust.reference import Reference


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Robust values of a policy.

    Attributes:
        q: Q_h(s, a) = r_h(s, a) + phi(s, a) . nu_h, [*, H, S, A].
        values: V_h(s), [*, H + 1, S]; 0 at the end.
        policy: pi_h(a | s), [*, H, S, A].
        factor_values: nu_{h,i}, [*, H, d].
        start: E V_0(s_0), [*].
    """

    q: Float[Tensor, "*batch H S A"]
    values: Float[Tensor, "*batch stages S"]
    policy: Float[Tensor, "*batch H S A"]
    factor_values: Float[Tensor, "*batch H d"]
    start: Float[Tensor, "*batch"]


def optimal(mdp: LinearMDP, ambiguity: Ambiguity | None = None, *, reference: Reference | None = None) -> Solution:
    """The optimal robust (regularized) policy and its values.

    ambiguity: None is the nominal model. reference: None is no regularization.
    """
    best = (reference or Reference()).best
    return _backward(mdp, ambiguity, best)


def evaluate(
    mdp: LinearMDP,
    policy: Float[Tensor, "*batch H S A"],
    ambiguity: Ambiguity | None = None,
    *,
    reference: Reference | None = None,
) -> Solution:
    """The robust values of a given policy; the batches of mdp, policy, ambiguity and reference broadcast.

    With targets of shape [Q] and policies of shape [B, 1, H, S, A], ``start`` is the table [B, Q].
    """
    regularized = (reference or Reference()).value

    def follow(h: int, q: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = policy[..., h, :, :]
        return probabilities, regularized(h, q, probabilities)

    return _backward(mdp, ambiguity, follow)


def regret(
    mdp: LinearMDP,
    policy: Float[Tensor, "*batch H S A"],
    ambiguity: Ambiguity | None = None,
    *,
    reference: Reference | None = None,
    best: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """V*(s_0) - V^pi(s_0), both robust and both with the same regularization; best: V*(s_0), if known already."""
    if best is None:
        best = optimal(mdp, ambiguity, reference=reference).start
    return best - evaluate(mdp, policy, ambiguity, reference=reference).start


def _backward(
    mdp: LinearMDP, ambiguity: Ambiguity | None, decide: Callable[[int, Tensor], tuple[Tensor, Tensor]]
) -> Solution:
    """Backward over the stages; ``decide(h, Q_h)`` gives the policy and V_h."""
    value = torch.zeros(mdp.num_states, dtype=mdp.rewards.dtype, device=mdp.device)
    values, qs, policies, nus = [value], list[Tensor](), list[Tensor](), list[Tensor]()
    for h in reversed(range(mdp.horizon)):
        factors = mdp.factors[..., h, :, :]
        nu = (factors @ value.unsqueeze(-1)).squeeze(-1) if ambiguity is None else ambiguity.worst(h, value, factors)
        q = mdp.rewards[..., h, :, :] + torch.einsum("...sad,...d->...sa", mdp.features[..., h, :, :, :], nu)
        policy, value = decide(h, q)
        for found, new in ((nus, nu), (qs, q), (policies, policy), (values, value)):
            found.append(new)
    return Solution(
        q=_stages(qs, 2),
        values=_stages(values, 1),
        policy=_stages(policies, 2),
        factor_values=_stages(nus, 1),
        start=(mdp.initial * value).sum(-1),
    )


def _stages(backward: list[Tensor], dims: int) -> Tensor:
    """Tensors [*, (dims)] of the stages in reverse -> [*, stages, (dims)], with their leading dimensions broadcast."""
    shape = np.broadcast_shapes(*(tensor.shape for tensor in backward))
    return torch.stack([tensor.expand(shape) for tensor in reversed(backward)], -1 - dims)
