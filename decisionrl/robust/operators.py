"""Worst-case expectations over a divergence ball around a distribution, or with a penalty on the divergence.

For values V [..., S] and a distribution p [..., S] (leading dimensions broadcast), with [V]_a = min(V, a):

| D          | ball: inf { E_q V : D(q || p) <= rho }  | penalty: inf { E_q V + lam D(q || p) } |
|------------|-----------------------------------------|----------------------------------------|
| TV         | max_a E[V]_a - rho (a - min_s [V_s]_a)  | E[V]_{min V + lam}                     |
| KL         | max_b -b log E exp(-V / b) - b rho      | -lam log E exp(-V / lam)               |
| chi-square | max_a E[V]_a - sqrt(rho Var[V]_a)       | max_a E[V]_a - Var[V]_a / (4 lam)      |

with TV = sum |q - p| / 2, KL = sum q log(q / p), chi-square = sum (q - p)^2 / p (arXiv 2402.15399, 2411.18612).

The functions ``estimated_*`` take coefficients c [..., S] in place of p, what least squares makes of samples:
E f(V) ~ sum_s c_s f(V_s). They may be negative and need not sum to 1, and the maxima are no longer those of concave
functions; they are still found, over a <= cap or b > 0, where cap bounds the values.

Radii and weights [...] are taken to be in range; :class:`~decisionrl.robust.ambiguity.Ball` and ``Penalty`` check them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Float[Tensor, "... S"]
Scalars = Float[Tensor, "..."]

Unseen = Literal["zero", "cap"]
"""What a factor without data is worth to an estimated KL operator: nothing (pessimistic) or the cap (optimistic)."""

_BISECTIONS = 48
_LOG_RANGE = 40.0  # of b, to both sides of the range of the values
_GRID = 64
_SMALLEST_B = 1e-4  # of the grid, in units of the cap
_GOLDEN_STEPS = 32
_GOLDEN = (5**0.5 - 1) / 2


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

    Where all mass can move to the smallest value of the support, that value is the answer.
    """
    value, low, scale = _normalized(values, probabilities)
    to_the_smallest = -(probabilities * (value == 0)).sum(-1).log()
    left = torch.full_like(to_the_smallest + radius, -_LOG_RANGE)  # of -log b; the divergence grows with it
    right = -left
    for _ in range(_BISECTIONS):
        middle = (left + right) / 2
        too_far = _tilt_divergence(value, probabilities, middle.exp()) > radius
        left, right = torch.where(too_far, left, middle), torch.where(too_far, middle, right)
    inverse = left.exp()
    worst = -(_log_expectation(value, probabilities, inverse) + radius) / inverse
    worst = torch.where(radius > 0, worst, (probabilities * value).sum(-1))
    return low + scale * torch.where(to_the_smallest <= radius, 0.0, worst.clamp(min=0))


def kl_penalty(values: Vectors, probabilities: Vectors, weight: Scalars) -> Scalars:
    """Kullback-Leibler penalty, in closed form."""
    value, low, scale = _normalized(values, probabilities)
    return low - weight * _log_expectation(value, probabilities, scale / weight)


def chi2_ball(values: Vectors, probabilities: Vectors, radius: Scalars) -> Scalars:
    """Chi-square ball: between neighboring values the maximum over a has a closed form, and the best one wins."""
    value, low, scale = _normalized(values, probabilities)
    pieces = _Pieces(value, probabilities, lower=torch.zeros_like(low), upper=torch.ones_like(low))
    a, _ = pieces.maximum(pieces.stationary_ball(radius), _ball_dual(radius))
    mean, variance = _truncated_moments(value, probabilities, a)
    return low + scale * (mean - (radius * variance).sqrt())


def chi2_penalty(values: Vectors, probabilities: Vectors, weight: Scalars) -> Scalars:
    """Chi-square penalty: between neighboring values the maximum over a has a closed form, and the best one wins."""
    value, low, scale = _normalized(values, probabilities)
    pieces = _Pieces(value, probabilities, lower=torch.zeros_like(low), upper=torch.ones_like(low))
    a, _ = pieces.maximum(pieces.stationary_penalty(weight / scale), _penalty_dual(weight / scale))
    mean, variance = _truncated_moments(value, probabilities, a)
    return low + scale * (mean - variance * scale / (4 * weight))


