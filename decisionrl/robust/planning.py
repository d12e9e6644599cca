"""Planning backward over the stages with estimated factors, bonuses, and a rule that improves the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.robust.ambiguity import Ambiguity, Ball
from decisionrl.robust.reference import Reference
from decisionrl.robust.regression import Estimates, Problem

BonusKind = Literal["full", "d1", "d2"]
Order = Literal["evaluate_new", "evaluate_old"]
Ties = Literal["first", "uniform"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bonus:
    """How uncertain Q_h(s, a) is; added by optimistic methods, subtracted by pessimistic ones.

        full:  beta sqrt(phi^T Lambda^{-1} phi)                       (LSVI-UCB, PEVI)
        d1:    beta sum_i phi_i sqrt((Lambda^{-1})_ii)                (arXiv 2402.15399, 2403.09621)
        d2:    beta sqrt(sum_i phi_i^2 (Lambda^{-1})_ii)              (their code); d2 <= d1

    beta: >= 0, one number or [runs].
    """

    kind: BonusKind = "d2"
    beta: float | Float[Tensor, " runs"] = 1.0
    pessimistic: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(BonusKind):
            raise ValueError(f"bonus = {self.kind!r}; valid: {', '.join(get_args(BonusKind))}")
        if not (torch.as_tensor(self.beta) >= 0).all():
            raise ValueError(f"beta = {self.beta}; valid: a number >= 0")

    def __call__(
        self, rows: Float[Tensor, "*batch H SA d"], inverse: Float[Tensor, "runs H d d"]
    ) -> Float[Tensor, "runs H SA"]:
        """With its sign, for all stages at once."""
        beta = self.beta.view(-1, 1, 1) if isinstance(self.beta, Tensor) and self.beta.dim() else self.beta
        beta = -beta if self.pessimistic else beta
        if self.kind == "full":
            return beta * _quadratic(rows, inverse).clamp(min=0).sqrt()
        diagonal = inverse.diagonal(dim1=-2, dim2=-1)
        if self.kind == "d1":
            return beta * _products(rows, diagonal.sqrt())
        return beta * _products(rows.square(), diagonal).sqrt()


class Improvement(Protocol):
    """What becomes of the policy of a stage, and its value."""

    def first(self, h: int, q: Float[Tensor, "runs S A"]) -> Float[Tensor, "runs S A"]:
        """The log-probabilities before anything is learned, in the shape of q."""
        ...

    def __call__(
        self, h: int, q: Float[Tensor, "runs S A"], previous: Float[Tensor, "runs S A"]
    ) -> tuple[Float[Tensor, "runs S A"], Float[Tensor, "runs S"]]:
        """The new log-probabilities and V_h, from Q_h and the log-probabilities so far."""
        ...


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """pi_h(s) = argmax_a Q_h(s, a), V_h = max_a Q_h.

    ties: "uniform" draws among the best actions; "first" takes the one of lowest number, as the authors' code does.
    Exploration needs the draw where many Q stand at their cap.
    """

    ties: Ties = "uniform"

    def __post_init__(self) -> None:
        if self.ties not in get_args(Ties):
            raise ValueError(f"ties = {self.ties!r}; valid: {', '.join(get_args(Ties))}")

    def first(self, h: int, q: Float[Tensor, "runs S A"]) -> Float[Tensor, "runs S A"]:
        return torch.full_like(q, -math.log(q.shape[-1]))

    def __call__(
        self, h: int, q: Float[Tensor, "runs S A"], previous: Float[Tensor, "runs S A"]
    ) -> tuple[Float[Tensor, "runs S A"], Float[Tensor, "runs S"]]:
        value = q.amax(-1, keepdim=True)
        if self.ties == "first":
            best = q.argmax(-1, keepdim=True)
            return torch.full_like(q, -torch.inf).scatter_(-1, best, 0.0), value.squeeze(-1)
        return torch.full_like(q, -torch.inf).masked_fill_(q == value, 0.0).log_softmax(-1), value.squeeze(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Proximal:
    """Policy optimization towards a reference (DR-RPO, arXiv 2510.14246) and near the last policy.

        pi_h = argmax_pi <Q_h, pi> - (1 / eta) KL(pi || pi_ref) - (1 / alpha) KL(pi || pi_old)
             = softmax( ((1 / eta) log pi_ref + (1 / alpha) log pi_old + Q_h) / (1 / eta + 1 / alpha) )
        V_h  = <pi, Q_h> - (1 / eta) KL(pi || pi_ref)

    alpha = inf is soft value iteration, pi proportional to pi_ref exp(eta Q_h); eta = inf is mirror descent, pi
    proportional to pi_old exp(alpha Q_h). The first policy is pi_ref.

    Attributes:
        reference: pi_ref and eta.
        alpha: the step, > 0, one number or [runs].
        order: V_h is that of the new policy, or of the old one ("evaluate_old", arXiv 1912.05830).

    Raises:
        ValueError: a step that is not positive, or neither eta nor alpha finite, which is :class:`Greedy`.
    """

    reference: Reference
    alpha: float | Float[Tensor, " runs"] = torch.inf
    order: Order = "evaluate_new"

    def __post_init__(self) -> None:
        alpha = torch.as_tensor(self.alpha, dtype=torch.float64)
        if not (alpha > 0).all():
            raise ValueError(f"alpha = {self.alpha}; valid: a positive number, or inf")
        if (torch.as_tensor(self.reference.eta).isinf() & alpha.isinf()).any():
            raise ValueError("eta and alpha are both infinite; valid: at least one of them finite (else use Greedy)")
        if self.order not in get_args(Order):
            raise ValueError(f"order = {self.order!r}; valid: {', '.join(get_args(Order))}")

    def first(self, h: int, q: Float[Tensor, "runs S A"]) -> Float[Tensor, "runs S A"]:
        return self.reference.log_policy(h, q).expand_as(q)

    def __call__(
        self, h: int, q: Float[Tensor, "runs S A"], previous: Float[Tensor, "runs S A"]
    ) -> tuple[Float[Tensor, "runs S A"], Float[Tensor, "runs S"]]:
        price, inertia = _inverse(self.reference.eta, q), _inverse(self.alpha, q)
        log_reference = self.reference.log_policy(h, q)
        logits = (price * log_reference + inertia * previous + q) / (price + inertia)
        log_policy = logits.log_softmax(-1)
        followed = log_policy if self.order == "evaluate_new" else previous
        return log_policy, (followed.exp() * (q - price * (followed - log_reference))).sum(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The outcome of planning.

    Attributes:
        q: [runs, H, S, A].
        values: V_0, ..., V_H, [runs, H + 1, S].
        log_policy: [runs, H, S, A].
    """

    q: Float[Tensor, "runs H S A"]
    values: Float[Tensor, "runs stages S"]
    log_policy: Float[Tensor, "runs H S A"]


