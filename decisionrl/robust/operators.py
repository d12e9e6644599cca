"""Worst-case expectations over a divergence ball around a distribution, or with a penalty on the divergence.

For values V [..., S] and a distribution p [..., S] (leading dimensions broadcast), with [V]_a = min(V, a):

| D                                | ball: inf { E_q V : D(q || p) <= rho }        | penalty: inf { E_q V + lam D(q || p) } |
|----------------------------------|-----------------------------------------------|----------------------------------------|
| TV, sum |q - p| / 2              | max_a E[V]_a - rho (a - min [V]_a)            | E[V]_{min V + lam}                     |
| KL, sum q log(q / p)             | max_b -b log E exp(-V / b) - b rho            | -lam log E exp(-V / lam)               |
| chi-square, sum (q - p)^2 / p    | max_a E[V]_a - sqrt(rho Var[V]_a)             | max_a E[V]_a - Var[V]_a / (4 lam)      |

(arXiv 2402.15399 section 4, 2411.18612 section 4.) The functions ``estimated_*`` take coefficients c [..., S] in place of
p: what least squares makes of samples, E[f(V)] ~ sum_s c_s f(V_s). They may be negative and need not sum to 1, so the
maxima are no longer of concave functions; they are still found, over a in [0, cap] or b > 0, where cap bounds the values.

Radii and weights [...] are taken to be in range: :class:`~decisionrl.robust.ambiguity.Ball` and ``Penalty`` check them.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Float[Tensor, "... S"]
Scalars = Float[Tensor, "..."]

Unseen = Literal["zero", "cap"]
"""What a factor without data is worth to an estimated KL operator: nothing (pessimistic) or the cap (optimistic)."""

_BISECTIONS = 80
_GOLDEN_STEPS = 48
_GOLDEN = (5**0.5 - 1) / 2
_GRID = 64


def tv_ball(values: Vectors, probabilities: Vectors, radius: Scalars, *, minimum: Scalars | None = None) -> Scalars:
    """Total variation ball, from the primal: mass rho moves from the largest values to the smallest.

    minimum: the value to which the mass moves [...], by default min_s V_s over all states. It must not be above any
    value of positive probability.
    """
    if minimum is None:
        minimum = values.amin(-1)
    value, mass = _sorted(values, probabilities, descending=True)
    above = mass.cumsum(-1) - mass
    moved = torch.minimum((radius.unsqueeze(-1) - above).clamp(min=0), mass)
    return (mass * value).sum(-1) - (moved * (value - minimum.unsqueeze(-1))).sum(-1)


def tv_penalty(values: Vectors, probabilities: Vectors, weight: Scalars, *, minimum: Scalars | None = None) -> Scalars:
    """Total variation penalty; ``minimum`` as in :func:`tv_ball`."""
    if minimum is None:
        minimum = values.amin(-1)
    return (probabilities * values.minimum((minimum + weight).unsqueeze(-1))).sum(-1)


def kl_ball(values: Vectors, probabilities: Vectors, radius: Scalars) -> Scalars:
    """Kullback-Leibler ball: bisection for the b at which the tilted distribution p exp(-V / b) has divergence rho.

    Where the divergence of the smallest value's own distribution is within rho, that value is the answer.
    """
    value, low, scale = _normalized(values, probabilities)
    least = (probabilities * (value == 0)).sum(-1)
    within_reach = -least.log() <= radius
    # b = exp(-t) in units of the range of V; the divergence of the tilt grows with t
    left = torch.full_like(least + radius, -30.0)
    right = torch.full_like(left, 40.0)
    for _ in range(_BISECTIONS):
        middle = (left + right) / 2
        too_far = _tilt_divergence(value, probabilities, middle.exp()) > radius
        left, right = torch.where(too_far, left, middle), torch.where(too_far, middle, right)
    inverse = ((left + right) / 2).exp()
    dual = -(_log_expectation(value, probabilities, inverse) + radius) / inverse
    mean = (probabilities * value).sum(-1)
    normalized = torch.where(within_reach, 0.0, torch.where(radius > 0, dual.clamp(min=0), mean))
    return low + scale * normalized


def kl_penalty(values: Vectors, probabilities: Vectors, weight: Scalars) -> Scalars:
    """Kullback-Leibler penalty, in closed form."""
    value, low, scale = _normalized(values, probabilities)
    return low - weight * _log_expectation(value, probabilities, scale / weight)


def chi2_ball(values: Vectors, probabilities: Vectors, radius: Scalars) -> Scalars:
    """Chi-square ball: the function of a is piecewise of a form whose maximum is known; the best piece wins."""
    value, low, scale = _normalized(values, probabilities)
    pieces = _Pieces(value, probabilities, upper=1.0)
    a = pieces.argmax(pieces.stationary_ball(radius), lambda mean, var: mean - (radius[..., None, None] * var).sqrt())
    mean, variance = _moments(value, probabilities, a)
    return low + scale * (mean - (radius * variance).sqrt())


def chi2_penalty(values: Vectors, probabilities: Vectors, weight: Scalars) -> Scalars:
    """Chi-square penalty: the function of a is piecewise quadratic; the best piece wins."""
    value, low, scale = _normalized(values, probabilities)
    relative = weight / scale
    pieces = _Pieces(value, probabilities, upper=1.0)
    a = pieces.argmax(
        pieces.stationary_penalty(relative), lambda mean, var: mean - var / (4 * relative[..., None, None])
    )
    mean, variance = _moments(value, probabilities, a)
    return low + scale * (mean - variance / (4 * relative))


def estimated_tv_ball(
    values: Vectors, coefficients: Vectors, radius: Scalars, *, cap: float | Tensor, minimum: float | Tensor = 0.0
) -> Scalars:
    """max_{0 <= a <= cap} sum_s c_s [V_s]_a - rho (a - min(minimum, a)): at 0, at the cap or at one of the values.

    Where rho = 0 the answer is sum_s c_s [V_s]_cap, the estimate without uncertainty, and not the maximum, which noise
    in the coefficients makes larger.

    minimum: min_s V_s, 0 where there is a fail state.
    """
    raise NotImplementedError


def estimated_tv_penalty(
    values: Vectors, coefficients: Vectors, weight: Scalars, *, minimum: float | Tensor = 0.0
) -> Scalars:
    """sum_s c_s [V_s]_{minimum + lam}."""
    raise NotImplementedError


def estimated_kl_ball(
    values: Vectors, coefficients: Vectors, radius: Scalars, *, cap: float | Tensor, unseen: Unseen = "zero"
) -> Scalars:
    """max_b -b log w_b - b rho, with w_b the estimate of E exp(-V / b), kept in [exp(-cap / b), 1].

    unseen: "zero" estimates w_b = 1 + sum_s c_s (exp(-V_s / b) - 1) (arXiv 2209.06620), "cap" w_b = sum_s c_s
    exp(-V_s / b) (arXiv 2411.18612). The function of b need not be unimodal: a grid over log b, then a golden
    section around its best point. Where rho = 0 the answer is sum_s c_s V_s.
    """
    raise NotImplementedError


def estimated_kl_penalty(
    values: Vectors, coefficients: Vectors, weight: Scalars, *, cap: float | Tensor, unseen: Unseen = "zero"
) -> Scalars:
    """-lam log w_lam, with w as in :func:`estimated_kl_ball`."""
    raise NotImplementedError


def estimated_chi2_ball(values: Vectors, coefficients: Vectors, radius: Scalars, *, cap: float | Tensor) -> Scalars:
    """max_{0 <= a <= cap} z(a) - sqrt(rho max(0, z2(a) - z(a)^2)), z = sum_s c_s [V_s]_a, z2 = sum_s c_s [V_s]_a^2.

    Where rho = 0 the answer is z(cap).
    """
    raise NotImplementedError


def estimated_chi2_penalty(values: Vectors, coefficients: Vectors, weight: Scalars, *, cap: float | Tensor) -> Scalars:
    """max_{0 <= a <= cap} z(a) + z(a)^2 / (4 lam) - z2(a) / (4 lam), with z and z2 as in :func:`estimated_chi2_ball`."""
    raise NotImplementedError