def estimated_tv_ball(
    values: Vectors, coefficients: Vectors, radius: Scalars, *, cap: float | Tensor, minimum: float | Tensor = 0.0
) -> Scalars:
    """max_a sum_s c_s [V_s]_a - rho (a - min(minimum, a)): at 0, at the cap or at one of the values.

    Where rho = 0 the answer is sum_s c_s [V_s]_cap, the estimate without uncertainty, rather than the maximum, which
    noise in the coefficients makes larger.

    cap: [...]. minimum: min_s V_s [...], 0 where there is a fail state. a is in [min(0, min V), cap].
    """
    cap, minimum = _like(cap, values), _like(minimum, values)
    value, c = _sorted(values.minimum(cap.unsqueeze(-1)), coefficients)
    through = c.cumsum(-1)
    estimate, price = (c * value).sum(-1), radius.unsqueeze(-1)
    at_values = (c * value).cumsum(-1) + (through[..., -1:] - through) * value
    at_values = at_values - price * (value - value.minimum(minimum.unsqueeze(-1)))
    lowest = value[..., 0].clamp(max=0)
    at_lowest = through[..., -1] * lowest - radius * (lowest - lowest.minimum(minimum))
    at_cap = estimate - radius * (cap - cap.minimum(minimum))
    return torch.where(radius > 0, at_values.amax(-1).maximum(at_lowest).maximum(at_cap), estimate)


def estimated_tv_penalty(
    values: Vectors, coefficients: Vectors, weight: Scalars, *, minimum: float | Tensor = 0.0
) -> Scalars:
    """sum_s c_s [V_s]_{minimum + lam}."""
    return (coefficients * values.minimum((_like(minimum, values) + weight).unsqueeze(-1))).sum(-1)


def estimated_kl_ball(
    values: Vectors, coefficients: Vectors, radius: Scalars, *, cap: float | Tensor, unseen: Unseen = "zero"
) -> Scalars:
    """max_b -b log w_b - b rho, with w_b the estimate of E exp(-V / b).

    unseen: "zero" estimates w_b = 1 + sum_s c_s (exp(-V_s / b) - 1), kept in [exp(-cap / b), 1] (arXiv 2209.06620);
    "cap" estimates w_b = sum_s c_s exp(-V_s / b), kept above exp(-cap / b) (arXiv 2411.18612). Coefficients that make
    w_b negative for some b make the maximum close to the cap. The function need not have a single peak: a golden
    section runs around the best point of a grid over log b, from 1e-4 cap to cap / rho, beyond which it is negative.
    Where rho = 0 the answer is sum_s c_s V_s.
    """
    cap = _like(cap, values)
    positive = torch.where(radius > 0, radius, 1.0)

    def dual(log_b: Tensor) -> Tensor:
        """[..., points] for log b [..., points]."""
        b = log_b.exp()
        rows = values.unsqueeze(-2), coefficients.unsqueeze(-2)
        return -b * (_log_estimate(*rows, 1 / b, cap.unsqueeze(-1), unseen) + radius.unsqueeze(-1))

    low = (cap * _SMALLEST_B).log()
    shape = np.broadcast_shapes(values.shape[:-1], coefficients.shape[:-1], radius.shape, cap.shape)
    step = ((cap / positive).log() - low).clamp(min=0).expand(shape).unsqueeze(-1) / (_GRID - 1)
    grid = low.unsqueeze(-1) + step * torch.arange(_GRID, dtype=values.dtype, device=values.device)
    best = dual(grid).argmax(-1, keepdim=True)
    center = grid.gather(-1, best)
    left, right = center - step, center + step
    for _ in range(_GOLDEN_STEPS):
        lower, upper = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        rising = dual(lower) < dual(upper)
        left, right = torch.where(rising, lower, left), torch.where(rising, right, upper)
    found = torch.maximum(dual((left + right) / 2), dual(center)).squeeze(-1)
    return torch.where(radius > 0, found.clamp(min=0), (coefficients * values).sum(-1))


