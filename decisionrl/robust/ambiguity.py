"""What nature may choose from: a ball around every factor, or every distribution at a price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.robust import operators
from decisionrl.robust.operators import Unseen

Divergence = Literal["tv", "kl", "chi2"]

Reach = Literal["space", "support"]
"""Where total variation may move probability to: any state, or only states that the factor already leads to."""


class RadiusError(ValueError):
    """A radius of a ball, or a weight of a penalty, outside its range."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ball:
    """mu_i in { mu : D(mu || mu0_{h,i}) <= rho_{h,i} }, for every stage h and factor i.

    Attributes:
        radius: rho, one number, or a tensor that broadcasts to [*, H, d]; for total variation in [0, 1], else >= 0.
        divergence: "tv", "kl" or "chi2".
        reach: of total variation. The others never leave the support of mu0.
        unseen: what an estimated KL operator makes of factors without data.

    Raises:
        RadiusError: with the first entry out of range.
    """

    radius: float | Float[Tensor, "*batch H d"]
    divergence: Divergence = "tv"
    reach: Reach = "space"
    unseen: Unseen = "zero"

    def __post_init__(self) -> None:
        _check_choices(self)
        object.__setattr__(self, "radius", torch.as_tensor(self.radius, dtype=torch.float64))
        high = 1.0 if self.divergence == "tv" else torch.inf
        valid = "[0, 1]" if self.divergence == "tv" else "[0, inf)"
        assert isinstance(self.radius, Tensor)
        _check_range("radius", self.radius, (self.radius >= 0) & (self.radius <= high) & self.radius.isfinite(), valid)

    def worst(
        self, h: int, values: Float[Tensor, "*batch S"], factors: Float[Tensor, "*batch d S"]
    ) -> Float[Tensor, "*batch d"]:
        """nu_i = inf over the ball of E_mu V, for known factors of stage h."""
        level = _at(self.radius, h, values)
        rows = values.unsqueeze(-2)
        if self.divergence == "kl":
            return operators.kl_ball(rows, factors, level)
        if self.divergence == "chi2":
            return operators.chi2_ball(rows, factors, level)
        return operators.tv_ball(rows, factors, level, minimum=_minimum(rows, factors, self.reach))

    def estimate(
        self,
        h: int,
        values: Float[Tensor, "*batch S"],
        coefficients: Float[Tensor, "*batch d S"],
        *,
        cap: float | Tensor,
        minimum: float | Tensor = 0.0,
    ) -> Float[Tensor, "*batch d"]:
        """nu_i from least squares: ``coefficients`` = Lambda^{-1} sum_tau phi_tau 1{s'_tau = s}.

        cap: an upper bound of the values at stage h + 1, [*]. minimum: min_s V, [*]; 0 where there is a fail state.
        """
        level = _at(self.radius, h, values)
        rows, cap = values.unsqueeze(-2), _per_factor(cap)
        if self.divergence == "kl":
            return operators.estimated_kl_ball(rows, coefficients, level, cap=cap, unseen=self.unseen)
        if self.divergence == "chi2":
            return operators.estimated_chi2_ball(rows, coefficients, level, cap=cap)
        return operators.estimated_tv_ball(rows, coefficients, level, cap=cap, minimum=_per_factor(minimum))


@dataclass(frozen=True, kw_only=True, eq=False)
class Penalty:
    """inf over all mu of E_mu V + lam_{h,i} D(mu || mu0_{h,i}) (arXiv 2411.18612).

    Small weights are robust; as lam -> inf the nominal model returns.

    Attributes:
        weight: lam > 0, one number, or a tensor that broadcasts to [*, H, d].
        divergence, reach, unseen: as in :class:`Ball`.

    Raises:
        RadiusError: with the first entry out of range.
    """

    weight: float | Float[Tensor, "*batch H d"]
    divergence: Divergence = "tv"
    reach: Reach = "space"
    unseen: Unseen = "zero"

    def __post_init__(self) -> None:
        _check_choices(self)
        object.__setattr__(self, "weight", torch.as_tensor(self.weight, dtype=torch.float64))
        assert isinstance(self.weight, Tensor)
        _check_range("weight", self.weight, (self.weight > 0) & self.weight.isfinite(), "(0, inf)")

    def worst(
        self, h: int, values: Float[Tensor, "*batch S"], factors: Float[Tensor, "*batch d S"]
    ) -> Float[Tensor, "*batch d"]:
        """nu_i = inf over mu of E_mu V + lam_i D(mu || mu0_i), for known factors of stage h."""
        level = _at(self.weight, h, values)
        rows = values.unsqueeze(-2)
        if self.divergence == "kl":
            return operators.kl_penalty(rows, factors, level)
        if self.divergence == "chi2":
            return operators.chi2_penalty(rows, factors, level)
        return operators.tv_penalty(rows, factors, level, minimum=_minimum(rows, factors, self.reach))

    def estimate(
        self,
        h: int,
        values: Float[Tensor, "*batch S"],
        coefficients: Float[Tensor, "*batch d S"],
        *,
        cap: float | Tensor,
        minimum: float | Tensor = 0.0,
    ) -> Float[Tensor, "*batch d"]:
        """nu_i from least squares; arguments as in :meth:`Ball.estimate`."""
        level = _at(self.weight, h, values)
        rows, cap = values.unsqueeze(-2), _per_factor(cap)
        if self.divergence == "kl":
            return operators.estimated_kl_penalty(rows, coefficients, level, cap=cap, unseen=self.unseen)
        if self.divergence == "chi2":
            return operators.estimated_chi2_penalty(rows, coefficients, level, cap=cap)
        return operators.estimated_tv_penalty(rows, coefficients, level, minimum=_per_factor(minimum))


Ambiguity = Ball | Penalty


def _check_choices(ambiguity: Ball | Penalty) -> None:
    for field, choices in (("divergence", Divergence), ("reach", Reach), ("unseen", Unseen)):
        if (value := getattr(ambiguity, field)) not in get_args(choices):
            raise ValueError(f"{field} = {value!r}; valid: {', '.join(get_args(choices))}")


def _check_range(field: str, level: Tensor, inside: Tensor, valid: str) -> None:
    if not inside.all():
        entry = tuple(int(i) for i in (~inside).nonzero()[0])
        place = f"[{', '.join(map(str, entry))}]" if entry else ""
        raise RadiusError(f"{field}{place} = {float(level[entry]):g}; valid: in {valid} (index: ..., stage, factor)")


def _at(level: float | Tensor, h: int, values: Tensor) -> Tensor:
    """The levels of stage h: [*, d], or one number."""
    assert isinstance(level, Tensor)
    if level.dim() > 1:
        level = level[..., h if level.shape[-2] > 1 else 0, :]
    return level.to(values.device)


def _per_factor(bound: float | Tensor) -> float | Tensor:
    """[*] -> [*, 1]."""
    return bound.unsqueeze(-1) if isinstance(bound, Tensor) else bound


def _minimum(rows: Tensor, factors: Tensor, reach: Reach) -> Tensor | None:
    return torch.where(factors > 0, rows, torch.inf).amin(-1) if reach == "support" else None