def plan(
    problem: Problem,
    estimates: Estimates,
    *,
    bonus: Bonus,
    improvement: Improvement,
    ambiguities: Sequence[Ambiguity | None],
    previous: Float[Tensor, "runs H S A"],
) -> Plan:
    """Backward over the stages, for all runs at once:

        nu_h = C_h V_{h+1}, or its worst case over the ambiguity set; 0 at the last stage
        Q_h  = clip(r_h + phi . nu_h +- bonus_h, 0, cap_h), 0 in the fail state
        pi_h, V_h = improvement(Q_h)

    ambiguities: of :func:`by_stage`. previous: log-probabilities of the policy so far.
    """
    stages, states, actions, _ = problem.shape
    q = problem.known_rewards.flatten(-2) + bonus(problem.rows, estimates.inverse)
    q = q.view(-1, stages, states, actions)
    log_policy = torch.empty_like(q)
    values = q.new_zeros(len(q), stages + 1, states)
    for h in reversed(range(stages)):
        weights = estimates.rewards[:, h] if problem.learn_rewards else None
        if h < stages - 1:
            nu = _next_value(problem, ambiguities[h], h, values[:, h + 1], estimates.transitions[:, h])
            weights = nu if weights is None else nu + weights
        own = q[:, h]
        if weights is not None:
            own += problem.predict(h, weights).view_as(own)
        own.clamp_(0, problem.caps_list[h])
        if problem.fail_state is not None:
            own[:, problem.fail_state] = 0
        log_policy[:, h], value = improvement(h, own, previous[:, h])
        values[:, h] = value.clamp_(0, problem.caps_list[h])
    return Plan(q=q, values=values, log_policy=log_policy)


def by_stage(ambiguity: Ambiguity | None, stages: int) -> list[Ambiguity | None]:
    """The ambiguity of every stage, None where it is nominal: where all radii are 0, which need no dual."""
    if not isinstance(ambiguity, Ball):
        return [ambiguity] * stages
    radius = torch.as_tensor(ambiguity.radius)
    radius = radius.reshape(-1, *radius.shape[-2:]) if radius.dim() > 1 else radius.reshape(1, 1, -1)
    uncertain = (radius > 0).any(0).any(-1).expand(stages).tolist()
    return [ambiguity if each else None for each in uncertain]


def _next_value(
    problem: Problem,
    ambiguity: Ambiguity | None,
    h: int,
    values: Float[Tensor, "runs S"],
    coefficients: Float[Tensor, "runs d S"],
) -> Float[Tensor, "runs d"]:
    """nu_h."""
    if ambiguity is None:
        return (coefficients @ values.unsqueeze(-1)).squeeze(-1)
    minimum = 0.0 if problem.fail_state is not None else values.amin(-1)
    return ambiguity.estimate(h, values, coefficients, cap=problem.caps_list[h + 1], minimum=minimum)


def _products(rows: Float[Tensor, "*batch H SA d"], weights: Float[Tensor, "runs H d"]) -> Float[Tensor, "runs H SA"]:
    """rows . w; features that all runs share make one product for each stage."""
    if rows.dim() == 3:
        return (weights.transpose(0, 1) @ rows.mT).transpose(0, 1)
    return (rows @ weights.unsqueeze(-1)).squeeze(-1)


def _quadratic(
    rows: Float[Tensor, "*batch H SA d"], matrices: Float[Tensor, "runs H d d"]
) -> Float[Tensor, "runs H SA"]:
    """phi^T M phi of every row."""
    if rows.dim() > 3:
        return ((rows @ matrices) * rows).sum(-1)
    runs, stages, d, _ = matrices.shape
    product = rows @ matrices.permute(1, 2, 0, 3).reshape(stages, d, runs * d)
    return (product.view(*rows.shape[:-1], runs, d) @ rows.unsqueeze(-1)).squeeze(-1).permute(2, 0, 1)


def _inverse(number: float | Tensor, q: Tensor) -> float | Tensor:
    """1 / number, [runs, 1, 1] where it is one for each run; 0 where it is infinite."""
    if not isinstance(number, Tensor):
        return 1 / number
    return (1 / number.to(q)).view(-1, 1, 1) if number.dim() else 1 / float(number)