def estimated_kl_penalty(
    values: Vectors, coefficients: Vectors, weight: Scalars, *, cap: float | Tensor, unseen: Unseen = "zero"
) -> Scalars:
    """-lam log w_lam, with w as in :func:`estimated_kl_ball`."""
    return -weight * _log_estimate(values, coefficients, 1 / weight, _like(cap, values), unseen)


def estimated_chi2_ball(values: Vectors, coefficients: Vectors, radius: Scalars, *, cap: float | Tensor) -> Scalars:
    """max_a z(a) - sqrt(rho max(0, z2(a) - z(a)^2)), with z = sum_s c_s [V_s]_a and z2 = sum_s c_s [V_s]_a^2.

    a is in [min(0, min V), cap]. Where rho = 0 the answer is z(cap).
    """
    pieces = _estimated_pieces(values, coefficients, cap)
    _, found = pieces.maximum(pieces.stationary_ball(radius), _ball_dual(radius))
    estimate = (coefficients * values.minimum(_like(cap, values).unsqueeze(-1))).sum(-1)
    return torch.where(radius > 0, found, estimate)


def estimated_chi2_penalty(values: Vectors, coefficients: Vectors, weight: Scalars, *, cap: float | Tensor) -> Scalars:
    """max_a z(a) - (z2(a) - z(a)^2) / (4 lam), with z, z2 and a as in :func:`estimated_chi2_ball`."""
    pieces = _estimated_pieces(values, coefficients, cap)
    return pieces.maximum(pieces.stationary_penalty(weight), _penalty_dual(weight))[1]


