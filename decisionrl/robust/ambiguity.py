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
        raise NotImplementedError

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

        cap: an upper bound of the values at stage h + 1. minimum: min_s V, 0 where there is a fail state.
        """
        raise NotImplementedError


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
        raise NotImplementedError

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
        raise NotImplementedError


Ambiguity = Ball | Penalty