class _Pieces:
    """z(a) = sum_s w_s [V_s]_a and its variance, a quadratic between neighboring values, [..., S + 1] pieces.

    On a piece, with C the weight of the values above it, P1 and P2 the sums of w V and w V^2 of those below:
    z = P1 + C a and Var = P2 + C a^2 - z^2 = C (1 - C) (a - center)^2 + least.
    """

    def __init__(self, values: Vectors, weights: Vectors, *, lower: Tensor, upper: Tensor) -> None:
        value, w = _sorted(values, weights)
        nothing = torch.zeros_like(w[..., :1])
        below = torch.cat([nothing, w.cumsum(-1)], -1)
        self.above = below[..., -1:] - below
        self.first = torch.cat([nothing, (w * value).cumsum(-1)], -1)
        self.second = torch.cat([nothing, (w * value.square()).cumsum(-1)], -1)
        self.left = torch.cat([lower.unsqueeze(-1) + nothing, value + nothing], -1)
        self.right = torch.cat([value + nothing, upper.unsqueeze(-1) + nothing], -1)
        self.center = self.first / (1 - self.above)
        self.least = self.second - self.first * self.center
        self.curvature = self.above * (1 - self.above)

    def stationary_ball(self, radius: Scalars) -> list[Tensor]:
        """Where z - sqrt(rho Var) may have its maximum inside a piece: slope 0, or the edge of Var < 0."""
        rho = radius.unsqueeze(-1)
        flat = (
            self.above.square() * self.least / (self.curvature * (rho * self.curvature - self.above.square()))
        ).sqrt()
        edge = (-self.least / self.curvature).sqrt()
        return [self.center + flat, self.center - flat, self.center + edge, self.center - edge]

    def stationary_penalty(self, weight: Scalars) -> list[Tensor]:
        """Where z - Var / (4 lam) has slope 0."""
        return [self.center + 2 * weight.unsqueeze(-1) / (1 - self.above)]

    def maximum(
        self, stationary: list[Tensor], dual: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
        """The a of largest dual(z, Var) among the ends of pieces and the stationary points, and that dual.

        What is stationary outside its piece, or nowhere (NaN), is moved into it: any a is a valid one.
        """
        inside = [a.nan_to_num(0.0).minimum(self.right).maximum(self.left) for a in stationary]
        shape = np.broadcast_shapes(self.left.shape, *(each.shape for each in inside))
        a = torch.stack([each.expand(shape) for each in (self.left, self.right, *inside)])
        mean = self.first + self.above * a
        score = dual(mean, self.second + self.above * a.square() - mean.square())
        score, a = score.movedim(0, -1).flatten(-2), a.movedim(0, -1).flatten(-2)
        best, index = score.max(-1)
        return a.gather(-1, index.unsqueeze(-1)).squeeze(-1), best


def _estimated_pieces(values: Vectors, coefficients: Vectors, cap: float | Tensor) -> _Pieces:
    cap = _like(cap, values)
    value = values.minimum(cap.unsqueeze(-1))
    return _Pieces(value, coefficients, lower=value.amin(-1).clamp(max=0), upper=cap)


def _ball_dual(radius: Scalars) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda mean, variance: mean - (radius.unsqueeze(-1) * variance.clamp(min=0)).sqrt()


def _penalty_dual(weight: Scalars) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda mean, variance: mean - variance / (4 * weight.unsqueeze(-1))


def _truncated_moments(values: Vectors, probabilities: Vectors, a: Scalars) -> tuple[Scalars, Scalars]:
    """Mean and variance of [V]_a, without the cancellation of running sums."""
    value = values.minimum(a.unsqueeze(-1))
    mean = (probabilities * value).sum(-1)
    return mean, (probabilities * (value - mean.unsqueeze(-1)).square()).sum(-1)


def _sorted(values: Vectors, weights: Vectors, *, descending: bool = False) -> tuple[Vectors, Vectors]:
    """Values in order, sorted once for all the weights that share them, and the weights in that order."""
    value, order = values.sort(-1, descending=descending)
    shape = np.broadcast_shapes(values.shape, weights.shape)
    return value, weights.expand(shape).gather(-1, order.expand(shape))


def _normalized(values: Vectors, probabilities: Vectors) -> tuple[Vectors, Scalars, Scalars]:
    """(V - low) / scale, in [0, 1] on the support and 0 off it; low and scale, which is positive."""
    support = probabilities > 0
    low = torch.where(support, values, torch.inf).amin(-1)
    scale = torch.where(support, values, -torch.inf).amax(-1) - low
    scale = torch.where(scale > 0, scale, 1.0)
    value = (values - low.unsqueeze(-1)) / scale.unsqueeze(-1)
    return torch.where(support, value, 0.0), low, scale


def _log_expectation(value: Vectors, probabilities: Vectors, inverse: Scalars) -> Scalars:
    """log E exp(-V / b), precise for large and for small b = 1 / inverse."""
    exponent = -value * inverse.unsqueeze(-1)
    change = (probabilities * exponent.expm1()).sum(-1)
    return torch.where(change > -0.5, change.log1p(), (probabilities * exponent.exp()).sum(-1).log())


def _tilt_divergence(value: Vectors, probabilities: Vectors, inverse: Scalars) -> Scalars:
    """KL(q || p) of q proportional to p exp(-V / b): -E_q V / b - log E_p exp(-V / b)."""
    tilted = probabilities * (-value * inverse.unsqueeze(-1)).exp()
    mean = (tilted * value).sum(-1) / tilted.sum(-1)
    return -mean * inverse - _log_expectation(value, probabilities, inverse)


def _log_estimate(values: Vectors, coefficients: Vectors, inverse: Scalars, cap: Tensor, unseen: Unseen) -> Scalars:
    """log w_b, the estimate of log E exp(-V / b) for b = 1 / inverse, within what values up to the cap allow."""
    exponent = -values * inverse.unsqueeze(-1)
    if unseen == "zero":
        log_w = (coefficients * exponent.expm1()).sum(-1).clamp(min=-1, max=0).log1p()
    else:
        log_w = (coefficients * exponent.exp()).sum(-1).clamp(min=0).log()
    return log_w.maximum(-cap * inverse)


def _like(number: float | Tensor, values: Tensor) -> Tensor:
    return torch.as_tensor(number, dtype=values.dtype, device=values.device)
